"""Modules as JAX pytrees: value semantics for `jax.tree.map`, plain `jax.jit`, `lax.scan` ….

The root of a tree flattens into nested dicts of its Variables, the same as its `nnx.state`, which
JAX then walks in C++; the GraphDef is the static part. So a plan serves here too, a shared Variable
is one leaf, and a cycle is no problem. A Variable inside is visible to `is_leaf`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.core import Tracer

from .._jax_compat import TRACE, describe_current_trace
from ..objects.errors import path_string
from ..objects.mappings import sorted_keys
from ..objects.snapshots import Snapshot
from ..objects.variable import Variable, set_trace
from .graphdef import GraphDef
from .plan import Plan, plan_for
from .rebuild import rebuild
from .state import nest


def _nested(node: Any) -> tuple[Plan, dict]:
    plan = plan_for((node,))
    if plan.nested is not None:
        return plan, plan.nested
    tree = nest_leaves(plan.graphdef, plan.leaves())
    if not plan.arrays:  # bare arrays may be replaced without a change of structure
        plan.nested = tree
    return plan, tree


def nest_leaves(graphdef: GraphDef, leaves: Sequence[Any]) -> dict:
    """Nested dicts by path of a GraphDef's leaves."""
    paths = graphdef.paths
    return nest((paths.leaves[i], leaves[i]) for i in paths.order)


def nested_leaves(graphdef: GraphDef, tree: dict) -> list[Any]:
    """The leaves, in leaf order, of nested dicts that have the paths of `graphdef`."""
    leaves: list[Any] = [None] * len(graphdef.paths.leaves)
    for number, path in enumerate(graphdef.paths.leaves):
        value: Any = tree
        for key in path:
            value = value[key]
        leaves[number] = value
    return leaves


def _flatten(node: Any) -> tuple[tuple, tuple]:
    plan, tree = _nested(node)
    keys = tuple(sorted_keys(tree))
    return tuple([tree[k] for k in keys]), (plan.graphdef, keys)


def _flatten_with_keys(node: Any) -> tuple[tuple, tuple]:
    children, (graphdef, keys) = _flatten(node)
    named = [(jax.tree_util.DictKey(k), c) for k, c in zip(keys, children, strict=True)]
    return tuple(named), (graphdef, keys)


def _unflatten(aux: tuple, children: Iterable[Any]) -> Any:
    graphdef, keys = aux
    tree = dict(zip(keys, children, strict=True))
    objects = rebuild(graphdef, nested_leaves(graphdef, tree))
    if TRACE.value is not _TOP:
        _note_writes(graphdef, objects)
    return objects[0]


_TOP = TRACE.value


def _note_writes(graphdef: GraphDef, objects: Sequence[Any]) -> None:
    """What plain JAX rebuilt in a trace is a copy: a write that is not read again is lost."""
    cells = [x for x in objects if isinstance(x, Variable)]
    if not any(isinstance(cell._value, Tracer) for cell in cells):
        return
    name = type(objects[0]).__name__
    paths = graphdef.paths.leaves
    places = {id(cell): path_string(path, name) for cell, path in zip(cells, paths)}
    snapshot = Snapshot(TRACE.value, describe_current_trace(), places)
    for cell in cells:
        set_trace(cell, snapshot)


def register(cls: type) -> None:
    """Make a class of Pytrees known to JAX."""
    jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, _unflatten, _flatten)
