"""Linear: an affine map of the last axis; and `Affine`, the base of all such layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.variable_types import Param
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .contractions import fastest, last_axes, placed
from .options import Layer, Replaceable, keep_options, make_parameter, value_of, wrong_size

default_kernel_init = initializers.lecun_normal()
default_bias_init = initializers.zeros

DOT_GENERAL = Replaceable(lax.dot_general, "jax.lax")

Options = dict[str, Any]
Dimensions = tuple[
    tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]
]  # as `lax.dot_general` has them: (contracted of x, of kernel), (batch of x, of kernel)


class Affine(Layer):
    """Base of layers with a kernel and a bias."""

    precision: lax.PrecisionLike = None
    preferred_element_type: DTypeLike | None = None
    kernel: Param[jax.Array]
    bias: Param[jax.Array] | Any  # None if there is none, which need not be asked at each use

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return self.kernel.shape

    @property
    def bias_shape(self) -> tuple[int, ...] | None:
        return None if self.bias is None else self.bias.shape

    def _make_parameters(
        self,
        arguments: Mapping[str, Any],
        kernel_shape: Sequence[fit.Size],
        bias_shape: Sequence[fit.Size] | None,
    ) -> None:
        self.kernel = make_parameter(arguments, "kernel", kernel_shape)
        self.bias = None if bias_shape is None else make_parameter(arguments, "bias", bias_shape)

    def _promoted(self, inputs: Any) -> tuple[Any, ...]:
        """The input, the kernel and the bias in one dtype."""
        arrays = (inputs, self.kernel[...], value_of(self.bias))
        return self.promote_dtype(arrays, dtype=self.dtype)

    def _check_shapes(self, x: Any, kernel: Any, axes: int, in_features: int) -> None:
        """Check x (*batch, *spatial, in_features) and the kernel (*spatial, in, out)."""
        name = type(self).__name__
        if kernel.ndim != axes + 2:
            raise fit.ArgumentError(
                f"{name}: the kernel has the shape {kernel.shape}, not {axes + 2} axes: this is a "
                "stack of layers.\nCure: call it inside nnx.vmap or nnx.scan."
            )
        if x.ndim <= axes or x.shape[-1] != in_features:
            form = f"*spatial, features), with {axes} spatial axes" if axes else "features)"
            first = axes and x.ndim > axes and x.shape[-1 - axes] == in_features
            cure = "\nCure: channels come last here: jnp.moveaxis(x, 1, -1)." if first else ""
            raise fit.ArgumentError(
                f"{name}: the input has the shape {x.shape}, but it must be (*batch, {form} and "
                f"in_features={in_features}."
                f"{cure or wrong_size(name, 'in_features', *x.shape[-1:])}"
            )

    def _options(self, out_sharding: fit.OutSharding = None) -> Options:
        """The keywords for a product; a user's function need not know the unused ones."""
        options: Options = {"precision": self.precision}
        if self.preferred_element_type is not None:
            options["preferred_element_type"] = self.preferred_element_type
        if out_sharding is not None:
            options["out_sharding"] = out_sharding
        return options

    def _contract(
        self,
        dot_general: Callable[..., Any],
        dimensions: Dimensions,
        arrays: tuple[Any, ...],
        out_sharding: Any,
    ) -> jax.Array:
        """The product of x and kernel, plus the bias."""
        x, kernel, bias = arrays
        y = fastest(dot_general)(x, kernel, dimensions, **self._options(out_sharding))
        # The bias has the batch axes, then the features.
        if bias is None:
            return y
        return placed(y + last_axes(bias, y.ndim, len(dimensions[1][0])), out_sharding)


class Linear(Affine):
    """An affine map of the last axis: y = x·W + b.

    Shapes: `(..., in_features)` → `(..., out_features)`.
    Attributes: `kernel` W (in_features, out_features), `bias` b (out_features,) or None.

    Args:
        in_features: size of the input's last axis.
        out_features: size of the output's last axis.
        use_bias: whether there is a b.
        dtype: the dtype to compute in; by default what input and parameters promote to.
        param_dtype: the dtype of the parameters.
        precision: as in `jax.lax.dot_general`.
        kernel_init, bias_init: initializers of W and b.
        dot_general: computes the product, in place of `jax.lax.dot_general`.
        promote_dtype: brings input and parameters to one dtype.
        preferred_element_type: as in `jax.lax.dot_general`.
        rngs: its stream `params` gives the keys.
        kernel_metadata, bias_metadata: metadata of W and b: `{'sharding': ('in', 'out')}`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        >>> layer.kernel.shape, layer.bias.shape, layer(jnp.ones((2, 3))).shape
        ((3, 4), (4,), (2, 4))
    """

    use_bias: bool = True
    dot_general = DOT_GENERAL

    @fit.checked
    def __init__(
        self,
        in_features: fit.Size,
        out_features: fit.Size,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: fit.Initializer = default_kernel_init,
        bias_init: fit.Initializer = default_bias_init,
        dot_general: Callable[..., Any] = lax.dot_general,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        keep_options(self, locals())
        bias_shape = (out_features,) if use_bias else None
        self._make_parameters(locals(), (in_features, out_features), bias_shape)
        self.in_features = in_features
        self.out_features = out_features

    @fit.checked
    def __call__(self, inputs: fit.Array, out_sharding: fit.OutSharding = None) -> jax.Array:
        """y = x·W + b.

        Args:
            inputs: x (..., in_features).
            out_sharding: the sharding of y, on a mesh with explicit axes.

        Raises:
            ValueError: the last axis of x has another size.
        """
        arrays = x, kernel, _ = self._promoted(inputs)
        if kernel.ndim != 2 or x.shape[-1:] != kernel.shape[:1]:
            self._check_shapes(x, kernel, 0, kernel.shape[0])
        dimensions = (((x.ndim - 1,), (0,)), ((), ()))
        return self._contract(self.dot_general, dimensions, arrays, out_sharding)
