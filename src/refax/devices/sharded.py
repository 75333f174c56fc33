"""Models that are made sharded, and models without annotations that are laid out by patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ..objects import arguments as fit
from ..objects.at_once import at_once
from ..objects.errors import suggest
from ..objects.placing import (
    Rules,
    check_fit,
    get_logical_axis_rules,
    logical_axis_rules,
    mesh_set,
    spec_of,
)
from ..objects.type_names import M, T
from ..objects.variable import check_write, metadata_writes, set_raw_value
from ..transforms.jit import jit
from ..verbs.hosts import fail_together
from ..verbs.layouts import object_plan
from ..verbs.names import dotted_name
from ..verbs.spmd import with_sharding_constraint


@fit.checked
def make_sharded(
    build: Callable[[], T], mesh: fit.Mesh | None = None, rules: Rules | None = None
) -> T:
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
    mesh = _mesh_of("make_sharded", mesh)
    rules = get_logical_axis_rules() if rules is None else rules
    with jax.set_mesh(mesh), logical_axis_rules(rules):
        make = jit(build)
        if jax.process_count() > 1:  # what only one of them cannot build, none begins to make
            with fail_together("make_sharded"):
                make.lower()
        return make()


def _mesh_of(verb: str, mesh: Any) -> Any:
    """The mesh that is given, or else set."""
    mesh = mesh_set() if mesh is None else mesh
    if mesh.empty:
        cure = "pass one, or call it under `with jax.set_mesh(mesh)`"
        raise ValueError(f"{verb}: there is no mesh.\nCure: {cure}.")
    return mesh


@fit.checked
def shard(
    model: M,
    mesh: fit.AnyMesh | None,
    patterns: Mapping[str, PartitionSpec | Sequence[Any] | str | None],
) -> M:
    """Lay out a model that has no annotations, in place, and annotate it so.

    Args:
        model: any object graph.
        mesh: the mesh; None for the one that is set.
        patterns: a `PartitionSpec`, or names as in an annotation, for each pattern of dotted names
            with the wildcards of `fnmatch`: `{"*.kernel": P(None, "model")}`. The first one that
            matches counts; what none matches is on every device.

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
    mesh = _mesh_of("shard", mesh)
    specs = {pattern: spec_of({"sharding": names}) for pattern, names in dict(patterns).items()}
    plan, names = object_plan(model, "shard"), list[tuple[str, int]]()
    for path, leaf in plan.graphdef.all_paths(plan.graphdef.roots[0]):
        if leaf < len(plan.variables):
            names.append((dotted_name(path) or "value", leaf))
    matching = [[p for p in specs if fnmatch.fnmatchcase(name, p)] for name, _ in names]
    if unused := [p for p in specs if not any(p in found for found in matching)]:
        raise ValueError(
            f"shard: patterns: {unused[0]!r} matches none of the {len(plan.variables)} Variables."
            f"{suggest(unused[0], [name for name, _ in names])}\n"
            "Cure: a pattern of names as nnx.named_variables tells them, with * for any part."
        )
    wanted = dict[int, tuple[str, str]]()  # by leaf: its name and pattern; a tied one has several
    for (name, leaf), found in zip(names, matching, strict=True):
        if found:
            first, pattern = wanted.setdefault(leaf, (name, found[0]))
            if specs[pattern] != specs[found[0]]:
                raise ValueError(
                    f"shard: {first!r} and {name!r} are one Variable, but {pattern!r} gives it "
                    f"{specs[pattern]}, and {found[0]!r} {specs[found[0]]}.\n"
                    "Cure: patterns that say the same for both names, or for one of them only."
                )
    known = dict(reversed([(leaf, name) for name, leaf in names]))
    pairs = [
        ((known[leaf], v), specs[wanted[leaf][1]] if leaf in wanted else PartitionSpec())
        for leaf, v in enumerate(plan.variables)
    ]
    shape, leaves = jax.numpy.shape, jax.tree.leaves
    check_fit([(n, spec, shape(x)) for (n, v), spec in pairs for x in leaves(v._value)], mesh)
    writes = []
    for (_, variable), spec in pairs:
        check_write(variable, "write the value of")
        value = with_sharding_constraint(variable._value, spec, mesh)
        writes.append(partial(set_raw_value, variable, value))
        if spec:
            annotated = variable._metadata.without("sharding").with_items(out_sharding=tuple(spec))
            writes += metadata_writes(variable, annotated)
    at_once(writes)
    return model


@fit.checked
def with_logical_constraint(x: T, names: Sequence[fit.AxisNames]) -> T:
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
