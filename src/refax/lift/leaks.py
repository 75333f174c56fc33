"""Inputs of no use: tracers that a call left behind, arrays that were donated, what is no array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from ..objects.errors import TraceContextError, describe_value
from .call import Call, root_places
from .errors import argument_names, argument_place
from .places import place_under
from .write_back import is_array_like


def spent_input(call: Call, function: Callable) -> Exception | None:
    """The error that says where such an input is; None if there is none.

    For the error path: each tracer is used once, which raises if its trace is over.
    """
    roots, labels = root_places(call.tree, function), argument_names(function, len(call.tree[0]))
    paths = call.plan.graphdef.paths.leaves
    inputs = [(place_under(p, roots), v) for p, v in zip(paths, call.values, strict=True)]
    for path, value in jax.tree_util.tree_leaves_with_path(call.tree):
        inputs.append((argument_place(path, labels), value))
    for place, value in inputs:
        leaves = jax.tree.leaves(value)
        if any(map(_is_over, leaves)):
            return TraceContextError(
                f"`{place}` ({describe_value(value)}) holds a tracer that an earlier transformed "
                "call left behind: it stood for a value of that call and has none now.\n"
                "Cure: while a function is traced, keep nothing in globals, closures or objects "
                "that are no arguments of it; return the value, or assign it to an attribute of an "
                "argument."
            )
        if any(isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted()
               for x in leaves):  # fmt: skip
            return RuntimeError(
                f"The array in `{place}` ({describe_value(value)}) was deleted: it was donated to "
                "a call, through another object that holds the same array.\n"
                "Cure: give each object arrays of its own before donating: copy.deepcopy(model). "
                "(nnx.clone and nnx.split share arrays, which never change.)"
            )
        if not all(map(is_array_like, leaves)):
            return TypeError(
                f"`{place}` holds {describe_value(value)}, which cannot be traced.\n"
                "Cure: an argument: static_argnames=…; an attribute that `nnx.data` marked: a "
                "number or an array, or nnx.static(value)."
            )
    return None


def _is_over(value: Any) -> bool:
    if isinstance(value, Tracer):
        try:
            jax.lax.broadcast(value, (1,))
        except jax.errors.UnexpectedTracerError:
            return True
    return False
