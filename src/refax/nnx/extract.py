"""`nnx.extract`: pytrees of objects as pytrees of States."""

from ..graph.state import State as State
from ..lift.tree_states import (
    default_split_fn as default_split_fn, from_tree as from_tree, is_tree_node as is_tree_node,
    merge_tree_node as merge_tree_node, NodeStates as NodeStates, to_tree as to_tree)
from ..objects.type_names import (
    A as A, B as B, F as F, Index as Index, KeyPath as KeyPath, Leaf as Leaf,
    PathParts as PathParts, S as S)
from ..transforms.prefixes import prefix as prefix
from ..verbs.pytree import Pytree as Pytree
