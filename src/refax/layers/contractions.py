"""Products and sums that layers are made of, as operations of whoever calls the layer.

A library that quantizes replaces `jax.lax.dot_general`, or its code, and expects every layer to
call what stands there now. JAX's own functions do not: `@`, `jnp.dot` and `jnp.einsum` keep what
they traced. What is kept here is one program of `dot_general` itself, several times as fast as the
plain call in eager code and its derivatives, and used only while nobody has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_DOT_GENERAL, _DOT_GENERAL_CODE = lax.dot_general, lax.dot_general.__code__
_EINSUM, _EINSUM_CODE = jnp.einsum, jnp.einsum.__code__
_OPTIONS = ("dimension_numbers", "precision", "preferred_element_type", "out_sharding")

_compiled = jax.jit(lax.dot_general, static_argnames=_OPTIONS, inline=True)


def _is_replaced() -> bool:
    return (
        lax.dot_general is not _DOT_GENERAL
        or _DOT_GENERAL.__code__ is not _DOT_GENERAL_CODE
        or "bind" in vars(lax.dot_general_p)
    )


def fastest(dot_general: Callable[..., Any]) -> Callable[..., Any]:
    """`dot_general` itself, or if it is JAX's, and nobody replaced that, its one program."""
    return _compiled if dot_general is _DOT_GENERAL and not _is_replaced() else dot_general


def dot(x: jax.Array, y: jax.Array, axis: int = 0, out_sharding: Any = None) -> jax.Array:
    """The product over the last axis of `x` and an axis of `y`."""
    dimensions = (((x.ndim - 1,), (axis,)), ((), ()))
    return fastest(lax.dot_general)(x, y, dimensions, out_sharding=out_sharding)


def einsum(equation: str, x: jax.Array, y: jax.Array, **options: Any) -> jax.Array:
    """`jnp.einsum`, with the `dot_general` that stands there now."""
    if _is_replaced() and jnp.einsum is _EINSUM and _EINSUM.__code__ is _EINSUM_CODE:
        # Its programs are kept by function: one made here is new to it.
        options["_dot_general"] = lambda *args, **kwargs: lax.dot_general(*args, **kwargs)
    return jnp.einsum(equation, x, y, **options)


def placed(y: jax.Array, out_sharding: Any) -> jax.Array:
    """`y` sharded as was asked: what was added to a product (a bias) may have had another."""
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def last_axes(x: jax.Array, ndim: int, batch: int = 0) -> jax.Array:
    """`x` for a sum with an array of `ndim` axes: after its first `batch` axes, its last ones."""
    how = jax.config.jax_numpy_rank_promotion  # pyright: ignore[reportAttributeAccessIssue]
    if not batch and how == "allow":
        return x  # JAX does just that, without an operation
    ones = (1,) * (ndim - x.ndim)
    return x.reshape(x.shape[:batch] + ones + x.shape[batch:])
