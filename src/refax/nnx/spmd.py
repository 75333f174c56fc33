"""`nnx.spmd`: names only."""

from ..lift.axis_names import add_axis as add_axis, remove_axis as remove_axis
from ..objects.placing import (
    get_logical_axis_rules as get_logical_axis_rules, logical_axis_rules as logical_axis_rules,
    set_logical_axis_rules as set_logical_axis_rules)
from ..objects.type_names import A as A, F as F
from ..transforms.eval_shape import (
    eval_shape as eval_shape, get_abstract_model as get_abstract_model)
from ..verbs.spmd import (
    abstract_with_sharding as abstract_with_sharding, as_abstract as as_abstract,
    get_named_sharding as get_named_sharding, get_partition_spec as get_partition_spec,
    get_var_pspec as get_var_pspec, PARTITION_NAME as PARTITION_NAME,
    with_partitioning as with_partitioning, with_sharding_constraint as with_sharding_constraint)
