"""The public names of refax; the other files here are addresses. No code."""

# pyright: reportUnusedImport=false

from typing import TYPE_CHECKING

from jax.nn import (
    celu as celu, elu as elu, gelu as gelu, glu as glu, hard_sigmoid as hard_sigmoid,
    hard_silu as hard_silu, hard_swish as hard_swish, hard_tanh as hard_tanh, identity as identity,
    leaky_relu as leaky_relu, log_sigmoid as log_sigmoid, log_softmax as log_softmax,
    logsumexp as logsumexp, mish as mish, one_hot as one_hot, relu as relu,
    relu6 as relu6, selu as selu, sigmoid as sigmoid, silu as silu, soft_sign as soft_sign,
    softmax as softmax, softplus as softplus, standardize as standardize, swish as swish)
from jax.numpy import tanh as tanh

from ..graph.filters import (
    All as All, Any as Any, Everything as Everything, Filter as Filter, Not as Not,
    Nothing as Nothing, OfType as OfType, PathContains as PathContains, PathIn as PathIn,
    to_predicate as to_predicate, WithTag as WithTag)
from ..graph.graphdef import GraphDef as GraphDef, GraphState as GraphState
from ..graph.plan import check_plans as check_plans
from ..graph.state import (
    filter_state as filter_state, FlatState as FlatState, from_flat_state as from_flat_state,
    map_state as map_state, merge_state as merge_state,
    replace_by_pure_dict as replace_by_pure_dict, restore_int_paths as restore_int_paths,
    split_state as split_state, State as State, to_flat_state as to_flat_state,
    to_pure_dict as to_pure_dict)
from ..devices.hosts import assert_equal_on_hosts as assert_equal_on_hosts
from ..devices.report import sharding_report as sharding_report, ShardingReport as ShardingReport
from ..devices.sharded import (
    make_sharded as make_sharded, shard as shard,
    with_logical_constraint as with_logical_constraint)
from ..layers.activations import PReLU as PReLU
from ..objects.arguments import ArgumentError as ArgumentError
from ..layers.attention import MultiHeadAttention as MultiHeadAttention
from ..layers.batch_norm import BatchNorm as BatchNorm
from ..layers.convolution import Conv as Conv, ConvTranspose as ConvTranspose
from ..layers.dot_product_attention import dot_product_attention as dot_product_attention
from ..layers.dropout import Dropout as Dropout
from ..layers.dtypes import promote_dtype as promote_dtype
from ..layers.einsum import Einsum as Einsum
from ..layers.embed import Embed as Embed
from ..layers.group_norm import GroupNorm as GroupNorm, InstanceNorm as InstanceNorm
from ..layers.linear import Linear as Linear
from ..layers.linear_general import LinearGeneral as LinearGeneral
from ..layers.lora import LoRA as LoRA, LoRALinear as LoRALinear
from ..layers.dot_product_attention import (
    combine_masks as combine_masks, make_attention_mask as make_attention_mask,
    make_causal_mask as make_causal_mask)
from ..layers.normalization import LayerNorm as LayerNorm, RMSNorm as RMSNorm
from ..layers.pooling import (
    avg_pool as avg_pool, AvgPool as AvgPool, max_pool as max_pool, MaxPool as MaxPool,
    min_pool as min_pool, MinPool as MinPool, pool as pool)
from ..layers.recurrent import Bidirectional as Bidirectional, RNN as RNN
from ..layers.recurrent_cells import (
    GRUCell as GRUCell, LSTMCell as LSTMCell, OptimizedLSTMCell as OptimizedLSTMCell,
    RNNCellBase as RNNCellBase, SimpleCell as SimpleCell)
from ..layers.sequential import Identity as Identity, Sequential as Sequential
from ..layers.stack import Stack as Stack
from ..layers.weight_norm import SpectralNorm as SpectralNorm, WeightNorm as WeightNorm
from ..lift.contexts import (
    current_update_context as current_update_context, merge_context as merge_context,
    MergeContext as MergeContext, split_context as split_context, SplitContext as SplitContext,
    update_context as update_context, UpdateContext as UpdateContext)
