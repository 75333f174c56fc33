"""A tracer that an earlier transformed call left behind, found among the inputs of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from ..graph.errors import TraceContextError, describe_value
from .call import Call, root_places
from .errors import argument_names, argument_place
from .places import place_under


def leaked_tracer(call: Call, function: Callable) -> TraceContextError | None:
    """The error that says where the tracer is; None if it is not in what the call was given.

    For the error path: each tracer is used once, which raises if its trace is over.
    """
    roots, labels = root_places(call.tree, function), argument_names(function, len(call.tree[0]))
    paths = call.plan.graphdef.paths.leaves
    inputs = [(place_under(p, roots), v) for p, v in zip(paths, call.values, strict=True)]
    for path, value in jax.tree_util.tree_leaves_with_path(call.tree):
        inputs.append((argument_place(path, labels), value))
    for place, value in inputs:
        if any(map(_is_over, jax.tree.leaves(value))):
            return TraceContextError(
                f"`{place}` ({describe_value(value)}) holds a tracer that an earlier transformed "
                "call left behind: it stood for a value of that call and has none now.\n"
                "Cure: while a function is traced, keep nothing in globals, closures or objects "
                "that are no arguments of it; return the value, or assign it to an attribute of an "
                "argument."
            )
    return None


def _is_over(value: Any) -> bool:
    if isinstance(value, Tracer):
        try:
            jax.lax.broadcast(value, (1,))
        except jax.errors.UnexpectedTracerError:
            return True
    return False
