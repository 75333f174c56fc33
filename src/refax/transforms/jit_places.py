"""Where what a jitted function writes lies afterwards: on several devices, where it came from.

XLA is free to choose another sharding for a result, and the next call would be compiled again for
it. So a written Variable leaves with the sharding that it came with, but where the function itself
says where it belongs, or makes something of another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import jax
from jax.sharding import NamedSharding, Sharding

from .._jax_compat import is_outside_of_traces
from ..graph.rebuild import write_leaves
from ..lift.call import Call
from ..lift.inside import values_out
from ..objects.placing import misfit

Spread = tuple[NamedSharding | None, ...]
_PLACING = {"sharding_constraint", "device_put", "reshard"}


def is_spread(values: Sequence[Any]) -> bool:
    """Whether there is something on several devices now; the first value stands for all."""
    return bool(values) and type(getattr(values[0], "sharding", None)) is NamedSharding


def places_of(values: Sequence[Any]) -> tuple[Any, ...] | None:
    """The shardings of values; None inside a trace, where arrays have no place."""
    if not is_outside_of_traces():
        return None
    try:
        return tuple(map(_sharding, values))
    except AttributeError:  # something that is no array of JAX
        return tuple(getattr(value, "sharding", None) for value in values)


_sharding = attrgetter("sharding")


def spread_of(found: tuple[Any, ...] | None) -> Spread | None:
    """Of these shardings those of several devices; None if there is none."""
    spread = tuple(s if type(s) is NamedSharding else None for s in found or ())
    return spread if any(spread) else None


def bring(call: Call, places: Sequence[tuple[int, Sharding]]) -> None:
    """Move leaves that have no fixed place yet to where they are wanted, also for the caller."""
    moved = [
        (leaf, where)
        for leaf, where in places
        if not getattr(x := call.values[leaf], "committed", True) and not x.is_deleted()
        if not isinstance(where, NamedSharding) or not misfit(where.spec, x.shape, where.mesh)
    ]
    if moved:
        leaves, shardings = zip(*moved, strict=True)
        values = jax.device_put([call.values[leaf] for leaf in leaves], list(shardings))
        write_leaves(call.plan, call.roots, leaves, values)
        call.values = call.plan.gather()


def kept_places(
    jitted: Any, inputs: tuple, call: Call, spread: Spread, result: Any
) -> tuple[Any, list, Any]:
    """The `out_shardings` of a function with a group for each leaf: as they came, if they can.

    What has an entry goes by that; so does the result, with its own.
    """
    entries = call.groups.entries
    first = len(entries) - len(spread)  # before them is what is new
    kept = [*entries[:first], *(e or s for e, s in zip(entries[first:], spread, strict=True))]
    try:
        traced = jitted.trace(*inputs)
    except Exception:  # the call itself will tell it
        return result, kept, None
    jaxpr = traced.jaxpr.jaxpr
    _, grouped, change = jax.tree.unflatten(traced.out_tree, range(len(jaxpr.outvars)))
    for leaf, at in values_out(change, call.graphdef, grouped).items():
        if leaf is None or spread[leaf] is None or entries[first + leaf] is not None:
            continue
        fits = isinstance(at, int) and jaxpr.outvars[at].aval.shape == call.values[leaf].shape
        if not fits or _is_placed(jaxpr, at):
            kept[first + leaf] = None
    return result, kept, None


def _is_placed(jaxpr: Any, number: int) -> bool:
    """Whether a function says itself where its result of this number belongs."""
    result = jaxpr.outvars[number]
    for equation in reversed(jaxpr.eqns):
        if result in equation.outvars:
            if equation.primitive.name == "jit":
                inner = equation.params["jaxpr"].jaxpr
                return _is_placed(inner, equation.outvars.index(result))
            return equation.primitive.name in _PLACING
    return False