from ..lift.tree_states import from_tree as from_tree, NodeStates as NodeStates, to_tree as to_tree
from ..objects.extras import array_ref as array_ref, ArrayRef as ArrayRef
from ..objects.errors import (
    GraphError as GraphError, StructureError as StructureError,
    TraceContextError as TraceContextError, UnhashableStaticError as UnhashableStaticError)
from ..objects.marks import (
    Data as Data, data as data, dataclass as dataclass, Static as Static, static as static)
from ..objects.modes import (
    set_graph_mode as set_graph_mode, set_graph_updates as set_graph_updates,
    use_eager_sharding as use_eager_sharding, use_hijax as use_hijax,
    use_mutable_arrays as use_mutable_arrays, use_refs as use_refs,
    use_scopes as use_scopes, using_eager_sharding as using_eager_sharding,
    using_hijax as using_hijax, using_refs as using_refs, using_scopes as using_scopes,
    var_defaults as var_defaults)
from ..objects.node import has_data as has_data, is_data as is_data
from ..objects.placing import (
    get_logical_axis_rules as get_logical_axis_rules, logical_axis_rules as logical_axis_rules,
    set_logical_axis_rules as set_logical_axis_rules)
from ..objects.snapshots import (
    LostWriteWarning as LostWriteWarning, SnapshotWarning as SnapshotWarning)
from ..objects.type_names import A as A, F as F, Initializer as Initializer, M as M
from ..objects.variable import Variable as Variable
from ..objects.metadata import (
    VariableMetadata as VariableMetadata, with_metadata as with_metadata)
from ..objects.variable_types import (
    BatchStat as BatchStat, Cache as Cache, Intermediate as Intermediate, LoRAParam as LoRAParam,
    OptArray as OptArray, OptState as OptState, OptVariable as OptVariable, Param as Param,
    Perturbation as Perturbation, register_variable_name as register_variable_name,
    set_variable_name as set_variable_name,
    RngCount as RngCount, RngKey as RngKey, RngState as RngState,
    variable_name_from_type as variable_name_from_type,
    variable_type_from_name as variable_type_from_name, VariableState as VariableState)
from ..training.ema import EMA as EMA
from ..training.metrics import Metric as Metric, MultiMetric as MultiMetric
from ..training.optimizer import ModelAndOptimizer as ModelAndOptimizer, Optimizer as Optimizer
from ..training.train_state import TrainState as TrainState
from ..transforms.cached_partial import cache_args as cache_args, cached_partial as cached_partial
from ..transforms.carry import Carry as Carry
from ..transforms.cond import cond as cond, switch as switch
from ..transforms.custom_vjp import custom_vjp as custom_vjp
from ..transforms.eval_shape import (
    eval_shape as eval_shape, get_abstract_model as get_abstract_model)
from ..transforms.grad import grad as grad, value_and_grad as value_and_grad
from ..transforms.eval_shape import checkify as checkify, make_jaxpr as make_jaxpr
from ..transforms.jit import jit as jit, jit_partial as jit_partial
from ..transforms.loops import fori_loop as fori_loop, while_loop as while_loop
from ..transforms.prefixes import (
    DiffState as DiffState, prefix as prefix, StateAxes as StateAxes,
    StateSharding as StateSharding)
from ..transforms.grad import checkpoint as checkpoint, remat as remat
from ..transforms.retrace import (
    assert_max_traces as assert_max_traces, RetraceWarning as RetraceWarning)
from ..transforms.scan import scan as scan
from ..transforms.shard_map import (
    SameRandomnessWarning as SameRandomnessWarning, shard_map as shard_map)
from ..transforms.grad import jvp as jvp, vjp as vjp
from ..transforms.vmap import (
    pmap as pmap, transform_metadata as transform_metadata, vmap as vmap)
