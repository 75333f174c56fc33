"""LayerNorm and RMSNorm; and what they share with the other normalization layers.

Statistics are computed in at least float32, whatever the dtype of the input; the result is cast at
the end. `standardize.py` has the computation and its derivative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.variable_types import Param
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .contractions import last_axes, placed
from .options import (
    Layer,
    check_broadcasts,
    keep_options,
    make_parameter,
    positive_axes,
    value_of,
    wrong_size,
)
from .standardize import Averaging, standardize


def scale_and_shift(
    y: jax.Array, scale: jax.Array | None, bias: jax.Array | None, axes: tuple[int, ...], dtype: Any
) -> jax.Array:
    """y·scale + bias, cast; the parameters' one axis is laid out along the feature axes."""

    def along(parameter: jax.Array) -> jax.Array:
        if axes == (y.ndim - 1,):
            return last_axes(dtypes.cast(parameter, y.dtype), y.ndim)
        shape = tuple(n if i in axes else 1 for i, n in enumerate(y.shape))
        return dtypes.cast(parameter, y.dtype).reshape(shape)

    if scale is not None:
        y = y * along(scale)
    if bias is not None:
        y = y + along(bias)
    return dtypes.cast(y, dtype)


def normalize(
    x: jax.Array,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    how: Averaging,
    feature_axes: tuple[int, ...],
    dtype: Any,
    groups: tuple[int, int] | None = None,  # their number and size: axes in place of the last one
) -> jax.Array:
    wide = dtypes.cast(x, dtypes.widest(x.dtype, dtype))
    if groups is not None:
        wide = wide.reshape(*x.shape[:-1], *groups)
        mask = None if mask is None else jnp.broadcast_to(mask, x.shape).reshape(wide.shape)
    y = standardize(wide, mask, how)[0]
    y = y if groups is None else y.reshape(x.shape)
    return scale_and_shift(y, scale, bias, feature_axes, dtype)


class Normalization(Layer):
    """What normalization layers have in common: scale and bias, options, the shape check."""

    use_scale: bool = True
    use_bias: bool = True
    axis_name: fit.AxisNames = None
    axis_index_groups: fit.Groups = None
    use_fast_variance: bool = True
    num_features: fit.Size
    epsilon: fit.Epsilon
    scale: Param[jax.Array] | Any  # None if there is none, which need not be asked at each use
    bias: Param[jax.Array] | Any  # None if there is none

    def _keep(self, arguments: Mapping[str, Any]) -> None:
        """What `__init__` does with its arguments."""
        keep_options(self, arguments)
        self.num_features, self.epsilon = arguments["num_features"], arguments["epsilon"]
        shape = (self.num_features,)
        self.scale = make_parameter(arguments, "scale", shape) if self.use_scale else None
        self.bias = make_parameter(arguments, "bias", shape) if self.use_bias else None

    def _arrays(self, inputs: Any, mask: Any, *more: jax.Array) -> tuple[Any, Any, Any, Any, Any]:
        """The input, mask and parameters as arrays, and the dtype of the result."""
        x = dtypes.as_array(inputs)
        if mask is not None:
            mask = dtypes.as_array(mask)
            check_broadcasts("mask", mask.shape, x.shape, "the input")
        scale, bias = value_of(self.scale), value_of(self.bias)
        # Only the dtype is of interest: the statistics are computed from x as it came.
        promoted = self.promote_dtype((x, *more, scale, bias), dtype=self.dtype)
        return x, mask, scale, bias, promoted[0].dtype

    def _find_feature_axes(
        self, x: jax.Array, axes: fit.Axes, name: str = "feature_axes"
    ) -> tuple[int, ...]:
        along = positive_axes(name, axes, x.ndim)
        features = math.prod(x.shape[axis] for axis in along)
        if features != self.num_features:
            raise fit.ArgumentError(
                f"{type(self).__name__}: the input has {features} features along axis {axes} "
                f"(shape {x.shape}), but num_features={self.num_features}."
                f"{wrong_size(type(self).__name__, 'num_features', features)}"
            )
        return along

    def _averaging(self, axes: tuple[int, ...], center: bool = True) -> Averaging:
        names = (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name or ()
        for name in names:
            try:
                lax.axis_size(name)
            except NameError as error:
                raise fit.ArgumentError(
                    f"axis_name={self.axis_name!r}, but no transform maps an axis {name!r} here.\n"
                    f"Cure: call it in nnx.vmap(…, axis_name={name!r}); or leave axis_name out."
                ) from error
        groups = self.axis_index_groups
        groups = None if groups is None else tuple(map(tuple, groups))
        return Averaging(axes, self.epsilon, center, self.axis_name, groups)


class _FeatureNormalization(Normalization):
    """What LayerNorm and RMSNorm have in common."""

    reduction_axes: fit.Axes = -1
    feature_axes: fit.Axes = -1

    def _normalize(
        self, x: fit.Array, mask: fit.Array | None, out_sharding: Any, *, center: bool
    ) -> jax.Array:
        x, mask, scale, bias, dtype = self._arrays(x, mask)
        features = self._find_feature_axes(x, self.feature_axes)
        how = self._averaging(positive_axes("reduction_axes", self.reduction_axes, x.ndim), center)
        return placed(normalize(x, mask, scale, bias, how, features, dtype), out_sharding)


class LayerNorm(_FeatureNormalization):
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

    @fit.checked
    def __init__(
        self,
        num_features: fit.Size,
        *,
        epsilon: fit.Epsilon = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: fit.Initializer = initializers.zeros,
        scale_init: fit.Initializer = initializers.ones,
        reduction_axes: fit.Axes = -1,
        feature_axes: fit.Axes = -1,
        axis_name: fit.AxisNames = None,
        axis_index_groups: fit.Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
        scale_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        self._keep(locals())

    @fit.checked
    def __call__(
        self, x: fit.Array, *, mask: fit.Array | None = None, out_sharding: fit.OutSharding = None
    ) -> jax.Array:
        """Normalize x (..., num_features).

        Args:
            x: the input.
            mask: booleans that broadcast to x: which elements count for mean and variance.
            out_sharding: the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: x has another number of features.
        """
        return self._normalize(x, mask, out_sharding, center=True)


class RMSNorm(_FeatureNormalization):
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

    use_bias = False

    @fit.checked
    def __init__(
        self,
        num_features: fit.Size,
        *,
        epsilon: fit.Epsilon = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True,
        scale_init: fit.Initializer = initializers.ones,
        reduction_axes: fit.Axes = -1,
        feature_axes: fit.Axes = -1,
        axis_name: fit.AxisNames = None,
        axis_index_groups: fit.Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        scale_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        self._keep(locals())

    @fit.checked
    def __call__(
        self, x: fit.Array, mask: fit.Array | None = None, *, out_sharding: fit.OutSharding = None
    ) -> jax.Array:
        """Normalize x (..., num_features); `mask`: which elements count for the mean.

        `out_sharding` is the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: x has another number of features.
        """
        return self._normalize(x, mask, out_sharding, center=False)
