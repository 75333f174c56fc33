"""MultiHeadAttention, with a cache for decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.variable_types import Cache
from ..verbs.module import Module
from ..verbs.rngs import Rngs, RngStream
from . import dtypes
from .dot_product_attention import combine_masks, dot_product_attention
from .dropout import draw_key, fork_stream
from .linear import default_bias_init, default_kernel_init
from .linear_general import LinearGeneral
from .normalization import LayerNorm
from .options import PROMOTE_DTYPE, Replaceable, keep_options, resolve_flag


def _apply(layer: Any, x: Any, out_sharding: Any) -> jax.Array:
    """What a user puts in a projection's place need not know of shardings not asked for."""
    return layer(x) if out_sharding is None else layer(x, out_sharding=out_sharding)


class MultiHeadAttention(Module):
    """Multi-head attention: y = concat(headᵢ)·Wᵒ, headᵢ = softmax(qᵢ·kᵢᵀ / √d)·vᵢ.

    qᵢ, kᵢ, vᵢ are affine maps of the inputs, and d = qkv_features / num_heads.

    Shapes: `(*batch, queries, in_features)`, `(*batch, keys, in_kv_features)` → `(*batch, queries,
    out_features)`. Attributes: `query`, `key`, `value`: LinearGeneral with kernels (in_features,
    heads, d); `out`: LinearGeneral with a kernel (num_heads, d, out_features); with `normalize_qk`,
    `query_ln` and `key_ln`; after `init_cache`, `cached_key`, `cached_value` (*batch, max_length,
    num_kv_heads, d) and `cache_index` ().

    Args:
        num_heads: number of heads.
        in_features: features of the input that queries are made from.
        qkv_features: features of all heads together; by default in_features.
        out_features: features of the output; by default in_features.
        num_kv_heads: number of heads of keys and values, each for a group of query heads; by
            default num_heads.
        in_kv_features: features of the input that keys and values are made from; by default
            in_features.
        broadcast_dropout: use the same dropout mask for all batch entries and heads.
        dropout_rate: the probability to drop an attention weight.
        deterministic: switch dropout off; `model.train()` and `model.eval()` set it.
        attention_fn: computes the attention, in place of `nnx.dot_product_attention`.
        decode: decode with the cache: a call attends to what it is given and to all that came
            before it since `init_cache`.
        normalize_qk: apply LayerNorm to queries and keys (arXiv:2302.05442).
        keep_rngs: keep a fork of the stream `dropout`, if there is dropout; else pass `rngs` to
            the call.
        kernel_init, bias_init, kernel_metadata, bias_metadata, qkv_promote_dtype, qkv_dot_general,
            qkv_dot_general_cls: of the maps to queries, keys and values.
        out_…: likewise of the last map; the initializers are by default those of the others.
        ln_promote_dtype, query_ln_scale_metadata, key_ln_scale_metadata: of the two norms.
        dtype, param_dtype, precision, use_bias, rngs: as for `nnx.Linear`.

    Paper: Vaswani et al., "Attention Is All You Need" (2017), arXiv:1706.03762.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((1, 5, 8))
        >>> attention(x, is_causal=True).shape
        (1, 5, 8)
        >>> attention.init_cache(x.shape)
        >>> attention(x[:, :1], decode=True).shape, int(attention.cache_index.value)
        ((1, 1, 8), 1)
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    broadcast_dropout: bool = True
    precision: lax.PrecisionLike = None
    use_bias: bool = True
    attention_fn: Replaceable = Replaceable(
        dot_product_attention, "refax.nnx.nn.attention", "refax.nnx"
    )
    normalize_qk: bool = False
    qkv_promote_dtype = out_promote_dtype = ln_promote_dtype = PROMOTE_DTYPE
    qkv_dot_general: Callable[..., Any] | None = None
    out_dot_general: Callable[..., Any] | None = None
    qkv_dot_general_cls: Any = None
    out_dot_general_cls: Any = None

    @fit.checked
    def __init__(
        self,
        num_heads: fit.Size,
        in_features: fit.Size,
        qkv_features: fit.Size | None = None,
        out_features: fit.Size | None = None,
        num_kv_heads: fit.Size | None = None,
        in_kv_features: fit.Size | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        broadcast_dropout: bool = True,
        dropout_rate: fit.Rate = 0.0,
        deterministic: bool | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: fit.Initializer = default_kernel_init,
        out_kernel_init: fit.Initializer | None = None,
        bias_init: fit.Initializer = default_bias_init,
        out_bias_init: fit.Initializer | None = None,
        use_bias: bool = True,
        attention_fn: Callable[..., jax.Array] = dot_product_attention,
        decode: bool | None = None,
        normalize_qk: bool = False,
        qkv_promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        out_promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        ln_promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        qkv_dot_general: Callable[..., Any] | None = None,
        out_dot_general: Callable[..., Any] | None = None,
        qkv_dot_general_cls: Any = None,
        out_dot_general_cls: Any = None,
        rngs: Rngs,
        keep_rngs: bool = True,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        out_kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
        out_bias_metadata: fit.Metadata = fit.NO_METADATA,
        query_ln_scale_metadata: fit.Metadata = fit.NO_METADATA,
        key_ln_scale_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        arguments = locals()
        keep_options(self, arguments)
        self.num_heads = num_heads
        self.in_features = in_features
        self.qkv_features: int = in_features if qkv_features is None else qkv_features
        self.out_features: int = in_features if out_features is None else out_features
        self.num_kv_heads: int = num_heads if num_kv_heads is None else num_kv_heads
        self.in_kv_features: int = in_features if in_kv_features is None else in_kv_features
        for name, divisor in (("qkv_features", "num_heads"), ("num_heads", "num_kv_heads")):
            number, parts = getattr(self, name), getattr(self, divisor)
            if number % parts:
                raise fit.ArgumentError(f"{name}={number} is not a multiple of {divisor}={parts}.")
        self.head_dim: int = self.qkv_features // num_heads
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.decode = decode
        project = partial(LinearGeneral, **_options_of(arguments, "qkv", ""))
        kv_shape = (self.num_kv_heads, self.head_dim)
        self.query: LinearGeneral = project(in_features, (num_heads, self.head_dim))
        self.key: LinearGeneral = project(self.in_kv_features, kv_shape)
        self.value: LinearGeneral = project(self.in_kv_features, kv_shape)
        self.query_ln = self.key_ln = None
        if normalize_qk:
            norm = partial(
                LayerNorm,
                self.head_dim,
                use_bias=False,
                dtype=dtype,
                param_dtype=param_dtype,
                promote_dtype=ln_promote_dtype,
                rngs=rngs,
            )
            self.query_ln: LayerNorm | None = norm(scale_metadata=query_ln_scale_metadata)
            self.key_ln: LayerNorm | None = norm(scale_metadata=key_ln_scale_metadata)
        heads, options = (num_heads, self.head_dim), _options_of(arguments, "out", "out_")
        self.out: LinearGeneral = LinearGeneral(heads, self.out_features, axis=(-2, -1), **options)
        self.rngs: RngStream | None = (
            fork_stream(rngs, "dropout") if keep_rngs and dropout_rate > 0 else None
        )
        self.cached_key: Cache[jax.Array] | Any = None  # until `init_cache`
        self.cached_value: Cache[jax.Array] | Any = None  # until `init_cache`
        self.cache_index: Cache[jax.Array] | Any = None

    @fit.checked
    def __call__(
        self,
        inputs_q: fit.Array,
        inputs_k: fit.Array | None = None,
        inputs_v: fit.Array | None = None,
        *,
        mask: fit.Array | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | RngStream | fit.Key | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
        out_sharding: fit.OutSharding = None,
        qkv_sharding: fit.OutSharding = None,
    ) -> jax.Array:
        """Attend from each position of `inputs_q` to those of `inputs_k`.

        Args:
            inputs_q: (*batch, queries, in_features), for the queries.
            inputs_k: (*batch, keys, in_kv_features), for the keys; by default inputs_q.
            inputs_v: likewise for the values; by default inputs_k.
            mask: True where a query may look at a key; broadcasts to (*batch, heads, queries,
                keys), where the keys are those of the cache when decoding.
            deterministic: overrules the attribute.
            rngs: `Rngs`, a stream or a key for dropout, in place of the layer's own stream.
            sow_weights: record the attention weights as the Intermediate `attention_weights`.
            decode: overrules the attribute.
            is_causal: each position may look at itself and those before it only. When decoding,
                that is so in any case.
            out_sharding: the sharding of the result, on a mesh with explicit axes.
            qkv_sharding: likewise of queries, keys and values.

        Raises:
            ValueError: an input or the cache has another shape, or there is no cache.
        """
        if inputs_k is None:
            if inputs_v is not None:
                raise fit.ArgumentError("inputs_v was given without inputs_k.")
            inputs_k = inputs_q
        if inputs_v is None:
            inputs_v = inputs_k
        drop = self.dropout_rate > 0 and not resolve_flag(
            self, "deterministic", deterministic, self.deterministic
        )
        query = _apply(self.query, inputs_q, qkv_sharding)
        key = _apply(self.key, inputs_k, qkv_sharding)
        value = _apply(self.value, inputs_v, qkv_sharding)
        if self.query_ln is not None and self.key_ln is not None:
            query, key = self.query_ln(query), self.key_ln(key)
        if self.decode if decode is None else decode:
            key, value, allowed = self._extend_cache(key, value)
            if mask is not None:
                shape = jnp.shape(mask)
                mask = dtypes.as_array(mask).reshape((1,) * (allowed.ndim - len(shape)) + shape)
            mask = combine_masks(mask, allowed, dtype=bool)
            is_causal = False
        y = self.attention_fn(
            query,
            key,
            value,
            mask=mask,
            dropout_rng=draw_key(self, "dropout", rngs, self.rngs) if drop else None,
            dropout_rate=self.dropout_rate,
            broadcast_dropout=self.broadcast_dropout,
            deterministic=not drop,
            dtype=self.dtype,
            precision=self.precision,
            module=self if sow_weights else None,
            is_causal=is_causal,
        )
        return _apply(self.out, y, out_sharding)

    @fit.checked
    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | Sequence[int] | None = None,
        max_length: fit.Size | None = None,
    ) -> None:
        """The modes of this layer, for `nnx.view`.

        Args:
            deterministic: True: no attention weight is dropped.
            decode: True: take the input bit by bit, with the keys and values in a cache.
            batch_size: the batch axes of an empty cache that is made, with `max_length`.
            max_length: how long the inputs together may become.
        """
        if deterministic is not None:
            self.deterministic = deterministic
        if decode is not None:
            self.decode = decode
        if batch_size is not None and max_length is not None:
            self.init_cache((*fit.as_tuple(batch_size), max_length, self.in_features))
        elif batch_size is not None or max_length is not None:
            raise fit.ArgumentError(
                f"a cache needs both batch_size (got {batch_size}) and "
                f"max_length (got {max_length}).\nCure: give both, or neither."
            )

    @fit.checked
    def init_cache(self, input_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> None:
        """Make an empty cache: call it before decoding, and to start anew.

        Args:
            input_shape: (*batch, max_length, in_features): the shape of a whole input.
            dtype: the dtype of the cached keys and values.

        Example:
            >>> from refax import nnx
            >>> attention = nnx.MultiHeadAttention(2, 8, decode=True, rngs=nnx.Rngs(0))
            >>> attention.init_cache((1, 100, 8))
            >>> attention.cached_key.shape
            (1, 100, 2, 4)
        """
        if len(input_shape) < 2:
            raise fit.ArgumentError(
                f"input_shape={tuple(input_shape)}, but must be (*batch, max_length, in_features)."
            )
        # Of a Stack, or of an ensemble by `vmap`: a cache for each of them.
        stacked = self.key.kernel.shape[:-3] if isinstance(self.key, LinearGeneral) else ()
        shape = (*stacked, *input_shape[:-1], self.num_kv_heads, self.head_dim)
        self.cached_key = Cache(jnp.zeros(shape, dtype))
        self.cached_value = Cache(jnp.zeros(shape, dtype))
        self.cache_index = Cache(jnp.zeros(stacked, jnp.int32))

    def _extend_cache(
        self, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Write keys and values into the cache; return all of them, and which may be looked at."""
        if self.cached_key is None or self.cached_value is None or self.cache_index is None:
            raise fit.ArgumentError(
                "there is no cache to decode with.\n"
                "Cure: attention.init_cache((*batch, max_length, features)) before the first call."
            )
        keys, values = self.cached_key.value, self.cached_value.value
        batch, length = keys.shape[:-3], keys.shape[-3]
        if key.shape[:-3] != batch or key.shape[-3] > length:
            raise fit.ArgumentError(
                f"the cache is for inputs of shape {(*batch, length)} (batch, "
                f"length), and this one has {key.shape[:-2]}.\n"
                "Cure: attention.init_cache with the shape of a whole input."
            )
        keys, values, self.cache_index.value, allowed = _extended(
            keys, values, self.cache_index.value, key, value
        )
        self.cached_key.value, self.cached_value.value = keys, values
        return keys.astype(key.dtype), values.astype(value.dtype), allowed


