"""`sharding_report`: where the arrays of an object lie, and what that costs a device."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding

from ..objects.metadata import EMPTY
from ..objects.placing import place_text, spec_of
from ..objects.representation import WIDTH, Text, bytes_text, shortened
from ..objects.variable import Variable, raw
from ..objects.watch import is_array
from ..verbs.layouts import object_plan
from ..verbs.names import dotted_name

_HEAD = ("name", "shape", "annotation", "on devices", "per device")
_GAPS = 2 * (len(_HEAD) - 1)


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
    rows, replicated, used, meshes = [], [], dict[Any, int](), set[str]()
    leaves, paths = [*plan.variables, *plan.bare()], plan.graphdef.paths
    for number in paths.order:
        leaf, name = leaves[number], dotted_name(paths.leaves[number])
        metadata = leaf._metadata if isinstance(leaf, Variable) else EMPTY
        annotation = metadata.get("sharding")
        for array in filter(is_array, jax.tree.leaves(raw(leaf))):
            sharding: Any = getattr(array, "sharding", None)
            part = array.shape if sharding is None else sharding.shard_shape(array.shape)
            size = math.prod(part) * array.dtype.itemsize
            mesh = getattr(sharding, "mesh", None)
            abstract = isinstance(mesh, AbstractMesh)  # whose devices are all alike
            for device in () if sharding is None else [mesh] if abstract else sharding.device_set:
                used[device] = used.get(device, 0) + size
            place = place_text(sharding)
            if isinstance(sharding, NamedSharding):
                meshes.add(str(dict(sharding.mesh.shape)))
            whole = sharding and sharding.num_devices > 1 and sharding.is_fully_replicated
            if whole and any(spec_of(metadata)):
                replicated.append(name)
                place += "  ← whole on each"
            shown = "-" if annotation is None else str(annotation)
            rows.append((name, str(array.shape), shown, place, bytes_text(size)))
    total = max(used.values(), default=0)
    rows.append(("total", "", "", "", bytes_text(total)))
    legend = []
    if len(meshes) == 1 and sum(_widths(rows)) + _GAPS > WIDTH:  # the mesh is told once, then
        [mesh] = meshes
        rows = [(*r[:3], r[3].replace(f" of {mesh}", ""), r[4]) for r in rows]
        legend = textwrap.wrap(f"The mesh is {mesh}.", WIDTH)
    report = ShardingReport("\n".join([*_table(rows), *legend]))
    report.bytes_per_device, report.replicated = total, replicated
    return report


def _widths(rows: list[tuple[str, ...]]) -> list[int]:
    return [max(map(len, column)) for column in zip(_HEAD, *rows)]


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The lines; where they are too long, names give way, then the widest columns."""
    widths = _widths(rows)
    for _ in range(sum(widths) + _GAPS - WIDTH):
        widths[0 if widths[0] > 20 else max(range(4), key=widths.__getitem__)] -= 1
    for *cells, last in (_HEAD, *rows):
        padded = [shortened(cell, width).ljust(width) for cell, width in zip(cells, widths)]
        yield "  ".join([*padded, last.rjust(widths[-1])])
