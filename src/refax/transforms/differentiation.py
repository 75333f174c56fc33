"""What the derivatives share: which leaves of which arguments are differentiated, and their trees.

JAX differentiates one pair (values by argument, trees of arrays); everything else is passed beside
it. Of an object, the Variables that a filter matches are differentiated, and their gradients come
back as a State of the same tree as `nnx.state(object, filter)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..graph.errors import describe_value
from ..graph.plan import Plan, plan_for
from ..graph.variable import Param, Variable, make_variable
from ..graph.verbs import layout_of
from ..lift import errors
from ..lift.arguments import Slot, put_back
from ..lift.call import Call
from ..lift.prefix import FilterPrefix, broadcast, group_leaves, occurrences
from .prefixes import DiffState


class _Wrt(FilterPrefix):
    """The prefix of a differentiated argument: its matching leaves take the argument's number."""

    __slots__ = ()

    def __init__(self, argnum: int, filter: Any):
        super().__init__([(filter, argnum), (..., None)])


def normalize_argnums(argnums: Any) -> list[tuple[int, Any]]:
    given = list(argnums) if isinstance(argnums, Sequence) else [argnums]
    result = []
    for entry in given:
        if isinstance(entry, DiffState):
            result.append((entry.argnum, entry.filter))
        elif isinstance(entry, int):
            result.append((entry, Param))
        else:
            raise TypeError(f"argnums takes ints and nnx.DiffState, got {describe_value(entry)}.")
    return result


def wrt_positions(differentiated: list, count: int, shift: int) -> list[tuple[int, Any]]:
    wrt = []
    for number, filter in differentiated:
        given = count - shift
        if not -given <= number < given:
            raise ValueError(
                f"argnums names argument {number}, but the function was called with {given} "
                "positional arguments. Cure: pass that argument by position."
            )
        wrt.append((shift + (number if number >= 0 else given + number), filter))
    if len({n for n, _ in wrt}) != len(wrt):
        raise ValueError(
            f"argnums names an argument twice: {[n for n, _ in wrt]}. Cure: one DiffState per "
            "argument, with a tuple of filters."
        )
    return wrt


def group_by_argument(call: Call, f: Callable, args: tuple, kwargs: dict, wrt: list) -> None:
    """Group the leaves by the argument that they are differentiated in, or None."""
    prefixes: list[Any] = [None] * len(args)
    for number, filter in wrt:
        prefixes[number] = _Wrt(number, filter)
    found = broadcast((tuple(prefixes), None), (args, kwargs), "argnums")
    labels = errors.argument_names(f, len(args))
    places = []
    for path, obj, entry in found:
        first, *below = path
        if first.idx == 0:
            places += occurrences([(tuple(below), obj, entry)], call.numbers, labels)
        else:
            places += occurrences([(tuple(below), obj, entry)], call.numbers, ())
    call.groups = group_leaves(call.plan, places, [None, *(n for n, _ in wrt)])


def separate(call: Call, wrt: list) -> tuple[Any, Any]:
    """(what is differentiated, the rest), both (values by group, arguments)."""
    args, kwargs = call.tree
    numbers = [n for n, _ in wrt]
    grouped = call.grouped
    diff = (grouped[1:], [args[n] for n in numbers])
    rest = (grouped[0], tuple(None if i in numbers else a for i, a in enumerate(args)), kwargs)
    return diff, (rest, _Numbers(tuple(numbers)))


@jax.tree_util.register_static
class _Numbers:
    """The positions of the differentiated arguments, as static data."""

    def __init__(self, numbers: tuple[int, ...]):
        self.numbers = numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and other.numbers == self.numbers

    def __hash__(self) -> int:
        return hash(self.numbers)


def join(diff: Any, rest: Any) -> tuple[list, Any]:
    (kept, args, kwargs), numbers = rest
    full = list(args)
    for number, value in zip(numbers.numbers, diff[1], strict=True):
        full[number] = value
    return [kept, *diff[0]], (tuple(full), kwargs)


def gradients_of(call: Call, grads: Any, wrt: list) -> list[Any]:
    """The gradient (or tangent) of each differentiated argument, as users get it."""
    return [
        gradient_tree(call, grouped, tree, each)
        for each, grouped, tree in zip(wrt, grads[0], grads[1], strict=True)
    ]


def gradient_tree(call: Call, grads: list, tree: Any, wrt: tuple[int, Any]) -> Any:
    """The gradient of one argument: arrays as they are, a State for each object."""
    number, filter = wrt
    assert call.groups is not None
    group = call.groups.entries.index(number)
    plan = call.plan
    of_leaf: dict[Any, Any] = {}
    for leaf, g in zip(call.groups.members[group], grads, strict=True):
        of_leaf[_identity(plan, leaf)] = g
    states = [_state_of(root, filter, of_leaf) if _used(tree, i) else None
              for i, root in enumerate(call.roots)]  # fmt: skip
    return put_back(tree, states)


def _used(tree: Any, number: int) -> bool:
    slots = jax.tree.leaves(tree, is_leaf=lambda x: type(x) is Slot)
    return any(type(x) is Slot and x.number == number for x in slots)


def _identity(plan: Plan, leaf: int) -> Any:
    """What tells a leaf from the others, in whatever plan it is seen."""
    if leaf < len(plan.variables):
        return id(plan.variables[leaf])
    container, key = plan.arrays[leaf - len(plan.variables)]
    return (id(container), key)


def _state_of(root: Any, filter: Any, of_leaf: dict[Any, Any]) -> Any:
    plan = plan_for((root,))
    if isinstance(root, Variable):
        return make_variable(type(root), of_leaf[id(root)], root._metadata)
    values: list[Any] = [
        make_variable(type(v), of_leaf.get(id(v)), v._metadata) for v in plan.variables
    ]
    count = len(values)
    values += [of_leaf.get(_identity(plan, count + i)) for i in range(len(plan.arrays))]
    return layout_of(plan, filter).build(values)


def name_like(inner: Any, function: Callable) -> None:
    inner.__name__ = getattr(function, "__name__", "function")
    inner.__qualname__ = getattr(function, "__qualname__", inner.__name__)
