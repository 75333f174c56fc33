"""Models that are made sharded, and models without annotations that are laid out by patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..objects.at_once import at_once
from ..objects.errors import suggest
from ..objects.placing import Rules, check_fit, get_logical_axis_rules, logical_axis_rules
from ..objects.type_names import M, T
from ..objects.variable import check_write, metadata_writes, set_raw_value
from ..transforms.jit import jit
from ..verbs.names import named_variables
from ..verbs.spmd import with_sharding_constraint


def make_sharded(build: Callable[[], T], mesh: Any = None, rules: Rules | None = None) -> T:
    """What `build()` returns, made by one compiled program: no array is ever whole on a device.

    Args:
        build: makes the model, and the optimizer if you like: whatever has annotated Variables.
            What has no annotation is on every device.
        mesh: where; by default the mesh that is set.
        rules: logical axis rules; by default those that are set.

    Raises:
        ValueError: there is no mesh, or an annotation does not fit.

    Example:
        >>> from refax import nnx
        >>> import jax
        >>> auto = jax.sharding.AxisType.Auto
        >>> mesh = jax.make_mesh((jax.device_count(),), ("model",), axis_types=(auto,))
        >>> split = {"sharding": (None, "model")}
        >>> build = lambda: nnx.Linear(4, 8, kernel_metadata=split, rngs=nnx.Rngs(0))
        >>> nnx.make_sharded(build, mesh).kernel.value.sharding.mesh.axis_names
        ('model',)
    """
    if mesh is None and jax.sharding.get_abstract_mesh().empty:
        raise ValueError(
            "make_sharded: there is no mesh.\n"
            "Cure: nnx.make_sharded(build, mesh), or call it under `with jax.set_mesh(mesh)`."
        )
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    rules = get_logical_axis_rules() if rules is None else rules
    with jax.set_mesh(mesh), logical_axis_rules(rules):
        return jit(build)()


def shard(model: M, mesh: Any, patterns: Mapping[str, Any]) -> M:
    """Lay out a model that has no annotations, in place, and annotate it so.

    Args:
        model: any object graph.
        mesh: the mesh.
        patterns: a `PartitionSpec` for each pattern of dotted names, with the wildcards of
            `fnmatch`: `{"*.kernel": P(None, "model")}`. The first one that matches counts; what
            none matches is on every device.

    Returns:
        The model. An optimizer that is made for it afterwards has its state beside the parameters.

    Raises:
        ValueError: a pattern matches nothing, or specs do not fit: all of them are named, and
            nothing was moved.

    Example:
        >>> from refax import nnx
        >>> import jax
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        >>> nnx.shard(model, mesh, {"kernel": P(None, "model")}).kernel.value.sharding.spec
        P(None, 'model')
    """
    variables = list(named_variables(model))
    matching = [[p for p in patterns if fnmatch.fnmatchcase(name, p)] for name, _ in variables]
    wanted = [PartitionSpec(*patterns[first[0]]) if first else None for first in matching]
    if unused := [p for p in patterns if not any(p in found for found in matching)]:
        name = unused[0]
        raise ValueError(
            f"shard: {name!r} matches none of the {len(variables)} Variables."
            f"{suggest(name, [n for n, _ in variables])}\n"
            "Cure: a pattern of names as nnx.named_variables tells them, with * for any part."
        )
    shapes = [jax.tree.map(jax.numpy.shape, variable.value) for _, variable in variables]
    check_fit([(n, s, shape) for (n, _), s, shape in zip(variables, wanted, shapes) if s], mesh)
    writes = []
    for (_, variable), spec in zip(variables, wanted, strict=True):
        check_write(variable, "write the value of")
        place = NamedSharding(mesh, spec or PartitionSpec())
        value = jax.tree.map(partial(jax.device_put, device=place), variable._value)
        writes.append(partial(set_raw_value, variable, value))
        if spec is not None:
            annotated = variable._metadata.without("sharding").with_items(out_sharding=tuple(spec))
            writes += metadata_writes(variable, annotated)
    at_once(writes)
    return model


def with_logical_constraint(x: T, names: Sequence[Any]) -> T:
    """An activation laid out by names of its axes, as the rules map them to axes of the mesh.

    Under `jit` the compiler is told; outside, the array is moved. Without a mesh nothing happens.

    Args:
        x: an array, or a tracer.
        names: for each axis a logical name, an axis of the mesh, a tuple of them, or None.

    Raises:
        ValueError: the names do not fit the array or the mesh.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> with nnx.logical_axis_rules([("batch", "data")]):
        ...     nnx.with_logical_constraint(jnp.ones((8, 4)), ("batch", None)).shape
        (8, 4)
    """
    return with_sharding_constraint(x, tuple(names))
