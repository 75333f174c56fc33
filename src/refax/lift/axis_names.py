"""Axis names in annotations, kept in step with the axes that a transform takes away and gives back.

With `transform_metadata={nnx.PARTITION_NAME: 'b'}`, a Variable that is mapped over axis 1 loses the
entry 1 of its `sharding` inside, and has it again outside; Variables made inside get it. So it is
with every other key, `{"nickname": 'B'}`, for metadata that has an entry for each axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jax.sharding import NamedSharding, PartitionSpec

from ..graph.graphdef import GraphDef
from ..graph.plan import plan_for
from ..objects.variable import Variable, replace_metadata
from ..verbs.spmd import PARTITION_NAME
from . import errors

T = TypeVar("T")
_SHARDING = "sharding"


class AxisName:
    """The name of the axis that a transform maps over, in each kind of annotation that has one."""

    __slots__ = ("names",)

    def __init__(self, transform_metadata: Mapping[str, Any]):
        self.names = tuple(  # (metadata key, name)
            (_SHARDING if key == PARTITION_NAME else key, name)
            for key, name in transform_metadata.items()
        )

    @property
    def places(self) -> bool:
        """Whether what is new belongs elsewhere by its annotation, which has the name now."""
        return any(key == _SHARDING and name is not None for key, name in self.names)

    @staticmethod
    def of(transform_metadata: Mapping[str, Any] | None) -> AxisName | None:
        return AxisName(transform_metadata) if transform_metadata else None

    def remove(
        self, variables: Sequence[Variable], axes: Sequence[Any], graphdef: GraphDef
    ) -> None:
        """Take the name out of the annotations of mapped Variables, the first leaves of a graph."""
        for leaf, variable, axis, key, name in self._mapped(variables, axes):
            if (names := _entries(variable, key)) is not None:
                if not -len(names) <= axis < len(names) or names[axis] != name:
                    path = graphdef.paths.leaves[leaf][len(graphdef.roots) > 1 :]
                    raise errors.axis_name_mismatch(path, variable, key, axis, name)
                del names[axis]
                _annotate(variable, key, names)
            if key == _SHARDING:
                variable.remove_axis(axis, name)

    def add(self, variables: Sequence[Variable], axes: Sequence[Any]) -> None:
        """Put the name back into the annotations of mapped Variables."""
        for _, variable, axis, key, name in self._mapped(variables, axes):
            if (names := _entries(variable, key)) is not None:
                names += [None] * (axis - len(names))  # which a spec may leave out
                names.insert(axis if axis >= 0 else len(names) + 1 + axis, name)
                _annotate(variable, key, names)
            if key == _SHARDING:
                variable.add_axis(axis, name)

    def _mapped(self, variables: Sequence[Variable], axes: Sequence[Any]) -> Iterator[tuple]:
        """(leaf, Variable, axis, metadata key, name) of what is mapped."""
        for leaf, (variable, axis) in enumerate(zip(variables, axes, strict=True)):
            for key, name in self.names if isinstance(axis, int) else ():
                yield leaf, variable, axis, key, name


def _entries(variable: Variable, key: str) -> list[Any] | None:
    """An entry for each axis, if there is such an annotation."""
    annotation = variable._metadata.get(key)
    if isinstance(annotation, NamedSharding):
        annotation = annotation.spec
    return list(annotation) if isinstance(annotation, (tuple, list, PartitionSpec)) else None


def _annotate(variable: Variable, key: str, entries: list[Any]) -> None:
    old, new = variable._metadata[key], tuple(entries)
    if isinstance(old, NamedSharding):
        new = NamedSharding(old.mesh, PartitionSpec(*entries))
    elif isinstance(old, PartitionSpec):
        new = PartitionSpec(*entries)
    replace_metadata(variable, variable._metadata.with_items(**{key: new}))


# -- the same by hand, around a transform of JAX ---------------------------------------------------


def add_axis(tree: T, index: int, transform_metadata: Mapping[str, Any]) -> T:
    """Put an axis name into the annotations of all Variables of an object or a State, in place.

    Args:
        tree: an object, a State, or a container of them.
        index: which axis of the values is new.
        transform_metadata: `{nnx.PARTITION_NAME: name}`, as a transform takes it.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> v = nnx.Param(jnp.ones((2, 3)), sharding=("data", None))
        >>> nnx.spmd.add_axis(v, 0, {nnx.PARTITION_NAME: "layers"}).sharding
        ('layers', 'data', None)
        >>> nnx.spmd.remove_axis(v, 0, {nnx.PARTITION_NAME: "layers"}).sharding
        ('data', None)
    """
    variables = plan_for((tree,)).variables
    if (named := AxisName.of(transform_metadata)) is not None:
        named.add(variables, [index] * len(variables))
    return tree


def remove_axis(tree: T, index: int, transform_metadata: Mapping[str, Any]) -> T:
    """Take an axis name out of the annotations of all Variables, in place; see `add_axis`.

    Raises:
        ValueError: an annotation has another name there; the path is named.
    """
    plan = plan_for((tree,))
    if (named := AxisName.of(transform_metadata)) is not None:
        named.remove(plan.variables, [index] * len(plan.variables), plan.graphdef)
    return tree
