"""Prefixes: which entry (axis, sharding, …) each leaf of the objects of a call takes.

A user gives a pytree prefix of the arguments; where it meets an object, it is an entry for all of
the object's leaves or a `FilterPrefix` (a lift type), which gives an entry per filter. From this
the lift makes `Groups`: the distinct entries, and the leaves of each. Leaves travel by group,
`[[leaves of entry 0], [leaves of entry 1], …]`, so a plain list of entries is the prefix that JAX
gets, and no JAX transform needs to know of objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.tree_util import keystr

from ..graph.filters import Filter, PathIn, Predicate, to_predicate
from ..graph.graphdef import GraphDef
from ..graph.plan import Plan
from ..graph.state import State, create_path_filters
from ..graph.walk import Walk, key_name
from ..objects.errors import path_string
from ..objects.metadata import SHARED
from ..objects.variable import Variable, raw
from ..verbs.pytree import Pytree
from ..verbs.splitting import state
from . import errors
from .arguments import is_object, is_slot, stops


class FilterPrefix(Mapping[Filter, Any]):
    """Base of the lift types: {filter: entry}, the first filter that matches a leaf counts.

    Stands for one object, or for a whole pytree of objects, anywhere in a prefix.
    """

    __slots__ = ("entries", "filters", "predicates")

    def __init__(self, entries: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]]):
        if isinstance(entries, State):
            entries = create_path_filters(entries)
        items = list(entries.items() if isinstance(entries, Mapping) else entries)
        self.filters: tuple[Filter, ...] = tuple(f for f, _ in items)
        self.entries: tuple[Any, ...] = tuple(e for _, e in items)
        self.predicates: tuple[Predicate, ...] = tuple(to_predicate(f) for f in self.filters)

    def entry(self, path: tuple[Any, ...], value: Any, place: str) -> Any:
        """The entry of the first filter that matches; an error names the place."""
        for predicate, entry in zip(self.predicates, self.entries, strict=True):
            if predicate(path, value):
                return entry
        raise errors.no_entry(place, value, self)

    def below(self, path: tuple[Any, ...]) -> FilterPrefix:
        """The same for what stands there: whole paths that lead on from it count from it too."""
        if not path or not any(isinstance(p, PathIn) for p in self.predicates):
            return self
        count, of = len(path), self.predicates
        sets = [p.content[0] if isinstance(p, PathIn) else () for p in of]
        rest = [[p[count:] for p in paths if p[:count] == path] for paths in sets]
        filters = [
            PathIn(*paths, *on) if on else f
            for f, paths, on in zip(self.filters, sets, rest, strict=True)
        ]
        return type(self)([*zip(filters, self.entries, strict=True)])

    def map_prefix(self, path: tuple[Any, ...], variable: Any, /) -> Any:
        """The entry of the first filter that matches.

        Raises:
            PrefixError: none does.
        """
        return self.entry(path, variable, path_string(path))

    # As the mapping {filter: entry} that it was made of.

    def __getitem__(self, filter: Filter) -> Any:
        return dict(zip(self.predicates, self.entries, strict=True))[to_predicate(filter)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.filters)

    def __len__(self) -> int:
        return len(self.filters)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (
            (other.predicates, other.entries) == (self.predicates, self.entries)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.predicates, self.entries))

    def __repr__(self) -> str:
        parts = ", ".join(f"{_filter_text(f)}: {e!r}" for f, e in zip(self.filters, self.entries))
        entries = f"{{{parts}}}"  # of the base: what `by_path` made of a State or dict
        return entries if type(self) is FilterPrefix else f"{type(self).__name__}({entries})"


def _filter_text(filter: Any) -> str:
    if filter is ...:
        return "..."
    if isinstance(filter, type):
        return filter.__name__
    if isinstance(filter, PathIn):
        return ", ".join(sorted(map(path_string, filter.content[0])))
    if isinstance(filter, tuple):
        return "(" + ", ".join(map(_filter_text, filter)) + ")"
    return repr(filter)


def by_path(prefix: Any, tree: Any) -> Any:
    """The prefix with a lift type by path for each object, State or dict of entries for an object.

    Args:
        prefix: of one argument, or of the result.
        tree: the argument; objects may be slots.
    """
    if isinstance(prefix, Variable):
        return raw(prefix)
    if isinstance(prefix, (State, Pytree)) and not isinstance(tree, Variable):
        return FilterPrefix(prefix if isinstance(prefix, State) else state(prefix))
    if isinstance(tree, (Pytree, State)) or is_slot(tree):
        return FilterPrefix(State(prefix)) if isinstance(prefix, dict) else prefix
    if type(prefix) is tuple and type(tree) is tuple and len(prefix) == len(tree):
        return tuple(map(by_path, prefix, tree))
    if type(prefix) is list and type(tree) is list and len(prefix) == len(tree):
        return list(map(by_path, prefix, tree))
    if type(prefix) is dict and type(tree) is dict:
        return {k: by_path(e, tree[k]) if k in tree else e for k, e in prefix.items()}
    return prefix


class Occurrence(NamedTuple):
    """An object in one place of the arguments or results."""

    place: str  # the argument's name and the path in it
    number: int  # which object
    prefix: Any


class Groups:
    """The distinct entries of a call, and the leaves that each has."""

    __slots__ = ("entries", "members", "of_leaf", "single")

    def __init__(self, entries: Sequence[Any], of_leaf: Sequence[int]):
        self.entries: tuple[Any, ...] = tuple(entries)
        self.of_leaf = tuple(of_leaf)
        members: list[list[int]] = [[] for _ in self.entries]
        for leaf, group in enumerate(self.of_leaf):
            members[group].append(leaf)
        self.members = tuple(tuple(m) for m in members)
        self.single = len(self.entries) == 1

    def take(self, values: list[Any]) -> list[list[Any]]:
        """The leaves' values by group."""
        if self.single:
            return [values]
        return [[values[i] for i in group] for group in self.members]

    def flat(self, grouped: Sequence[Sequence[Any]]) -> list[Any]:
        """Values by group back into leaf order."""
        if self.single:
            return list(grouped[0])
        values: list[Any] = [None] * len(self.of_leaf)
        for group, part in zip(self.members, grouped, strict=True):
            for leaf, value in zip(group, part, strict=True):
                values[leaf] = value
        return values


