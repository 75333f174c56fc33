"""Linear: an affine map of the last axis; and `Affine`, the base of all such layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..objects.variable_types import Param
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .options import (
    NO_METADATA,
    Initializer,
    Layer,
    PromoteDtype,
    keep_options,
    make_parameter,
    value_of,
)

default_kernel_init = initializers.lecun_normal()
default_bias_init = initializers.zeros

Options = tuple[tuple[str, Any], ...]
Dimensions = tuple[
    tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]
]  # as `lax.dot_general` has them: (contracted of x, of kernel), (batch of x, of kernel)


def _contract(
    dot_general: Callable[..., Any],
    dimensions: Dimensions,
    options: Options,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    y = dot_general(x, kernel, dimensions, **dict(options))
    if bias is None:
        return y
    batch = len(dimensions[1][0])  # the bias has the batch axes, then the features
    ones = (1,) * (y.ndim - bias.ndim)
    return y + bias.reshape(bias.shape[:batch] + ones + bias.shape[batch:])


# One compiled call where the operations one by one would be three; inlined into a trace.
_contract_compiled = partial(jax.jit, static_argnums=(0, 1, 2), inline=True)(_contract)


class Affine(Layer):
    """Base of layers with a kernel and a bias."""

    precision: lax.PrecisionLike = None
    preferred_element_type: DTypeLike | None = None
    kernel: Param
    bias: Param | None

    def _make_parameters(
        self,
        arguments: Mapping[str, Any],
        kernel_shape: Sequence[int],
        bias_shape: Sequence[int] | None,
    ) -> None:
        self.kernel = make_parameter(arguments, "kernel", kernel_shape)
        self.bias = None if bias_shape is None else make_parameter(arguments, "bias", bias_shape)

    def _promoted(self, inputs: Any) -> tuple[Any, ...]:
        """The input, the kernel and the bias in one dtype."""
        arrays = (inputs, self.kernel.value, value_of(self.bias))
        return self.promote_dtype(arrays, dtype=self.dtype)

    def _check_shapes(self, x: Any, kernel: Any, axes: int, in_features: int) -> None:
        """Check x (*batch, *spatial, in_features) and the kernel (*spatial, in, out)."""
        name = type(self).__name__
        if kernel.ndim != axes + 2:
            raise ValueError(
                f"{name}: the kernel has the shape {kernel.shape}, not {axes + 2} axes: this is a "
                "stack of layers.\nCure: call it inside nnx.vmap or nnx.scan."
            )
        if x.ndim <= axes or x.shape[-1] != in_features:
            form = f"*spatial, features), with {axes} spatial axes" if axes else "features)"
            raise ValueError(
                f"{name}: the input has the shape {x.shape}, but it must be (*batch, {form} and "
                f"in_features={in_features}."
            )

    def _options(self, out_sharding: Any = None) -> Options:
        """The keywords for a product, hashable; a user's function need not know the unused ones."""
        dtype = self.preferred_element_type
        optional = (("preferred_element_type", dtype), ("out_sharding", out_sharding))
        return ("precision", self.precision), *(pair for pair in optional if pair[1] is not None)

    def _contract(
        self,
        dot_general: Callable[..., Any],
        dimensions: Dimensions,
        arrays: tuple[Any, ...],
        out_sharding: Any,
    ) -> jax.Array:
        """The product of (x, kernel, bias), plus the bias."""
        contract = _contract_compiled if dot_general is lax.dot_general else _contract
        return contract(dot_general, dimensions, self._options(out_sharding), *arrays)


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
    dot_general = staticmethod(lax.dot_general)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dot_general: Callable[..., Any] = lax.dot_general,
        promote_dtype: PromoteDtype = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        keep_options(self, locals())
        bias_shape = (out_features,) if use_bias else None
        self._make_parameters(locals(), (in_features, out_features), bias_shape)
        self.in_features = in_features
        self.out_features = out_features

    def __call__(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
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
