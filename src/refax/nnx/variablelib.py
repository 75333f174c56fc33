"""`nnx.variablelib`: names only."""

from ..objects.extras import (
    ArrayRef as ArrayRef, array_ref as array_ref, is_array_ref as is_array_ref)
from ..objects.modes import (
    VarDefaults as VarDefaults, use_eager_sharding as use_eager_sharding, use_hijax as use_hijax,
    use_mutable_arrays as use_mutable_arrays, use_refs as use_refs,
    using_eager_sharding as using_eager_sharding, using_hijax as using_hijax,
    using_refs as using_refs, var_defaults as var_defaults)
from ..objects.type_names import (
    A as A, AddAxisHook as AddAxisHook, AxisIndex as AxisIndex, AxisName as AxisName, B as B,
    C as C, CreateValueHook as CreateValueHook, F as F, GetValueHook as GetValueHook, Leaf as Leaf,
    P as P, RemoveAxisHook as RemoveAxisHook, SetValueHook as SetValueHook, V as V)
from ..objects.variable import Variable as Variable
from ..objects.metadata import (
    VariableMetadata as VariableMetadata, with_metadata as with_metadata)
from ..objects.variable_types import (
    BatchStat as BatchStat, Cache as Cache, Intermediate as Intermediate, Param as Param,
    Perturbation as Perturbation, register_variable_name as register_variable_name,
    set_variable_name as set_variable_name,
    variable_name_from_type as variable_name_from_type,
    variable_type_from_name as variable_type_from_name, VariableMeta as VariableMeta,
    VariableState as VariableState)
