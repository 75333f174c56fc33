"""`cond` and `switch`: branches over the same operands that leave them in the same form.

What the branches write is found by a first, abstract look at each; then every branch returns the
union, so that a program has one form whatever branch runs, and read-only leaves stay inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..graph.errors import path_string
from ..lift.call import Call, enter, leave, pure_function
from ..lift.errors import PrefixError
from ..lift.inside import Change
from ..lift.places import outline
from ..lift.programs import eager_program


def cond(pred: Any, true_fun: Callable, false_fun: Callable, *operands: Any, **kwargs: Any) -> Any:
    """`jax.lax.cond` with objects in the operands.

    Both branches must leave the objects with the same structure; values may be written by either.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> count = nnx.Variable(jnp.array(0))
        >>> def add(v):
        ...     v += 1
        >>> nnx.cond(True, add, lambda v: None, count)
        >>> int(count)
        1
    """
    if kwargs:
        operands = (*operands, *kwargs.values())

    def choose(branches: Sequence[Callable], pred: Any, *inputs: Any) -> Any:
        return jax.lax.cond(pred, *branches, *inputs)

    return _branch(pred, (true_fun, false_fun), operands, choose, "cond")


def switch(index: Any, branches: Sequence[Callable], *operands: Any) -> Any:
    """`jax.lax.switch` with objects in the operands; `index` is clamped to the branches.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> v = nnx.Variable(jnp.array(3))
        >>> int(nnx.switch(1, [lambda v: v + 1, lambda v: v * 2], v))
        6
    """

    def choose(branches: Sequence[Callable], index: Any, *inputs: Any) -> Any:
        return jax.lax.switch(index, branches, *inputs)

    return _branch(index, tuple(branches), operands, choose, "switch")


def _branch(
    selector: Any, branches: tuple[Callable, ...], operands: tuple, choose: Callable, name: str
) -> Any:
    call = enter(operands, {})

    def make(functions: tuple[Callable, ...]) -> Callable:
        def run(grouped: Any, tree_and_selector: Any) -> Any:
            tree, selector = tree_and_selector
            seen: list[Change] = []
            for function in functions:
                look = pure_function(function, call, explicit=True)
                seen.append(jax.eval_shape(look, grouped, tree)[2].change)
            written = _written(seen, branches, call, name)
            pures = [
                pure_function(f, call, force=written, explicit=True, returned=_without_static)
                for f in functions
            ]
            result, out = choose(pures, selector, grouped, tree)
            return result, out, _static(seen, written)

        return run

    selector = getattr(selector, "value", selector) if hasattr(selector, "value") else selector
    key = (name, call.plan.graphdef)
    program = eager_program(branches, key, make) if branches else make(())
    return leave(call, program(call.grouped, (call.tree, selector)))


def _without_static(result: Any, grouped: Any, static: Any) -> Any:
    return result, grouped


def _static(seen: list[Change], written: frozenset[int]) -> Any:
    from ..lift.inside import Static

    graph = seen[0].graph
    dirty = (tuple(sorted(written)),) if graph is None else ()
    return Static(Change(dirty, graph))


def _written(
    seen: list[Change], branches: Sequence[Callable], call: Call, name: str
) -> frozenset[int]:
    """The leaves that any branch writes; raises if the branches leave different structures."""
    first = seen[0]
    for change, branch in zip(seen[1:], branches[1:], strict=True):
        if change.graph != first.graph:
            raise PrefixError(
                f"{name}: the branches leave different structures.\n"
                f"{_difference(call, first, change, branches[0], branch)}\n"
                "Cure: make the same attributes in every branch, or before the call."
            )
    return frozenset(leaf for change in seen for group in change.dirty for leaf in group)


def _difference(call: Call, a: Change, b: Change, f: Callable, g: Callable) -> str:
    before = call.plan.graphdef
    left, right = (outline(c.graph.graphdef if c.graph is not None else before) for c in (a, b))
    names = [getattr(x, "__name__", repr(x)) for x in (f, g)]
    for path in sorted({*left, *right}, key=str):
        if left.get(path) != right.get(path):
            return (
                f"At `{path_string(path)}`: {left.get(path, 'nothing')} after `{names[0]}`, "
                f"{right.get(path, 'nothing')} after `{names[1]}`."
            )
    return f"`{names[0]}` and `{names[1]}` refer to different objects in the same places."
