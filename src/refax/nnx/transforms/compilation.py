"""`nnx.transforms.compilation`: names only."""

from ...objects.type_names import (
    AxisName as AxisName, F as F, P as P, PathParts as PathParts, R as R)
from ...transforms.jit import (
    jit as jit, jit_partial as jit_partial, JitWrapped as JitWrapped)
from ...transforms.prefixes import StateSharding as StateSharding
from ...transforms.shard_map import shard_map as shard_map
from ...transforms.stages import Compiled as Compiled, Lowered as Lowered
