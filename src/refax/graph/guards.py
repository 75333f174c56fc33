"""Guards: whether plain containers still hold what they held, asked at every call.

Lists and dicts have no hook, so a plan keeps a shallow snapshot of each and compares by identity.
An optimizer's state alone has hundreds of small dicts, so the comparisons are strung together and
run in C: one pass over all lengths, one over all items, one over all keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any

import jax

from .graphdef import LEAF

Guard = tuple[Any, Any, tuple]  # (container, None: a list, LEAF: a pytree, or a dict's keys; items)


class Guards:
    """The guards of one plan, or of one root of it."""

    __slots__ = ("_dicts", "_entries", "_items", "_keys", "_lengths", "_lists", "_pytrees")

    def __init__(self, entries: Iterable[Guard]):
        self._entries = list(entries)
        self._string_together()

    def _string_together(self) -> None:
        lists = [g for g in self._entries if g[1] is None]
        dicts = [g for g in self._entries if g[1] is not None and g[1] is not LEAF]
        self._lists = [g[0] for g in lists]
        self._dicts = [g[0] for g in dicts]
        self._lengths = [len(g[2]) for g in (*lists, *dicts)]
        self._items = [x for g in (*lists, *dicts) for x in g[2]]
        self._keys = [k for g in dicts for k in g[1]]
        self._pytrees = [g for g in self._entries if g[1] is LEAF]

    def hold(self) -> bool:
        """Whether nothing was added, taken out, replaced or reordered."""
        lists, dicts = self._lists, self._dicts
        if lists or dicts:
            if list(map(len, chain(lists, dicts))) != self._lengths:
                return False
            items = chain(chain.from_iterable(lists), chain.from_iterable(map(_values, dicts)))
            if not all(map(is_, items, self._items)):
                return False
            if not all(map(is_, chain.from_iterable(dicts), self._keys)):
                return False
        for container, _, items in self._pytrees:  # registered pytrees, which may be mutable
            now = jax.tree.leaves(container, is_leaf=lambda x, top=container: x is not top)
            if len(now) != len(items) or not all(map(is_, now, items)):
                return False
        return True

    def refresh(self, container: Any) -> None:
        """A bare array in `container` was replaced by refax: the structure is the same."""
        for i, (guarded, keys, _) in enumerate(self._entries):
            if guarded is container:
                items = container if keys is None else container.values()
                self._entries[i] = (guarded, keys, tuple(items))
                self._string_together()
                return


def _values(mapping: dict) -> Any:
    return mapping.values()
