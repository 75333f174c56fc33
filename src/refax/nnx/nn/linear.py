"""`nnx.nn.linear`: names only."""

# pyright: reportPrivateUsage=false

from ...layers.convolution import (
    _conv_dimension_numbers as _conv_dimension_numbers, Conv as Conv,
    ConvTranspose as ConvTranspose)
from ...layers.einsum import Einsum as Einsum
from ...layers.embed import default_embed_init as default_embed_init, Embed as Embed
from ...layers.linear import (
    default_bias_init as default_bias_init, default_kernel_init as default_kernel_init,
    Linear as Linear)
from ...layers.linear_general import LinearGeneral as LinearGeneral
from ...layers.options import first_from as first_from
from ...layers.windows import canonicalize_padding as canonicalize_padding
from ...objects.type_names import (
    Axis as Axis, ConvGeneralDilatedT as ConvGeneralDilatedT, DotGeneralT as DotGeneralT,
    Dtype as Dtype, EinsumT as EinsumT, Initializer as Initializer, LaxPadding as LaxPadding,
    PaddingLike as PaddingLike, PrecisionLike as PrecisionLike, PromoteDtypeFn as PromoteDtypeFn,
    Shape as Shape, Size as Size)
from ...verbs.module import Module as Module
