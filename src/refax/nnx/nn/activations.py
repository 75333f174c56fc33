"""`nnx.nn.activations`: names only."""

from jax.nn import (
    celu as celu, elu as elu, gelu as gelu, glu as glu, hard_sigmoid as hard_sigmoid,
    hard_silu as hard_silu, hard_swish as hard_swish, hard_tanh as hard_tanh, identity as identity,
    leaky_relu as leaky_relu, log_sigmoid as log_sigmoid, log_softmax as log_softmax,
    logsumexp as logsumexp, one_hot as one_hot, relu as relu, relu6 as relu6,
    selu as selu, sigmoid as sigmoid, silu as silu, soft_sign as soft_sign, softmax as softmax,
    softplus as softplus, standardize as standardize, swish as swish)
from jax.numpy import tanh as tanh

from ...layers.activations import PReLU as PReLU
from ...objects.type_names import Dtype as Dtype, PromoteDtypeFn as PromoteDtypeFn
