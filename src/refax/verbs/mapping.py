"""Object graphs mapped: every value by `pure`, every node and leaf by `recursive_map`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ..graph.state import Path, State, map_state
from ..objects.errors import describe_value
from ..objects.modes import Switch, checked
from ..objects.node import Node
from ..objects.type_names import M
from ..objects.variable import Variable, raw
from .copying import clone
from .iteration import is_mutable, iter_children_of, iter_graph, set_child
from .merging import merge
from .splitting import split, state


def map_leaves(tree: Any, of_leaf: Callable[[Any], Any], of_node: Callable[[Any], Any]) -> Any:
    """A tree with other leaves (Variables among them), also in its States, and other Nodes."""

    def mapped(x: Any) -> Any:
        if isinstance(x, State):
            return map_state(lambda _, leaf: of_leaf(leaf), x)
        return of_node(x) if isinstance(x, Node) else of_leaf(x)

    return jax.tree.map(mapped, tree, is_leaf=lambda x: isinstance(x, (Node, State, Variable)))


def pure(tree: Any) -> Any:
    """The same tree with plain values in the place of Variables.

    Example:
        >>> from refax import nnx
        >>> type(nnx.pure(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))["bias"]).__name__
        'ArrayImpl'
    """
    return as_pure(state(tree) if isinstance(tree, Node) else tree)


def as_pure(tree: M) -> M:
    """The same tree with plain values in the place of Variables: a Module stays a Module.

    Example:
        >>> from refax import nnx
        >>> layer = nnx.as_pure(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> type(layer).__name__, type(layer.bias).__name__
        ('Linear', 'ArrayImpl')
    """
    return map_leaves(tree, raw, lambda node: recursive_map(lambda _, value: raw(value), node))


@checked
def map(
    f: Callable[[tuple[Any, ...], Any], Any],
    node: M,
    *,
    recreate_variables: bool = True,
    graph: Switch = None,
) -> M:
    """A copy of an object graph (or State) with `f(path, leaf)` in the place of each leaf.

    Args:
        f: gets each leaf once, with its first path: a Variable (that of `node` itself, so that
            what is written into it is seen in `node`) or a bare array. A plain value that it
            returns for a Variable comes into one of the same type and metadata.
        node: an object graph, a State, or a leaf.
        recreate_variables: make a new Variable (default) of one that `f` returns, or keep it, so
            that the copy shares it.

    Example:
        >>> from refax import nnx
        >>> doubled = nnx.map(lambda path, leaf: leaf * 2, nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> type(doubled).__name__, type(doubled.kernel).__name__
        ('Linear', 'Param')
    """
    if isinstance(node, Mapping) and not isinstance(node, (State, Node)):
        raise TypeError(
            f"nnx.map takes an object graph or a State, got {describe_value(node)}.\n"
            "Cure: for plain pytrees there is jax.tree.map_with_path."
        )

    def mapped(path: tuple, leaf: Any) -> Any:
        new = f(path, leaf)
        if isinstance(leaf, Variable) and not isinstance(new, Variable):
            return leaf.replace(new)
        return new.copy() if isinstance(new, Variable) and recreate_variables else new

    if isinstance(node, State):
        return map_state(mapped, node)
    graphdef, own = split(node, copy=False)
    new = map_state(mapped, own) if isinstance(own, State) else mapped((), own)
    return merge(graphdef, new, copy=False)


@checked
def recursive_map(f: Callable[[Path, Any], Any], node: Any, *, graph: Switch = None) -> Any:
    """A copy of an object graph with `f(path, value)` in the place of every node and leaf.

    Children come before their parents, so `f` sees a node whose children are mapped already.
    Shared nodes are mapped once. A Variable that `f` returns as it is is that of `node`: copy the
    whole with `nnx.clone` where the two are to be trained apart.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.relu)
        >>> swapped = nnx.recursive_map(
        ...     lambda path, v: nnx.gelu if isinstance(v, nnx.Linear) else v, model
        ... )
        >>> swapped.layers[0].__name__
        'gelu'
    """
    copied = clone(node, variables=False)
    mapped: dict[Any, Any] = {}
    visited = list(iter_graph(copied))  # also keeps every object alive, so ids stay unique

    def place(path: tuple, value: Any) -> Any:
        """What knows a value: for a node itself, for others the path."""
        return id(value) if is_mutable(value) or isinstance(value, Variable) else path

    for path, value in visited:
        at = place(path, value)
        items = iter_children_of(value)
        new = [(key, mapped.get(place((*path, key), child), child)) for key, child in items]
        if any(x is not child for (_, x), (_, child) in zip(new, items, strict=True)):
            if is_mutable(value):
                for key, child in new:
                    set_child(value, key, child)
            else:
                one_level = jax.tree.structure(value, is_leaf=lambda x, top=value: x is not top)
                value = one_level.unflatten([child for _, child in new])
        mapped[at] = f(path, value)
    return mapped[place((), copied)]