def is_entry(value: Any) -> bool:
    return value is None or isinstance(value, FilterPrefix)


def stretched(
    prefix: Any,
    tree: Any,
    name: str,
    is_leaf: Callable[[Any], bool] = is_entry,
    stop: Callable[[Any], bool] = stops,
) -> tuple[list[tuple[Any, Any, Any]], Any]:
    """(path, leaf, prefix) for every leaf of `tree`, the prefix stretched over it; the treedef.

    `stop` says what of `tree` is not gone into, such as an object.
    """
    found: list[tuple[Any, Any, Any]] = []

    def under(entry_path: Any, entry: Any, subtree: Any) -> None:
        pairs, _ = jax.tree_util.tree_flatten_with_path(subtree, is_leaf=stop)
        by_filter = isinstance(entry, FilterPrefix)
        found.extend(
            ((*entry_path, *p), x, entry.below(tuple(map(key_name, p))) if by_filter else entry)
            for p, x in pairs
        )

    try:
        jax.tree_util.tree_map_with_path(under, prefix, tree, is_leaf=is_leaf)
    except ValueError:
        marked = jax.tree.map(lambda _: 0, prefix, is_leaf=is_leaf)  # JAX would complain of a None
        try:
            jax.tree_util.tree_map_with_path(lambda *_: 0, marked, tree)
        except ValueError as e:
            raise errors.prefix_mismatch(name, prefix, e) from None
        raise
    return found, jax.tree.structure(tree, is_leaf=stop)


def occurrences(
    prefix: Any,
    tree: Any,
    numbers: Mapping[int, int],
    root: str | Sequence[str],
    name: str,
    is_leaf: Callable[[Any], bool] = is_entry,
) -> list[Occurrence]:
    """Every place of an object in a tree, with its number (by id) and its entry of the prefix.

    `root` is what the caller calls the tree, or each of its children; `name` the prefix.
    """

    def place(path: tuple) -> str:
        if isinstance(root, str):
            return root + keystr(path)
        number: int = path[0].idx
        return root[number] + keystr(path[1:])

    found, _ = stretched(prefix, tree, name, is_leaf)
    return [Occurrence(place(p), numbers[id(x)], e) for p, x, e in found if is_object(x)]


