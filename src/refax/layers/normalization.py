"""LayerNorm and RMSNorm; and what they share with the other normalization layers.

Statistics are computed in at least float32, whatever the dtype of the input; the result is cast at
the end. `standardize.py` has the computation and its derivative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..graph.module import Module
from ..graph.rngs import Rngs
from ..graph.variable import Param
from . import dtypes, initializers
from .options import NO_METADATA, Initializer, PromoteDtype, keep_options
from .standardize import Averaging, standardize

Axes = int | Sequence[int]


def scale_and_shift(
    y: jax.Array, scale: jax.Array | None, bias: jax.Array | None, axes: tuple[int, ...], dtype: Any
) -> jax.Array:
    """y·scale + bias, cast; the parameters' one axis is laid out along the feature axes."""
    shape = tuple(n if i in axes else 1 for i, n in enumerate(y.shape))
    if scale is not None:
        y = y * scale.astype(y.dtype).reshape(shape)
    if bias is not None:
        y = y + bias.astype(y.dtype).reshape(shape)
    return y.astype(dtype)


@partial(jax.jit, static_argnums=(4, 5, 6), inline=True)
def normalize(
    x: jax.Array,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    how: Averaging,
    feature_axes: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    y = standardize(x.astype(dtypes.widest(x.dtype, dtype)), mask, how)[0]
    return scale_and_shift(y, scale, bias, feature_axes, dtype)


class Normalization(Module):
    """What normalization layers have in common: scale and bias, options, the shape check."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    use_bias: bool = True
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    promote_dtype = staticmethod(dtypes.promote_dtype)
    num_features: int
    epsilon: float
    scale: Param | None
    bias: Param | None

    def _make_parameter(
        self, use: bool, init: Initializer, rngs: Rngs, metadata: Mapping[str, Any]
    ) -> Param | None:
        if not use:
            return None
        return Param(init(rngs.params(), (self.num_features,), self.param_dtype), **metadata)

    def _arrays(self, inputs: Any, *more: jax.Array) -> tuple[jax.Array, Any, Any, Any]:
        """The input and parameters as arrays, and the dtype of the result."""
        x = dtypes.as_array(inputs)
        scale = None if self.scale is None else self.scale.value
        bias = None if self.bias is None else self.bias.value
        # Only the dtype is of interest: the statistics are computed from x as it came.
        promoted = self.promote_dtype((x, *more, scale, bias), dtype=self.dtype)
        return x, scale, bias, promoted[0].dtype

    def _find_feature_axes(self, x: jax.Array, axes: Axes) -> tuple[int, ...]:
        along = positive_axes(axes, x.ndim)
        features = 1
        for axis in along:
            features *= x.shape[axis]
        if features != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: the input has {features} features along axis {axes} "
                f"(shape {x.shape}), but num_features={self.num_features}."
            )
        return along

    def _averaging(self, axes: tuple[int, ...], center: bool = True) -> Averaging:
        groups = self.axis_index_groups
        if groups is not None:
            groups = tuple(map(tuple, groups))
        return Averaging(axes, self.epsilon, center, self.axis_name, groups)


def positive_axes(axes: Axes, ndim: int) -> tuple[int, ...]:
    axes = (axes,) if isinstance(axes, int) else axes
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"There is no axis {axis} in an input of {ndim} axes.")
    return tuple(sorted(axis % ndim for axis in axes))


class LayerNorm(Normalization):
    """Normalizes over the features: y = (x - mean) / √(var + ε) · scale + bias.

    Shapes: `(..., num_features)` → the same. Attributes: `scale`, `bias` (num_features,) or None.

    Args:
        num_features: number of features.
        epsilon: ε.
        dtype: the dtype of the result; by default what input and parameters promote to.
        param_dtype: the dtype of the parameters.
        use_bias, use_scale: whether there is a bias, and a scale.
        bias_init, scale_init: their initializers.
        reduction_axes: the axes that the statistics are computed over.
        feature_axes: the axes that scale and bias vary along.
        axis_name: a mapped axis (of vmap, pmap, shard_map) to compute the statistics over, too.
        axis_index_groups: groups along that axis, as in `jax.lax.psum`.
        use_fast_variance: accepted, without effect: the variance is always computed in two passes,
            and never negative.
        promote_dtype: decides the dtype of the result.
        rngs: its stream `params` gives the keys.
        bias_metadata, scale_metadata: metadata of the parameters.

    Paper: Ba, Kiros and Hinton, "Layer Normalization" (2016), arXiv:1607.06450.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
        >>> norm(jnp.array([1.0, 1.0, 3.0, 3.0])).round(3).tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """

    reduction_axes: Axes = -1
    feature_axes: Axes = -1

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = initializers.zeros,
        scale_init: Initializer = initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        keep_options(self, locals())
        self.num_features = num_features
        self.epsilon = epsilon
        self.scale = self._make_parameter(use_scale, scale_init, rngs, scale_metadata)
        self.bias = self._make_parameter(use_bias, bias_init, rngs, bias_metadata)

    def __call__(self, x: Any, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize x (..., num_features).

        Args:
            x: the input.
            mask: booleans that broadcast to x: which elements count for mean and variance.

        Raises:
            ValueError: x has another number of features.
        """
        x, scale, bias, dtype = self._arrays(x)
        features = self._find_feature_axes(x, self.feature_axes)
        how = self._averaging(positive_axes(self.reduction_axes, x.ndim))
        return normalize(x, mask, scale, bias, how, features, dtype)


class RMSNorm(Normalization):
    """Scales by the root of the mean square of the features: y = x / √(mean(x²) + ε) · scale.

    Shapes: `(..., num_features)` → the same. Attributes: `scale` (num_features,) or None.

    Args:
        num_features, epsilon, …: as for `nnx.LayerNorm`.

    Paper: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), arXiv:1910.07467.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> norm = nnx.RMSNorm(4, rngs=nnx.Rngs(0))
        >>> norm(jnp.array([2.0, -2.0, 2.0, 2.0])).round(3).tolist()
        [1.0, -1.0, 1.0, 1.0]
    """

    bias: Param | None = None
    use_bias = False
    reduction_axes: Axes = -1
    feature_axes: Axes = -1

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True,
        scale_init: Initializer = initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        keep_options(self, locals())
        self.num_features = num_features
        self.epsilon = epsilon
        self.scale = self._make_parameter(use_scale, scale_init, rngs, scale_metadata)

    def __call__(self, x: Any, mask: jax.Array | None = None) -> jax.Array:
        """Normalize x (..., num_features); `mask`: which elements count for the mean.

        Raises:
            ValueError: x has another number of features.
        """
        x, scale, bias, dtype = self._arrays(x)
        features = self._find_feature_axes(x, self.feature_axes)
        how = self._averaging(positive_axes(self.reduction_axes, x.ndim), center=False)
        return normalize(x, mask, scale, bias, how, features, dtype)
