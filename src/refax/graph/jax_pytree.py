"""Modules as JAX pytrees: value semantics for `jax.tree.map`, plain `jax.jit`, `lax.scan` ….

The root of a tree flattens into nested dicts of its Variables, the same as its `nnx.state`, which
JAX then walks in C++; the GraphDef is the static part. So a plan serves here too, a shared Variable
is one leaf, and a cycle is no problem. A Variable inside is visible to `is_leaf`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any

from .._jax_compat import TRACE, is_outside_of_traces, rebuilds_arguments
from ..objects.errors import path_string
from ..objects.mappings import register_mapping
from ..objects.snapshots import Rebuilt
from ..objects.variable import Variable, set_trace
from ..objects.variable_types import BatchStat, Cache, Intermediate, RngState
from .graphdef import GraphDef
from .plan import plan_for
from .rebuild import rebuild
from .state import nest


def _content(node: Any) -> tuple[dict, GraphDef]:
    plan = plan_for((node,)).checked(node)
    if plan.nested is not None:
        return plan.nested, plan.graphdef
    tree = nest_leaves(plan.graphdef, plan.leaves())
    if not plan.arrays:  # bare arrays may be replaced without a change of structure
        plan.nested = tree
    return tree, plan.graphdef


def nest_leaves(graphdef: GraphDef, leaves: Sequence[Any]) -> dict:
    """Nested dicts by path of a GraphDef's leaves."""
    paths = graphdef.paths
    return nest((paths.leaves[i], leaves[i]) for i in paths.order)


def nested_leaves(graphdef: GraphDef, tree: dict) -> list[Any]:
    """The leaves, in leaf order, of nested dicts that have the paths of `graphdef`."""
    return [reduce(getitem, path, tree) for path in graphdef.paths.leaves]


def _made(tree: dict, graphdef: GraphDef) -> Any:
    objects = rebuild(graphdef, nested_leaves(graphdef, tree))
    if not is_outside_of_traces() and rebuilds_arguments():
        _note_writes(graphdef, objects)
    return objects[0]


# What a forward pass writes by the way; under plain JAX one often wants its result only.
_BY_THE_WAY = (RngState, BatchStat, Cache, Intermediate)


def _note_writes(graphdef: GraphDef, objects: Sequence[Any]) -> None:
    """An argument that plain JAX rebuilt is a copy: a write that is not read again is lost."""
    name, cells = type(objects[0]).__name__, [x for x in objects if isinstance(x, Variable)]
    numbers = {id(cell): i for i, cell in enumerate(cells)}

    def place(variable: Variable) -> str:
        return path_string(graphdef.paths.leaves[numbers[id(variable)]], name)

    snapshot = Rebuilt(TRACE.value, place)
    for cell in cells:
        if not isinstance(cell, _BY_THE_WAY):
            set_trace(cell, snapshot)


def register(cls: type) -> None:
    """Make a class of Pytrees known to JAX."""
    register_mapping(cls, _content, _made)
