"""`nnx.extract`: pytrees of objects as pytrees of States."""

from ..graph.state import State as State
from ..lift.tree_states import NodeStates as NodeStates, from_tree as from_tree, to_tree as to_tree
from ..objects.type_names import (
    A as A, B as B, F as F, Index as Index, KeyPath as KeyPath, Leaf as Leaf,
    PathParts as PathParts, S as S)
from ..verbs.pytree import Pytree as Pytree
