"""The arrays of an object by dotted names: what state dicts and files are matched with.

A name leads to one array. A Variable whose value is a pytree of several arrays has one name for
each, with the keys of the pytree at its end. A tied array has one name here, its first; `find`
knows all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ..graph.filters import Filter, to_predicate
from ..graph.plan import Plan
from ..graph.walk import key_name
from ..objects.errors import StructureError
from ..objects.node import Node
from ..objects.variable import Variable, raw
from ..objects.watch import is_array
from ..verbs.iteration import iter_children_of
from ..verbs.layouts import object_plan
from ..verbs.names import PathError, dotted_name, get_path


class Place(NamedTuple):
    """One array of an object."""

    name: str
    leaf: int  # of the plan
    part: int  # which of the arrays in the leaf's value
    value: Any  # the array, or an abstract one
    path: tuple  # that the name says


class Places:
    """The arrays of an object that a filter matches, by their first names, in State order."""

    def __init__(self, obj: Any, filter: Filter, verb: str):
        self.obj = obj
        self.plan: Plan = object_plan(obj, verb)
        self.leaves = self.plan.leaves()
        self.by_name: dict[str, Place] = {}
        self.left_out: set[int] = set()  # leaves that the filter does not match
        matches = to_predicate(filter)
        paths = self.plan.graphdef.paths
        for leaf in paths.order:
            path, value = paths.leaves[leaf], self.leaves[leaf]
            if not matches(path, value):
                self.left_out.add(leaf)
                continue
            arrays = jax.tree_util.tree_leaves_with_path(raw(value))
            for part, (below, array) in enumerate(arrays):
                if is_array(array):
                    place = (*path, *map(key_name, below)) or ("value",)
                    name = dotted_name(place)
                    self.by_name[name] = Place(name, leaf, part, array, place)
        self._leaf_of = {id(v): i for i, v in enumerate(self.leaves) if isinstance(v, Variable)}
        self._first = {place[1:3]: place for place in self.by_name.values()}

    def find(self, name: str) -> Place | None:
        """The array with this name, any of its names if it is tied; None if there is none."""
        place = self.by_name.get(name)
        if place is not None:
            return place
        head, below = name, ()
        while head:
            try:
                found = get_path(self.obj, head)
            except (PathError, StructureError):
                cut, _, key = head.rpartition(".")
                head, below = cut, (key, *below)
                continue
            leaf = self._leaf_of.get(id(found))
            if leaf is None:
                return None
            arrays = jax.tree_util.tree_leaves_with_path(raw(found))
            for part, (path, _) in enumerate(arrays):
                if tuple(map(str, map(key_name, path))) == below:
                    return self._first.get((leaf, part))
            return None
        return None

    def is_left_out(self, name: str) -> bool:
        """Whether the name leads to something that the filter does not match."""
        try:
            found = get_path(self.obj, name)
        except (PathError, StructureError):
            return False
        return isinstance(found, Variable) and self._leaf_of[id(found)] in self.left_out


def all_names(obj: Any) -> Iterator[tuple[str, Variable]]:
    """Every (dotted name, Variable) below `obj`: a shared one under each of its names.

    A cycle is entered once on each way.
    """
    stack: list[tuple[tuple, Any, frozenset[int]]] = [((), obj, frozenset())]
    while stack:
        path, value, above = stack.pop()
        if isinstance(value, Variable):
            yield dotted_name(path) or "value", value
        elif id(value) not in above and (isinstance(value, Node) or not is_array(value)):
            inside = above | {id(value)}
            children = iter_children_of(value)
            stack += [((*path, key), child, inside) for key, child in reversed(children)]
