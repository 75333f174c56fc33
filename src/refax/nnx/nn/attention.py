"""`nnx.nn.attention`: names only."""

from ...layers.attention import MultiHeadAttention as MultiHeadAttention
from ...layers.dot_product_attention import (
    dot_product_attention as dot_product_attention,
    dot_product_attention_weights as dot_product_attention_weights)
from ...layers.linear import default_kernel_init as default_kernel_init
from ...layers.linear_general import LinearGeneral as LinearGeneral
from ...layers.dot_product_attention import (
    combine_masks as combine_masks, make_attention_mask as make_attention_mask,
    make_causal_mask as make_causal_mask)
from ...layers.normalization import LayerNorm as LayerNorm
from ...layers.options import first_from as first_from
from ...objects.type_names import (
    DotGeneralT as DotGeneralT, Dtype as Dtype, Initializer as Initializer,
    PrecisionLike as PrecisionLike, PromoteDtypeFn as PromoteDtypeFn, Shape as Shape)
from ...verbs.module import Module as Module
