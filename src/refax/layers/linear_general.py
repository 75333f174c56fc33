"""LinearGeneral: an affine map of any axes to any number of new ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..graph.module import Module
from ..graph.rngs import Rngs
from ..graph.variable import Param, VariableMetadata
from . import dtypes
from .linear import contract, default_bias_init, default_kernel_init
from .options import NO_METADATA, Initializer, PromoteDtype, keep_options

_NO_BATCH: Mapping[int, int] = MappingProxyType({})


def _sizes(sizes: int | Sequence[int]) -> tuple[int, ...]:
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)


def _initial(
    init: Initializer, key: Any, flat: tuple[int, ...], shape: tuple[int, ...], dtype: Any
) -> Any:
    """An initial value made as a matrix or vector, as fans are counted, in its real shape."""
    value = init(key, flat, dtype)
    if flat == shape:
        return value
    if isinstance(value, VariableMetadata):
        return VariableMetadata(jnp.reshape(value.raw_value, shape), value.metadata)
    return jnp.reshape(value, shape)


class LinearGeneral(Module):
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
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    dot_general: Callable[..., Any] | None = None
    dot_general_cls: Any = None
    promote_dtype = staticmethod(dtypes.promote_dtype)
    preferred_element_type: DTypeLike | None = None

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        batch_axis: Mapping[int, int] = _NO_BATCH,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        precision: lax.PrecisionLike = None,
        promote_dtype: PromoteDtype = dtypes.promote_dtype,
        dot_general: Callable[..., Any] | None = None,
        dot_general_cls: Any = None,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        keep_options(self, locals())
        self.in_features = _sizes(in_features)
        self.out_features = _sizes(out_features)
        self.axis = axes = _sizes(axis)
        self.batch_axis = batch = tuple(sorted(batch_axis.items()))
        if len(axes) != len(self.in_features):
            raise ValueError(
                f"LinearGeneral: axis={axes} names {len(axes)} axes, but in_features="
                f"{self.in_features} has {len(self.in_features)} sizes."
            )
        if [i for i, _ in batch] != list(range(len(batch))):
            raise ValueError(
                f"LinearGeneral: batch_axis={dict(batch)}, but batch axes must be the leading "
                "ones: 0, 1, …, without a gap."
            )
        sizes = tuple(n for _, n in batch)
        copies, fan_out = math.prod(sizes), math.prod(self.out_features)
        kernel = _initial(
            kernel_init,
            rngs.params(),
            (copies * math.prod(self.in_features), fan_out),
            (*sizes, *self.in_features, *self.out_features),
            param_dtype,
        )
        self.kernel = Param(kernel, **kernel_metadata)
        self.bias = None
        if use_bias:
            shape = (*sizes, *self.out_features)
            bias = _initial(bias_init, rngs.params(), (copies * fan_out,), shape, param_dtype)
            self.bias = Param(bias, **bias_metadata)

    def __call__(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
        """Map the axes `axis` of `inputs`.

        Args:
            inputs: an array with axes of the sizes `in_features` at `axis`.
            out_sharding: the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: those axes have other sizes.
        """
        kernel = self.kernel.value
        bias = None if self.bias is None else self.bias.value
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        batch = tuple(range(len(self.batch_axis)))
        contracted = tuple(range(len(batch), len(batch) + len(self.axis)))
        valid = all(-x.ndim <= axis < x.ndim for axis in self.axis)
        axes = tuple(axis % x.ndim for axis in self.axis) if valid else ()
        found = tuple(x.shape[i] for i in (*batch, *axes))
        wanted = kernel.shape[: len(found)]
        if not valid or found != wanted:
            raise ValueError(
                f"LinearGeneral: the input has the shape {x.shape}, but its axes "
                f"{(*batch, *self.axis)} must have the sizes "
                f"{kernel.shape[: len(batch) + len(self.axis)]} (in_features={self.in_features})."
            )
        dot_general = self.dot_general or lax.dot_general
        if self.dot_general_cls is not None:
            dot_general = self.dot_general_cls()
        return contract(
            dot_general,
            x,
            kernel,
            bias,
            ((axes, contracted), (batch, batch)),
            self.precision,
            self.preferred_element_type,
            out_sharding,
        )
