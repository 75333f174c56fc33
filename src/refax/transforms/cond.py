"""`cond` and `switch`: branches over the same operands that leave them in the same form.

What the branches write is found by a first, abstract look at each; then every branch returns the
union, so that a program has one form whatever branch runs, and read-only leaves stay inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..lift.call import CallForm, enter, leave, pure_function
from ..lift.inside import Change, Static
from ..lift.programs import eager_program
from ..objects.variable import Variable
from .branch_errors import Look, different_structures, different_values

_NO_OPERAND = object()


def cond(
    pred: Any, true_fun: Callable, false_fun: Callable, *operands: Any, operand: Any = _NO_OPERAND
) -> Any:
    """`jax.lax.cond` with objects in the operands.

    Both branches must leave the objects with the same structure; values may be written by either.

    Args:
        pred: which branch, a boolean scalar.
        true_fun, false_fun: the branches, functions of the operands.
        *operands: any pytrees with objects.
        operand: the only operand, by keyword.

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
    if operand is not _NO_OPERAND:
        operands = (*operands, operand)

    def choose(branches: Sequence[Callable], pred: Any, *inputs: Any) -> Any:
        return jax.lax.cond(pred, *branches, *inputs)

    return _branch(pred, (true_fun, false_fun), operands, choose, "cond")


def switch(
    index: Any, branches: Sequence[Callable], *operands: Any, operand: Any = _NO_OPERAND
) -> Any:
    """`jax.lax.switch` with objects in the operands; `index` is clamped to the branches.

    All branches must leave the objects with the same structure; `operand` as in `nnx.cond`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> v = nnx.Variable(jnp.array(3))
        >>> int(nnx.switch(1, [lambda v: v + 1, lambda v: v * 2], v))
        6
    """

    if operand is not _NO_OPERAND:
        operands = (*operands, operand)
    if not branches:
        raise ValueError("switch: there are no branches.\nCure: give at least one function.")

    def choose(branches: Sequence[Callable], index: Any, *inputs: Any) -> Any:
        return jax.lax.switch(index, branches, *inputs)

    return _branch(index, tuple(branches), operands, choose, "switch")


def _branch(
    selector: Any, branches: tuple[Callable, ...], operands: tuple, choose: Callable, name: str
) -> Any:
    call = enter(operands, {})

    def make(functions: tuple[Callable, ...]) -> Callable:
        form = call.form(branches[0])

        def run(grouped: Any, tree_and_selector: Any) -> Any:
            tree, selector = tree_and_selector
            looks: list[Look] = []
            for function in functions:
                look = pure_function(function, form, explicit=True)
                looks.append(Look(*jax.eval_shape(look, grouped, tree)))
            written = _written(looks, functions, form, name)
            pures = [
                pure_function(f, form, force=written, explicit=True, returned=lambda *out: out[:2])
                for f in functions
            ]
            try:
                result, out = choose(pures, selector, grouped, tree)
            except TypeError:
                _check_values(looks, functions, form, name)
                raise
            return result, out, _static(looks[0].change, written)

        return run

    selector = selector.value if isinstance(selector, Variable) else selector
    key = (name, call.plan.graphdef)
    program = eager_program(branches, key, make)
    return leave(call, program(call.grouped, (call.tree, selector)))


def _static(change: Change, written: frozenset[int]) -> Static:
    dirty = (tuple(sorted(written)),) if change.graph is None else ()
    return Static(Change(dirty, change.graph))


def _written(
    looks: Sequence[Look], branches: Sequence[Callable], form: CallForm, name: str
) -> frozenset[int]:
    """The leaves that any branch writes; raises if the branches leave different structures."""
    first = looks[0]
    for look, branch in zip(looks[1:], branches[1:], strict=True):
        if look.change.graph != first.change.graph:
            raise different_structures(name, form, (branches[0], branch), (first, look))
    return frozenset(leaf for look in looks for group in look.change.dirty for leaf in group)


def _check_values(
    looks: Sequence[Look], branches: Sequence[Callable], form: CallForm, name: str
) -> None:
    """Say which values differ, when JAX has refused, in the caller's words."""
    for look, branch in zip(looks[1:], branches[1:], strict=True):
        error = different_values(name, form, (branches[0], branch), (looks[0], look))
        if error is not None:
            raise error from None
