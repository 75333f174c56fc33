"""`cond` and `switch`: branches over the same operands that leave them in the same form.

Each branch is traced once, to a jaxpr, which tells what it writes. The conditional is made of the
jaxprs, each returning the union of what any of them writes: a program has one form whatever branch
runs, read-only leaves stay inputs, and the Python of a branch runs once, however deep it is nested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack, overload

import jax

from .._jax_compat import jaxpr_as_fun
from ..lift.call import enter, leave, pure_function
from ..lift.faults import execute
from ..lift.inside import Change
from ..lift.programs import eager_program
from ..objects.modes import Modes, Switch, checked
from ..objects.node import Node
from ..objects.type_names import B, R, Ts
from ..objects.variable import Variable
from .bound import Together
from .branch_errors import Look, check_structures, check_values

_NO_OPERAND = object()


# fmt: off
@overload
def cond(pred: Any, true_fun: Callable[[*Ts], R], false_fun: Callable[[*Ts], R], *operands: *Ts,
         **modes: Unpack[Modes]) -> R: ...
@overload
def cond(pred: Any, true_fun: Callable[[B], R], false_fun: Callable[[B], R], *, operand: B,
         **modes: Unpack[Modes]) -> R: ...
# fmt: on
@checked
def cond(
    pred: Any,
    true_fun: Callable[..., R],
    false_fun: Callable[..., R],
    *operands: Any,
    operand: Any = _NO_OPERAND,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> R:
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
    branches = {"true_fun": true_fun, "false_fun": false_fun}

    def choose(pred: Any, branches: Sequence[Callable], *inputs: Any) -> Any:
        return jax.lax.cond(pred, *branches, *inputs)

    return _branch("cond", choose, pred, branches, operands, operand)


# fmt: off
@overload
def switch(index: Any, branches: Sequence[Callable[[*Ts], R]], *operands: *Ts,
           **modes: Unpack[Modes]) -> R: ...
@overload
def switch(index: Any, branches: Sequence[Callable[[B], R]], *, operand: B,
           **modes: Unpack[Modes]) -> R: ...
@overload  # where a checker sees of a list of objects what they have in common only
def switch(index: Any, branches: Sequence[Node], *operands: Any, operand: Any = ...,
           **modes: Unpack[Modes]) -> Any: ...
# fmt: on
@checked
def switch(  # type: ignore[misc]
    index: Any,
    branches: Sequence[Callable[..., R]],
    *operands: Any,
    operand: Any = _NO_OPERAND,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> R:
    """`jax.lax.switch` with objects in the operands; `index` is clamped to the branches.

    All branches must leave the objects with the same structure; `operand` as in `nnx.cond`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> v = nnx.Variable(jnp.array(3))
        >>> int(nnx.switch(1, [lambda v: v + 1, lambda v: v * 2], v))
        6
    """
    if not branches:
        raise ValueError("switch: there are no branches.\nCure: give at least one function.")

    named = {f"branches[{i}]": branch for i, branch in enumerate(branches)}
    return _branch("switch", jax.lax.switch, index, named, operands, operand)


def _branch(
    name: str,
    choose: Callable,
    selector: Any,
    branches: Mapping[str, Callable],
    operands: tuple,
    operand: Any,
) -> Any:
    """`choose(selector, branches, *inputs)` of functions of the operands."""
    together, first = Together(branches), next(iter(branches.values()))
    operands = operands if operand is _NO_OPERAND else (*operands, operand)
    call = enter(operands, together.objects)

    def make(functions: tuple[Callable, ...]) -> Callable:
        form, given = call.form(first), together.arranged(functions)

        def run(grouped: Any, tree: Any, selector: Any) -> Any:
            pures = [pure_function(f, form, explicit=True) for f in given]
            traced = [jax.make_jaxpr(f, return_shape=True)(grouped, tree) for f in pures]
            looks = [Look(*out) for _, out in traced]
            written = sorted(check_structures(name, form, given, looks))
            parts = [_of_jaxpr(jaxpr, out, written) for jaxpr, out in traced]
            try:
                result, out = choose(selector, parts, grouped, tree)
            except TypeError:
                check_values(name, form, given, looks)
                raise
            graph = looks[0].change.graph
            dirty = (tuple(written),) if graph is None else ()
            return result, out, Change(dirty, graph)

        return run

    selector = selector.value if isinstance(selector, Variable) else selector
    key = (name, call.plan.graphdef, tuple(together.names))
    program = eager_program(together.functions, key, make)
    return leave(call, execute(call, first, program, call.grouped, call.tree, selector))


def _of_jaxpr(jaxpr: Any, out: Any, written: Sequence[int]) -> Callable:
    """A traced branch, as a function of its inputs that gives out all that is written."""
    structure = jax.tree.structure(out)
    function = jaxpr_as_fun(jaxpr)

    def branch(grouped: Any, tree: Any) -> Any:
        outputs = function(*jax.tree.leaves((grouped, tree)))
        result, groups, change = structure.unflatten(outputs)
        if change.graph is None:
            (before,), (changed,), (leaves,) = grouped, groups, change.dirty
            of_leaf = dict(zip(leaves, changed, strict=True))
            groups = [[of_leaf.get(leaf, before[leaf]) for leaf in written]]
        return result, groups

    return branch