def _options_of(arguments: Mapping[str, Any], which: str, prefix: str) -> dict[str, Any]:
    """The options of a projection among the arguments of `__init__`."""
    shared = ("use_bias", "dtype", "param_dtype", "precision", "rngs")
    options = {name: arguments[name] for name in shared}
    for name in ("promote_dtype", "dot_general", "dot_general_cls"):
        options[name] = arguments[f"{which}_{name}"]
    for name in ("kernel", "bias"):
        options[f"{name}_init"] = arguments[f"{prefix}{name}_init"] or arguments[f"{name}_init"]
        options[f"{name}_metadata"] = arguments[f"{prefix}{name}_metadata"]
    return options


def _extended(
    keys: jax.Array, values: jax.Array, index: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The cache with `key` and `value` at `index`; the next index; the mask of what is there."""
    new, length = key.shape[-3], keys.shape[-3]
    # Past the end, `dynamic_update_slice` would overwrite the last entries: give NaN instead.
    value = jnp.where(index + new <= length, value.astype(values.dtype), jnp.nan)
    start = (*(0,) * (keys.ndim - 3), index, 0, 0)
    keys = lax.dynamic_update_slice(keys, key.astype(keys.dtype), start)
    values = lax.dynamic_update_slice(values, value, start)
    positions = index + jnp.arange(new, dtype=index.dtype)
    allowed = positions[:, None] >= jnp.arange(length, dtype=index.dtype)[None, :]
    allowed = allowed.reshape((1,) * (keys.ndim - 2) + allowed.shape)
    return keys, values, index + jnp.array(new, index.dtype), allowed
