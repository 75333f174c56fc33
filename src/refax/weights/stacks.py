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
from ..verbs.errors import Misfits
from ..verbs.iteration import iter_graph
from ..verbs.names import dotted_name
from .places import Places


class _Joined:
    """Arrays of several blocks as one, read when it is asked for."""

    def __init__(self, parts: list[Any]):
        self._parts = parts
        self.shape = (len(parts), *parts[0].shape)
        self.dtype = parts[0].dtype

    def read(self, index: tuple[slice, ...] = ()) -> Any:
        first, rest = (index[0], index[1:]) if index else (slice(None), ())
        parts = [read(part, rest) for part in self._parts[first]]
        return (np if isinstance(parts[0], np.ndarray) else jnp).stack(parts)


def read(value: Any, index: tuple[slice, ...] = ()) -> Any:
    """A value of a mapping, or a part of it; lazy ones are read now."""
    if hasattr(value, "read"):
        return value.read(index)
    return value[index] if index else value


class _Part:
    """Block number `number` of a stacked array that is read when it is asked for."""

    def __init__(self, whole: Any, number: int):
        self._whole, self._number = whole, number
        self.shape, self.dtype = tuple(whole.shape[1:]), whole.dtype

    def read(self, index: tuple[slice, ...] = ()) -> Any:
        return read(self._whole, (slice(self._number, self._number + 1), *index))[0]


def with_stacks(
    places: Places, incoming: Mapping[str, Any], misfits: Misfits
) -> Iterator[tuple[str, Any]]:
    """The entries, with single blocks joined for a Stack, and stacked ones parted for a list."""
    taken: set[str] = set()
    for path, stack in list(iter_graph(places.obj)):
        if not isinstance(stack, Stack):
            continue
        prefix = f"{dotted_name(path)}." if path else ""
        groups: dict[str, dict[int, str]] = {}
        for name in incoming:
            match = re.fullmatch(rf"{re.escape(prefix)}(\d+)\.(.+)", name)
            if match:
                groups.setdefault(match[2], {})[int(match[1])] = name
        for rest, names in groups.items():
            whole = f"{prefix}blocks.{rest}"
            if places.find(whole) is None:
                continue
            if sorted(names) != list(range(stack.n)):
                misfits.add(
                    "as many blocks as the Stack has",
                    f"`{dotted_name(path) or type(stack).__name__}` stacks {stack.n} blocks, but "
                    f"`{rest}` is there for the blocks {sorted(names)}.",
                )
            parts = [incoming[names[i]] for i in sorted(names)]
            parts = [p if hasattr(p, "shape") else np.asarray(p) for p in parts]
            shapes = {tuple(p.shape) for p in parts}
            if len(shapes) > 1:
                line = f"`{whole}` is stacked from arrays of several shapes: {sorted(shapes)}."
                misfits.add("blocks of one size", line)
                parts = parts[:1] * len(parts)
            taken.update(names.values())
            yield whole, _Joined(parts)
    for name, value in incoming.items():
        if name not in taken:
            yield from _parted(places, name, value)


def _parted(places: Places, name: str, value: Any) -> list[tuple[str, Any]]:
    """The entry; or the single blocks' of a stacked array, if the object has a list there."""
    head, _, rest = name.partition("blocks.")
    count = 0
    while rest and places.find(f"{head}{count}.{rest}") is not None:
        count += 1
    shape = getattr(value, "shape", ())
    if not count or not shape or shape[0] != count or places.find(name) is not None:
        return [(name, value)]
    return [(f"{head}{i}.{rest}", _Part(value, i)) for i in range(count)]
