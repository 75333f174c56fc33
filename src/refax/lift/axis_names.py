"""Axis names in annotations, kept in step with the axes that a transform takes away and gives back.

With `transform_metadata={nnx.PARTITION_NAME: 'b'}`, a Variable that is mapped over axis 1 loses the
entry 1 of its `sharding` inside, and has it again outside; Variables made inside get it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..graph.graphdef import GraphDef
from ..objects.variable import Variable, replace_metadata
from ..verbs.spmd import PARTITION_NAME
from . import errors


class AxisName:
    """The name of the axis that a transform maps over."""

    __slots__ = ("name",)

    def __init__(self, name: str | None):
        self.name = name

    @staticmethod
    def of(transform_metadata: Mapping[str, Any] | None) -> AxisName | None:
        if not transform_metadata or PARTITION_NAME not in transform_metadata:
            return None
        return AxisName(transform_metadata[PARTITION_NAME])

    def remove(
        self, variables: Sequence[Variable], axes: Sequence[Any], graphdef: GraphDef
    ) -> None:
        """Take the name out of the annotations of mapped Variables, the first leaves of a graph."""
        for leaf, (variable, axis) in enumerate(zip(variables, axes, strict=True)):
            if not isinstance(axis, int):
                continue
            names = variable._metadata.get("sharding")
            if isinstance(names, tuple):
                if not -len(names) <= axis < len(names) or names[axis] != self.name:
                    path = graphdef.paths.leaves[leaf][len(graphdef.roots) > 1 :]
                    raise errors.axis_name_mismatch(path, variable, axis, self.name)
                kept = list(names)
                del kept[axis]
                replace_metadata(variable, variable._metadata.with_items(sharding=tuple(kept)))
            variable.remove_axis(axis, self.name)

    def add(self, variables: Sequence[Variable], axes: Sequence[Any]) -> None:
        """Put the name back into the annotations of mapped Variables."""
        for variable, axis in zip(variables, axes, strict=True):
            if not isinstance(axis, int):
                continue
            names = variable._metadata.get("sharding")
            if isinstance(names, tuple):
                longer = list(names)
                longer.insert(axis if axis >= 0 else len(names) + 1 + axis, self.name)
                replace_metadata(variable, variable._metadata.with_items(sharding=tuple(longer)))
            variable.add_axis(axis, self.name)
