"""`add_axis`, `remove_axis`: annotations kept in step by hand, around a transform of JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ..graph.plan import plan_for
from .axis_names import AxisName

T = TypeVar("T")


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
