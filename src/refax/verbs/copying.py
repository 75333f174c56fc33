"""Copies of object graphs: `clone`, and `copy.deepcopy`."""

from __future__ import annotations

import copy as python_copy
from typing import Any

import jax

from ..graph.graphdef import VARIABLE, WITH_IDENTITY, record_children
from ..graph.rebuild import mapping_of, rebuild
from ..graph.walk import walk
from ..objects.modes import Switch
from ..objects.pickling import copy_leaf
from ..objects.statics import static_value
from ..objects.variable import Variable, set_raw_value
from .layouts import N, copies_of, plan_of


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
