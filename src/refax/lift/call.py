"""One call of a transformed function, from objects to flat values and back.

    call = enter(function, args, kwargs)          objects → plan, groups, a tree with slots
    pure = pure_function(function, call, …)       (values by group, tree) → (result, values, change)
    out  = jax.some_transform(pure, …)(call.grouped, call.tree)
    return leave(call, out)                       written back, all or nothing

A transform is its prefix rule and the third line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from .._jax_compat import is_outside_of_traces
from ..graph.graphdef import GraphDef
from ..graph.plan import Plan, plan_for
from ..graph.walk import Walk, key_name, walk
from ..objects.node import Node, set_object_path
from ..objects.trace_errors import tracing
from ..verbs.scopes import Path, call_scoped, goes_on, is_method, path_of
from . import errors
from .arguments import Slot, named_like, put_back, slot_places, take_apart
from .axis_names import AxisName
from .borders import check_border, containers_kept
from .inside import Change, Inside, Leaving
from .prefix import (
    Groups,
    Occurrence,
    OutputRules,
    Sorted,
    all_entries,
    group_leaves,
    is_entry,
    occurrences,
)
from .write_back import write_back

_NOTHING = Plan(walk(()))


class Call:
    """The arguments of one call, taken apart."""

    def __init__(self, roots: list[Any], numbers: dict[int, int], tree: Any):
        self.roots = roots
        self.numbers = numbers  # id of an object → its number
        self.tree = tree  # (args, kwargs) with slots
        self.plan = plan_for(tuple(roots)) if roots else _NOTHING
        self.values = self.plan.gather()

    @functools.cached_property
    def groups(self) -> Groups:
        """Everything in one group, unless a transform with prefixes sets others."""
        total = len(self.values)
        return self.graphdef.remembered(("one group", total), lambda: Groups((None,), (0,) * total))

    @functools.cached_property
    def paths(self) -> Sequence[Path | None]:
        """What the roots are called in the trace that the call is made in."""
        if is_outside_of_traces():
            return [None] * len(self.roots)
        return [path_of(x) if isinstance(x, Node) else None for x in self.roots]

    @property
    def grouped(self) -> list[list[Any]]:
        return self.groups.take(self.values)

    @property
    def graphdef(self) -> GraphDef:
        return self.plan.graphdef

    def form(self, function: Callable) -> CallForm:
        """What a program of `function` may keep; a program outlives the objects of a call."""
        return CallForm(
            self.graphdef,
            self.groups,
            root_places(self.tree, function),
            [type(root).__name__ for root in self.roots],
            [jax.tree.map(jax.typeof, value) for value in self.values],
            self.paths,
        )


class CallForm(NamedTuple):
    """A call without objects and arrays."""

    graphdef: GraphDef
    groups: Groups
    places: Sequence[str]  # of the roots among the arguments
    kinds: Sequence[str]  # the names of the roots' types
    types: Sequence[Any]  # of the leaves' values
    paths: Sequence[Path | None]  # of the roots


def root_places(tree: Any, function: Callable) -> list[str]:
    """Where each root of a call stands among the arguments: `model`, `batch['x']`.

    Args:
        tree: (args, kwargs) with slots.
        function: for the names of its arguments.
    """
    labels = errors.argument_names(function, len(tree[0]))
    places = slot_places(tree, lambda path: errors.argument_place(path, labels))
    return [places[i] for i in range(len(places))]


def _name_objects(
    inside: Inside, paths: Sequence[Path | None], tree: Any, function: Callable
) -> None:
    """Tell the objects of a trace what they are called, for `verbs/scopes.py`.

    Args:
        paths: of the roots; those without one are called as the arguments of `function` are.
    """
    roots = [x if isinstance(x, Node) else None for x in inside.roots]
    if not any(roots):
        return
    if None in [path for path, root in zip(paths, roots, strict=True) if root is not None]:
        labels = errors.argument_names(function, len(tree[0]))
        if tree[0] and type(tree[0][0]) is Slot and is_method(function, roots[0]):
            labels[0] = "" if goes_on() else type(roots[0]).__name__

        def place(path: Any) -> Any:
            kind, first, *below = path
            return (labels[first.idx] if kind.idx == 0 else first.key, *map(key_name, below))

        places: Any = slot_places(tree, place)
        paths = [path or places[i] for i, path in enumerate(paths)]
    several = len(roots) > 1
    for obj, at in zip(inside.objects, inside.graphdef.paths.nodes, strict=True):
        if isinstance(obj, Node):
            root, *below = at if several else (0, *at)
            set_object_path(obj, (*(paths[root] or ()), *below))


def enter(args: tuple, kwargs: dict[str, Any]) -> Call:
    roots: list[Any] = []
    numbers: dict[int, int] = {}
    taken = take_apart(args, roots, numbers)
    tree = (taken, take_apart(kwargs, roots, numbers) if kwargs else {})
    return Call(roots, numbers, tree)


def group_by_prefix(
    call: Call,
    function: Callable,
    in_prefix: Any,
    out_prefix: Any,
    name: str,
    *,
    keywords: Any = None,
    is_leaf: Callable[[Any], bool] = is_entry,
) -> OutputRules:
    """Set the groups of a call by a prefix of its positional arguments; how outputs leave.

    Args:
        call: gets its groups.
        function: for the names of its arguments in messages.
        in_prefix, out_prefix: of the positional arguments, of the result.
        name: what the user calls the prefix.
        keywords: the entry of everything in keyword arguments, or {name: entry}.
        is_leaf: what is one entry, beside a JAX leaf.
    """
    places = occurrences_in(call, function, in_prefix, name, keywords, is_leaf)
    call.groups = group_leaves(call.plan, places, all_entries((in_prefix, out_prefix), is_leaf))
    out_name = name.replace("in_", "out_")
    return OutputRules(tuple(places), out_prefix, call.groups.entries, out_name, is_leaf)


def occurrences_in(
    call: Call,
    function: Callable,
    prefix: Any,
    name: str,
    keywords: Any = None,
    is_leaf: Callable[[Any], bool] = is_entry,
) -> list[Occurrence]:
    """Every place of an object among the arguments, with its entry; see `group_by_prefix`."""
    args, kwargs = put_back(call.tree, call.roots)
    labels = errors.argument_names(function, len(args))
    found = occurrences(prefix, args, call.numbers, labels, name, is_leaf)
    for keyword, value in kwargs.items():
        entry = keywords[keyword] if isinstance(keywords, dict) else keywords
        found += occurrences(entry, value, call.numbers, keyword, name, is_leaf)
    return found


def pure_function(
    function: Callable,
    call: Call | CallForm,
    *,
    always: Sequence[bool] = (),
    rules: OutputRules | None = None,
    axis_name: AxisName | None = None,
    force: frozenset[int] = frozenset(),
    explicit: bool = False,
    observe: Callable[[Inside, Any], None] | None = None,
    returned: Callable[[Any, list, Change], Any] | None = None,
    captured: bool = False,
) -> Callable[[Sequence[Sequence[Any]], Any], Any]:
    """The pure function of (values by group, tree with slots) that JAX gets to see.

    Args:
        function: the user's function.
        call: gives the structure and the groups; its values are not kept.
        always, rules, force, explicit: what goes out (see `Leaving`).
        axis_name: kept in step in annotations, where the groups' entries are axes.
        observe: called at every trace, with the objects and the tree.
        returned: how to arrange (result, values by group, change); as that tuple by default.
        captured: whether objects that the function captured may be returned, as copies.
    """
    graphdef, groups, paths = call.graphdef, call.groups, call.paths
    how = Leaving(always, force, explicit, rules)

    def pure(grouped: Sequence[Sequence[Any]], tree: Any) -> Any:
        inside = Inside(graphdef, groups, grouped, axis_name)
        if observe is not None:
            observe(inside, tree)
        _name_objects(inside, paths, tree, function)
        args, kwargs = put_back(tree, inside.roots)
        with tracing(function), containers_kept(function):
            result = call_scoped(function, args, kwargs)

        def check(result: Any, now: Walk) -> None:
            names = root_places(tree, function)
            check_border(function, names, (graphdef, inside.index), result, now, captured)
            hash(now.graphdef)  # names an unhashable new static; JAX would not know its path

        out = inside.leave(result, how, check)
        return out if returned is None else returned(*out)

    return named_like(function, pure)


def leave(
    call: Call, out: tuple[Any, Sequence[Sequence[Any]], Change], placed: bool = False
) -> Any:
    """Write back what the call did and return its result; new Variables placed, if need be."""
    tree, grouped, change = out
    tree = tree.whole() if type(tree) is Sorted else tree
    return write_back(call.plan, call.roots, call.values, tree, grouped, change, placed)
