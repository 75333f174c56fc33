"""GraphState: a State that knows its GraphDef."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import jax

from ..objects.representation import Form, Shown
from .graphdef import VERBS, GraphDef
from .state import K, V


class GraphState(MutableMapping[K, V], Shown):
    """A State with the GraphDef of the object that it is of: a pytree, and a mapping as its State.

    Made by `nnx.unpack`; `graph_state.merge(*others)` gives the object.
    """

    __slots__ = ("graphdef", "state")

    def __init__(self, graphdef: GraphDef, state: Any):
        self.graphdef = graphdef
        self.state = state

    def __getitem__(self, key: Any) -> Any:
        return self.state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def __delitem__(self, key: Any) -> None:
        del self.state[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    __repr__ = Shown.__repr__

    def merge(self, /, *others: Any) -> Any:
        """The object that this and other GraphStates, or States, make up."""
        return VERBS["merge"](self, *others)

    def _refax_form(self) -> Form:
        return Form("GraphState(", [("graphdef", self.graphdef), ("state", self.state)])


jax.tree_util.register_pytree_with_keys(
    GraphState,
    lambda x: (((jax.tree_util.GetAttrKey("state"), x.state),), x.graphdef),
    lambda graphdef, children: GraphState(graphdef, *children),
)
