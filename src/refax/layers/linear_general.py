"""LinearGeneral: an affine map of any axes to any number of new ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.metadata import VariableMetadata
from ..verbs.rngs import Rngs
from . import dtypes
from .linear import DOT_GENERAL, Affine, default_bias_init, default_kernel_init
from .options import keep_options

BatchAxes = Annotated[
    Mapping[int, int],
    fit.Fits(
        "a mapping of leading axes to sizes",
        lambda x: isinstance(x, Mapping) and all(map(fit.is_size, x.values())),
        "{0: 3}.",
    ),
]
_NO_BATCH: Mapping[int, int] = MappingProxyType({})


def _drawn_as(flat: tuple[int, ...], init: fit.Initializer) -> fit.Initializer:
    """`init` called with the shape of a matrix or vector, as fans are counted."""

    def initialize(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        value = init(key, flat, dtype)
        if isinstance(value, VariableMetadata):
            return VariableMetadata(jnp.reshape(value.raw_value, shape), value.metadata)
        return value if flat == shape else jnp.reshape(value, shape)

    return initialize


class LinearGeneral(Affine):
    """An affine map that takes the axes `axis` of its input to new axes at the end.

    With `in_features=(4, 5)`, `out_features=6`, `axis=(-2, -1)`: `y[..., o] = Σ x[..., i, j]·W[i,
    j, o] + b[o]`. Attributes: `kernel` W (*batch, *in_features, *out_features), `bias` b (*batch,
    *out_features) or None.

    Shapes: x → the axes of `batch_axis`, the axes that are neither batch nor `axis`, then
    `out_features`.

    Args:
        in_features: sizes of the axes `axis`.
        out_features: sizes of the new axes.
        axis: the axes that are contracted, one for each of `in_features`.
        batch_axis: leading axes, counted from 0, mapped to their sizes, for which there is a
            kernel and a bias each.
        kernel_init: initializer of W, called with the shape of W as one matrix.
        bias_init: initializer of b, called with the shape of b as one vector.
        dot_general_cls: a class, or function, that makes the `dot_general` of each call.
        use_bias, dtype, param_dtype, precision, promote_dtype, dot_general,
            preferred_element_type, rngs, kernel_metadata, bias_metadata: as for `nnx.Linear`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> layer = nnx.LinearGeneral((4, 5), 6, axis=(-2, -1), rngs=nnx.Rngs(0))
        >>> layer.kernel.shape, layer(jnp.ones((2, 3, 4, 5))).shape
        ((4, 5, 6), (2, 3, 6))
    """

    use_bias: bool = True
    dot_general: Callable[..., Any] | None = None
    dot_general_cls: Any = None

    @fit.checked
    def __init__(
        self,
        in_features: fit.Sizes,
        out_features: fit.Sizes,
        *,
        axis: fit.Axes = -1,
        batch_axis: BatchAxes = _NO_BATCH,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: fit.Initializer = default_kernel_init,
        bias_init: fit.Initializer = default_bias_init,
        precision: lax.PrecisionLike = None,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        dot_general: Callable[..., Any] | None = None,
        dot_general_cls: Any = None,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        keep_options(self, locals())
        self.in_features: tuple[int, ...] = fit.as_tuple(in_features)
        self.out_features: tuple[int, ...] = fit.as_tuple(out_features)
        axes: tuple[int, ...] = fit.as_tuple(axis)
        self.axis: tuple[int, ...] = axes
        batch = tuple(sorted(batch_axis.items()))
        self.batch_axis: tuple[tuple[int, int], ...] = batch
        if len(axes) != len(self.in_features):
            raise fit.ArgumentError(
                f"axis={axes} names {len(axes)} axes, but in_features="
                f"{self.in_features} has {len(self.in_features)} sizes."
            )
        if [i for i, _ in batch] != list(range(len(batch))):
            raise fit.ArgumentError(
                f"batch_axis={dict(batch)}, but batch axes must be the leading "
                "ones: 0, 1, …, without a gap."
            )
        batch_sizes = tuple(n for _, n in batch)
        copies, fan_out = math.prod(batch_sizes), math.prod(self.out_features)
        kernel_init = _drawn_as((copies * math.prod(self.in_features), fan_out), kernel_init)
        bias_init = _drawn_as((copies * fan_out,), bias_init)
        shape = (*batch_sizes, *self.in_features, *self.out_features)
        bias_shape = (*batch_sizes, *self.out_features) if use_bias else None
        self._make_parameters(locals(), shape, bias_shape)

    @fit.checked
    def __call__(self, inputs: fit.Array, out_sharding: fit.OutSharding = None) -> jax.Array:
        """Map the axes `axis` of `inputs`.

        Args:
            inputs: an array with axes of the sizes `in_features` at `axis`.
            out_sharding: the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: those axes have other sizes.
        """
        arrays = x, kernel, _ = self._promoted(inputs)
        batch = tuple(range(len(self.batch_axis)))
        contracted = tuple(range(len(batch), len(batch) + len(self.axis)))
        valid = all(-x.ndim <= axis < x.ndim for axis in self.axis)
        axes = tuple(axis % x.ndim for axis in self.axis) if valid else ()
        expected = kernel.shape[: len(batch) + len(self.axis)]
        valid = valid and len({*batch, *axes}) == len(expected)
        if not valid or tuple(x.shape[i] for i in (*batch, *axes)) != expected:
            raise fit.ArgumentError(
                f"the input has the shape {x.shape}, but its axes "
                f"{(*batch, *self.axis)} must be different ones of the sizes {expected} "
                f"(in_features={self.in_features}).\n"
                "Cure: axis=… and in_features=… of this input, or an input with such axes."
            )
        dot_general = self.dot_general or DOT_GENERAL.now()
        if self.dot_general_cls is not None:
            dot_general = self.dot_general_cls()
        dimensions = ((axes, contracted), (batch, batch))
        return self._contract(dot_general, dimensions, arrays, out_sharding)
