"""`cond` and `switch`: branches over the same operands that leave them in the same form.

Each branch is traced once, to a jaxpr, which tells what it writes. The conditional is made of the
jaxprs, each returning the union of what any of them writes: a program has one form whatever branch
runs, read-only leaves stay inputs, and the Python of a branch runs once, however deep it is nested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from .._jax_compat import jaxpr_as_fun
from ..lift.call import CallForm, enter, leave, pure_function
from ..lift.faults import execute
from ..lift.inside import Change
from ..lift.programs import eager_program
from ..objects.modes import Switch
from ..objects.variable import Variable
from .bound import Together
from .branch_errors import Look, different_structures, different_values

_NO_OPERAND = object()


def cond(
    pred: Any,
    true_fun: Callable,
    false_fun: Callable,
    *operands: Any,
    operand: Any = _NO_OPERAND,
    graph: Switch = None,
    graph_updates: Switch = None,
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

    branches = {"true_fun": true_fun, "false_fun": false_fun}
    return _branch(pred, branches, operands, choose, "cond")


def switch(
    index: Any,
    branches: Sequence[Callable],
    *operands: Any,
    operand: Any = _NO_OPERAND,
    graph: Switch = None,
    graph_updates: Switch = None,
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

    named = {f"branches[{i}]": branch for i, branch in enumerate(branches)}
    return _branch(index, named, operands, choose, "switch")


def _branch(
    selector: Any, branches: Mapping[str, Callable], operands: tuple, choose: Callable, name: str
) -> Any:
    together = Together(branches)
    call = enter(operands, together.objects)

    def make(functions: tuple[Callable, ...]) -> Callable:
        form, given = call.form(next(iter(branches.values()))), together.arranged(functions)

        def run(grouped: Any, tree_and_selector: Any) -> Any:
            tree, selector = tree_and_selector
            pures = [pure_function(f, form, explicit=True) for f in given]
            traced = [jax.make_jaxpr(f, return_shape=True)(grouped, tree) for f in pures]
            looks = [Look(*out) for _, out in traced]
            written = sorted(_written(looks, given, form, name))
            parts = [_of_jaxpr(jaxpr, out, written) for jaxpr, out in traced]
            try:
                result, out = choose(parts, selector, grouped, tree)
            except TypeError:
                _check_values(looks, given, form, name)
                raise
            return result, out, _all_written(looks[0].change, written)

        return run

    selector = selector.value if isinstance(selector, Variable) else selector
    key = (name, call.plan.graphdef, tuple(together.names))
    program = eager_program(together.functions, key, make)
    first = next(iter(branches.values()))
    return leave(call, execute(call, first, program, call.grouped, (call.tree, selector)))


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


def _all_written(change: Change, written: Sequence[int]) -> Change:
    dirty = (tuple(written),) if change.graph is None else ()
    return Change(dirty, change.graph)


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
