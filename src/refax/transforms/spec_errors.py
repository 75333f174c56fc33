"""What goes wrong with partition specs, in the caller's words: the place, its shape, its spec."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from .._jax_compat import varying_axes
from ..graph.graphdef import GraphDef
from ..lift.call import Call
from ..lift.errors import PrefixError
from ..lift.places import check_outputs, inputs_by_place
from ..lift.prefix import OutputRules
from ..objects.errors import describe_value


def check_replicated(graphdef: GraphDef, rules: OutputRules) -> Callable[..., Any]:
    """A check, at the end of the trace, that what differs between devices leaves by its axes."""

    def varying(spec: Any, value: Any) -> list[Any]:
        axes = set().union(*map(varying_axes, jax.tree.leaves(value)))
        return sorted(axes.difference(*map(_names, spec or ())), key=str)

    def error(place: str, kind: str, spec: Any, axes: list[Any]) -> PrefixError:
        names = ", ".join(map(repr, axes))
        return PrefixError(
            f"`{place}` is written inside shard_map with {spec!r}, but what is written differs "
            f"along the mesh axis {names}.\nCure: give it a spec with that axis, "
            f"nnx.StateSharding({{{kind}: P({names}), ...: P()}}); or write the same on every "
            f"device, such as a mean over them (jax.lax.pmean(x, {names}))."
        )

    return check_outputs(graphdef, rules, varying, error)


def check_specs(
    call: Call,
    rules: OutputRules,
    function: Callable,
    specs: Any,
    mesh: Any,
    is_spec: Callable[[Any], bool],
) -> None:
    """Raise if an array cannot be split by its spec; name its place.

    Called when JAX has refused, whose message names places in refax's flat lists.
    """
    sizes = (mesh if mesh is not None else jax.sharding.get_abstract_mesh()).shape
    for place, value, spec in inputs_by_place(call, rules, function, specs, is_spec):
        _check_spec(place, value, spec, sizes)


def _check_spec(place: str, value: Any, spec: Any, sizes: Any) -> None:
    if not isinstance(spec, PartitionSpec):
        return
    for leaf in jax.tree.leaves(value):
        shape = getattr(leaf, "shape", ())
        if len(spec) > len(shape):
            raise PrefixError(
                f"shard_map: `{place}` is {describe_value(leaf)}, but its spec {spec!r} has "
                f"{len(spec)} entries.\nCure: give it a spec with at most one entry per axis."
            )
        for axis, names in enumerate(spec):
            parts = math.prod(sizes.get(name, 1) for name in _names(names))
            if shape[axis] % parts:
                raise PrefixError(
                    f"shard_map: `{place}` is {describe_value(leaf)}, but its spec {spec!r} splits "
                    f"axis {axis} into {parts} parts, which do not divide {shape[axis]}.\n"
                    "Cure: pad it to a multiple, split another axis, or give it the spec P()."
                )


def _names(entry: Any) -> tuple:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)
