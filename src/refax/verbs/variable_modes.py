"""`vars_as` and its older names: copies of objects whose Variables are of another mode."""

from __future__ import annotations

from typing import Any

from ..graph.filters import Filter
from ..objects.modes import Switch, check_modes
from .copying import clone
from .layouts import N


def vars_as(
    node: N,
    /,
    *,
    hijax: Switch = None,
    ref: Switch = None,
    mutable: Switch = None,
    only: Filter = ...,
    allow_duplicates: bool = False,
) -> N:
    """A copy of an object whose Variables have these modes; see `objects/modes.py` for which.

    Args:
        node: what to copy.
        hijax, ref, mutable: the modes; None and what refax's Variables are anyway is accepted.
        only: which Variables; since none changes, all are copied.
        allow_duplicates: accepted; what is shared stays shared.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> nnx.vars_as(model, hijax=False).kernel is model.kernel
        False
    """
    check_modes(hijax=hijax, ref=ref, mutable=mutable)
    return clone(node)


with_vars = vars_as


def as_array_vars(node: N, /, **options: Any) -> N:
    """`vars_as(node, ref=False)`; also called `to_arrays`, and `freeze` of Variables."""
    return vars_as(node, ref=False, **options)


def as_ref_vars(node: N, /, **options: Any) -> N:
    """`vars_as(node, ref=True)`; also called `to_refs`."""
    return vars_as(node, ref=True, **options)


def as_pytree_vars(node: N, /, **options: Any) -> N:
    """`vars_as(node, hijax=False)`."""
    return vars_as(node, hijax=False, **options)


def as_hijax_vars(node: N, /, **options: Any) -> N:
    """`vars_as(node, hijax=True)`."""
    return vars_as(node, hijax=True, **options)


def as_mutable_vars(node: N, /, **options: Any) -> N:
    """`vars_as(node, mutable=True)`."""
    return vars_as(node, mutable=True, **options)


def as_immutable_vars(node: N, /, **options: Any) -> N:
    """`vars_as(node, mutable=False)`."""
    return vars_as(node, mutable=False, **options)


to_arrays = as_array_vars
to_refs = as_ref_vars
freeze = as_array_vars
mutable = as_ref_vars
