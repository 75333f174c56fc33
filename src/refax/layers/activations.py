"""Activation functions: those of `jax.nn` under one roof, and PReLU, which has a parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import celu as celu
from jax.nn import elu as elu
from jax.nn import gelu as gelu
from jax.nn import glu as glu
from jax.nn import hard_sigmoid as hard_sigmoid
from jax.nn import hard_silu as hard_silu
from jax.nn import hard_swish as hard_swish
from jax.nn import hard_tanh as hard_tanh
from jax.nn import identity as identity
from jax.nn import leaky_relu as leaky_relu
from jax.nn import log_sigmoid as log_sigmoid
from jax.nn import log_softmax as log_softmax
from jax.nn import logsumexp as logsumexp
from jax.nn import mish as mish
from jax.nn import one_hot as one_hot
from jax.nn import relu as relu
from jax.nn import relu6 as relu6
from jax.nn import selu as selu
from jax.nn import sigmoid as sigmoid
from jax.nn import silu as silu
from jax.nn import soft_sign as soft_sign
from jax.nn import softmax as softmax
from jax.nn import softplus as softplus
from jax.nn import standardize as standardize
from jax.nn import swish as swish
from jax.numpy import tanh as tanh
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.variable_types import Param
from . import dtypes
from .options import Layer, keep_options


class PReLU(Layer):
    """Parametric ReLU: y = x where x ≥ 0, else a·x with a learned scalar a.

    Shapes: `(...)` → `(...)`. Attributes: `negative_slope` ().

    Args:
        negative_slope_init: the value of a at first.
        dtype: the dtype to compute in; by default what the input and a promote to.
        param_dtype: the dtype of a.
        promote_dtype: brings input and parameter to one dtype.
        negative_slope_metadata: metadata of the parameter.

    Paper: He et al., "Delving Deep into Rectifiers" (2015), arXiv:1502.01852.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> nnx.PReLU(0.5)(jnp.array([-2.0, 3.0])).tolist()
        [-1.0, 3.0]
    """

    @fit.checked
    def __init__(
        self,
        negative_slope_init: fit.Number = 0.01,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        negative_slope_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        keep_options(self, locals())
        slope = jnp.asarray(negative_slope_init, param_dtype)
        self.negative_slope: Param[jax.Array] = Param(slope, **negative_slope_metadata)

    @fit.checked
    def __call__(self, inputs: fit.Array) -> jax.Array:
        x, slope = self.promote_dtype((inputs, self.negative_slope[...]), dtype=self.dtype)
        return jnp.where(x >= 0, x, slope * x)
