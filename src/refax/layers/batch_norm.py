"""BatchNorm: normalization by the statistics of the batch, or by their running averages."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.variable_types import BatchStat
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .contractions import placed
from .normalization import Normalization, scale_and_shift
from .options import resolve_flag
from .standardize import standardize


class BatchNorm(Normalization):
    """Normalizes each feature over the batch: y = (x - mean) / √(var + ε) · scale + bias.

    In training, mean and (biased) variance are those of the batch, and the running averages move:
    `mean ← momentum·mean + (1 - momentum)·batch mean`, the same for `var`. In evaluation
    (`use_running_average`), they are the running averages.

    Shapes: `(..., num_features)` → the same. Attributes: `scale`, `bias` (num_features,) or None;
    `mean`, `var` (num_features,), both `BatchStat`.

    Args:
        num_features: number of features.
        use_running_average: normalize by the running averages; `model.train()` and `model.eval()`
            set it.
        axis: the feature axis; the statistics are computed over all others.
        momentum: how much of the running averages stays at each step.
        epsilon: ε.
        param_dtype: the dtype of scale and bias. The running averages are float32.
        dtype, use_bias, use_scale, …: as for `nnx.LayerNorm`. Without a dtype, the running averages
            count among the parameters, so that the result is at least float32.

    Paper: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift" (2015), arXiv:1502.03167.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> norm = nnx.BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
        >>> norm(jnp.array([[1.0], [3.0]])).round(3).tolist(), norm.mean.value
        ([[-1.0], [1.0]], Array([0.2], dtype=float32))
        >>> norm.eval()
        >>> norm(jnp.array([[0.2]])).round(3).tolist()
        [[0.0]]
    """

    axis: fit.Axis = -1

    @fit.checked
    def __init__(
        self,
        num_features: fit.Size,
        *,
        use_running_average: bool | None = False,
        axis: fit.Axis = -1,
        momentum: fit.Rate = 0.99,
        epsilon: fit.Epsilon = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: fit.Initializer = initializers.zeros,
        scale_init: fit.Initializer = initializers.ones,
        axis_name: fit.AxisNames = None,
        axis_index_groups: fit.Groups = None,
        use_fast_variance: bool = True,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
        scale_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        self.use_running_average = use_running_average
        self.momentum = momentum
        self.mean: BatchStat[jax.Array] = BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var: BatchStat[jax.Array] = BatchStat(jnp.ones((num_features,), jnp.float32))
        self._keep(locals())

    def set_view(self, use_running_average: bool | None = None) -> None:
        """The mode of this layer, for `nnx.view`.

        Args:
            use_running_average: True: normalize by the stored statistics, not those of the input.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    @fit.checked
    def __call__(
        self,
        x: fit.Array,
        use_running_average: bool | None = None,
        *,
        mask: fit.Array | None = None,
        out_sharding: fit.OutSharding = None,
    ) -> jax.Array:
        """Normalize x (..., num_features); in training, move the running averages too.

        Args:
            x: the input.
            use_running_average: overrules the attribute.
            mask: booleans that broadcast to x: which elements count for mean and variance.
            out_sharding: the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: x has another number of features.
        """
        running = resolve_flag(
            self, "use_running_average", use_running_average, self.use_running_average
        )
        mean, var = self.mean.value, self.var.value
        x, mask, scale, bias, dtype = self._arrays(x, mask, mean, var)
        features = self._find_feature_axes(x, self.axis, "axis")
        wide = dtypes.cast(x, dtypes.widest(x.dtype, dtype))
        if running:
            shape = tuple(n if i in features else 1 for i, n in enumerate(x.shape))
            mean, var = (dtypes.cast(v, wide.dtype).reshape(shape) for v in (mean, var))
            y = (wide - mean) * lax.rsqrt(var + self.epsilon)
        else:
            how = self._averaging(tuple(i for i in range(x.ndim) if i not in features))
            result: Any = standardize(wide, mask, how._replace(statistics=True))
            y, *statistics = result
            for kept, new in zip((self.mean, self.var), statistics, strict=True):
                new = dtypes.cast(new.reshape(kept.shape), kept.dtype)
                kept.value = self.momentum * kept.value + (1 - self.momentum) * new
        return placed(scale_and_shift(y, scale, bias, features, dtype), out_sharding)
