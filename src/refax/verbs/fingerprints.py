"""A number for the content of an array, the same however the array is spread over devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


@jax.jit
def _weighted_sum(bits: jax.Array) -> jax.Array:
    """The sum of all words, each times an odd number of its own: a flipped bit always shows."""
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + index * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return (bits.astype(jnp.uint32) * (2 * place + 1)).sum(dtype=jnp.uint32)


def fingerprint(array: Any) -> int:
    """32 bits that tell whether an array is what it was, computed where the array is.

    Args:
        array: of any dtype but typed keys; in a program of several processes, each calls this.
    """
    dtype = np.dtype(array.dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return (fingerprint(array.real) + 3 * fingerprint(array.imag)) % 2**32
    if dtype.kind == "b":
        array = array.astype(np.uint8)
    elif dtype.name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):  # less than a byte
        array = array.astype(np.float32)
    if isinstance(array, np.ndarray):  # 64 bits may be more than JAX has now
        bits: Any = np.ascontiguousarray(array).reshape(-1).view(_UNSIGNED[array.dtype.itemsize])
    else:
        bits = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize])
    return int(_weighted_sum(bits))
