"""PReLU, which has a parameter; the other activation functions are those of `jax.nn`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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
