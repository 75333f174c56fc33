"""`nnx.graphlib`: names only."""

from ..objects.extras import is_array_ref as is_array_ref
from ..objects.modes import (
    set_graph_mode as set_graph_mode, set_graph_updates as set_graph_updates)
from ..graph.graphdef import GraphState as GraphState
from ..graph.graphdef import GraphDef as GraphDef
from ..graph.walk import (
    is_graph_node as is_graph_node, is_node as is_node, is_node_leaf as is_node_leaf,
    is_pytree_node as is_pytree_node, jax_to_nnx_path as jax_to_nnx_path, NodeDef as NodeDef)
from ..graph.state import FlatState as FlatState, map_state as map_state, State as State
from ..lift.contexts import (
    current_update_context as current_update_context, merge_context as merge_context,
    MergeContext as MergeContext,
    split_context as split_context, SplitContext as SplitContext,
    update_context as update_context, UpdateContext as UpdateContext)
from ..objects.type_names import (
    A as A, B as B, C as C, F as F, Index as Index, Key as Key, Leaf as Leaf,
    PathParts as PathParts, V as V)
from ..objects.variable import Variable as Variable
from ..transforms.cached_partial import cached_partial as cached_partial
from ..verbs.copying import clone as clone, vars_as as vars_as, with_vars as with_vars
from ..verbs.data import set_metadata as set_metadata
from ..verbs.iteration import find_duplicates as find_duplicates, iter_graph as iter_graph
from ..verbs.mapping import (
    as_pure as as_pure, map as map, pure as pure, recursive_map as recursive_map)
from ..verbs.merging import (
    call as call, merge as merge, PureState as PureState, unflatten as unflatten)
from ..verbs.module import (
    iter_children as iter_children, iter_module_children as iter_module_children)
from ..verbs.popping import pop as pop
from ..verbs.splitting import (
    flatten as flatten, graphdef as graphdef, split as split, state as state,
    unpack as unpack, variables as variables)
from ..verbs.updating import update as update
