"""Prefixes: which entry (axis, sharding, …) each leaf of the objects of a call takes.

A user gives a pytree prefix of the arguments; where it meets an object, it is an entry for all of
the object's leaves or a `FilterPrefix` (a lift type), which gives an entry per filter. From this
the lift makes `Groups`: the distinct entries, and the leaves of each. Leaves travel by group,
`[[leaves of entry 0], [leaves of entry 1], …]`, so a plain list of entries is the prefix that JAX
gets, and no JAX transform needs to know of objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ..graph.filters import Filter, PathIn, to_predicate
from ..graph.plan import Plan
from ..graph.state import State, create_path_filters
from ..graph.walk import Walk
from ..objects.errors import path_string
from . import errors
from .arguments import is_object, stops


class FilterPrefix(Mapping[Filter, Any]):
    """Base of the lift types: {filter: entry}, the first filter that matches a leaf counts.

    Stands for one object, or for a whole pytree of objects, anywhere in a prefix.
    """

    __slots__ = ("entries", "filters", "predicates")

    def __init__(self, entries: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]]):
        if isinstance(entries, State):
            entries = create_path_filters(entries)
        items = list(entries.items() if isinstance(entries, Mapping) else entries)
        self.filters = tuple(f for f, _ in items)
        self.entries = tuple(e for _, e in items)
        self.predicates = tuple(to_predicate(f) for f in self.filters)

    def entry(self, path: tuple, value: Any) -> tuple[bool, Any]:
        for predicate, entry in zip(self.predicates, self.entries, strict=True):
            if predicate(path, value):
                return True, entry
        return False, None

    def map_entries(self, f: Callable[[Any], Any]) -> FilterPrefix:
        """The same filters with `f(entry)` for each entry."""
        new = object.__new__(type(self))
        new.filters, new.predicates = self.filters, self.predicates
        new.entries = tuple(map(f, self.entries))
        return new

    def map_prefix(self, path: tuple, variable: Any, /) -> Any:
        """The entry of the first filter that matches.

        Raises:
            PrefixError: none does.
        """
        return leaf_entry(self, path, variable, path_string(path))

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


class Occurrence(NamedTuple):
    """An object in one place of the arguments or results."""

    place: str  # the argument's name and the path in it
    number: int  # which object
    prefix: Any


class Groups:
    """The distinct entries of a call, and the leaves that each has."""

    __slots__ = ("entries", "members", "of_leaf", "single")

    def __init__(self, entries: Sequence[Any], of_leaf: Sequence[int]):
        self.entries = tuple(entries)
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
        found.extend(((*entry_path, *p), x, entry) for p, x in pairs)

    try:
        jax.tree_util.tree_map_with_path(under, prefix, tree, is_leaf=is_leaf)
    except ValueError as e:
        raise errors.prefix_mismatch(name, prefix, e) from None
    return found, jax.tree.structure(tree, is_leaf=stop)


def broadcast(
    prefix: Any, tree: Any, name: str, is_leaf: Callable[[Any], bool] = is_entry
) -> list[tuple[Any, Any, Any]]:
    """(path, object, prefix) for every object in `tree`, the prefix stretched over it."""
    return [part for part in stretched(prefix, tree, name, is_leaf)[0] if is_object(part[1])]


def occurrences(
    found: Iterable[tuple[Any, Any, Any]],
    numbers: Mapping[int, int],
    labels: Sequence[str],
    root: str = "kwargs",
) -> list[Occurrence]:
    """What `broadcast` found, with the object's number and a readable place."""
    result = []
    for path, obj, entry in found:
        key = getattr(path[0], "idx", None) if path else None
        if key is not None and key < len(labels):
            place = f"{labels[key]}" + jax.tree_util.keystr(path[1:])
        else:
            place = root + jax.tree_util.keystr(path)
        result.append(Occurrence(place, numbers[id(obj)], entry))
    return result


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
    graphdef = plan.graphdef
    entries = list(known)
    total = len(plan.variables) + len(plan.arrays)
    prefixes = {o.prefix if not isinstance(o.prefix, FilterPrefix) else ... for o in occurring}
    if len(prefixes) == 1 and ... not in prefixes:
        entry = next(iter(prefixes))
        group = position(entries, entry)
        return Groups(entries, [group] * total)
    leaves = plan.leaves()
    seen: list[list[tuple[str, Any]]] = [[] for _ in range(total)]
    for occurrence in occurring:
        for path, leaf in graphdef.all_paths(graphdef.roots[occurrence.number]):
            place = path_string(path, occurrence.place)
            entry = leaf_entry(occurrence.prefix, path, leaves[leaf], place)
            seen[leaf].append((place, entry))
    of_leaf = []
    for leaf, places in enumerate(seen):
        entry = places[0][1]
        if any(other != entry for _, other in places):
            raise errors.inconsistent_alias(type(leaves[leaf]), sorted(places, key=lambda p: p[0]))
        of_leaf.append(position(entries, entry))
    return Groups(entries or [None], of_leaf)


def leaf_entry(prefix: Any, path: tuple, value: Any, place: str) -> Any:
    if not isinstance(prefix, FilterPrefix):
        return prefix
    matched, entry = prefix.entry(path, value)
    if not matched:
        raise errors.no_entry(place, value, prefix)
    return entry


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
    shown: Callable[[Any], Any] = lambda entry: entry  # what of an entry must agree

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
        entries = list(self.entries)
        numbers = {id(obj): roots + i for i, obj in enumerate(found)}
        leaving = occurrences(
            broadcast(self.out_prefix, result, "out prefix"), numbers, (), "result"
        )
        leaves = [*now.variables, *([None] * len(now.arrays))]
        groups: list[int | None] = [None] * len(leaves)
        places: dict[int, list[tuple[str, Any]]] = {}
        for occurrence in [*leaving, *self.arguments]:
            is_output = occurrence.number >= roots
            for path, leaf in now.graphdef.all_paths(now.graphdef.roots[occurrence.number]):
                place = path_string(path, occurrence.place)
                known = came_in.get(leaf)
                if not is_output and known is not None:
                    groups[leaf] = known
                    places.setdefault(leaf, []).append((place, self.shown(entries[known])))
                    continue
                entry = leaf_entry(occurrence.prefix, path, leaves[leaf], place)
                group = position(entries, entry)
                if is_output or groups[leaf] is None:
                    places.setdefault(leaf, []).append((place, self.shown(entry)))
                    groups[leaf] = group if known is None else known
        for leaf, listed in places.items():
            if any(entry != listed[0][1] for _, entry in listed):
                raise errors.inconsistent_alias(type(leaves[leaf]), sorted(listed, key=str))
        # What nothing refers to any more leaves by the way it came in.
        return [came_in.get(i, 0) if g is None else g for i, g in enumerate(groups)]
