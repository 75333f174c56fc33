"""`sharding_report`: where the arrays of an object lie, and what that costs a device."""

from __future__ import annotations

import math
from typing import Any

import jax

from ..objects.metadata import EMPTY
from ..objects.placing import place_text, spec_of
from ..objects.representation import WIDTH, Text, bytes_text, shortened
from ..objects.variable import Variable, raw
from ..objects.watch import is_array
from ..verbs.layouts import object_plan
from ..verbs.names import dotted_name

_HEAD = ("name", "shape", "annotation", "on devices", "per device")


class ShardingReport(Text):
    """A table, as text; the bytes of the fullest device, and what is not as annotated."""

    bytes_per_device: int
    replicated: list[str]


def sharding_report(obj: Any, /) -> ShardingReport:
    """A table of the arrays of an object: annotation, actual place, bytes per device.

    Args:
        obj: a model, an optimizer, any object graph; also an abstract one.

    Returns:
        Text to print. Its attribute `bytes_per_device` is the sum for the fullest device;
        `replicated` lists the names of Variables with an annotation that are whole on all devices.

    Raises:
        TypeError: what is no object, nor a container of objects and arrays.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Linear(
        ...     64, 64, kernel_metadata={"sharding": (None, "model")}, rngs=nnx.Rngs(0)
        ... )
        >>> print(nnx.sharding_report(model))
        name    shape     annotation        on devices  per device
        bias    (64,)     -                 1 device         256 B
        kernel  (64, 64)  (None, 'model')   1 device       16.4 KB
        total                                              16.6 KB
    """
    plan = object_plan(obj, "sharding_report")
    rows, replicated, used = [], [], dict[Any, int]()
    leaves, paths = [*plan.variables, *plan.bare()], plan.graphdef.paths
    for number in paths.order:
        leaf, name = leaves[number], dotted_name(paths.leaves[number])
        metadata = leaf._metadata if isinstance(leaf, Variable) else EMPTY
        annotation = metadata.get("sharding")
        for array in filter(is_array, jax.tree.leaves(raw(leaf))):
            sharding: Any = getattr(array, "sharding", None)
            part = array.shape if sharding is None else sharding.shard_shape(array.shape)
            size = math.prod(part) * array.dtype.itemsize
            for device in () if sharding is None else sharding.device_set:
                used[device] = used.get(device, 0) + size
            place = place_text(sharding)
            whole = sharding and len(sharding.device_set) > 1 and sharding.is_fully_replicated
            if whole and any(spec_of(metadata)):
                replicated.append(name)
                place += "  ← annotated, but whole on each"
            shown = "-" if annotation is None else str(annotation)
            rows.append((name, str(array.shape), shown, place, bytes_text(size)))
    total = max(used.values(), default=0)
    rows.append(("total", "", "", "", bytes_text(total)))
    report = ShardingReport(_table(_HEAD, rows))
    report.bytes_per_device, report.replicated = total, replicated
    return report


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    # Where a line is too long, names give way, though not all of them.
    widths[0] = min(widths[0], max(WIDTH - sum(widths[1:]) - 2 * len(widths[1:]), 24))
    lines = []
    for *cells, last in (head, *rows):
        cells[0] = shortened(cells[0], widths[0])
        padded = [cell.ljust(width) for cell, width in zip(cells, widths)]
        lines.append("  ".join([*padded, last.rjust(widths[-1])]))
    return "\n".join(lines)
