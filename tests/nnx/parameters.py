"""The parameters that programs give by name: callable → names. Without those only by position."""

PARAMETERS: dict[str, str] = {
    "All.__call__": "path x",
    "Any.__call__": "path x",
    "BatchNorm": """
        num_features use_running_average axis momentum epsilon dtype param_dtype use_bias
        use_scale bias_init scale_init axis_name axis_index_groups use_fast_variance
        promote_dtype rngs bias_metadata scale_metadata
    """,
    "BatchNorm.__call__": "x use_running_average mask",
    "BatchNorm.set_view": "use_running_average",
    "BatchStat": "value hijax ref eager_sharding",
    "Bidirectional": "forward_rnn backward_rnn merge_fn time_major return_carry rngs",
    "Bidirectional.__call__": """
        inputs initial_carry rngs seq_lengths return_carry time_major reverse keep_order
    """,
    "Cache": "value hijax ref eager_sharding",
    "Conv": """
        in_features out_features kernel_size strides padding input_dilation kernel_dilation
        feature_group_count use_bias mask dtype param_dtype precision kernel_init bias_init
        conv_general_dilated promote_dtype preferred_element_type rngs kernel_metadata
        bias_metadata
    """,
    "Conv.__call__": "inputs out_sharding",
    "ConvTranspose": """
        in_features out_features kernel_size strides padding kernel_dilation use_bias mask dtype
        param_dtype precision kernel_init bias_init transpose_kernel promote_dtype
        preferred_element_type rngs kernel_metadata bias_metadata
    """,
    "ConvTranspose.__call__": "inputs",
    "DiffState": "argnum filter",
    "DiffState.map_prefix": "path variable",
    "Dropout": "rate broadcast_dims deterministic rng_collection rngs",
    "Dropout.__call__": "inputs deterministic rngs",
    "Dropout.set_view": "deterministic",
    "EMA": "params decay only graph",
    "EMA.apply_to": "model",
    "EMA.update": "updates",
    "Einsum": """
        einsum_str kernel_shape bias_shape dtype param_dtype precision kernel_init bias_init
        promote_dtype einsum_op preferred_element_type rngs kernel_metadata bias_metadata
    """,
    "Einsum.__call__": "inputs einsum_str out_sharding",
    "Embed": """
        num_embeddings features dtype param_dtype embedding_init promote_dtype rngs
        embedding_metadata
    """,
    "Embed.__call__": "inputs out_sharding",
    "Embed.attend": "query out_sharding",
    "Everything.__call__": "path x",
    "FlatState": "sort",
    "GRUCell": """
        in_features hidden_features gate_fn activation_fn kernel_init recurrent_kernel_init
        bias_init dtype param_dtype carry_init promote_dtype keep_rngs rngs kernel_metadata
        recurrent_kernel_metadata bias_metadata
    """,
    "GRUCell.__call__": "carry inputs",
    "GRUCell.initialize_carry": "input_shape rngs carry_init",
    "GraphDef.apply": "graph",
    "GroupNorm": """
        num_features num_groups group_size epsilon dtype param_dtype use_bias use_scale
        bias_init scale_init reduction_axes axis_name axis_index_groups use_fast_variance
        promote_dtype rngs bias_metadata scale_metadata
    """,
    "GroupNorm.__call__": "x mask",
    "InstanceNorm": """
        num_features epsilon dtype param_dtype use_bias use_scale bias_init scale_init
        feature_axes axis_name axis_index_groups use_fast_variance promote_dtype rngs
        bias_metadata scale_metadata
    """,
    "InstanceNorm.__call__": "x mask",
    "Intermediate": "value hijax ref eager_sharding",
    "LSTMCell": """
        in_features hidden_features gate_fn activation_fn kernel_init recurrent_kernel_init
        bias_init dtype param_dtype carry_init promote_dtype keep_rngs rngs kernel_metadata
        recurrent_kernel_metadata bias_metadata
    """,
    "LSTMCell.__call__": "carry inputs",
    "LSTMCell.initialize_carry": "input_shape rngs carry_init",
    "LayerNorm": """
        num_features epsilon dtype param_dtype use_bias use_scale bias_init scale_init
        reduction_axes feature_axes axis_name axis_index_groups use_fast_variance promote_dtype
        rngs bias_metadata scale_metadata
    """,
    "LayerNorm.__call__": "x mask",
    "Linear": """
        in_features out_features use_bias dtype param_dtype precision kernel_init bias_init
        dot_general promote_dtype preferred_element_type rngs kernel_metadata bias_metadata
    """,
    "Linear.__call__": "inputs out_sharding",
    "LinearGeneral": """
        in_features out_features axis batch_axis use_bias dtype param_dtype kernel_init
        bias_init precision promote_dtype dot_general dot_general_cls preferred_element_type
        rngs kernel_metadata bias_metadata
    """,
    "LinearGeneral.__call__": "inputs out_sharding",
    "LoRA": """
        in_features lora_rank out_features base_module dtype param_dtype a_initializer
        b_initializer lora_param_type promote_dtype rngs a_metadata b_metadata
    """,
    "LoRA.__call__": "x",
    "LoRALinear": """
        in_features out_features lora_rank lora_dtype lora_param_dtype a_initializer
        b_initializer lora_param_type lora_promote_dtype rngs a_metadata b_metadata
    """,
    "LoRALinear.__call__": "x out_sharding",
    "LoRAParam": "value hijax ref eager_sharding",
    "ModelAndOptimizer": "model tx wrt",
    "Module.perturb": "name value variable_type",
    "Module.set_attributes": "raise_if_not_found graph",
    "Module.sow": "variable_type name value reduce_fn init_fn",
    "MultiHeadAttention": """
        num_heads in_features qkv_features out_features num_kv_heads in_kv_features dtype
        param_dtype broadcast_dropout dropout_rate deterministic precision kernel_init
        out_kernel_init bias_init out_bias_init use_bias attention_fn decode normalize_qk
        qkv_promote_dtype out_promote_dtype ln_promote_dtype qkv_dot_general out_dot_general
        qkv_dot_general_cls out_dot_general_cls rngs keep_rngs kernel_metadata
        out_kernel_metadata bias_metadata out_bias_metadata query_ln_scale_metadata
        key_ln_scale_metadata
    """,
    "MultiHeadAttention.__call__": """
        inputs_q inputs_k inputs_v mask deterministic rngs sow_weights decode is_causal
        out_sharding qkv_sharding
    """,
    "MultiHeadAttention.init_cache": "input_shape dtype",
    "MultiHeadAttention.set_view": "deterministic decode batch_size max_length",
    "NodeStates.from_prefixes": "metadata",
    "NodeStates.from_split": "metadata",
    "NodeStates.from_states": "state",
    "Not.__call__": "path x",
    "Nothing.__call__": "path x",
    "OfType": "type",
    "OfType.__call__": "path x",
    "OptArray": "value hijax ref eager_sharding",
    "OptState": "value hijax ref eager_sharding",
    "OptVariable": "value hijax ref eager_sharding",
    "OptimizedLSTMCell": """
        in_features hidden_features gate_fn activation_fn kernel_init recurrent_kernel_init
        bias_init dtype param_dtype carry_init promote_dtype keep_rngs rngs kernel_metadata
        recurrent_kernel_metadata bias_metadata
    """,
    "OptimizedLSTMCell.__call__": "carry inputs",
    "OptimizedLSTMCell.initialize_carry": "input_shape rngs carry_init",
    "Optimizer": "model tx wrt graph",
    "PReLU": "negative_slope_init dtype param_dtype promote_dtype negative_slope_metadata",
    "PReLU.__call__": "inputs",
    "Param": "value hijax ref eager_sharding",
    "PathContains": "key exact",
    "PathContains.__call__": "path x",
    "Perturbation": "value hijax ref eager_sharding",
    "RMSNorm": """
        num_features epsilon dtype param_dtype use_scale scale_init reduction_axes feature_axes
        axis_name axis_index_groups use_fast_variance promote_dtype rngs scale_metadata
    """,
    "RMSNorm.__call__": "x mask",
    "RNN": "cell time_major return_carry reverse keep_order unroll state_axes broadcast_rngs rngs",
    "RNN.__call__": """
        inputs initial_carry seq_lengths return_carry time_major reverse keep_order rngs
    """,
    "RNNCellBase.__call__": "carry inputs",
    "RNNCellBase.initialize_carry": "input_shape rngs carry_init",
    "RngCount": "value hijax ref eager_sharding",
    "RngKey": "value hijax ref eager_sharding",
    "RngState": "value hijax ref eager_sharding",
    "RngStream": "key tag",
    "RngStream.broadcast": "k",
    "RngStream.fork": "split",
    "RngStream.split": "k",
    "Rngs": "default",
    "Rngs.broadcast": "k",
    "Rngs.fork": "split",
    "Rngs.split": "k",
    "Sequential.__call__": "rngs",
    "SimpleCell": """
        in_features hidden_features dtype param_dtype carry_init residual activation_fn
        kernel_init recurrent_kernel_init bias_init promote_dtype keep_rngs rngs kernel_metadata
        recurrent_kernel_metadata bias_metadata
    """,
    "SimpleCell.__call__": "carry inputs",
    "SimpleCell.initialize_carry": "input_shape rngs carry_init",
    "SpectralNorm": """
        layer_instance n_steps epsilon dtype param_dtype error_on_non_matrix update_stats rngs
    """,
    "SpectralNorm.__call__": "x update_stats",
    "SplitContext.flatten": "node with_paths",
    "State.map": "f",
    "State.replace_by_pure_dict": "pure_dict replace_fn",
    "State.to_pure_dict": "extract_fn",
    "TrainState": "graphdef params opt_state step tx",
    "TrainState.apply": "state",
    "TrainState.apply_gradients": "grads",
    "TrainState.create": "graphdef params tx step",
    "Variable": "value hijax ref eager_sharding",
    "Variable.add_axis": "axis_index axis_name",
    "Variable.copy_from": "other",
    "Variable.del_metadata": "name",
    "Variable.get_metadata": "name",
    "Variable.get_value": "index",
    "Variable.has_metadata": "name",
    "Variable.remove_axis": "axis_index axis_name",
    "Variable.replace": "value",
    "Variable.set_value": "value index",
    "VariableMetadata": """
        raw_value on_set_value on_get_value on_create_value on_add_axis on_remove_axis metadata
    """,
    "WeightNorm": """
        layer_instance feature_axes use_scale scale_init epsilon dtype param_dtype
        variable_filter promote_dtype rngs
    """,
    "WeightNorm.__call__": "x",
    "WithTag": "tag",
    "WithTag.__call__": "path x",
    "abstract_with_sharding": "tree graph",
    "as_abstract": "tree graph",
    "as_pure": "tree",
    "avg_pool": "inputs window_shape strides padding count_include_pad",
    "cached_partial": "f graph graph_updates",
    "capture": "fn init method_outputs",
    "celu": "x alpha",
    "check_pytree": "pytree",
    "checkify": "f errors graph graph_updates",
    "clone": "node variables arrays graph",
    "combine_masks": "dtype",
    "cond": "pred true_fun false_fun graph graph_updates",
    "current_update_context": "tag",
    "custom_vjp": "fun nondiff_argnums graph graph_updates",
    "dataclass": "init eq order unsafe_hash match_args kw_only slots weakref_slot",
    "dot_product_attention": """
        query key value bias mask broadcast_dropout dropout_rng dropout_rate deterministic dtype
        precision module promote_dtype is_causal
    """,
    "elu": "x alpha",
    "eval_shape": "f graph graph_updates",
    "filterlib.filters_to_predicates": "filters",
    "filterlib.to_predicate": "filter",
    "find_duplicates": "only",
    "flatten": "with_paths graph",
    "fori_loop": "lower upper body_fun init_val unroll graph graph_updates",
    "fork_rngs": "split graph graph_updates",
    "from_flat_state": "flat_state cls",
    "from_tree": "prefix merge_fn is_node_leaf is_leaf map_non_graph_nodes is_inner ctxtag",
    "gelu": "x approximate",
    "get_abstract_model": "init_fn mesh graph",
    "get_named_sharding": "tree mesh",
    "get_partition_spec": "tree",
    "glu": "x axis",
    "grad": "f argnums has_aux holomorphic allow_int reduce_axes graph graph_updates",
    "graphdef": "graph",
    "graphlib.is_array_ref": "x",
    "graphlib.is_graph_node": "x",
    "graphlib.is_node": "x",
    "graphlib.is_node_leaf": "x",
    "graphlib.is_pytree_node": "x check_graph_registry",
    "hard_sigmoid": "x",
    "hard_silu": "x",
    "hard_swish": "x",
    "hard_tanh": "x",
    "helpers.has_keyword_arg": "func name",
    "identity": "x",
    "iter_children": "graph",
    "iter_graph": "graph",
    "iter_module_children": "graph",
    "iter_modules": "graph",
    "jit": """
        fun in_shardings out_shardings static_argnums static_argnames donate_argnums
        donate_argnames keep_unused device backend inline graph graph_updates
    """,
    "jit_partial": """
        fun in_shardings out_shardings static_argnums static_argnames donate_argnums
        donate_argnames keep_unused device backend inline graph graph_updates
    """,
    "jvp": "f primals tangents has_aux graph graph_updates",
    "leaky_relu": "x negative_slope",
    "log_sigmoid": "x",
    "log_softmax": "x axis where",
    "logical_axis_rules": "rules",
    "logsumexp": "a axis b keepdims return_sign where",
    "make_attention_mask": "query_input key_input pairwise_fn extra_batch_dims dtype",
    "make_causal_mask": "x extra_batch_dims dtype",
    "make_jaxpr": "f graph graph_updates static_argnums",
    "map": "graph recreate_variables",
    "map_state": "f state",
    "max_pool": "inputs window_shape strides padding",
    "merge": "copy recreate_variables",
    "merge_context": "ctxtag inner",
    "merge_state": "cls",
    "metrics.Statistics": "mean standard_error_of_mean standard_deviation",
    "min_pool": "inputs window_shape strides padding",
    "one_hot": "x num_classes dtype axis",
    "pmap": """
        f axis_name in_axes out_axes static_broadcasted_argnums devices backend axis_size
        donate_argnums transform_metadata graph graph_updates
    """,
    "pool": "inputs init reduce_fn window_shape strides padding",
    "pop": "node",
    "prefix": "graph",
    "pure": "tree",
    "recursive_map": "graph",
    "register_variable_name": "name typ overwrite",
    "relu": "x",
    "relu6": "x",
    "remat": "f prevent_cse static_argnums policy graph graph_updates",
    "replace_by_pure_dict": "state pure_dict replace_fn",
    "reseed": "graph policy",
    "restore_int_paths": "pure_dict",
    "rnglib.backup_keys": "graph",
    "scan": "f length reverse unroll in_axes out_axes transform_metadata graph graph_updates",
    "selu": "x",
    "set_metadata": "only",
    "shard_map": "f mesh in_specs out_specs axis_names check_vma graph graph_updates",
    "sigmoid": "x",
    "silu": "x",
    "soft_sign": "x",
    "softmax": "x axis where",
    "softplus": "x",
    "split": "node graph",
    "split_context": "ctxtag",
    "split_rngs": "splits only squeeze graph graph_updates",
    "spmd.add_axis": "tree index transform_metadata",
    "spmd.get_var_pspec": "v",
    "spmd.remove_axis": "tree index transform_metadata",
    "standardize": "x axis mean variance epsilon where algorithm",
    "state": "node graph",
    "statelib.create_path_filters": "state",
    "statelib.diff": "state other",
    "swish": "x",
    "switch": "index branches graph graph_updates",
    "tabulate": """
        obj depth method row_filter table_kwargs column_kwargs console_kwargs compute_flops
        compute_vjp_flops
    """,
    "to_flat_state": "state",
    "to_pure_dict": "state extract_fn",
    "to_tree": "prefix split_fn map_non_graph_nodes ctxtag check_aliasing",
    "transform_metadata": "f in_axes out_axes partition graph",
    "traversals.flatten_mapping": "keep_empty_nodes is_leaf sep",
    "traversals.flatten_to_sequence": "is_leaf",
    "traversals.unflatten_mapping": "sep",
    "unflatten": "copy_variables recreate_variables",
    "unpack": "node graph",
    "update_context": "tag",
    "value_and_grad": "f argnums has_aux holomorphic allow_int reduce_axes graph graph_updates",
    "var_defaults": "hijax ref",
    "variable_name_from_type": "allow_register",
    "variable_type_from_name": "base allow_register",
    "variablelib.is_array_ref": "x",
    "variables": "node graph",
    "vars_as": "hijax ref mutable only allow_duplicates",
    "view": "only raise_if_not_found graph",
    "view_info": "only graph",
    "vjp": "f has_aux reduce_axes graph graph_updates",
    "vmap": """
        f in_axes out_axes axis_name axis_size spmd_axis_name transform_metadata graph
        graph_updates
    """,
    "while_loop": "cond_fun body_fun init_val graph graph_updates",
    "with_attributes": "only raise_if_not_found graph",
    "with_metadata": """
        initializer on_set_value on_get_value on_create_value on_add_axis on_remove_axis
    """,
    "with_partitioning": "initializer sharding mesh",
    "with_rngs": "split fork broadcast only graph graph_updates",
    "with_vars": "hijax ref mutable only allow_duplicates",
}
