"""What the derivatives share: which leaves of which arguments are differentiated, and their trees.

JAX differentiates one pair (values by argument, trees of arrays); everything else is passed beside
it. Of an object, the Variables that a filter matches are differentiated, and their gradients come
back as a State of the same tree as `nnx.state(object, filter)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..graph.plan import plan_for
from ..lift.arguments import named_like, put_back, slot_numbers, unbind
from ..lift.call import Call, enter, occurrences_in, pure_function
from ..lift.prefix import FilterPrefix, group_leaves
from ..objects.errors import describe_value
from ..objects.variable import Variable, make_variable
from ..objects.variable_types import Param
from ..verbs.layouts import layout_of
from .prefixes import DiffState


class _Wrt(FilterPrefix):
    """The prefix of a differentiated argument: its matching leaves take the argument's number."""

    __slots__ = ()

    def __init__(self, argnum: int, filter: Any):
        super().__init__([(filter, argnum), (..., None)])


def normalize_argnums(argnums: Any) -> list[tuple[int, Any]]:
    several = isinstance(argnums, Sequence) and not isinstance(argnums, str)
    given = list(argnums) if several else [argnums]
    result = []
    for entry in given:
        if isinstance(entry, DiffState):
            result.append((entry.argnum, entry.filter))
        elif isinstance(entry, int):
            result.append((entry, Param))
        else:
            raise TypeError(
                f"argnums takes ints and nnx.DiffState, got {describe_value(entry)}.\n"
                "Cure: give the position of the argument."
            )
    return result


def wrt_positions(differentiated: list, count: int, shift: int) -> list[tuple[int, Any]]:
    wrt = []
    for number, filter in differentiated:
        given = count - shift
        if not -given <= number < given:
            raise ValueError(
                f"argnums names argument {number}, but the function was called with {given} "
                "positional arguments.\nCure: pass that argument by position."
            )
        wrt.append((shift + (number if number >= 0 else given + number), filter))
    if len({n for n, _ in wrt}) != len(wrt):
        raise ValueError(
            f"argnums names an argument twice: {[n for n, _ in wrt]}.\nCure: one DiffState per "
            "argument, with a tuple of filters."
        )
    return wrt


def group_by_argument(call: Call, f: Callable, args: tuple, wrt: list) -> None:
    """Group the leaves by the argument that they are differentiated in, or None."""
    prefixes: list[Any] = [None] * len(args)
    for number, filter in wrt:
        prefixes[number] = _Wrt(number, filter)
    places = occurrences_in(call, f, tuple(prefixes), "argnums")
    call.groups = group_leaves(call.plan, places, [None, *(n for n, _ in wrt)])


def prepare(
    f: Callable, args: tuple, kwargs: dict[str, Any], differentiated: list, has_aux: bool
) -> tuple[Call, list[tuple[int, Any]], Any, Callable]:
    """(call, what is differentiated, its values and trees, the function of these).

    The function returns (value, what `leave` takes), for JAX an aux; that returns the user's aux.

    Args:
        f: the user's function or method, of `args` and `kwargs`.
        differentiated: as `normalize_argnums` gives it.
        has_aux: whether it returns (value, aux).
    """
    function, bound = unbind(f)
    args = args if bound is None else (bound, *args)
    wrt = wrt_positions(differentiated, len(args), 0 if bound is None else 1)
    call = enter(args, kwargs)
    group_by_argument(call, function, args, wrt)
    diff, rest = separate(call, wrt)

    def arrange(result: Any, grouped: list, static: Any) -> Any:
        value, aux = _pair(result) if has_aux else (result, None)
        if slot_numbers(value):
            raise TypeError(
                "The value of a differentiated function must be arrays, but it has an object in "
                "it.\nCure: return the object's arrays (nnx.state), or the object as aux."
            )
        return value, (aux, grouped, static)

    pure = pure_function(function, call, returned=arrange)

    def of_diff(diff: Any) -> Any:
        return pure(*join(diff, rest, wrt))

    return call, wrt, diff, named_like(function, of_diff)


def _pair(result: Any) -> Any:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"has_aux=True, but the function returned {describe_value(result)}.\n"
            "Cure: return (loss, aux)."
        )
    return result


def separate(call: Call, wrt: list) -> tuple[Any, Any]:
    """(what is differentiated, the rest), both (values by group, arguments)."""
    args, kwargs = call.tree
    numbers = [n for n, _ in wrt]
    grouped = call.grouped
    rest = (grouped[0], tuple(None if i in numbers else a for i, a in enumerate(args)), kwargs)
    return (grouped[1:], [args[n] for n in numbers]), rest


def join(diff: Any, rest: Any, wrt: list) -> tuple[list, Any]:
    """(values by group, tree) of what `separate` gave."""
    kept, args, kwargs = rest
    full = list(args)
    for (number, _), value in zip(wrt, diff[1], strict=True):
        full[number] = value
    return [kept, *diff[0]], (tuple(full), kwargs)


def gradient_builder(call: Call, wrt: list, argnums: Any = ()) -> Callable[[Any], Any]:
    """How the derivatives of a call become what users get: one State for each object.

    That is a tuple with one for each argument, or only one where `argnums` is not several.

    To be made before the call is left: gradients are of the objects as they came in.

    Returns:
        A function of (derivatives by argument, trees of them with slots).
    """
    frames = [
        (number, {i: _frame(call, i, filter) for i in slot_numbers(call.tree[0][number])})
        for number, filter in wrt
    ]

    def build(grads: Any) -> Any:
        results = []
        for (number, states), values, tree in zip(frames, grads[0], grads[1], strict=True):
            leaves = call.groups.members[call.groups.entries.index(number)]
            of_leaf = dict(zip(leaves, values, strict=True))
            objects = [states[i](of_leaf) if i in states else None for i in range(len(call.roots))]
            results.append(put_back(tree, objects))
        return tuple(results) if isinstance(argnums, Sequence) else results[0]

    return build


def _frame(call: Call, number: int, filter: Any) -> Callable[[dict[int, Any]], Any]:
    """(derivatives by leaf of the call) → the State of a root, or a Variable for a Variable.

    None for a Variable that the filter does not match.
    """
    root, graphdef = call.roots[number], call.plan.graphdef
    if isinstance(root, Variable):
        (_, leaf), *_ = graphdef.all_paths(graphdef.roots[number])
        kind, metadata = type(root), root._metadata
        return lambda of: make_variable(kind, of[leaf], metadata) if leaf in of else None
    plan = plan_for((root,))
    layout = layout_of(plan, filter)
    of_path = dict(graphdef.all_paths(graphdef.roots[number]))
    cells = [(i, of_path[plan.graphdef.paths.leaves[i]]) for i in layout.leaves]
    kinds = [(type(v), v._metadata) for v in plan.variables]
    total = len(kinds) + len(plan.arrays)

    def state(of_leaf: dict[int, Any]) -> Any:
        values: list[Any] = [None] * total
        for i, leaf in cells:
            value = of_leaf.get(leaf)
            values[i] = make_variable(kinds[i][0], value, kinds[i][1]) if i < len(kinds) else value
        return layout.build(values)

    return state
