"""`nnx.state`: names only."""

from ..graph.state import FlatState as FlatState, State as State
