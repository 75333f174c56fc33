"""Stacked layers and lists of blocks, one in the place of the other.

The arrays of a `Stack` at `layers` are named `layers.blocks.kernel`, with an axis for the blocks; a
list has `layers.0.kernel`, `layers.1.kernel`, …
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..layers.stack import Stack
from ..verbs.iteration import iter_graph
from ..verbs.names import dotted_name
from . import errors
from .places import Places


class Joined:
    """Arrays of several blocks as one, read when it is asked for."""

    def __init__(self, parts: list[Any]):
        self._parts = parts
        self.shape = (len(parts), *parts[0].shape)
        self.dtype = parts[0].dtype

    def read(self, index: tuple[slice, ...] = ()) -> Any:
        first, rest = (index[0], index[1:]) if index else (slice(None), ())
        parts = [_read(part, rest) for part in self._parts[first]]
        return (np if isinstance(parts[0], np.ndarray) else jnp).stack(parts)


def _read(value: Any, index: tuple[slice, ...]) -> Any:
    return value.read(index) if hasattr(value, "read") else value[index]


class _Part:
    """Block number `number` of a stacked array that is read when it is asked for."""

    def __init__(self, whole: Any, number: int):
        self._whole, self._number = whole, number
        self.shape, self.dtype = tuple(whole.shape[1:]), whole.dtype

    def read(self, index: tuple[slice, ...] = ()) -> Any:
        return _read(self._whole, (slice(self._number, self._number + 1), *index))[0]


def joined(
    places: Places, incoming: Mapping[str, Any], problems: errors.Problems
) -> dict[str, tuple[str, Any] | None]:
    """For each name of a block that a Stack takes: the (name, array) of all; None but once."""
    stacks = {dotted_name(p): v for p, v in iter_graph(places.obj) if isinstance(v, Stack)}
    found: dict[str, tuple[str, Any] | None] = {}
    for place, stack in stacks.items():
        groups: dict[str, dict[int, str]] = {}
        prefix = f"{place}." if place else ""
        for name in incoming:
            match = re.fullmatch(rf"{re.escape(prefix)}(\d+)\.(.+)", name)
            if match:
                groups.setdefault(match[2], {})[int(match[1])] = name
        for rest, names in groups.items():
            whole = f"{prefix}blocks.{rest}"
            if places.find(whole) is None:
                continue
            if sorted(names) != list(range(stack.n)):
                problems.blocks(place or type(places.obj).__name__, rest, sorted(names), stack.n)
            found.update(dict.fromkeys(names.values()))
            parts = [incoming[names[i]] for i in sorted(names)]
            parts = [p if hasattr(p, "shape") else np.asarray(p) for p in parts]
            if len({tuple(p.shape) for p in parts}) > 1:
                problems.uneven(whole, [tuple(p.shape) for p in parts])
                parts = parts[:1] * len(parts)
            found[names[min(names)]] = (whole, Joined(parts))
    return found


def parted(places: Places, name: str, value: Any) -> Iterator[tuple[str, Any]] | None:
    """The single blocks' entries of a stacked array, if the object has a list in its place."""
    head, _, rest = name.partition("blocks.")
    count = 0
    while rest and places.find(f"{head}{count}.{rest}") is not None:
        count += 1
    shape = getattr(value, "shape", ())
    if not count or not shape or shape[0] != count or places.find(name) is not None:
        return None
    return ((f"{head}{i}.{rest}", _Part(value, i)) for i in range(count))
