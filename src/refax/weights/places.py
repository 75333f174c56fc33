"""The arrays of an object by dotted names: what state dicts and files are matched with.

A name leads to one array. A Variable whose value is a pytree of several arrays has one name for
each, with the keys of the pytree at its end. A tied array has one name here, its first; `find`
knows all, as `nnx.update` does (`verbs/matching.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from ..graph.filters import Filter, to_predicate
from ..graph.walk import key_name
from ..objects.mappings import sorted_keys
from ..objects.variable import raw
from ..objects.variable_types import RngState
from ..objects.watch import is_array
from ..verbs.layouts import object_plan
from ..verbs.matching import Unknown, follow, passed_over, places_of
from ..verbs.names import dotted_name
from . import file_errors as errors

# Where they are as wide as others, NumPy takes them for equal.
_WIDE = [x for x in (np.longdouble, np.clongdouble) if np.dtype(x) not in ("f8", "c16")]


class Place(NamedTuple):
    """One array of an object."""

    name: str
    leaf: int  # of the plan
    part: int  # which of the arrays in the leaf's value
    value: Any  # the array, or an abstract one
    path: tuple  # that the name says

    @property
    def sharding(self) -> Any:
        """Where the array belongs; None if it may go anywhere."""
        committed = isinstance(self.value, jax.ShapeDtypeStruct)
        if isinstance(self.value, jax.Array) and not isinstance(self.value, Tracer):
            committed = self.value.committed
        return self.value.sharding if committed else None


class Places:
    """The arrays of an object that a filter matches, by their first names, in State order."""

    def __init__(self, obj: Any, filter: Filter, verb: str):
        self.obj, self.verb = obj, verb
        self.plan = object_plan(obj, verb)
        self.leaves = self.plan.leaves()
        self.by_name: dict[str, Place] = {}
        # By leaf: the arrays in it by their keys there, as texts. None: the filter leaves it out.
        self._parts: dict[int, dict[tuple[str, ...], Place] | None] = {}
        # A mapping of names to arrays has these names: they are dotted already.
        self._flat = isinstance(obj, Mapping) and all(
            isinstance(name, str) and is_array(value) for name, value in obj.items()
        )
        matches = to_predicate(filter)
        paths = self.plan.graphdef.paths
        for leaf in paths.order:
            path, value = paths.leaves[leaf], self.leaves[leaf]
            if not matches(path, value):
                self._parts[leaf] = None
                continue
            parts = self._parts[leaf] = {}
            for part, (below, array) in enumerate(jax.tree.leaves_with_path(raw(value))):
                if is_array(array):
                    keys = tuple(map(key_name, below))
                    place = (*path, *keys) or ("value",)
                    name = self._name(place)
                    if name in self.by_name:
                        raise errors.same_name(verb, name)
                    parts[tuple(map(str, keys))] = Place(name, leaf, part, array, place)
                    self.by_name[name] = parts[tuple(map(str, keys))]

    def _name(self, path: tuple) -> str:
        return path[0] if self._flat else dotted_name(path)

    def check_written(self) -> None:
        """Raise if there is an array that cannot be written: it has no value, or no number."""
        for name, place in self.by_name.items():
            value = place.value
            if not isinstance(value, (jax.Array, np.ndarray)) or isinstance(value, Tracer):
                raise errors.not_concrete(name, value, self.verb)
            if isinstance(value, jax.Array) and value.is_deleted():
                raise errors.deleted(name, self.verb)
            if value.dtype in _WIDE:
                raise errors.too_wide(name, value.dtype, self.verb)

    @cached_property
    def by_path(self) -> dict[tuple[str, ...], Place]:
        """The arrays by path, each key as a text."""
        return {tuple(map(str, place.path)): place for place in self.by_name.values()}

    def find(self, name: str) -> Place | None:
        """The array with this name, any of its names if it is tied; None if there is none."""
        if name in self.by_name:
            return self.by_name[name]
        leaf, keys = self._follow(name)
        return (self._parts.get(leaf) or {}).get(keys)

    def is_left_out(self, name: str) -> bool:
        """Whether the name leads to something that the filter does not match."""
        return self._parts.get(self._follow(name)[0], {}) is None

    def is_passed_over(self, name: str) -> bool:
        """Whether it is a name of the random streams that older programs' layers shared."""
        found, place, rest = follow(places_of(self.plan.graphdef), name)
        return bool(rest) and passed_over(Unknown((*found, *rest), 0, place, found))

    def is_of_stream(self, name: str) -> bool:
        """Whether it is the name of an array of a random stream that has a value."""
        place = self.by_name[name]
        is_state = isinstance(self.leaves[place.leaf], RngState)
        return is_state and not isinstance(place.value, jax.ShapeDtypeStruct)

    def _follow(self, name: str) -> tuple[int, tuple[str, ...]]:
        """(the leaf that a name leads to, or -1; the keys that are left, as texts)."""
        _, leaf, keys = follow(places_of(self.plan.graphdef), name)
        return leaf if type(leaf) is int else -1, tuple(map(str, keys))

    def all_names(self) -> Iterator[tuple[str, Place]]:
        """Every (name, place): a tied array under each of its names, with the path of that.

        A cycle is entered once on each way.
        """
        stack: list[tuple[tuple, Any, frozenset[int]]] = [
            ((), places_of(self.plan.graphdef), frozenset())
        ]
        while stack:
            path, at, above = stack.pop()
            if type(at) is int:
                for keys, place in (self._parts[at] or {}).items():
                    at_path = (*path, *keys)
                    yield self._name(at_path) or "value", place._replace(path=at_path)
            elif id(at) not in above:
                below = above | {id(at)}
                stack += [((*path, k), at[k], below) for k in reversed(sorted_keys(at))]
