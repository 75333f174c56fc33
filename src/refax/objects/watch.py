"""Watching: how a change to an object reaches the plans that remember its structure.

A *plan* (`graph/plan.py`) is the cached result of one walk over an object graph. Every node and
Variable that the walk met keeps, in a slot, a list of weak references to the plans that it is part
of. A change of structure marks those plans invalid and empties the list; a change of value does
nothing. So an object that is in no plan pays one `is None` check per attribute write.

Invariant: while `plan.valid` is true and its guards hold, a new walk over the plan's roots would
give an equal GraphDef and the same Variables in the same order.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

_SCALARS = frozenset({int, str, bool, bytes, type(None)})
_ARRAY_TYPES: set[type] = set()
_NO_NUMBERS = frozenset("OSUmM")  # the kinds of dtypes of NumPy's that JAX has none for
_OTHER_TYPES: set[type] = {int, float, str, bool, bytes, complex, type(None), list, dict, tuple}


def is_array(value: Any) -> bool:
    """Whether `value` is a leaf by itself: a JAX or NumPy array, a tracer, an abstract array.

    NumPy's arrays of text, dates, objects and records are statics, as JAX cannot hold them.
    """
    cls = type(value)
    if cls in _ARRAY_TYPES:
        return True
    if cls in _OTHER_TYPES:
        return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in _NO_NUMBERS and value.dtype.names is None
    if isinstance(value, (jax.Array, jax.ShapeDtypeStruct)):
        if cls.__module__.partition(".")[0] in ("jax", "jaxlib"):
            _ARRAY_TYPES.add(cls)  # remembered: isinstance against jax.Array is slow
        return True
    return False


def register_array_type(cls: type) -> None:
    """Take values of a type for leaves, as arrays are."""
    _ARRAY_TYPES.add(cls)


def keeps_structure(old: Any, new: Any) -> bool:
    """Whether putting `new` in the place of `old` leaves the structure of a graph as it was."""
    if old is new:
        return True
    cls = type(new)
    if cls is type(old):
        if cls in _SCALARS:
            return old == new
        if cls is float:  # 0.0 == -0.0, but they are two programs
            return old == new and math.copysign(1.0, old) == math.copysign(1.0, new)
    return is_array(old) and is_array(new)


def add_watcher(watch: list | None, plan_ref: Any) -> list:
    """`watch` with one more plan in it, rid of the dead and the invalid."""
    if watch is None:
        return [plan_ref]
    if len(watch) > 4:
        watch = [r for r in watch if (plan := r()) is not None and plan.valid]
    if plan_ref not in watch:
        watch.append(plan_ref)
    return watch


def invalidate(watch: list) -> None:
    for plan_ref in watch:
        plan = plan_ref()
        if plan is not None:
            plan.valid = False
