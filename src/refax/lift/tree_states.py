"""`to_tree` and `from_tree`: a pytree of objects as a pytree of States and back, sharing kept.

For code that drives a JAX transform by hand and wants its prefixes to apply to objects. Each object
becomes a `NodeStates`, a pytree of its States, which a function of the user's may make: it gets the
prefix of its place, and splits by it. The splits are of one context (`contexts.py`), so what two
objects share is in the first one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from ..graph.plan import plan_for
from ..objects.errors import StructureError
from .arguments import is_object, stops
from .contexts import Context, merge_context, split_context
from .prefix import group_leaves, is_entry, occurrences, stretched


@dataclasses.dataclass(repr=False, eq=False)
class NodeStates:
    """One object of a tree: what its structure is, and its States; a pytree of these States.

    Args:
        _graphdef: what `split` of a context gave, or None.
        states: one State for each filter that it was split by; or prefixes for them.
        metadata: anything hashable that whoever merges it wants to know.
    """

    _graphdef: Any
    states: tuple[Any, ...]
    metadata: Any

    @classmethod
    def from_split(
        cls, graphdef: Any, state: Any, /, *states: Any, metadata: Any = None
    ) -> NodeStates:
        """Of what `split` gives: `NodeStates.from_split(*context.split(node))`."""
        return cls(graphdef, (state, *states), metadata)

    @classmethod
    def from_states(cls, state: Any, *states: Any) -> NodeStates:
        """Of States alone."""
        return cls(None, (state, *states), None)

    @classmethod
    def from_prefixes(cls, prefixes: Iterable[Any], /, *, metadata: Any = None) -> NodeStates:
        """A prefix for a NodeStates: an axis, say, for each of its States."""
        return cls(None, tuple(prefixes), metadata)

    @property
    def graphdef(self) -> Any:
        if self._graphdef is None:
            raise StructureError(
                "This NodeStates has no GraphDef: it was made of States or prefixes alone.\n"
                "Cure: make it by NodeStates.from_split(graphdef, *states)."
            )
        return self._graphdef

    @property
    def state(self) -> Any:
        """The only State."""
        if len(self.states) != 1:
            raise StructureError(
                f"This NodeStates has {len(self.states)} States, not one.\nCure: read `.states`."
            )
        return self.states[0]

    def replace(self, **changes: Any) -> NodeStates:
        """A copy with other `states` or `metadata`."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        told = f", metadata={self.metadata!r}" if self.metadata is not None else ""
        return f"NodeStates({', '.join(map(repr, self.states))}{told})"


jax.tree_util.register_dataclass(
    NodeStates, data_fields=["_graphdef", "states"], meta_fields=["metadata"]
)

SplitFunction = Callable[[Context, tuple[Any, ...], Any, Any], Any]


def default_split_fn(ctx: Context, path: tuple[Any, ...], prefix: Any, leaf: Any) -> Any:
    """How `to_tree` splits unless told otherwise: into one State."""
    return NodeStates.from_split(*ctx.split(leaf))


def merge_tree_node(ctx: Context, path: tuple[Any, ...], prefix: Any, leaf: Any) -> Any:
    """How `from_tree` merges unless told otherwise."""
    return ctx.merge(leaf.graphdef, *leaf.states)


def is_tree_node(x: Any) -> bool:
    """Whether `x` is what `to_tree` puts in the place of an object."""
    return isinstance(x, NodeStates)


def to_tree(
    tree: Any,
    /,
    *,
    prefix: Any = None,
    split_fn: SplitFunction = default_split_fn,
    map_non_graph_nodes: bool = False,
    ctxtag: Any = None,
    check_aliasing: bool = True,
) -> Any:
    """The same pytree with a `NodeStates` in the place of each object.

    Args:
        tree: a pytree of objects and anything else.
        prefix: a pytree prefix of it, as `in_axes` is; each `split_fn` gets that of its place.
        split_fn: (context, JAX's key path, prefix, object) → what stands for it, such as
            `nnx.NodeStates.from_split(*context.split(object, nnx.Param, ...))`.
        map_non_graph_nodes: call it for what is no object too.
        ctxtag: the tag of the `nnx.update_context` around it, if there is one.
        check_aliasing: raise if two places of one Variable have different prefixes.

    Raises:
        AliasError: they have; every place is named.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> tree = nnx.to_tree({"a": linear, "b": linear, "c": 1.0})
        >>> back = nnx.from_tree(tree)
        >>> back["a"] is back["b"], back["c"]
        (True, 1.0)
    """
    found, structure = stretched(prefix, tree, "prefix", is_entry)
    if check_aliasing and prefix is not None:
        objects = {id(x): x for _, x, _ in found if is_object(x)}
        numbers = {key: number for number, key in enumerate(objects)}
        places = occurrences(prefix, tree, numbers, "tree", "prefix")
        group_leaves(plan_for(tuple(objects.values())), places)
    every = map_non_graph_nodes
    with split_context(ctxtag) as ctx:
        return structure.unflatten(
            split_fn(ctx, path, entry, x) if every or is_object(x) else x
            for path, x, entry in found
        )


def from_tree(
    tree: Any,
    /,
    *,
    prefix: Any = None,
    merge_fn: SplitFunction = merge_tree_node,
    is_node_leaf: Callable[[Any], bool] = is_tree_node,
    is_leaf: Callable[[Any], bool] = is_tree_node,
    map_non_graph_nodes: bool = False,
    is_inner: bool | None = None,
    ctxtag: Any = None,
) -> Any:
    """The pytree of objects that `to_tree` took apart; new objects, shared as they were.

    Args:
        tree: what `to_tree` gave, or what came of it in a transform.
        prefix: a pytree prefix of it; each `merge_fn` gets that of its place.
        merge_fn: (context, JAX's key path, prefix, NodeStates) → the object.
        is_node_leaf: what to merge.
        is_leaf: what not to go into, on the way to it.
        map_non_graph_nodes: call `merge_fn` for the other leaves too.
        is_inner: accepted; a context knows by itself on which side a State was made.
        ctxtag: the tag of the `nnx.update_context` around it, if there is one.

    Raises:
        ValueError: the object that has the leaves of another one is missing; named by path.
    """

    def stop(x: Any) -> bool:
        return is_leaf(x) or is_node_leaf(x) or stops(x)

    every = map_non_graph_nodes
    found, structure = stretched(prefix, tree, "prefix", is_entry, stop)
    with merge_context(ctxtag) as ctx:
        return structure.unflatten(
            merge_fn(ctx, path, entry, x) if every or is_node_leaf(x) else x
            for path, x, entry in found
        )
