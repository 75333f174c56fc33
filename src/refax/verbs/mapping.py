"""Object graphs mapped: every value by `pure`, every node and leaf by `recursive_map`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..graph.state import State, map_state
from ..objects.modes import Switch
from ..objects.node import Node
from ..objects.variable import Variable, raw
from .copying import clone
from .iteration import is_mutable, iter_children_of, iter_graph, set_child
from .splitting import state


def pure(tree: Any) -> Any:
    """The same tree with plain values in the place of Variables.

    Example:
        >>> from refax import nnx
        >>> type(nnx.pure(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))["bias"]).__name__
        'ArrayImpl'
    """
    if isinstance(tree, State):
        return map_state(lambda _, leaf: raw(leaf), tree)
    if isinstance(tree, Node):
        return pure(state(tree))
    return jax.tree.map(raw, tree, is_leaf=lambda x: isinstance(x, Variable))


def recursive_map(f: Callable[[tuple, Any], Any], node: Any, *, graph: Switch = None) -> Any:
    """A copy of an object graph with `f(path, value)` in the place of every node and leaf.

    Children come before their parents, so `f` sees a node whose children are mapped already.
    Shared nodes are mapped once.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.relu)
        >>> swapped = nnx.recursive_map(
        ...     lambda path, v: nnx.gelu if isinstance(v, nnx.Linear) else v, model
        ... )
        >>> swapped.layers[0].__name__
        'gelu'
    """
    copied = clone(node)
    mapped: dict[Any, Any] = {}  # by id or path
    visited = list(iter_graph(copied))  # also keeps every object alive, so ids stay unique
    nodes = {id(v) for _, v in visited
             if is_mutable(v) or isinstance(v, Variable) or type(v) is tuple}  # fmt: skip

    def place(path: tuple, value: Any) -> Any:
        return id(value) if id(value) in nodes else path

    for path, value in visited:
        at, items = place(path, value), iter_children_of(value)
        new_items = [mapped.get(place((*path, key), child), child) for key, child in items]
        changed = [
            (key, new)
            for (key, child), new in zip(items, new_items, strict=True)
            if new is not child
        ]
        if changed and is_mutable(value):
            for key, new in changed:
                set_child(value, key, new)
        elif changed:
            one_level = jax.tree.structure(value, is_leaf=lambda x, top=value: x is not top)
            value = one_level.unflatten(new_items)
        mapped[at] = f(path, value)
    return mapped.get(id(copied), copied)
