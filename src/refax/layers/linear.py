"""Linear: an affine map of the last axis; and `contract`, the product behind all such layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..graph.module import Module
from ..graph.rngs import Rngs
from ..graph.variable import Param
from . import dtypes, initializers
from .options import NO_METADATA, Initializer, PromoteDtype, keep_options

default_kernel_init = initializers.lecun_normal()
default_bias_init = initializers.zeros

Dimensions = tuple[
    tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]
]  # as `lax.dot_general` has them: (contracted of x, of kernel), (batch of x, of kernel)


def contract(
    dot_general: Callable[..., Any],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    dimensions: Dimensions,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`dot_general(x, kernel)` plus the bias, whose axes are batch axes, then features."""
    if dot_general is lax.dot_general:
        return _contract(
            x, kernel, bias, dimensions, precision, preferred_element_type, out_sharding
        )
    options: dict[str, Any] = {"precision": precision}
    # A user's function need not know the options that are not used.
    if preferred_element_type is not None:
        options["preferred_element_type"] = preferred_element_type
    if out_sharding is not None:
        options["out_sharding"] = out_sharding
    return _add_bias(dot_general(x, kernel, dimensions, **options), bias, dimensions)


# One compiled call where the operations one by one would be three; inlined into a trace.
@partial(jax.jit, static_argnums=(3, 4, 5, 6), inline=True)
def _contract(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    dimensions: Dimensions,
    precision: Any,
    preferred_element_type: DTypeLike | None,
    out_sharding: Any,
) -> jax.Array:
    y = lax.dot_general(
        x,
        kernel,
        dimensions,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    return _add_bias(y, bias, dimensions)


def _add_bias(y: jax.Array, bias: jax.Array | None, dimensions: Dimensions) -> jax.Array:
    if bias is None:
        return y
    batch = len(dimensions[1][0])
    ones = (1,) * (y.ndim - bias.ndim)
    return y + bias.reshape(bias.shape[:batch] + ones + bias.shape[batch:])


class Linear(Module):
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
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    dot_general = staticmethod(lax.dot_general)
    promote_dtype = staticmethod(dtypes.promote_dtype)
    preferred_element_type: DTypeLike | None = None

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
        kernel = kernel_init(rngs.params(), (in_features, out_features), param_dtype)
        self.kernel = Param(kernel, **kernel_metadata)
        self.bias = None
        if use_bias:
            self.bias = Param(
                bias_init(rngs.params(), (out_features,), param_dtype), **bias_metadata
            )
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
        kernel = self.kernel.value
        bias = None if self.bias is None else self.bias.value
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        if kernel.ndim != 2 or x.shape[-1:] != kernel.shape[:1]:
            raise _wrong_shapes(self, x.shape, kernel.shape)
        return contract(
            self.dot_general,
            x,
            kernel,
            bias,
            (((x.ndim - 1,), (0,)), ((), ())),
            self.precision,
            self.preferred_element_type,
            out_sharding,
        )


def _wrong_shapes(layer: Linear, x: tuple[int, ...], kernel: tuple[int, ...]) -> ValueError:
    name = type(layer).__name__
    if len(kernel) != 2:
        return ValueError(
            f"{name}: the kernel has the shape {kernel}, not (in_features, out_features): this is "
            "a stack of layers.\nCure: call it inside nnx.vmap or nnx.scan."
        )
    if not x:
        return ValueError(f"{name}: the input is a scalar, but in_features={kernel[0]}.")
    return ValueError(
        f"{name}: the input has {x[-1]} features in its last axis (shape {x}), "
        f"but in_features={kernel[0]}."
    )
