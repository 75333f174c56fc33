"""Axis names in annotations, kept in step with the axes that a transform takes away and gives back.

With `transform_metadata={nnx.PARTITION_NAME: 'b'}`, a Variable that is mapped over axis 1 loses the
entry 1 of its `sharding` inside, and has it again outside; Variables made inside get it. So it is
with every other key, `{"nickname": 'B'}`, for metadata that has an entry for each axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from ..graph.graphdef import GraphDef
from ..objects.variable import Variable, replace_metadata
from ..verbs.spmd import PARTITION_NAME
from . import errors


class AxisName:
    """The name of the axis that a transform maps over, in each kind of annotation that has one."""

    __slots__ = ("names",)

    def __init__(self, name: str | None):
        self.names: tuple[tuple[str, Any], ...] = ((_SHARDING, name),)  # (metadata key, name)

    @staticmethod
    def of(transform_metadata: Mapping[str, Any] | None) -> AxisName | None:
        if not transform_metadata:
            return None
        named = AxisName(None)
        named.names = tuple(
            (_SHARDING if key == PARTITION_NAME else key, name)
            for key, name in transform_metadata.items()
        )
        return named

    def remove(
        self, variables: Sequence[Variable], axes: Sequence[Any], graphdef: GraphDef
    ) -> None:
        """Take the name out of the annotations of mapped Variables, the first leaves of a graph."""
        for leaf, (variable, axis) in enumerate(zip(variables, axes, strict=True)):
            for key, name in self.names if isinstance(axis, int) else ():
                names = variable._metadata.get(key)
                if isinstance(names, _ANNOTATIONS):
                    names, form = _entries(names)
                    if not -len(names) <= axis < len(names) or names[axis] != name:
                        path = graphdef.paths.leaves[leaf][len(graphdef.roots) > 1 :]
                        raise errors.axis_name_mismatch(path, variable, key, axis, name)
                    del names[axis]
                    _annotate(variable, key, form(names))
                if key == _SHARDING:
                    variable.remove_axis(axis, name)

    def add(self, variables: Sequence[Variable], axes: Sequence[Any]) -> None:
        """Put the name back into the annotations of mapped Variables."""
        for variable, axis in zip(variables, axes, strict=True):
            for key, name in self.names if isinstance(axis, int) else ():
                names = variable._metadata.get(key)
                if isinstance(names, _ANNOTATIONS):
                    names, form = _entries(names)
                    names += [None] * (axis - len(names))  # which a spec may leave out
                    names.insert(axis if axis >= 0 else len(names) + 1 + axis, name)
                    _annotate(variable, key, form(names))
                if key == _SHARDING:
                    variable.add_axis(axis, name)


_SHARDING = "sharding"


_ANNOTATIONS = (tuple, list, PartitionSpec, NamedSharding)


def _entries(annotation: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """An entry for each axis, and how to make an annotation of that kind from entries."""
    if isinstance(annotation, NamedSharding):
        return list(annotation.spec), lambda e: NamedSharding(annotation.mesh, PartitionSpec(*e))
    if isinstance(annotation, PartitionSpec):
        return list(annotation), lambda e: PartitionSpec(*e)
    return list(annotation), tuple


def _annotate(variable: Variable, key: str, annotation: Any) -> None:
    replace_metadata(variable, variable._metadata.with_items(**{key: annotation}))
