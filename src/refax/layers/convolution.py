"""Conv and ConvTranspose: the same affine map of a small window, at every place of a grid.

Arrays are laid out (*batch, *spatial, features), kernels (*spatial, in, out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..verbs.rngs import Rngs
from . import dtypes
from .contractions import last_axes, placed
from .linear import Affine, Options, default_bias_init, default_kernel_init
from .options import Replaceable, keep_options
from .windows import NAMED, Padding, Pads, PerAxis, canonical_padding, per_axis

# Paddings with values of the input, as `jnp.pad` calls them.
_CONTINUED = {"CIRCULAR": "wrap", "REFLECT": "reflect"}

Ints = tuple[int, ...]


def _dimension_numbers(axes: int) -> lax.ConvDimensionNumbers:
    spatial = range(axes)
    arrays = (0, axes + 1, *(i + 1 for i in spatial))
    return lax.ConvDimensionNumbers(arrays, (axes + 1, axes, *spatial), arrays)


def _conv_dimension_numbers(input_shape: Sequence[int]) -> lax.ConvDimensionNumbers:
    """Where a convolution finds batch, channels and space in an input of this shape."""
    return _dimension_numbers(len(input_shape) - 2)


def _of_one_batch_axis(out_sharding: Any, batch: int) -> Any:
    """The sharding of the same output with its batch axes as one."""
    if out_sharding is None or batch == 1:
        return out_sharding
    entries = list(getattr(out_sharding, "spec", out_sharding))
    names = (e if isinstance(e, tuple) else (e,) for e in entries[:batch] if e is not None)
    return PartitionSpec(sum(names, ()) or None, *entries[batch:])


class Convolution(Affine):
    """What Conv and ConvTranspose have in common: parameters, options, checks, batch axes."""

    use_bias: bool = True
    mask: fit.Array | None = None
    padding: str | Pads

    def _make(self, channels: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
        """Set the attributes that `arguments`, those of `__init__`, say; draw the parameters."""
        keep_options(self, arguments)
        name, size = type(self).__name__, arguments["kernel_size"]
        self.in_features: int = arguments["in_features"]
        self.out_features: int = arguments["out_features"]
        axes = fit.as_tuple(size)
        self.kernel_size: tuple[int, ...] = axes
        self.strides: tuple[int, ...] = per_axis(name, "strides", arguments["strides"], len(axes))
        dilation = arguments["kernel_dilation"]
        self.kernel_dilation: tuple[int, ...] = per_axis(
            name, "kernel_dilation", dilation, len(axes)
        )
        shape = (*axes, *channels)
        if self.mask is not None and np.shape(self.mask) != shape:
            raise fit.ArgumentError(
                f"{name}: mask has the shape {np.shape(self.mask)}, but the kernel has {shape}."
            )
        self._make_parameters(arguments, shape, (self.out_features,) if self.use_bias else None)

    def _product(self, x: jax.Array, kernel: jax.Array, options: Options) -> jax.Array:
        """The convolution of an input with one batch axis, without the bias."""
        raise NotImplementedError

    def _call(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
        x, kernel, bias = self._promoted(inputs)
        self._check_shapes(x, kernel, len(self.kernel_size), self.in_features)
        if self.mask is not None:
            kernel = kernel * dtypes.cast(dtypes.as_array(self.mask), kernel.dtype)
        batch = x.shape[: x.ndim - kernel.ndim + 1]
        if len(batch) != 1:
            x = x.reshape(math.prod(batch), *x.shape[len(batch) :])
        options = self._options(_of_one_batch_axis(out_sharding, len(batch)))
        y = self._product(x, kernel, options)
        if bias is not None:
            y = y + last_axes(bias, y.ndim)
        y = y if len(batch) == 1 else y.reshape(*batch, *y.shape[1:])
        return placed(y, out_sharding)


class Conv(Convolution):
    """A convolution: y[n, o] = Σ_j x[n·stride + j·dilation - low, i]·W[j, i, o] + b[o].

    It is the correlation that neural networks call so: the kernel is not flipped. n and j run over
    as many spatial axes as `kernel_size` has entries; `low` is the padding before x.

    Shapes: `(*batch, *spatial, in_features)` → `(*batch, *spatial', out_features)`, with any number
    of batch axes, also none. Attributes: `kernel` W (*kernel_size, in_features //
    feature_group_count, out_features), `bias` b (out_features,) or None.

    Args:
        in_features, out_features: sizes of the last axis of x and of y.
        kernel_size: sizes of the window; an int is one spatial axis.
        strides: step of the window, for each axis or for all.
        padding: 'SAME', 'VALID' (none), 'CIRCULAR' (x is periodic), 'REFLECT' (x is mirrored at
            its ends), 'CAUSAL' (one spatial axis, only before: y[n] sees x up to n), or numbers:
            an int, one int for each axis, or pairs (low, high).
        input_dilation: step between the places at which x is put, with zeros in between.
        kernel_dilation: step between the places that the kernel looks at ("atrous").
        feature_group_count: the features are cut in so many groups that do not see each other.
        mask: an array of the shape of W, that W is multiplied by.
        conv_general_dilated: computes the product, in place of `jax.lax.conv_general_dilated`.
        use_bias, dtype, param_dtype, precision, kernel_init, bias_init, promote_dtype,
            preferred_element_type, rngs, kernel_metadata, bias_metadata: as for `nnx.Linear`.

    Raises:
        ValueError: arguments that do not fit each other, or the number of spatial axes.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> layer = nnx.Conv(3, 16, kernel_size=(3, 3), strides=2, rngs=nnx.Rngs(0))
        >>> layer.kernel.shape, layer(jnp.ones((8, 28, 28, 3))).shape
        ((3, 3, 3, 16), (8, 14, 14, 16))
    """

    feature_group_count: fit.Size = 1
    conv_general_dilated: Replaceable = Replaceable(lax.conv_general_dilated, "jax.lax")

    @fit.checked
    def __init__(
        self,
        in_features: fit.Size,
        out_features: fit.Size,
        kernel_size: fit.Sizes,
        strides: PerAxis = 1,
        *,
        padding: Padding = "SAME",
        input_dilation: PerAxis = 1,
        kernel_dilation: PerAxis = 1,
        feature_group_count: fit.Size = 1,
        use_bias: bool = True,
        mask: fit.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: fit.Initializer = default_kernel_init,
        bias_init: fit.Initializer = default_bias_init,
        conv_general_dilated: Callable[..., Any] = lax.conv_general_dilated,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        if in_features % feature_group_count or out_features % feature_group_count:
            raise fit.ArgumentError(
                f"Conv: feature_group_count={feature_group_count} does not divide in_features="
                f"{in_features} and out_features={out_features}."
            )
        self._make((in_features // feature_group_count, out_features), locals())
        axes = len(self.kernel_size)
        named = (*NAMED, *_CONTINUED, *(("CAUSAL",) if axes == 1 else ()))
        self.padding: str | Pads = canonical_padding("Conv", padding, axes, named)
        self.input_dilation: tuple[int, ...] = per_axis(
            "Conv", "input_dilation", input_dilation, axes
        )

    @fit.checked
    def __call__(self, inputs: fit.Array, out_sharding: fit.OutSharding = None) -> jax.Array:
        """Convolve x.

        Args:
            inputs: x (*batch, *spatial, in_features).
            out_sharding: the sharding of y, on a mesh with explicit axes.

        Raises:
            ValueError: x has too few axes, or its last axis has another size.
        """
        return self._call(inputs, out_sharding)

    def _product(self, x: jax.Array, kernel: jax.Array, options: Options) -> jax.Array:
        # The distance from the first to the last place that the kernel looks at.
        spans = [d * (k - 1) for d, k in zip(self.kernel_dilation, kernel.shape)]
        pads: Any = self.padding
        named = self.padding
        if named in _CONTINUED:
            sides = [(span // 2, span - span // 2) for span in spans]
            x = jnp.pad(x, [(0, 0), *sides, (0, 0)], mode=_CONTINUED[named])
            pads = [(0, 0)] * len(spans)
        elif named == "CAUSAL":
            pads = [(span, 0) for span in spans]
        elif isinstance(named, str):  # `lax` resolves a name only where the input is not dilated
            sizes = [d * (n - 1) + 1 for d, n in zip(self.input_dilation, x.shape[1:])]
            pads = lax.padtype_to_pads(sizes, [n + 1 for n in spans], self.strides, named)
        return self.conv_general_dilated(
            x,
            kernel,
            self.strides,
            pads,
            lhs_dilation=self.input_dilation,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=_dimension_numbers(len(spans)),
            feature_group_count=self.feature_group_count,
            **options,
        )


class ConvTranspose(Convolution):
    """A transposed, or fractionally strided, convolution: each x[n] adds a window to y.

    y[n·stride + (k-1-j)·dilation - low, o] += x[n, i]·W[j, i, o], then + b[o], for a window of k
    places. With `transpose_kernel`, W has the axes (j, o, i) and is not flipped, so that it is the
    transpose, and the derivative, of the Conv from o to i with the same W.

    Shapes: `(*batch, *spatial, in_features)` → `(*batch, *spatial', out_features)`, where 'SAME'
    and 'CIRCULAR' give spatial' = spatial·stride. Attributes: `kernel` W (*kernel_size,
    in_features, out_features), or with `transpose_kernel` (*kernel_size, out_features,
    in_features); `bias` b (out_features,) or None.

    Args:
        in_features, out_features: sizes of the last axis of x and of y.
        kernel_size: sizes of the window; an int is one spatial axis.
        strides: step of the window over y, for each axis or for all.
        padding: 'SAME', 'VALID', 'CIRCULAR' (x is periodic), or numbers as for `nnx.Conv`: with
            zeros around x, after the zeros that the strides put in between.
        kernel_dilation: step between the places that the kernel looks at.
        mask: an array of the shape of W, that W is multiplied by.
        transpose_kernel: see above.
        use_bias, dtype, param_dtype, precision, kernel_init, bias_init, promote_dtype,
            preferred_element_type, rngs, kernel_metadata, bias_metadata: as for `nnx.Linear`.

    Raises:
        ValueError: arguments that do not fit the number of spatial axes.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> layer = nnx.ConvTranspose(16, 3, kernel_size=(3, 3), strides=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((8, 14, 14, 16))).shape
        (8, 28, 28, 3)
    """

    transpose_kernel: bool = False

    @fit.checked
    def __init__(
        self,
        in_features: fit.Size,
        out_features: fit.Size,
        kernel_size: fit.Sizes,
        strides: PerAxis = None,
        *,
        padding: Padding = "SAME",
        kernel_dilation: PerAxis = None,
        use_bias: bool = True,
        mask: fit.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: fit.Initializer = default_kernel_init,
        bias_init: fit.Initializer = default_bias_init,
        transpose_kernel: bool = False,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        channels = (in_features, out_features)
        self._make(channels[::-1] if transpose_kernel else channels, locals())
        named = ("SAME", "VALID", "CIRCULAR")
        self.padding: str | Pads = canonical_padding(
            "ConvTranspose", padding, len(self.kernel_size), named
        )

    @fit.checked
    def __call__(self, inputs: fit.Array) -> jax.Array:
        """Map x (*batch, *spatial, in_features).

        Raises:
            ValueError: x has too few axes, or its last axis has another size.
        """
        return self._call(inputs)

    def _product(self, x: jax.Array, kernel: jax.Array, options: Options) -> jax.Array:
        axes, padding = len(self.strides), self.padding
        crop: list[slice] = []
        if padding == "CIRCULAR":
            # Continue x by more than an output inside it can depend on, and crop the rest.
            padding, sides = "SAME", [(0, 0)]
            windows = (d * (k - 1) + 1 for d, k in zip(self.kernel_dilation, kernel.shape))
            for window, step, size in zip(windows, self.strides, x.shape[1:]):
                more = math.ceil(window / step)
                sides.append((more, more))
                # Of an odd overlap a transposed kernel has the larger half before, not after.
                odd = self.transpose_kernel and window > step and (window - step) % 2
                crop.append(slice(more * step + odd, (more + size) * step + odd))
            x = jnp.pad(x, [*sides, (0, 0)], mode="wrap")
        y = lax.conv_transpose(
            x,
            kernel,
            self.strides,
            padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=_dimension_numbers(axes),
            transpose_kernel=self.transpose_kernel,
            **options,
        )
        return y[:, *crop] if crop else y
