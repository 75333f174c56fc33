"""`to_tree` and `from_tree`: a pytree of objects as a pytree of States and back, sharing kept.

For code that drives a JAX transform by hand and wants its prefixes to apply to objects.
"""

from __future__ import annotations

from typing import Any

import jax

from ..graph.graphdef import GraphDef
from ..graph.state import State, from_flat_state, iter_leaves
from ..verbs.merging import merge
from ..verbs.splitting import split
from .arguments import Slot, put_back, take_apart


class NodeStates:
    """One object of a tree: its number, the structure of all objects, and the leaves that it adds.

    A pytree whose only child is `state`, a `State`; an object that stands in several places, or
    shares all of its leaves with earlier ones, has an empty one.
    """

    def __init__(self, number: int, graphdef: GraphDef, state: State):
        self.number = number
        self.graphdef = graphdef
        self.state = state

    states = property(lambda self: (self.state,))

    def __repr__(self) -> str:
        return f"NodeStates({self.number}, {self.state!r})"


jax.tree_util.register_dataclass(
    NodeStates, data_fields=["state"], meta_fields=["number", "graphdef"]
)


def to_tree(tree: Any, /) -> Any:
    """The same pytree with a `NodeStates` in the place of each object.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> tree = nnx.to_tree({"a": linear, "b": linear, "c": 1.0})
        >>> back = nnx.from_tree(tree)
        >>> back["a"] is back["b"], back["c"]
        (True, 1.0)
    """
    objects: list[Any] = []
    apart = take_apart(tree, objects, {})
    graphdef, state = split(objects)
    leaves: list[list[tuple[tuple, Any]]] = [[] for _ in objects]
    for path, leaf in iter_leaves(state):
        leaves[path[0]].append((path, leaf))
    seen: set[int] = set()

    def node_states(number: int) -> NodeStates:
        first = number not in seen
        seen.add(number)
        return NodeStates(number, graphdef, from_flat_state(leaves[number] if first else []))

    found, structure = jax.tree.flatten(
        apart, is_leaf=lambda x: type(x) is Slot or isinstance(x, State)
    )
    return structure.unflatten([node_states(x.number) if type(x) is Slot else x for x in found])


def from_tree(tree: Any, /) -> Any:
    """The pytree of objects that `to_tree` took apart; new objects, shared as they were.

    Raises:
        ValueError: a part of the tree is missing, so an object's leaves are; named by path.
    """
    found, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, (NodeStates, State)))
    nodes = [x for x in found if isinstance(x, NodeStates)]
    if not nodes:
        return tree
    objects = merge(nodes[0].graphdef, *(n.state for n in nodes))
    slots = [Slot(x.number) if isinstance(x, NodeStates) else x for x in found]
    return put_back(structure.unflatten(slots), objects)
