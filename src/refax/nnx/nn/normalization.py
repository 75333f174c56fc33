"""`nnx.nn.normalization`: names only."""

from ...layers.batch_norm import BatchNorm as BatchNorm
from ...layers.group_norm import GroupNorm as GroupNorm, InstanceNorm as InstanceNorm
from ...layers.normalization import LayerNorm as LayerNorm, RMSNorm as RMSNorm
from ...layers.options import first_from as first_from
from ...layers.weight_norm import SpectralNorm as SpectralNorm, WeightNorm as WeightNorm
from ...objects.type_names import (
    Axes as Axes, Dtype as Dtype, Initializer as Initializer, PromoteDtypeFn as PromoteDtypeFn)
from ...verbs.module import Module as Module
