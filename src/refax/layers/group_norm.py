"""GroupNorm and InstanceNorm: normalization within one example, by groups of features or each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .contractions import placed
from .normalization import Normalization, normalize
from .options import positive_axes


class GroupNorm(Normalization):
    """Normalizes groups of features: y = (x - mean) / √(var + ε) · scale + bias.

    The features are cut into `num_groups` runs of `group_size` neighbours. Mean and variance are
    those of one group in one example, over all positions.

    Shapes: `(batch, ..., num_features)` → the same.
    Attributes: `scale`, `bias` (num_features,) or None.

    Args:
        num_features: number of features, the size of the last axis.
        num_groups: number of groups; None with `group_size`.
        group_size: features in a group; in place of `num_groups`.
        epsilon: ε.
        reduction_axes: the axes that the statistics are computed over, the last among them, which
            stands for the features of a group. By default all but the first: give them for an input
            with several batch axes.
        dtype, use_bias, use_scale, axis_name, …: as for `nnx.LayerNorm`.

    Raises:
        ValueError: the groups do not divide the features; or not one of `num_groups` and
            `group_size` is given.

    Paper: Wu and He, "Group Normalization" (2018), arXiv:1803.08494.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> norm = nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> norm(jnp.array([[1.0, 3.0, 10.0, 50.0]])).round(3).tolist()
        [[-1.0, 1.0, -1.0, 1.0]]
    """

    reduction_axes: fit.Axes | None = None
    feature_axis: int = -1

    @fit.checked
    def __init__(
        self,
        num_features: fit.Size,
        num_groups: fit.Count | None = 32,
        group_size: fit.Count | None = None,
        *,
        epsilon: fit.Epsilon = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: fit.Initializer = initializers.zeros,
        scale_init: fit.Initializer = initializers.ones,
        reduction_axes: fit.Axes | None = None,
        axis_name: fit.AxisNames = None,
        axis_index_groups: fit.Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
        scale_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        groups, size = _groups(num_features, num_groups, group_size)
        self.num_groups: int = groups
        self.group_size: int = size
        self._keep(locals())

    @fit.checked
    def __call__(
        self, x: fit.Array, *, mask: fit.Array | None = None, out_sharding: fit.OutSharding = None
    ) -> jax.Array:
        """Normalize x (batch, ..., num_features).

        Args:
            x: the input.
            mask: booleans that broadcast to x: which elements count for mean and variance.
            out_sharding: the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: x has another number of features.
        """
        x, mask, scale, bias, dtype = self._arrays(x, mask)
        features = self._find_feature_axes(x, -1)
        axes = tuple(range(1, x.ndim)) or (0,)
        if self.reduction_axes is not None:
            axes = positive_axes("reduction_axes", self.reduction_axes, x.ndim)
            if axes[-1:] != (x.ndim - 1,):
                raise fit.ArgumentError(
                    f"GroupNorm: reduction_axes={self.reduction_axes} lacks the last axis of the "
                    f"input (shape {x.shape}), whose groups are what is normalized.\n"
                    "Cure: reduction_axes=None, for all axes but the first."
                )
        how = self._averaging((*axes[:-1], x.ndim))  # of a group: the axis after that of the groups
        groups = self.num_groups, self.group_size
        y = normalize(x, mask, scale, bias, how, features, dtype, groups)
        return placed(y, out_sharding)


def _groups(features: int, number: int | None, size: int | None) -> tuple[int, int]:
    """The number of groups and their size, from one of them."""
    if (number is None) == (size is None):
        raise fit.ArgumentError(
            f"GroupNorm takes one of num_groups and group_size, got num_groups={number} and "
            f"group_size={size}.\nCure: GroupNorm({features}, num_groups=None, group_size=…): "
            "num_groups is 32 by default."
        )
    name, given = ("group_size", size) if number is None else ("num_groups", number)
    if not given or features % given:
        raise fit.ArgumentError(f"{name}={given} does not divide num_features={features}.")
    return (features // given, given) if number is None else (given, features // given)


class InstanceNorm(Normalization):
    """Normalizes each feature over the positions: y = (x - mean) / √(var + ε) · scale + bias.

    Mean and variance are those of one feature in one example.

    Shapes: `(batch, ..., num_features)` → the same.
    Attributes: `scale`, `bias` (num_features,) or None.

    Args:
        num_features: number of features.
        epsilon: ε.
        feature_axes: the feature axes; the statistics are computed over all others but the first.
            With several, `num_features` is the product of their sizes.
        dtype, use_bias, use_scale, axis_name, …: as for `nnx.LayerNorm`.

    Paper: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization" (2016), arXiv:1607.08022.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> norm = nnx.InstanceNorm(2, rngs=nnx.Rngs(0))
        >>> norm(jnp.array([[[1.0, 10.0], [3.0, 50.0]]])).round(3).tolist()
        [[[-1.0, -1.0], [1.0, 1.0]]]
    """

    feature_axes: fit.Axes = -1

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
        """Normalize x (batch, ..., num_features).

        Args:
            x: the input.
            mask: booleans that broadcast to x: which elements count for mean and variance.
            out_sharding: the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: x has another number of features; or its first axis is a feature axis.
        """
        x, mask, scale, bias, dtype = self._arrays(x, mask)
        features = self._find_feature_axes(x, self.feature_axes)
        if 0 in features:
            raise fit.ArgumentError(
                f"InstanceNorm: feature_axes={self.feature_axes} has the first axis of the input "
                f"(shape {x.shape}) among them, which is the batch.\nCure: an input with a batch "
                "axis, x[None]."
            )
        how = self._averaging(tuple(i for i in range(1, x.ndim) if i not in features))
        return placed(normalize(x, mask, scale, bias, how, features, dtype), out_sharding)
