"""Masks for attention: True (or 1) where a query may look at a key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..objects import arguments as fit
from .dtypes import as_array


@fit.checked
def make_attention_mask(
    query_input: fit.Array,
    key_input: fit.Array,
    pairwise_fn: Callable[..., Any] = jnp.multiply,
    extra_batch_dims: fit.Count = 0,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """A mask from a property of each query and of each key.

    Shapes: `(*batch, queries)`, `(*batch, keys)` → `(*extra, *batch, 1, queries, keys)`, the 1 for
    the heads.

    Args:
        query_input: one entry for each query, such as 1 for a token and 0 for padding.
        key_input: one entry for each key.
        pairwise_fn: (queries, keys), broadcast against each other → the mask.
        extra_batch_dims: number of further axes of size 1 in front.
        dtype: the dtype of the mask.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> valid = jnp.array([1, 1, 0])
        >>> nnx.make_attention_mask(valid, valid, dtype=int).tolist()
        [[[1, 1, 0], [1, 1, 0], [0, 0, 0]]]
    """
    queries, keys = as_array(query_input), as_array(key_input)
    batches = zip(queries.shape[:-1], keys.shape[:-1], strict=False)
    if not queries.ndim or not keys.ndim or any(a != b and 1 not in (a, b) for a, b in batches):
        raise fit.ArgumentError(
            f"query_input has the shape {queries.shape} and key_input {keys.shape}, but they must "
            "be (*batch, queries) and (*batch, keys), with the same batch axes."
        )
    mask = as_array(pairwise_fn(queries[..., :, None], keys[..., None, :]))[..., None, :, :]
    return mask.reshape((1,) * extra_batch_dims + mask.shape).astype(dtype)


@fit.checked
def make_causal_mask(
    x: fit.Array, extra_batch_dims: fit.Count = 0, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """A mask that lets each position look at itself and at those before it.

    Shapes: `(*batch, length)` → `(*extra, *batch, 1, length, length)`.

    Args:
        x: an array of that shape; its values do not matter.
        extra_batch_dims: number of further axes of size 1 in front.
        dtype: the dtype of the mask.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> nnx.make_causal_mask(jnp.zeros(3), dtype=int).tolist()
        [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    """
    shape = jnp.shape(x)
    if not shape:
        raise fit.misfit("make_causal_mask", "x", x, "an array (*batch, length)")
    positions = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
    return make_attention_mask(positions, positions, jnp.greater_equal, extra_batch_dims, dtype)


@fit.checked
def combine_masks(*masks: Any, dtype: DTypeLike = jnp.float32) -> jax.Array | Any:
    """The logical "and" of masks; None stands for no mask.

    Args:
        *masks: masks with the same number of axes that broadcast against each other, or None.
        dtype: the dtype of the result.

    Returns:
        The combined mask; None if there was none.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> nnx.combine_masks(jnp.array([1, 1, 0]), None, jnp.array([0, 1, 1]), dtype=int).tolist()
        [0, 1, 0]
    """
    for i, mask in enumerate(masks):
        if mask is not None and not fit.is_array(mask):
            raise fit.misfit("combine_masks", f"masks[{i}]", mask, "an array, or None")
    given = [as_array(m).astype(bool) for m in masks if m is not None]
    if not given:
        return None
    sizes = [{*of_axis} - {1} for of_axis in zip(*(m.shape for m in given), strict=False)]
    if len({m.ndim for m in given}) > 1 or any(len(of_axis) > 1 for of_axis in sizes):
        raise fit.ArgumentError(
            "combine_masks: the masks must have the same number of axes and broadcast, but their "
            f"shapes are {', '.join(str(m.shape) for m in given)}."
        )
    return functools.reduce(jnp.logical_and, given).astype(dtype)
