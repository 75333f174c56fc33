"""What goes wrong with partition specs, in the caller's words: the place, its shape, its spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from .._jax_compat import varying_axes
from ..graph.errors import describe_value
from ..graph.graphdef import GraphDef
from ..lift.array_prefix import spread
from ..lift.call import Call
from ..lift.errors import PrefixError, argument_names
from ..lift.inside import Static
from ..lift.places import place_of_leaf, place_of_output
from ..lift.prefix import OutputRules


def check_replicated(graphdef: GraphDef, rules: OutputRules) -> Callable[..., Any]:
    """A check, at the end of the trace, that what differs between devices leaves by its axes."""

    def returned(result: Any, grouped: Sequence[Sequence[Any]], static: Static) -> Any:
        for group, spec in enumerate(rules.entries):
            known = set(_axes(spec))
            for index, value in enumerate(grouped[group]):
                more = set().union(*map(varying_axes, jax.tree.leaves(value))) - known
                if more:
                    place, kind = place_of_output(
                        graphdef, rules.arguments, static.change, group, index
                    )
                    raise _varies(place, kind, spec, sorted(more, key=str))
        return result, grouped, static

    return returned


def _varies(place: str, kind: str, spec: Any, axes: list[Any]) -> PrefixError:
    names = ", ".join(map(repr, axes))
    return PrefixError(
        f"`{place}` is written inside shard_map with {spec!r}, but what is written differs along "
        f"the mesh axis {names}.\nCure: give it a spec with that axis, "
        f"nnx.StateSharding({{{kind}: P({names}), ...: P()}}); or write the same on every device, "
        f"such as a mean over them (jax.lax.pmean(x, {names}))."
    )


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
    groups, args = call.groups, call.tree[0]
    assert groups is not None
    sizes = (mesh if mesh is not None else jax.sharding.get_abstract_mesh()).shape
    for leaf, value in enumerate(call.values):
        place = place_of_leaf(call.plan.graphdef, rules.arguments, leaf)
        _check_spec(place, value, groups.entries[groups.of_leaf[leaf]], sizes)
    labels = argument_names(function, len(args))
    pairs = jax.tree_util.tree_leaves_with_path(args)
    for (path, value), spec in zip(pairs, spread(specs, args, "args", is_spec), strict=True):
        place = labels[path[0].idx] + jax.tree_util.keystr(path[1:])
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


def _axes(spec: Any) -> Iterator[Any]:
    for entry in spec or ():
        yield from _names(entry)
