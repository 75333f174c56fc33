"""Scaled dot-product attention, as a function.

The softmax has its derivative written by hand, as normalization has: with y = softmax(x) and
s = y·dx, dy = s - y·Σs. With that of `jax.nn.softmax`, XLA keeps half as much memory again for the
way back, and a train step takes 5 to 17 % longer on a CPU. And in
the products the heads come first: where sequences are not short, that is up to a third faster
forward than `einsum` with the axes as they are. `python -m benchmarks --forms` measures the forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .._jax_compat import is_outside_of_traces
from ..objects import arguments as fit
from ..objects.variable_types import Intermediate
from ..verbs.module import Module
from . import dtypes
from .contractions import einsum
from .dropout import keep_mask
from .dtypes import as_array
from .options import PROMOTE_DTYPE, check_broadcasts


@fit.checked
def dot_product_attention(
    query: fit.Array,
    key: fit.Array,
    value: fit.Array,
    bias: fit.Array | None = None,
    mask: fit.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: fit.Key | None = None,
    dropout_rate: fit.Rate = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    module: Module | None = None,
    promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    """Attention: softmax(q·kᵀ / √d + bias)·v, for each head.

    With fewer heads of keys and values than of queries, each serves a group of consecutive query
    heads. The softmax is computed in at least float32.

    Shapes: `(*batch, queries, heads, d)`, `(*batch, keys, kv_heads, d)`, `(*batch, keys, kv_heads,
    v)` → `(*batch, queries, heads, v)`.

    Args:
        query: the queries.
        key: the keys.
        value: the values.
        bias: added to the logits; broadcasts to (*batch, heads, queries, keys).
        mask: True where a query may look at a key; broadcasts likewise. A query that may look at
            none looks at all alike.
        broadcast_dropout: use the same dropout mask for all batch entries and heads.
        dropout_rng: the key for dropout.
        dropout_rate: the probability to drop an attention weight.
        deterministic: switch dropout off.
        dtype: the dtype to compute in; by default what q, k and v promote to.
        precision: as in `jax.lax.dot_general`.
        module: a Module to `sow` the weights on, as the Intermediate `attention_weights`.
        promote_dtype: brings q, k and v to one dtype.
        is_causal: query i may look at the keys 0 … i only.

    Papers: Vaswani et al., "Attention Is All You Need" (2017), arXiv:1706.03762; for groups of
    heads, Ainslie et al., "GQA" (2023), arXiv:2305.13245.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> q, kv = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 7, 2, 8))
        >>> nnx.dot_product_attention(q, kv, kv).shape
        (2, 5, 4, 8)
    """
    promote_dtype = PROMOTE_DTYPE.instead_of(promote_dtype)
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    _check_shapes(query.shape, key.shape, value.shape)
    weights = _dropped_weights(
        query, key, bias, mask, is_causal, precision,
        module, broadcast_dropout, dropout_rng, 0.0 if deterministic else dropout_rate,
    )  # fmt: skip
    return _combine(weights, value, precision)


@fit.checked
def dot_product_attention_weights(
    query: fit.Array,
    key: fit.Array,
    bias: fit.Array | None = None,
    mask: fit.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: fit.Key | None = None,
    dropout_rate: fit.Rate = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    module: Module | None = None,
    promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    """The weights of `dot_product_attention`, softmax(q·kᵀ / √d + bias): its arguments but values.

    Shapes: `(*batch, queries, heads, d)`, `(*batch, keys, kv_heads, d)` → `(*batch, heads, queries,
    keys)`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> q, k = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 7, 2, 8))
        >>> weights = nnx.nn.attention.dot_product_attention_weights(q, k)
        >>> weights.shape, round(float(weights[0, 0, 0].sum()), 5)
        ((2, 4, 5, 7), 1.0)
    """
    promote_dtype = PROMOTE_DTYPE.instead_of(promote_dtype)
    query, key = promote_dtype((query, key), dtype=dtype)
    _check_shapes(query.shape, key.shape, key.shape)
    return _dropped_weights(
        query, key, bias, mask, is_causal, precision,
        module, broadcast_dropout, dropout_rng, 0.0 if deterministic else dropout_rate,
    )  # fmt: skip


def _dropped_weights(
    query: jax.Array,
    key: jax.Array,
    bias: Any,
    mask: Any,
    is_causal: bool,
    precision: Any,
    module: Module | None,
    broadcast_dropout: bool,
    dropout_rng: jax.Array | None,
    dropout_rate: float,
) -> jax.Array:
    of_logits = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    bias, mask = _like_logits("bias", bias, of_logits), _like_logits("mask", mask, of_logits)
    if dropout_rate > 0.0 and dropout_rng is None:
        raise fit.ArgumentError(
            f"dot_product_attention: dropout_rate={dropout_rate} needs a key.\n"
            "Cure: dropout_rng=key, or deterministic=True."
        )
    weights = _weights(query, key, bias, mask, is_causal, precision)
    if module is not None:
        module.sow(Intermediate, "attention_weights", weights)
    if dropout_rate > 0.0 and dropout_rng is not None:
        weights = _drop(weights, dropout_rng, 1.0 - dropout_rate, broadcast_dropout)
    return weights


def _check_shapes(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> None:
    if (
        len(query) < 3
        or query[:-3] != key[:-3]
        or key[:-1] != value[:-1]
        or query[-1] != key[-1]
        or query[-2] % key[-2]
    ):
        raise fit.ArgumentError(
            f"dot_product_attention: the query has the shape {query}, the key {key}, the value "
            f"{value}; they must be (*batch, queries, heads, d), (*batch, keys, kv_heads, d) and "
            "(*batch, keys, kv_heads, v), where kv_heads divides heads.\n"
            "Cure: an axis of positions in each: x[None] for one, before the heads are split."
        )


def _like_logits(name: str, x: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """`x` with axes of size 1 in front, as many as the logits have."""
    if x is None:
        return None
    x = dtypes.as_array(x)
    check_broadcasts(name, x.shape, shape, "(*batch, heads, queries, keys)")
    missing = len(shape) - x.ndim
    return x.reshape((1,) * missing + x.shape) if missing else x


def _weights(
    query: jax.Array,
    key: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    is_causal: bool,
    precision: Any,
) -> jax.Array:
    """softmax(q·kᵀ / √d + bias): (*batch, heads, queries, keys), in the dtype of the query."""
    wide = dtypes.widest(query.dtype)
    logits = _product(jnp.swapaxes(query, -3, -2), jnp.moveaxis(key, -3, -1), precision, wide)
    logits = logits * (query.shape[-1] ** -0.5)
    if bias is not None:
        logits = logits + bias.astype(wide)
    if mask is not None:
        logits = jnp.where(mask, logits, _lowest(wide))
    if is_causal:
        allowed = jnp.tril(jnp.ones((1,) * (logits.ndim - 2) + logits.shape[-2:], bool))
        logits = jnp.where(allowed, logits, _lowest(wide))
    softmax = _plain_softmax if is_outside_of_traces() else _softmax
    return dtypes.cast(softmax(logits), query.dtype)


def _plain_softmax(x: jax.Array) -> jax.Array:
    unnormalized = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf))
    return unnormalized / jnp.sum(unnormalized, axis=-1, keepdims=True)


_softmax = jax.custom_jvp(_plain_softmax)


@_softmax.defjvp
def _softmax_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    y = _plain_softmax(*primals)
    scaled = y * tangents[0]
    return y, scaled - y * jnp.sum(scaled, axis=-1, keepdims=True)


def _lowest(dtype: Any) -> Any:
    # Not -inf: a query with every key masked would get NaN.
    return jnp.finfo(dtype).min


def _drop(weights: jax.Array, rng: jax.Array, keep: Any, broadcast: bool) -> jax.Array:
    shape = weights.shape
    if broadcast:
        shape = (1,) * (weights.ndim - 2) + weights.shape[-2:]
    kept = keep_mask(rng, keep, shape, weights)
    return jnp.where(kept, weights / keep, jnp.zeros_like(weights))


def _combine(weights: jax.Array, value: jax.Array, precision: Any) -> jax.Array:
    """weights·v: (*batch, queries, heads, v)."""
    y = _product(weights, jnp.swapaxes(value, -3, -2), precision, None)
    return jnp.swapaxes(y, -3, -2)


def _product(x: jax.Array, y: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """x·y: (*batch, heads, n, m), (*batch, kv_heads, m, p) → (*batch, heads, n, p)."""
    *batch, heads, n, m = x.shape
    kv_heads, _, p = y.shape[-3:]
    product = partial(einsum, precision=precision, preferred_element_type=dtype)
    if heads == kv_heads:
        return product("...hnm,...hmp->...hnp", x, y)
    # An axis of their own for the heads of a group: merged into n, they would lose their sharding.
    x = x.reshape(*batch, kv_heads, heads // kv_heads, n, m)
    return product("...hgnm,...hmp->...hgnp", x, y).reshape(*batch, heads, n, p)


# -- Masks for attention: True (or 1) where a query may look at a key -----------------------------


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