def group_leaves(plan: Plan, occurring: Sequence[Occurrence], known: Sequence[Any] = ()) -> Groups:
    """The groups of the leaves of `plan`, whose root i is object number i.

    Args:
        plan: over the objects of the call.
        occurring: every place of an object, with its prefix.
        known: entries that get a group even if no leaf takes them (those of the outputs).

    Raises:
        AliasError: a leaf that different entries reach.
        PrefixError: a leaf that no filter of its lift type matches.
    """
    entries = list(known)
    prefixes = {o.prefix if not isinstance(o.prefix, FilterPrefix) else ... for o in occurring}
    leaves = range(plan.graphdef.num_leaves)
    if len(prefixes) == 1 and ... not in prefixes:
        group = position(entries, prefixes.pop())
        return Groups(entries, [group for _ in leaves])
    groups = _groups_by_place(plan.graphdef, plan.leaves(), entries, occurring, (), {})
    return Groups(entries or [None], [groups[leaf] for leaf in leaves])


def _groups_by_place(
    graphdef: GraphDef,
    leaves: Sequence[Any],
    entries: list[Any],
    occurring: Sequence[Occurrence],
    inputs: Sequence[Occurrence],
    came_in: Mapping[int, int],
    free: bool = False,
) -> dict[int, int]:
    """By leaf, the place in `entries` (where it is added) of the one entry that it has everywhere.

    Args:
        graphdef, leaves: the structure, and its leaves or records of them.
        entries: the known ones.
        occurring: the places of objects, with the prefixes that count.
        inputs: the places where objects came in, to which a leaf goes back the way it came. What
            is new goes by their prefixes, unless it has another place.
        came_in: leaf → group.
        free: an entry None says nothing: another place says where the leaf goes.
    """
    groups: dict[int, int] = {}
    places: dict[int, list[tuple[str, Any]]] = {}
    for order, occurrence in enumerate([*occurring, *inputs]):
        is_input = order >= len(occurring)
        for path, leaf in graphdef.all_paths(graphdef.roots[occurrence.number]):
            place = path_string(path, occurrence.place)
            known = came_in.get(leaf)
            if known is not None and (is_input or is_record(leaves[leaf])):
                entry = entries[known]
            elif is_input and leaf in groups:
                continue
            else:
                entry = leaf_entry(occurrence.prefix, path, leaves[leaf], place)
            if free and entry is None:
                groups.setdefault(leaf, position(entries, None) if known is None else known)
                continue
            open_still = free and known is not None and entries[known] is None
            groups[leaf] = position(entries, entry) if known is None or open_still else known
            places.setdefault(leaf, []).append((place, entry))
    for leaf, listed in sorted(places.items()):
        if any(entry != listed[0][1] for _, entry in listed):
            raise errors.inconsistent_alias(type(leaves[leaf]), sorted(listed, key=lambda p: p[0]))
    return groups


def leaf_entry(prefix: Any, path: tuple, value: Any, place: str) -> Any:
    return prefix.entry(path, value, place) if isinstance(prefix, FilterPrefix) else prefix


def is_record(leaf: Any) -> bool:
    """Whether `nnx.capture` records in it."""
    return isinstance(leaf, Variable) and SHARED in leaf.raw_metadata


def position(entries: list[Any], entry: Any) -> int:
    """Where `entry` stands in `entries`, appended if new. Entries need not be hashable."""
    for i, known in enumerate(entries):
        if known is entry or (type(known) is type(entry) and known == entry):
            return i
    entries.append(entry)
    return len(entries) - 1


def all_entries(prefix: Any, is_leaf: Callable[[Any], bool] = is_entry) -> list[Any]:
    """Every entry that a prefix can give, each once."""
    entries: list[Any] = []
    for leaf in jax.tree.leaves(prefix, is_leaf=is_leaf):
        for entry in leaf.entries if isinstance(leaf, FilterPrefix) else (leaf,):
            position(entries, entry)
    return entries


class OutputRules(NamedTuple):
    """How the leaves of a changed structure leave: by the prefixes of arguments and results."""

    arguments: tuple[Occurrence, ...]  # of the input objects
    out_prefix: Any  # of the result
    entries: tuple[Any, ...]
    name: str = "out prefix"  # what the user calls that
    is_leaf: Callable[[Any], bool] = is_entry  # what is one entry
    free: bool = False  # whether None says nothing

    def groups(
        self, now: Walk, roots: int, result: Any, found: Sequence[Any], came_in: Mapping[int, int]
    ) -> list[int]:
        """The group of each leaf.

        Args:
            now: over the input roots, then the objects of the result, then the rest.
            roots: how many input roots.
            result: what the function returned.
            found: the objects in it, in order.
            came_in: new leaf number → group, for Variables that came in.

        Raises:
            AliasError: a leaf leaves by two prefixes, or another than it came in by.
        """
        numbers = {id(obj): roots + i for i, obj in enumerate(found)}
        prefix = by_path(self.out_prefix, result)
        leaving = occurrences(prefix, result, numbers, "result", self.name, self.is_leaf)
        leaves = [*now.variables, *([None] * len(now.arrays))]
        entries = list(self.entries)
        groups = _groups_by_place(
            now.graphdef, leaves, entries, leaving, self.arguments, came_in, self.free
        )
        # What nothing refers to any more leaves by the way it came in.
        return [groups.get(leaf, came_in.get(leaf, 0)) for leaf in range(len(leaves))]


