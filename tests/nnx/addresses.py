"""The names that programs import, by address."""

NAMES: dict[str, str] = {
    "": """
        A All Any ArrayRef BatchNorm BatchStat Bidirectional Cache Carry Conv ConvTranspose Data
        Dict DiffState Dropout EMA Einsum Embed Everything FlatState GRUCell GraphDef GraphState
        GroupNorm Initializer InstanceNorm Intermediate LSTMCell LayerNorm Linear LinearGeneral List
        LoRA LoRALinear LoRAParam M MergeContext Metric ModelAndOptimizer Module MultiHeadAttention
        MultiMetric NodeStates Not Nothing Object OfType OptArray OptState OptVariable
        OptimizedLSTMCell Optimizer PARTITION_NAME PReLU Param PathContains Perturbation PureState
        Pytree RMSNorm RNN RNNCellBase RngCount RngKey RngState RngStream Rngs Sequential SimpleCell
        SpectralNorm SplitContext State StateAxes StateSharding Static TrainState UpdateContext
        Variable VariableMetadata VariableState WeightNorm WithTag abstract_with_sharding array_ref
        as_abstract as_array_vars as_hijax_vars as_immutable_vars as_mutable_vars as_pure
        as_pytree_vars as_ref_vars avg_pool bridge cache_args cached_partial call capture celu
        check_pytree checkify clone combine_masks compat cond current_update_context custom_vjp data
        dataclass display dot_product_attention elu eval_shape extract filter_state filterlib
        find_duplicates flatten fori_loop fork_rngs freeze from_flat_state from_tree gelu
        get_abstract_model get_named_sharding get_partition_spec glu grad graph graphdef graphlib
        hard_sigmoid hard_silu hard_swish hard_tanh has_data helpers identity immutable initializers
        is_data is_data_type iter_children iter_graph iter_module_children iter_modules jit
        jit_partial jvp leaky_relu log_sigmoid log_softmax logical_axis_rules logsumexp
        make_attention_mask make_causal_mask make_jaxpr map map_state max_pool merge merge_context
        merge_state metrics min_pool module mutable nn object one_hot optimizer pmap pool pop prefix
        proxy_caller pure pytreelib recursive_map register_data_type register_variable_name relu
        relu6 remat replace_by_pure_dict reprlib reseed restore_int_paths restore_rngs rnglib scan
        selu set_graph_mode set_graph_updates set_metadata set_variable_name shard_map sigmoid silu
        soft_sign softmax softplus split split_context split_rngs split_state spmd standardize state
        statelib static summary swish switch tabulate tanh to_arrays to_flat_state to_pure_dict
        to_refs to_tree tracers training transform_metadata transforms traversals unflatten unpack
        update update_context use_eager_sharding use_hijax use_mutable_arrays use_refs
        using_eager_sharding using_hijax using_refs value_and_grad var_defaults
        variable_name_from_type variable_type_from_name variablelib variables vars_as view view_info
        visualization vjp vmap while_loop with_attributes with_metadata with_partitioning with_rngs
        with_sharding_constraint with_vars wrappers
    """,
    "bridge": "NNXMeta ToLinen ToNNX lazy_init to_linen variables wrappers",
    "bridge.variables": "A B NNXMeta to_linen_var",
    "bridge.wrappers": "M Module Pytree Rngs State ToLinen ToNNX lazy_init to_linen",
    "compat": """
        backup_keys cached_partial checkify clone cond custom_vjp eval_shape flatten fori_loop
        fork_rngs get_abstract_model grad graphdef iter_children iter_graph iter_modules jit jvp
        pmap recursive_map remat reseed scan shard_map split split_rngs state switch value_and_grad
        view view_info vjp vmap while_loop
    """,
    "errors": "AliasError GraphError PathError PrefixError StructureError TraceContextError",
    "extract": """
        A B F Index KeyPath Leaf NodeStates PathParts Pytree S State default_split_fn from_tree
        is_tree_node merge_tree_node prefix to_tree
    """,
    "filterlib": """
        All Any Everything Filter FilterLiteral HasTag Key Not Nothing OfType PathContains PathIn
        PathParts Predicate WithTag filters_to_predicates to_predicate
    """,
    "graph": """
        A B C F FlatState GraphDef GraphState Index Key Leaf MergeContext NodeDef PathParts
        PureState SplitContext State UpdateContext V Variable as_pure cached_partial call clone
        current_update_context find_duplicates flatten graphdef is_array_ref is_graph_node is_node
        is_node_leaf is_pytree_node iter_children iter_graph iter_module_children jax_to_nnx_path
        map map_state merge merge_context pop pure recursive_map set_graph_mode set_graph_updates
        set_metadata split split_context state unflatten unpack update update_context variables
        vars_as with_vars
    """,
    "graphlib": """
        A B C F FlatState GraphDef GraphState Index Key Leaf MergeContext NodeDef PathParts
        PureState SplitContext State UpdateContext V Variable as_pure cached_partial call clone
        current_update_context find_duplicates flatten graphdef is_array_ref is_graph_node is_node
        is_node_leaf is_pytree_node iter_children iter_graph iter_module_children jax_to_nnx_path
        map map_state merge merge_context pop pure recursive_map set_graph_mode set_graph_updates
        set_metadata split split_context state unflatten unpack update update_context variables
        vars_as with_vars
    """,
    "helpers": """
        A Dict GraphDef List M Module Rngs Sequential State TrainState Variable has_keyword_arg
    """,
    "ids": "UUID uuid",
    "metrics": "Accuracy Average Metric MetricState MultiMetric Pytree Statistics Variable Welford",
    "module": """
        A B F Key M Module P Path PathParts Pytree R S State StateMapping V capture first_from
        iter_children iter_module_children iter_modules split_state tuple_init tuple_reduce view
        view_info with_attributes
    """,
    "nn": """
        activations attention dtypes initializers linear lora normalization recurrent stochastic
    """,
    "nn.activations": """
        Dtype PReLU PromoteDtypeFn celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh
        identity leaky_relu log_sigmoid log_softmax logsumexp one_hot relu relu6 selu sigmoid silu
        soft_sign softmax softplus standardize swish tanh
    """,
    "nn.attention": """
        DotGeneralT Dtype Initializer LayerNorm LinearGeneral Module MultiHeadAttention
        PrecisionLike PromoteDtypeFn Shape combine_masks default_kernel_init dot_product_attention
        dot_product_attention_weights first_from make_attention_mask make_causal_mask
    """,
    "nn.dtypes": "Dtype T canonicalize_dtype promote_dtype",
    "nn.initializers": """
        Initializer constant delta_orthogonal glorot_normal glorot_uniform he_normal he_uniform
        kaiming_normal kaiming_uniform lecun_normal lecun_uniform normal ones ones_init orthogonal
        truncated_normal uniform variance_scaling xavier_normal xavier_uniform zeros zeros_init
    """,
    "nn.linear": """
        Axis Conv ConvGeneralDilatedT ConvTranspose DotGeneralT Dtype Einsum EinsumT Embed
        Initializer LaxPadding Linear LinearGeneral Module PaddingLike PrecisionLike PromoteDtypeFn
        Shape Size _conv_dimension_numbers canonicalize_padding default_bias_init default_embed_init
        default_kernel_init first_from
    """,
    "nn.lora": """
        A Axis Dtype Initializer Linear LoRA LoRALinear LoRAParam Module PromoteDtypeFn Size
        default_a_initializer default_b_initializer
    """,
    "nn.normalization": """
        Axes BatchNorm Dtype GroupNorm Initializer InstanceNorm LayerNorm Module PromoteDtypeFn
        RMSNorm SpectralNorm WeightNorm first_from
    """,
    "nn.recurrent": """
        A Bidirectional Carry Dtype GRUCell Initializer LSTMCell Linear Module OptimizedLSTMCell
        Output PromoteDtypeFn RNN RNNCellBase Shape SimpleCell default_bias_init default_kernel_init
        flip_sequences modified_orthogonal
    """,
    "nn.stochastic": "Dropout Module first_from",
    "object": """
        A Data Object P Pytree Static T Variable check_pytree data dataclass has_data is_data
        is_data_type register_data_type static
    """,
    "optimizer": """
        F M ModelAndOptimizer OptArray OptState OptVariable Optimizer Param Pytree Variable
    """,
    "proxy_caller": "A ApplyCaller",
    "pytreelib": """
        A Data Object P Pytree Static T Variable check_pytree data dataclass has_data is_data
        is_data_type register_data_type static
    """,
    "reprlib": "A Attr B Object Representable",
    "rnglib": """
        A AxesValue Counts F Key KeylessInitializer OutShardingType Pytree RngCount RngKey RngState
        RngStream RngValue Rngs SplitBackups SplitPattern Variable backup_keys fork_rngs reseed
        restore_rngs split_rngs with_rngs
    """,
    "spmd": """
        A F PARTITION_NAME abstract_with_sharding add_axis as_abstract eval_shape get_abstract_model
        get_named_sharding get_partition_spec get_var_pspec remove_axis with_partitioning
    """,
    "state": "FlatState State",
    "statelib": """
        A ExtractValueFn FlatState K Key PathParts S SetValueFn State V create_path_filters diff
        filter_state from_flat_state map_state merge_state replace_by_pure_dict restore_int_paths
        split_state to_flat_state to_pure_dict
    """,
    "summary": "tabulate",
    "tracers": "TraceState current_jax_trace",
    "training": "ema metrics optimizer",
    "training.ema": "A EMA",
    "training.metrics": """
        Accuracy Average Metric MetricState MultiMetric Pytree Statistics Variable Welford
    """,
    "training.optimizer": """
        F M ModelAndOptimizer OptArray OptState OptVariable Optimizer Param Pytree Variable
    """,
    "transforms": "autodiff compilation general iteration transforms",
    "transforms.autodiff": """
        A AxisName CustomVjp DiffState F State custom_vjp grad jvp remat resolve_kwargs
        value_and_grad vjp
    """,
    "transforms.compilation": """
        AxisName Compiled F JitWrapped Lowered P PathParts R StateSharding jit jit_partial shard_map
    """,
    "transforms.general": "A F",
    "transforms.iteration": """
        A AxisName B C Carry F G Index Leaf Leaves M Module State StateAxes T fori_loop pmap
        resolve_kwargs scan transform_metadata vmap while_loop
    """,
    "transforms.parallelization": "pmap",
    "transforms.transforms": """
        A AxisName B C F G Index Leaf Leaves M Module checkify cond eval_shape make_jaxpr
        resolve_kwargs switch
    """,
    "traversals": "IsLeafCallable empty_node flatten_mapping flatten_to_sequence unflatten_mapping",
    "variablelib": """
        A AddAxisHook ArrayRef AxisIndex AxisName B BatchStat C Cache CreateValueHook F GetValueHook
        Intermediate Leaf P Param Perturbation RemoveAxisHook SetValueHook V VarDefaults Variable
        VariableMeta VariableMetadata VariableState array_ref is_array_ref register_variable_name
        set_variable_name use_eager_sharding use_hijax use_mutable_arrays use_refs
        using_eager_sharding using_hijax using_refs var_defaults variable_name_from_type
        variable_type_from_name with_metadata
    """,
    "variables": """
        A BatchStat Cache Intermediate Param Variable VariableMetadata VariableState with_metadata
    """,
    "visualization": "display",
}
