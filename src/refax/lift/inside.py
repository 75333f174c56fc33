"""Inside: the objects of a call as the traced function sees them, and what it did to them.

`Inside` builds fresh objects from a GraphDef and the tracers that came in. After the user's
function, `leave` looks at them again and says what has to go out, as little as possible:

* Nothing about a leaf whose value *is* what came in.
* Only the new values where values changed: the leaves' numbers are static data (`Change.dirty`).
* Where the structure changed, the new GraphDef and, for each of its nodes, which input object it
  is, all static data; the values of what is new or changed; for the rest, where it came in.

Static data travels in the treedef of the output, so it is right on a cache hit too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ..graph.graphdef import LEAF, WITH_IDENTITY, GraphDef, intern, record_children
from ..graph.rebuild import rebuild
from ..graph.walk import Walk, walk
from ..objects.variable import Variable
from ..objects.watch import is_array
from .arguments import Slot, put_back, take_apart
from .axis_names import AxisName
from .prefix import Groups, OutputRules


class NewGraph(NamedTuple):
    """The structure after the call."""

    graphdef: GraphDef  # roots: the input roots, then the objects of the result, then the rest
    origins: tuple[int | None, ...]  # for each record: which input record it is
    sources: tuple[Any, ...]  # for each leaf: input leaf number, or (group, index) of an output


class Change(NamedTuple):
    """What a call did to its objects: the static part."""

    dirty: tuple[tuple[int, ...], ...]  # by group: the leaves whose new values go out
    graph: NewGraph | None  # if the structure changed; then `dirty` is empty


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, slots=True)
class Static:
    """Carries a `Change` in an output's treedef."""

    change: Change


class Inside:
    """The objects of one trace of a function."""

    __slots__ = (
        "axis_name",
        "contents",
        "graphdef",
        "groups",
        "index",
        "objects",
        "roots",
        "values",
    )

    def __init__(
        self,
        graphdef: GraphDef,
        groups: Groups,
        grouped: Sequence[Sequence[Any]],
        axis_name: AxisName | None = None,
    ):
        self.graphdef = graphdef
        self.groups = groups
        self.values = groups.flat(grouped)
        # A value that is a container may be changed in place: remember its leaves.
        self.contents = {
            i: jax.tree.flatten(v) for i, v in enumerate(self.values) if not is_array(v)
        }
        self.objects = rebuild(graphdef, self.values)
        self.index = {
            id(obj): i
            for i, (obj, record) in enumerate(zip(self.objects, graphdef.records, strict=True))
            if record[0] in WITH_IDENTITY
        }
        self.roots = [self.objects[i] for i in graphdef.roots]
        self.axis_name = axis_name
        if axis_name is not None:
            variables = [o for o in self.objects if isinstance(o, Variable)]
            entries = [groups.entries[g] for g in groups.of_leaf]
            axis_name.remove(variables, entries[: len(variables)], graphdef)

    def arguments(self, tree: Any) -> Any:
        return put_back(tree, self.roots)

    def unchanged(self, leaf: int, value: Any) -> bool:
        if value is not self.values[leaf]:
            return False
        content = self.contents.get(leaf)
        if content is None:
            return True
        leaves, treedef = jax.tree.flatten(value)
        return treedef == content[1] and all(
            a is b for a, b in zip(leaves, content[0], strict=True)
        )

    def leave(
        self,
        result: Any,
        always: Sequence[bool] = (),
        rules: OutputRules | None = None,
        force: frozenset[int] = frozenset(),
        explicit: bool = False,
        check: Callable[[Any, Walk], None] | None = None,
    ) -> tuple[Any, list[list[Any]], Static]:
        """(result with slots, values that go out by group, the rest as static data).

        Args:
            result: what the user's function returned.
            always: by group, whether all of its values go out, changed or not (donated buffers,
                a loop's carry).
            force: leaves that go out even if they did not change.
            explicit: under a changed structure, give out every value, none by reference.
            rules: how new leaves, and objects in the result, leave; needed if there are several
                groups.
            check: raises if (result with slots, structure) may not leave.
        """
        found: list[Any] = []
        numbers: dict[int, int] = {}
        tree = take_apart(result, found, numbers)
        if self.axis_name is not None:
            self._name_axes(self.axis_name, result, found, rules)
        now = walk(tuple(self.roots))
        always = always or (False,) * len(self.groups.entries)
        if rules is not None and found:  # also checks that inputs leave the way they came
            return self._leave_changed(tree, result, found, always, rules, explicit, check)
        if all(id(obj) in self.index for obj in found) and self._same(now):
            values = now.gather()
            groups = self.groups.members
            dirty = tuple(
                tuple(
                    i for i in group if always[g] or i in force or not self.unchanged(i, values[i])
                )
                for g, group in enumerate(groups)
            )
            tree = put_back(tree, [Slot(self.index[id(obj)]) for obj in found])
            return tree, [[values[i] for i in d] for d in dirty], Static(Change(dirty, None))
        return self._leave_changed(tree, result, found, always, rules, explicit, check)

    def _name_axes(
        self, axis_name: AxisName, result: Any, found: list[Any], rules: OutputRules | None
    ) -> None:
        now = walk((*self.roots, *found))
        groups = self._groups_of(now, self._origins(now), rules, result, found)
        entries = [self.groups.entries[g] for g in groups]
        axis_name.add(now.variables, entries[: len(now.variables)])

    def _origins(self, now: Walk) -> tuple[int | None, ...]:
        return tuple(
            self.index.get(id(obj)) if record[0] in WITH_IDENTITY else None
            for obj, record in zip(now.objects, now.graphdef.records, strict=True)
        )

    def _same(self, now: Walk) -> bool:
        """Whether the roots still have the structure that they came with, of the same objects."""
        return now.graphdef.records == self.graphdef.records and all(
            a is b or record[0] not in WITH_IDENTITY
            for a, b, record in zip(now.objects, self.objects, self.graphdef.records, strict=True)
        )

    def _leave_changed(
        self,
        tree: Any,
        result: Any,
        found: list[Any],
        always: Sequence[bool],
        rules: OutputRules | None,
        explicit: bool,
        check: Callable[[Any, Walk], None] | None,
    ) -> tuple[Any, list[list[Any]], Static]:
        roots = [*self.roots, *found]
        now = _checked(walk(tuple(roots)), tree, check)
        # Input objects that nothing refers to any more may still be held outside.
        reached = set(map(id, now.objects))
        lost = [self.objects[i] for i in self.index.values() if id(self.objects[i]) not in reached]
        if lost:
            now = _checked(walk((*roots, *lost)), tree, check)
        values = now.gather()
        origins = self._origins(now)
        groups = self._groups_of(now, origins, rules, result, found)
        out: list[list[Any]] = [[] for _ in self.groups.entries]
        sources: list[Any] = [None] * len(values)
        leaf_of = _leaf_of_record(now.graphdef, origins, self.graphdef)
        for group, everything in enumerate(always):  # in the order in which they came in
            if everything:
                for old in self.groups.members[group]:
                    new = leaf_of.get(old)
                    if new is not None:
                        sources[new] = (group, len(out[group]))
                    out[group].append(values[new] if new is not None else self.values[old])
        came_in = {} if explicit else {
            id(v): i for i, v in enumerate(self.values) if self.unchanged(i, v)
        }  # fmt: skip
        for leaf, value in enumerate(values):
            if sources[leaf] is not None:
                continue
            group = groups[leaf]
            source = came_in.get(id(value))
            if source is not None and self.groups.of_leaf[source] == group and not always[group]:
                sources[leaf] = source
            else:
                sources[leaf] = (group, len(out[group]))
                out[group].append(value)
        records = now.graphdef.roots[len(self.roots) : len(self.roots) + len(found)]
        tree = put_back(tree, [Slot(r) for r in records])
        graph = NewGraph(intern(now.graphdef), origins, tuple(sources))
        return tree, out, Static(Change((), graph))

    def _groups_of(
        self,
        now: Walk,
        origins: Sequence[int | None],
        rules: OutputRules | None,
        result: Any,
        found: list[Any],
    ) -> list[int]:
        kept = _leaf_of_record(now.graphdef, origins, self.graphdef)
        came_in = {new: self.groups.of_leaf[old] for old, new in kept.items()}
        if rules is not None:
            return rules.groups(now, len(self.roots), result, found, came_in)
        return [came_in.get(leaf, 0) for leaf in range(len(now.variables) + len(now.arrays))]


