"""Where an annotated value belongs: from axis names, by the rules, to a place on the mesh.

An annotation is a tuple of axis names (or None), one for each axis of the value; a name may be a
logical one, which the rules map to axes of the mesh. An annotated Variable that is made while a
mesh is set (`jax.set_mesh`, or `mesh=`) is placed by it: moved there, or constrained inside `jit`.
With no mesh nothing happens.

The rules are a context of JAX: a compiled function that was traced under others is traced again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, Sharding

from .._jax_compat import is_outside_of_traces, mesh_around
from .arguments import AxisNames, checked
from .errors import StructureError, clipped
from .modes import Switch, using_eager_sharding

Rules = Mapping[str, AxisNames] | Sequence[tuple[str, AxisNames]]
_RULES: Any = jax.make_user_context(())
_NO_AXIS = (None, PartitionSpec.UNCONSTRAINED)


@checked
def set_logical_axis_rules(rules: Rules) -> None:
    """Map logical axis names to mesh axes, from now on in this thread.

    Example:
        >>> from refax import nnx
        >>> with nnx.logical_axis_rules([("embed", None), ("mlp", "model")]):
        ...     nnx.get_logical_axis_rules()
        (('embed', None), ('mlp', 'model'))
    """
    _RULES(_hashable(rules)).__enter__()


def get_logical_axis_rules() -> Rules:
    return _RULES.value


@checked
def logical_axis_rules(rules: Rules) -> contextlib.AbstractContextManager[None]:
    """The rules for the time of a `with` block."""
    return _RULES(_hashable(rules))


def _hashable(rules: Rules) -> Rules:
    return tuple(
        (name, tuple(to) if isinstance(to, list) else to) for name, to in dict(rules).items()
    )


def spec_of(metadata: Mapping[str, Any]) -> PartitionSpec:
    """The partition spec that an annotation says, by the rules; `P()` without one."""
    annotation = metadata.get("sharding")
    if annotation is None:
        return PartitionSpec()
    if isinstance(annotation, Sharding):
        return getattr(annotation, "spec", PartitionSpec())
    rules = {**dict(_RULES.value), **dict(metadata.get("sharding_rules") or ())}

    def mapped(name: Any) -> Any:
        if isinstance(name, (tuple, list)):
            several = (x if isinstance(x := mapped(n), tuple) else (x,) for n in name)
            return tuple(axis for axes in several for axis in axes if axis is not None)
        name = name if type(name).__hash__ else repr(name)  # which is no name, and will be told
        return rules.get(name, name)

    names = annotation if isinstance(annotation, (tuple, list)) else (annotation,)
    return PartitionSpec(*map(mapped, annotation if type(annotation) is PartitionSpec else names))


def whole_where_free(spec: PartitionSpec) -> PartitionSpec:
    """The spec for where no compiler chooses: what is unconstrained is not divided."""
    return PartitionSpec(*(None if axis is PartitionSpec.UNCONSTRAINED else axis for axis in spec))


def mesh_set() -> Any:
    """The mesh that is set; one with devices, if it has some and there is no trace."""
    mesh = mesh_around()
    if isinstance(mesh, AbstractMesh) and is_outside_of_traces():
        mesh = mesh if (concrete := jax.sharding.get_mesh()).empty else concrete
    return mesh


def placed_by_annotation(
    value: Any,
    metadata: Mapping[str, Any],
    name: str | Callable[[], str],
    eager_sharding: Switch = None,
) -> Any:
    """`value` where its annotation says that it belongs, if there is a mesh; `name` is for errors.

    Raises:
        StructureError: the annotation does not fit the value, or the mesh.
    """
    eager_sharding = using_eager_sharding() if eager_sharding is None else eager_sharding
    if not eager_sharding or not isinstance(value, jax.Array):
        return value
    annotation = metadata["sharding"]
    given = metadata.get("mesh") or getattr(annotation, "mesh", None)
    around = mesh_set()
    mesh = around if given is None else given
    at_once = is_outside_of_traces()
    if mesh.empty or (at_once and around is mesh and isinstance(mesh, AbstractMesh)):
        return value
    kinds = dict(zip(around.axis_names, around.axis_types))  # those of shard_map are Manual
    if AxisType.Manual in kinds.values():
        return value
    spec = spec_of(metadata)
    if misfit(spec, value.shape, mesh):
        told = name if isinstance(name, str) else name()
        check_fit([(told, spec, value.shape)], mesh, annotation)
    if at_once:
        return jax.device_put(value, NamedSharding(mesh, whole_where_free(spec)))
    explicit = {axis for axis in spec_axes(spec) if kinds.get(axis) is AxisType.Explicit}
    if explicit:
        value = jax.sharding.reshard(value, _only(whole_where_free(spec), explicit.__contains__))
        spec = _only(spec, lambda axis: axis not in explicit)
        if not spec_axes(spec):
            return value
    return jax.lax.with_sharding_constraint(value, NamedSharding(mesh, spec))


def _only(spec: PartitionSpec, chosen: Callable[[str], bool]) -> PartitionSpec:
    """The spec with those of its axes that are chosen."""

    def of_entry(entry: Any) -> Any:
        return entry if entry in _NO_AXIS else tuple(filter(chosen, spec_axes((entry,)))) or None

    return PartitionSpec(*map(of_entry, spec))


def check_fit(
    parts: Iterable[tuple[str, PartitionSpec, Any]], mesh: Any, annotation: Any = None
) -> None:
    """Check that arrays can be laid out so: (place, spec, shape) of each.

    Raises:
        StructureError: some cannot; all of them are told, the first in detail.
    """
    wrong = [(n, s, shape, why) for n, s, shape in parts if (why := misfit(s, shape, mesh))]
    if not wrong:
        return
    name, spec, shape, why = wrong[0]
    said = f"its annotation {annotation!r}, which is {spec}" if annotation else f"{spec}"
    head = f"{clipped(name, 150)} of shape {shape} does not fit {clipped(said)} on the mesh "
    head += f"{clipped(str(dict(mesh.shape)))}: {clipped(why)}."
    cure = (
        "\nCure: another annotation, mesh, or rules (nnx.logical_axis_rules; they are "
        f"{clipped(str(dict(get_logical_axis_rules())))}); what is made with eager_sharding=False "
        "stays whole."
    )
    more = [f"{n} of shape {shape}, {s}: {why}" for n, s, shape, why in wrong[1:]]
    raise StructureError(head + more_places(more, 1450 - len(head + cure)) + cure)


def more_places(lines: Sequence[str], room: int) -> str:
    """For a message: what else does not fit, some of it, in so many characters."""
    shown = [f"\n  {line}" for line in lines[:8]]
    while shown and sum(map(len, shown)) > room:
        shown.pop()
    rest = len(lines) - len(shown)
    return "".join([*shown, f"\n  and {rest} more"] if rest else shown)


def misfit(spec: PartitionSpec, shape: Sequence[int] | None, mesh: Any) -> str | None:
    """Why an array of this shape (of any, for None) cannot be laid out so; None if it can."""
    if shape is not None and len(spec) > len(shape):
        return f"it has {len(spec)} entries, and the array {len(shape)} axes"
    sizes, axes = dict(mesh.shape), spec_axes(spec)
    for axis in axes:
        if not isinstance(axis, str) or axis not in sizes:
            return f"the mesh has no axis {axis!r}, and no rule maps such a name"
        if (times := axes.count(axis)) > 1:
            return f"it has the axis {axis!r} {times} times"
    for i, (names, size) in enumerate(zip(spec, shape or ())):
        if size % (parts := math.prod(sizes[axis] for axis in spec_axes((names,)))):
            return f"axis {i} of size {size} cannot be divided into {parts} equal parts"
    return None


def place_text(sharding: Any) -> str:
    """Where an array is, for a table."""
    if sharding is None:
        return "nowhere yet"
    if isinstance(sharding, NamedSharding):
        host = "" if sharding.memory_kind in (None, "device") else f", {sharding.memory_kind}"
        return f"{sharding.spec} of {dict(sharding.mesh.shape)}{host}"
    return "1 device" if len(sharding.device_set) == 1 else f"{len(sharding.device_set)} devices"


def spec_axes(spec: Any) -> list[str]:
    """The names of mesh axes in a spec."""
    entries = (names if isinstance(names, tuple) else (names,) for names in spec)
    return [axis for names in entries for axis in names if axis not in _NO_AXIS]
