"""Guards: whether plain containers still hold what they held, asked at every call.

Lists and dicts have no hook, so a plan keeps a shallow snapshot of each and compares by identity,
strung together so that it runs in C: one pass over all lengths, one over all items, one over all
keys. The dicts inside a State (an optimizer has hundreds) change through the State only, which
counts its changes, so they are compared only after some State has changed its form.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import jax

from .graphdef import LEAF
from .state import Epoch

_values = methodcaller("values")
STATIC = object()  # in the place of keys: a static that is compared by `==`
# (container; None for a list, LEAF for a pytree, a dict's keys; items; whether inside a State)
Guard = tuple[Any, Any, tuple, bool]


class _Snapshot:
    """What some lists and dicts held."""

    def __init__(self, guards: list[Guard]):
        lists = [g for g in guards if g[1] is None]
        dicts = [g for g in guards if g[1] is not None]
        self.lists = [g[0] for g in lists]
        self.dicts = [g[0] for g in dicts]
        self.lengths = [len(g[2]) for g in (*lists, *dicts)]
        self.items = [x for g in (*lists, *dicts) for x in g[2]]
        self.keys = [k for g in dicts for k in g[1]]

    def holds(self) -> bool:
        lists, dicts = self.lists, self.dicts
        if not dicts:  # of most models
            same = [*map(len, lists)] == self.lengths
            return same and all(map(is_, chain.from_iterable(lists), self.items))
        if list(map(len, chain(lists, dicts))) != self.lengths:
            return False
        items = chain(chain.from_iterable(lists), chain.from_iterable(map(_values, dicts)))
        return all(map(is_, items, self.items)) and all(
            map(is_, chain.from_iterable(dicts), self.keys)
        )


class Guards:
    """The guards of one plan, or of one root of it."""

    def __init__(self, entries: Iterable[Guard]):
        self._entries = list(entries)
        self._string_together()

    def _string_together(self) -> None:
        containers = [g for g in self._entries if g[1] is not LEAF and g[1] is not STATIC]
        self._plain = _Snapshot([g for g in containers if not g[3]])
        self._states = _Snapshot([g for g in containers if g[3]])
        self._pytrees = [g for g in self._entries if g[1] is LEAF]
        self._compared = [g[0] for g in self._entries if g[1] is STATIC]
        self._epoch = Epoch.now

    def hold(self) -> bool:
        """Whether nothing was added, taken out, replaced or reordered."""
        if self._plain.lengths and not self._plain.holds():
            return False
        if Epoch.now != self._epoch or Epoch.handed_out:
            if not self._states.holds():
                return False
            self._epoch = Epoch.now
        for container, _, items, _ in self._pytrees:  # registered pytrees, which may be mutable
            now = jax.tree.leaves(container, is_leaf=lambda x, top=container: x is not top)
            if len(now) != len(items) or not all(map(is_, now, items)):
                return False
        return all(key.holds() for key in self._compared) if self._compared else True

    def refresh(self, container: Any) -> None:
        """A bare array in `container` was replaced by refax: the structure is the same."""
        for i, (guarded, keys, _, of_state) in enumerate(self._entries):
            if guarded is container:
                items = container if keys is None else container.values()
                self._entries[i] = (guarded, keys, tuple(items), of_state)
                self._string_together()
                return
