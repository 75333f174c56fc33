"""Pooling: a mean, maximum or minimum over each window of a grid.

Arrays are laid out (*batch, *spatial, features), with any number of batch axes, also none; there
are as many spatial axes as the window has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..objects import arguments as fit
from ..verbs.module import Module
from . import dtypes
from .windows import Padding, Pads, PerAxis, Window, canonical_padding, per_axis

# Window, strides and padding, for all axes of an array.
Layout = tuple[tuple[int, ...], tuple[int, ...], str | Pads]


def _lay_out(
    inputs: Any, window_shape: Window, strides: PerAxis, padding: Padding
) -> tuple[jax.Array, Layout]:
    x, axes = dtypes.as_array(inputs), len(window_shape)
    batch = x.ndim - axes - 1
    if batch < 0:
        raise fit.ArgumentError(
            f"pooling: the input has the shape {x.shape}, but it must be (*batch, *spatial, "
            f"features) with {axes} spatial axes (window_shape={tuple(window_shape)})."
        )
    pads = canonical_padding("pooling", padding, axes)
    if not isinstance(pads, str):
        pads = ((0, 0),) * batch + pads + ((0, 0),)
    strides = per_axis("pooling", "strides", strides, axes)
    ones = (1,) * batch
    return x, ((*ones, *window_shape, 1), (*ones, *strides, 1), pads)


@fit.checked
def pool(
    inputs: fit.Array,
    init: Any,
    reduce_fn: Callable[[Any, Any], Any],
    window_shape: Window,
    strides: PerAxis,
    padding: Padding,
) -> jax.Array:
    """Reduce each window by any function of two numbers.

    JAX knows the derivative for the functions `jax.lax.add`, `max` and `min`, each with its neutral
    element as `init`.

    Args:
        inputs: x (*batch, *spatial, features).
        init: what the reduction of each window begins with, and what padding holds.
        reduce_fn: (number, number) → number, as in `jax.lax.reduce_window`.
        window_shape: sizes of the window, one for each spatial axis.
        strides: step of the window, for each axis or for all; None is 1.
        padding: 'SAME', 'VALID' (none), or numbers as for `nnx.Conv`.

    Raises:
        ValueError: x has too few axes; strides or padding have other lengths than the window.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> nnx.pool(jnp.arange(1.0, 5.0)[:, None], 1.0, jax.lax.mul, (2,), 2, "VALID").tolist()
        [[2.0], [12.0]]
    """
    x, layout = _lay_out(inputs, window_shape, strides, padding)
    return lax.reduce_window(x, init, reduce_fn, *layout)


def _average(x: jax.Array, layout: Layout, axes: int, count_include_pad: bool) -> jax.Array:
    # As for the normalization layers: many numbers are added in at least float32.
    wide = dtypes.widest(x.dtype)
    zero = np.zeros((), wide)
    y = lax.reduce_window(x.astype(wide), zero, lax.add, *layout)
    if count_include_pad:
        y = y / np.prod(layout[0], dtype=wide)
    else:
        batch = x.ndim - axes - 1
        ones = jnp.ones((*(1,) * batch, *x.shape[batch:-1], 1), wide)
        y = y / lax.reduce_window(ones, zero, lax.add, *layout)
    return y.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else y


@fit.checked
def avg_pool(
    inputs: fit.Array,
    window_shape: Window,
    strides: PerAxis = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """The mean of each window.

    Args:
        count_include_pad: whether padding counts, as zeros; otherwise each mean is that of the
            elements of x in its window.
        inputs, window_shape, strides, padding: as for `nnx.pool`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> nnx.avg_pool(jnp.ones((8, 28, 28, 3)), (2, 2), (2, 2)).shape
        (8, 14, 14, 3)
    """
    x, layout = _lay_out(inputs, window_shape, strides, padding)
    return _average(x, layout, len(window_shape), count_include_pad)


def _extreme(reduce_fn: Callable[..., Any], x: jax.Array, layout: Layout) -> jax.Array:
    least, greatest = -np.inf, np.inf
    if jnp.issubdtype(x.dtype, jnp.integer):
        least, greatest = jnp.iinfo(x.dtype).min, jnp.iinfo(x.dtype).max
    init = np.asarray(least if reduce_fn is lax.max else greatest, x.dtype)
    return lax.reduce_window(x, init, reduce_fn, *layout)


@fit.checked
def max_pool(
    inputs: fit.Array, window_shape: Window, strides: PerAxis = None, padding: Padding = "VALID"
) -> jax.Array:
    """The maximum of each window; padding never is one. Arguments: as for `nnx.pool`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> nnx.max_pool(jnp.array([1, 3, 2, 5])[:, None], (2,), 2).tolist()
        [[3], [5]]
    """
    return _extreme(lax.max, *_lay_out(inputs, window_shape, strides, padding))


@fit.checked
def min_pool(
    inputs: fit.Array, window_shape: Window, strides: PerAxis = None, padding: Padding = "VALID"
) -> jax.Array:
    """The minimum of each window; padding never is one. Arguments: as for `nnx.pool`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> nnx.min_pool(jnp.array([1, 3, 2, 5])[:, None], (2,), 2).tolist()
        [[1], [2]]
    """
    return _extreme(lax.min, *_lay_out(inputs, window_shape, strides, padding))


class _Pool(Module):
    """Base of the pooling layers: the arguments of a pooling function, kept."""

    @fit.checked
    def __init__(self, window_shape: Window, strides: PerAxis = None, padding: Padding = "VALID"):
        axes = len(window_shape)
        canonical_padding("pooling", padding, axes)
        per_axis("pooling", "strides", strides, axes)
        # Kept as they were given, but for lists, which have no hash.
        self.window_shape: tuple[int, ...] = tuple(window_shape)
        self.strides: tuple[int, ...] | int | None = (
            tuple(strides) if isinstance(strides, Collection) else strides
        )
        self.padding: Padding = padding
        if isinstance(padding, Collection) and not isinstance(padding, str):
            self.padding = tuple(padding)


class MaxPool(_Pool):
    """`nnx.max_pool` as a layer, for `nnx.Sequential`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> nnx.MaxPool((2, 2), strides=2)(jnp.ones((8, 28, 28, 3))).shape
        (8, 14, 14, 3)
    """

    @fit.checked
    def __call__(self, inputs: fit.Array) -> jax.Array:
        return max_pool(inputs, self.window_shape, self.strides, self.padding)


class MinPool(_Pool):
    """`nnx.min_pool` as a layer; arguments as for `nnx.MaxPool`."""

    @fit.checked
    def __call__(self, inputs: fit.Array) -> jax.Array:
        return min_pool(inputs, self.window_shape, self.strides, self.padding)


class AvgPool(_Pool):
    """`nnx.avg_pool` as a layer; arguments as for `nnx.avg_pool`."""

    @fit.checked
    def __init__(
        self,
        window_shape: Window,
        strides: PerAxis = None,
        padding: Padding = "VALID",
        count_include_pad: bool = True,
    ):
        super().__init__(window_shape, strides, padding)
        self.count_include_pad = count_include_pad

    @fit.checked
    def __call__(self, inputs: fit.Array) -> jax.Array:
        return avg_pool(
            inputs, self.window_shape, self.strides, self.padding, self.count_include_pad
        )