# -- what JAX gets as a prefix: that of the arrays, with slots without leaves for the objects ------
#
# A lift type that stands for arrays or a State among the objects gives each of them an entry by its
# filters, as it does for the leaves of an object.


class Sorted(NamedTuple):
    """A result whose arrays leave in one list per entry, as the leaves of objects do."""

    groups: Sequence[Sequence[Any]]
    order: Any  # (treedef, the group of each leaf), static

    def whole(self) -> Any:
        structure, numbers = self.order.value
        groups = [iter(group) for group in self.groups]
        return structure.unflatten([next(groups[number]) for number in numbers])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Order:
    value: tuple[Any, tuple[int, ...]]


def sorting(rules: OutputRules, returned: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """For `pure_function(returned=…)`: checks the prefix of the result, and sorts by it if need be.

    A lift type, or an object or State of entries, is no prefix that JAX knows.
    """

    def returning(result: Any, grouped: Any, change: Any) -> Any:
        prefix = by_path(rules.out_prefix, result)
        stretched(prefix, result, rules.name, rules.is_leaf)
        if _is_by_filter(rules.out_prefix):
            entries = list(rules.entries)
            leaves, structure = jax.tree.flatten(result)
            of = [position(entries, e) for e in spread(prefix, result, rules.name, rules.is_leaf)]
            groups = [[x for x, at in zip(leaves, of) if at == n] for n in range(len(entries))]
            result = Sorted(groups, _Order((structure, tuple(of))))
        return (result, grouped, change) if returned is None else returned(result, grouped, change)

    return returning


def for_result(rules: OutputRules) -> Any:
    """The prefix for JAX of a result that was `sorting`."""
    by_filter = _is_by_filter(rules.out_prefix)
    return Sorted(list(rules.entries), None) if by_filter else rules.out_prefix


def _is_by_filter(prefix: Any) -> bool:
    kinds = (FilterPrefix, State, Pytree, dict)
    parts = jax.tree.leaves(prefix, is_leaf=lambda x: isinstance(x, kinds))
    return any(isinstance(part, kinds) for part in parts)


def for_arrays(prefix: Any, tree: Any, name: str, is_leaf: Callable[[Any], bool] = is_entry) -> Any:
    """The prefix for JAX of a tree with slots, which have no leaves.

    A lift type that stands for arrays or a State among the objects gives each by its filters.
    The prefix fits: `group_by_prefix` has checked it.
    """
    if not any(isinstance(e, FilterPrefix) for e in jax.tree.leaves(prefix, is_leaf=is_leaf)):
        return prefix

    def under(path: Any, entry: Any, subtree: Any) -> Any:
        if not isinstance(entry, FilterPrefix):
            return entry

        def resolve(below: Any, value: Any) -> Any:
            place = name + jax.tree_util.keystr((*path, *below))
            return leaf_entry(entry, tuple(map(key_name, below)), value, place)

        return jax.tree_util.tree_map_with_path(
            resolve, subtree, is_leaf=lambda x: isinstance(x, Variable)
        )

    return jax.tree_util.tree_map_with_path(under, prefix, tree, is_leaf=is_leaf)


def hashable(prefix: Any, is_leaf: Callable[[Any], bool] = is_entry) -> Any:
    """What tells a prefix from another one, as a key for programs."""
    leaves, treedef = jax.tree.flatten(prefix, is_leaf=is_leaf)
    return tuple(leaves), treedef


def spread(
    prefix: Any, tree: Any, name: str, is_leaf: Callable[[Any], bool] = is_entry
) -> list[Any]:
    """The entry of every JAX leaf of a tree with slots, in order."""
    entries: list[Any] = []
    jax.tree.map(
        lambda entry, subtree: entries.extend([entry] * len(jax.tree.leaves(subtree))),
        for_arrays(prefix, tree, name, is_leaf),
        tree,
        is_leaf=is_leaf,
    )
    return entries