from ..verbs.containers import Dict as Dict, List as List
from ..verbs.copying import (
    as_array_vars as as_array_vars, as_hijax_vars as as_hijax_vars,
    as_immutable_vars as as_immutable_vars, as_mutable_vars as as_mutable_vars,
    as_pytree_vars as as_pytree_vars, as_ref_vars as as_ref_vars, clone as clone,
    freeze as freeze, immutable as immutable, mutable as mutable, to_arrays as to_arrays,
    to_refs as to_refs, vars_as as vars_as, with_vars as with_vars)
from ..verbs.data import (
    check_pytree as check_pytree, is_data_type as is_data_type,
    register_data_type as register_data_type, set_metadata as set_metadata)
from ..verbs.hosts import fail_together as fail_together
from ..verbs.iteration import find_duplicates as find_duplicates, iter_graph as iter_graph
from ..verbs.mapping import (
    as_pure as as_pure, map as map, pure as pure, recursive_map as recursive_map)
from ..verbs.merging import (
    call as call, merge as merge, PureState as PureState, unflatten as unflatten)
from ..verbs.module import (
    iter_children as iter_children, iter_module_children as iter_module_children,
    iter_modules as iter_modules, Module as Module, named_modules as named_modules)
from ..verbs.names import (
    get_path as get_path, named_parameters as named_parameters, named_variables as named_variables,
    PathError as PathError)
from ..verbs.popping import pop as pop
from ..verbs.pytree import Object as Object, Pytree as Pytree
from ..verbs.rngs import (
    backup_keys as backup_keys, fork_rngs as fork_rngs, reseed as reseed,
    restore_rngs as restore_rngs, Rngs as Rngs, RngStream as RngStream, split_rngs as split_rngs,
    with_rngs as with_rngs)
from ..verbs.splitting import flatten as flatten, graphdef as graphdef, split as split
from ..verbs.spmd import (
    abstract_with_sharding as abstract_with_sharding, as_abstract as as_abstract,
    get_named_sharding as get_named_sharding, get_partition_spec as get_partition_spec,
    PARTITION_NAME as PARTITION_NAME, with_partitioning as with_partitioning,
    with_sharding_constraint as with_sharding_constraint)
from ..verbs.updating import set_path as set_path, update as update
from ..verbs.views import view as view, view_info as view_info, with_attributes as with_attributes
from . import state as _state_address, variables as _variables_address

# After the addresses of the same names, so that these are the verbs.
from ..verbs.splitting import state as state, unpack as unpack, variables as variables

if TYPE_CHECKING:
    from ..inspect.capture import capture as capture
    from ..inspect.display import display as display
    from ..inspect.hooks import (
        add_forward_hook as add_forward_hook, add_forward_pre_hook as add_forward_pre_hook,
        forward_hooks as forward_hooks, HookHandle as HookHandle)
    from ..inspect.nonfinite import (
        find_nonfinite as find_nonfinite, NonfiniteReport as NonfiniteReport)
    from ..inspect.profile import (
        ProfileRow as ProfileRow, profile_table as profile_table, ProfileTable as ProfileTable)
    from ..inspect.tabulate import tabulate as tabulate
    from ..weights.checkpoints import Checkpoints as Checkpoints
    from ..weights.file_errors import WeightsFileError as WeightsFileError
    from ..weights.files import inspect_file as inspect_file, load as load, save as save
    from ..weights.export import export as export
    from ..weights.state_dict import load_state_dict as load_state_dict, state_dict as state_dict
    from ..weights.torch_weights import from_torch as from_torch, to_torch as to_torch
    from . import (
        bridge as bridge, compat as compat, errors as errors, extract as extract,
        filterlib as filterlib, graph as graph, graphlib as graphlib, helpers as helpers,
        ids as ids, metrics as metrics, module as module, nn as nn, object as object,
        optimizer as optimizer, proxy_caller as proxy_caller, pytreelib as pytreelib,
        reprlib as reprlib, rnglib as rnglib, spmd as spmd, statelib as statelib,
        summary as summary, tracers as tracers, training as training, transforms as transforms,
        traversals as traversals, variablelib as variablelib, visualization as visualization)
    from .bridge import wrappers as wrappers
    from .nn import initializers as initializers
else:
    from ..objects.addresses import __dir__ as __dir__, __getattr__ as __getattr__
