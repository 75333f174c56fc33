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
from operator import is_
from typing import Any, NamedTuple

import jax

from ..graph.graphdef import WITH_IDENTITY, GraphDef, homes, intern
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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What a call did to its objects: the static part of what goes out, in its treedef."""

    dirty: tuple[tuple[int, ...], ...]  # by group: the leaves whose new values go out
    graph: NewGraph | None  # if the structure changed; then `dirty` is empty


class Leaving(NamedTuple):
    """What has to go out of a trace, besides what changed."""

    always: Sequence[bool] = ()  # by group: all of its values (donated buffers, a loop's carry)
    force: frozenset[int] = frozenset()  # these leaves
    explicit: bool = False  # under a changed structure, every value, none by reference
    # How new leaves, and objects in the result, leave; needed if there are several groups.
    rules: OutputRules | None = None


class Inside:
    """The objects of one trace of a function."""

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

    def unchanged(self, leaf: int, value: Any) -> bool:
        if value is not self.values[leaf]:
            return False
        if leaf not in self.contents:
            return True
        (leaves, treedef), (known, known_treedef) = jax.tree.flatten(value), self.contents[leaf]
        return treedef == known_treedef and all(map(is_, leaves, known))

    def leave(
        self, result: Any, how: Leaving, check: Callable[[Any, Walk], None]
    ) -> tuple[Any, list[list[Any]], Change]:
        """(result with slots, values that go out by group, the rest as static data).

        Args:
            result: what the user's function returned.
            how: what has to go out.
            check: raises if (result with slots, changed structure) may not leave.
        """
        found: list[Any] = []
        tree = take_apart(result, found, {})
        if self.axis_name is not None:
            now = walk((*self.roots, *found))
            groups = self._groups_of(now, self._origins(now), how.rules, result, found)
            entries = [self.groups.entries[g] for g in groups]
            self.axis_name.add(now.variables, entries[: len(now.variables)])
        # (The rules of results also check that inputs leave the way they came.)
        known = how.rules is None or not found
        if known and all(id(obj) in self.index for obj in found):
            now = walk(tuple(self.roots))
            if self._same(now):
                values, members = now.gather(), enumerate(self.groups.members)
                dirty = tuple(tuple(i for i in group if self._goes_out(i, values[i], g, how))
                              for g, group in members)  # fmt: skip
                tree = put_back(tree, [Slot(self.index[id(obj)]) for obj in found])
                return tree, [[values[i] for i in d] for d in dirty], Change(dirty, None)
        return self._leave_changed(tree, result, found, how, check)

    def _goes_out(self, leaf: int, value: Any, group: int, how: Leaving) -> bool:
        everything = how.always[group] if how.always else False
        return everything or leaf in how.force or not self.unchanged(leaf, value)

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
        how: Leaving,
        check: Callable[[Any, Walk], None],
    ) -> tuple[Any, list[list[Any]], Change]:
        roots = [*self.roots, *found]
        now = walk(tuple(roots))
        check(tree, now)
        # Input objects that nothing refers to any more may still be held outside.
        reached = set(map(id, now.objects))
        lost = [self.objects[i] for i in self.index.values() if id(self.objects[i]) not in reached]
        if lost:
            now = walk((*roots, *lost))
            check(tree, now)
        values = now.gather()
        origins = self._origins(now)
        groups = self._groups_of(now, origins, how.rules, result, found)
        out: list[list[Any]] = [[] for _ in self.groups.entries]
        sources: list[Any] = [None] * len(values)
        old_leaves = _old_leaves(now.graphdef, origins, self.graphdef)
        leaf_of = {old: new for new, old in old_leaves.items()}
        always = {group for group, everything in enumerate(how.always) if everything}
        for group in always:  # in the order in which they came in
            for old in self.groups.members[group]:
                new = leaf_of.get(old)
                if new is not None and groups[new] != group:
                    continue  # which leaves another way
                if new is not None:
                    sources[new] = (group, len(out[group]))
                out[group].append(values[new] if new is not None else self.values[old])
        came_in = {} if how.explicit else {
            id(v): i for i, v in enumerate(self.values) if self.unchanged(i, v)
        }  # fmt: skip
        for leaf, (value, group) in enumerate(zip(values, groups, strict=True)):
            if sources[leaf] is not None:
                continue
            source = came_in.get(id(value))
            if source is not None and self.groups.of_leaf[source] == group and group not in always:
                sources[leaf] = source
            else:
                sources[leaf] = (group, len(out[group]))
                out[group].append(value)
        records = now.graphdef.roots[len(self.roots) : len(self.roots) + len(found)]
        tree = put_back(tree, [Slot(r) for r in records])
        graph = NewGraph(intern(now.graphdef), origins, tuple(sources))
        return tree, out, Change((), graph)

    def _groups_of(
        self,
        now: Walk,
        origins: Sequence[int | None],
        rules: OutputRules | None,
        result: Any,
        found: list[Any],
    ) -> list[int]:
        old_leaves = _old_leaves(now.graphdef, origins, self.graphdef)
        came_in = {new: self.groups.of_leaf[old] for new, old in old_leaves.items()}
        if rules is not None:
            return rules.groups(now, len(self.roots), result, found, came_in)
        return [came_in.get(leaf, 0) for leaf in range(len(now.variables) + len(now.arrays))]


def leaves_out(change: Change, before: GraphDef) -> Sequence[Sequence[int | None]]:
    """By group, which leaf that came in each value that goes out is for; None for new leaves."""
    graph = change.graph
    if graph is None:
        return change.dirty
    came_in = _old_leaves(graph.graphdef, graph.origins, before)
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


def _old_leaves(after: GraphDef, origins: Sequence[int | None], before: GraphDef) -> dict[int, int]:
    """New leaf number → old one, of the Variables and array places still there."""
    known: dict[Any, int] = {home: leaf for leaf, home in enumerate(homes(before)[1])}
    places = enumerate((origins[home.record], home.keys) for home in homes(after)[1])
    return {leaf: known[place] for leaf, place in places if place in known}
