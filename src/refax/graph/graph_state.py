"""GraphState: a State that knows its GraphDef."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import jax

from ..objects.representation import Form, Shown
from .graphdef import VERBS, GraphDef
from .state import K, State, V


class GraphState(Shown, UserDict[K, V]):
    """A State with the GraphDef of the object that it is of: a pytree, and a mapping as its State.

    Made by `nnx.unpack`; `graph_state.merge(*others)` gives the object.
    """

    def __init__(self, graphdef: GraphDef, state: Any):
        self.graphdef = graphdef
        self.data = state  # where UserDict looks

    state: property = property(lambda self: self.data, doc="The State.")

    def __copy__(self) -> GraphState:
        return GraphState(self.graphdef, self.state)

    def merge(self, /, *others: Any) -> Any:
        """The object that this and other GraphStates, or States, make up.

        `GraphState.merge(params, rest)` of States is their union, as `State.merge`.
        """
        if not isinstance(self, GraphState):
            return State.merge(self, *others)
        return VERBS["merge"](self, *others)

    def _refax_form(self) -> Form:
        return Form("GraphState(", [("graphdef", self.graphdef), ("state", self.state)])


jax.tree_util.register_pytree_with_keys(
    GraphState,
    lambda x: (((jax.tree_util.GetAttrKey("state"), x.state),), x.graphdef),
    lambda graphdef, children: GraphState(graphdef, *children),
)
