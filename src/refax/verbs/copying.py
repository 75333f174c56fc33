"""Copies of object graphs: `clone`, `copy.deepcopy`; `vars_as`, with Variables of another mode."""

from __future__ import annotations

import copy as python_copy
from typing import Any

import jax

from ..graph.filters import Filter, checked
from ..graph.graphdef import VARIABLE, WITH_IDENTITY, record_children
from ..graph.rebuild import mapping_of, rebuild
from ..graph.walk import walk
from ..objects.modes import Switch, check_modes
from ..objects.pickling import copy_leaf
from ..objects.statics import static_value
from ..objects.variable import Variable, set_raw_value
from .layouts import N, copies_of, plan_of


@checked
def clone(node: N, variables: bool = True, *, arrays: bool = False, graph: Switch = None) -> N:
    """A copy of an object graph with its sharing and cycles; the arrays themselves are shared.

    Args:
        node: what to copy.
        variables: make new Variables (default), or keep the same ones in new objects.
        arrays: copy the arrays too. They are immutable, so sharing them is safe, except under
            donation, as when one of the two is trained with `donate_argnums`.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> copy = nnx.clone(model)
        >>> copy.kernel is model.kernel, copy.kernel.value is model.kernel.value
        (False, True)
    """
    plan = plan_of(node)
    leaves = copies_of(plan) if variables else plan.leaves()
    if arrays:
        for i, leaf in enumerate(leaves):
            if not isinstance(leaf, Variable):
                leaves[i] = jax.tree.map(copy_leaf, leaf)
            elif variables:
                set_raw_value(leaf, jax.tree.map(copy_leaf, leaf._value))
    return rebuild(plan.graphdef, leaves)[0]


def deep_copy(node: N, memo: dict) -> N:
    """`copy.deepcopy` of a Node: new objects, new Variables, new buffers; sharing kept.

    Not recursive, so a deep model is no problem. Hashable static values are shared, so that what
    was compiled for the one serves the other; unhashable ones, such as sets, are copied.
    """
    walked = walk((node,))
    records = walked.graphdef.records
    values: list[Any] = []
    for variable in walked.variables:
        known = memo.get(id(variable))
        values.append(known if known is not None else python_copy.deepcopy(variable, memo))
    values += map(copy_leaf, walked.bare())
    objects = rebuild(walked.graphdef, values)
    for record, old, new in zip(records, walked.objects, objects, strict=True):
        if record[0] == VARIABLE:
            continue
        memo[id(old)] = new
        if record[0] in WITH_IDENTITY:
            content = mapping_of(new, record)
            for key, child in zip(*record_children(record), strict=True):
                if type(child) is tuple and child[0].__hash__ is None:
                    content[key] = python_copy.deepcopy(static_value(child), memo)
    return objects[0]


@checked
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
immutable = as_immutable_vars