def _checked(now: Walk, tree: Any, check: Callable[[Any, Walk], None] | None) -> Walk:
    if check is not None:
        check(tree, now)
    hash(now.graphdef)  # an unhashable new static is named here; JAX would not know its path
    return now


def leaves_out(change: Change, before: GraphDef) -> Sequence[Sequence[int | None]]:
    """By group, which leaf that came in each value that goes out is for; None for new leaves."""
    graph = change.graph
    if graph is None:
        return change.dirty
    kept = _leaf_of_record(graph.graphdef, graph.origins, before)
    came_in = {new: old for old, new in kept.items()}
    groups: list[dict[int, int | None]] = []
    for leaf, source in enumerate(graph.sources):
        if type(source) is tuple:
            groups += [{} for _ in range(source[0] + 1 - len(groups))]
            groups[source[0]][source[1]] = came_in.get(leaf)
    # (A value that nothing has any more, of a donated array say, goes out for no leaf.)
    return [[group.get(i) for i in range(max(group, default=-1) + 1)] for group in groups]


def values_out(
    change: Change, before: GraphDef, grouped: Sequence[Sequence[Any]]
) -> dict[int | None, Any]:
    """The values that go out, by the leaf that came in which each is for."""
    groups = zip(leaves_out(change, before), grouped, strict=False)
    return {leaf: x for leaves, values in groups for leaf, x in zip(leaves, values, strict=False)}


def _leaf_of_record(
    after: GraphDef, origins: Sequence[int | None], before: GraphDef
) -> dict[int, int]:
    """Old leaf number → new leaf number, of the Variables and array places still there."""
    old_leaf, new_leaf = before.leaf_numbers()[0], after.leaf_numbers()[0]
    kept = {
        old_leaf[origin]: new_leaf[record]
        for record, origin in enumerate(origins)
        if origin is not None and origin in old_leaf
    }
    if before.arrays and after.arrays:
        places = _array_places(after)
        places = {(origins[record], *path): leaf for (record, *path), leaf in places.items()}
        for place, old in _array_places(before).items():
            if place in places:
                kept[old] = places[place]
    return kept


def _array_places(graphdef: GraphDef) -> dict[tuple, int]:
    """(record with an identity, key, …) → leaf number, of the bare arrays; through tuples too."""
    records, first = graphdef.records, graphdef.leaf_numbers()[1]
    places: dict[tuple, int] = {}
    stack: list[tuple[tuple, int]] = [
        ((i,), i) for i, record in enumerate(records) if record[0] in WITH_IDENTITY
    ]
    while stack:
        path, index = stack.pop()
        keys, children = record_children(records[index])
        number = first[index]
        for key, child in zip(keys, children, strict=True):
            if child is LEAF:
                places[(*path, key)] = number
                number += 1
            elif type(child) is int and records[child][0] not in WITH_IDENTITY:
                stack.append(((*path, key), child))
    return places
