"""`nnx.nn.lora`: names only."""

from ...layers.linear import Linear as Linear
from ...layers.lora import (
    default_a_initializer as default_a_initializer, default_b_initializer as default_b_initializer,
    LoRA as LoRA, LoRALinear as LoRALinear)
from ...objects.type_names import (
    A as A, Axis as Axis, Dtype as Dtype, Initializer as Initializer,
    PromoteDtypeFn as PromoteDtypeFn, Size as Size)
from ...objects.variable_types import LoRAParam as LoRAParam
from ...verbs.module import Module as Module
