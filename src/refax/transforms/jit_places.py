"""Where what a jitted function writes lies afterwards: on several devices, where it came from.

XLA is free to choose another sharding for a result, and the next call would be compiled again for
it. So a written Variable leaves with the sharding that it came with, but where the function itself
says where it belongs, or makes something of another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from .._jax_compat import is_outside_of_traces
from ..lift.call import Call
from ..lift.inside import values_out

Spread = tuple[NamedSharding | None, ...]
_PLACING = {"sharding_constraint", "device_put", "reshard"}


def is_spread(values: Sequence[Any]) -> bool:
    """Whether there is something on several devices now; the first value stands for all."""
    return bool(values) and type(getattr(values[0], "sharding", None)) is NamedSharding


def spread_of(values: Sequence[Any]) -> Spread | None:
    """For each value its sharding, if that is one of several devices; None if there is none."""
    if not is_outside_of_traces():
        return None
    found = (getattr(value, "sharding", None) for value in values)
    spread = tuple(s if type(s) is NamedSharding else None for s in found)
    return spread if any(spread) else None


def kept_places(jitted: Any, inputs: tuple, call: Call, spread: Spread) -> tuple[Any, list, Any]:
    """The `out_shardings` of a function with a group for each leaf: as they came, if they can."""
    kept = [None, *spread]  # what is new is in the first group
    try:
        traced = jitted.trace(*inputs)
    except Exception:  # the call itself will tell it
        return None, kept, None
    jaxpr = traced.jaxpr.jaxpr
    _, grouped, change = jax.tree.unflatten(traced.out_tree, range(len(jaxpr.outvars)))
    for leaf, at in values_out(change, call.graphdef, grouped).items():
        if leaf is None or spread[leaf] is None:
            continue
        fits = isinstance(at, int) and jaxpr.outvars[at].aval.shape == call.values[leaf].shape
        if not fits or _is_placed(jaxpr, at):
            kept[leaf + 1] = None
    return None, kept, None


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
