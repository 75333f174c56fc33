"""The dtype that a layer computes in: one for its input and all its parameters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..objects import arguments as fit

# Where `promote_dtype` stands beside this module: names only, which stand above the layers.
ADDRESSES = ("refax.nnx.nn.dtypes", "refax.nnx")

# Of an inexact dtype that is not here (an 8-bit float) the slow path takes care.
_INEXACT = frozenset(
    np.dtype(x) for x in (jnp.bfloat16, "float16", "float32", "float64", "complex64", "complex128")
)


def as_array(x: Any) -> jax.Array:
    """`x` itself if it is a JAX array; a Variable's value; else what `jnp.asarray` makes of it."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in that dtype; itself, without an operation, where it has it."""
    return x if x.dtype == dtype else x.astype(dtype)


@functools.cache
def widest(*dtypes: Any) -> np.dtype:
    """The widest floating dtype of these and float32: to compute in where digits are at stake."""
    floating = [np.dtype(d) for d in dtypes if jnp.issubdtype(d, jnp.inexact)]
    return max((np.dtype(np.float32), *floating), key=lambda dtype: dtype.itemsize)


def promote_dtype(
    args: Sequence[Any], /, *, dtype: DTypeLike | None = None, inexact: bool = True
) -> tuple[Any, ...]:
    """Bring arrays to one dtype: what the layers' `promote_dtype=` argument is by default.

    Args:
        args: arrays, or anything that `jnp.asarray` takes; None stays None.
        dtype: the dtype; without one, what JAX's promotion rules give for the arrays.
        inexact: integers become float32, and an integer `dtype` is an error.

    Returns:
        The arrays in that dtype, as a tuple: the same arrays where they have it already.

    Example:
        >>> from refax.layers.dtypes import promote_dtype
        >>> import jax.numpy as jnp
        >>> x, kernel, bias = promote_dtype((jnp.arange(2), jnp.ones(2), None))
        >>> x.dtype.name, kernel.dtype.name, bias
        ('float32', 'float32', None)
    """
    common = _common_dtype(args)
    if common in _INEXACT and (dtype is None or common == dtype):
        return tuple(args)
    arrays = [None if x is None else as_array(x) for x in args]
    dtype = jax.dtypes.canonicalize_dtype(canonicalize_dtype(*arrays, dtype=dtype, inexact=inexact))
    return tuple(x if x is None or x.dtype == dtype else x.astype(dtype) for x in arrays)


def canonicalize_dtype(*args: Any, dtype: DTypeLike | None = None, inexact: bool = True) -> Any:
    """The dtype that `promote_dtype` would bring these arrays to.

    Example:
        >>> from refax.layers.dtypes import canonicalize_dtype
        >>> import jax.numpy as jnp
        >>> canonicalize_dtype(jnp.arange(2), None).name
        'float32'
    """
    if dtype is None:
        dtype = jnp.result_type(*[x for x in args if x is not None])
        if inexact and not jnp.issubdtype(dtype, jnp.inexact):
            dtype = np.dtype(np.float32)
    elif inexact and not jnp.issubdtype(dtype, jnp.inexact):
        raise fit.ArgumentError(
            f"promote_dtype: dtype={np.dtype(dtype).name} cannot hold fractions.\n"
            "Cure: a floating or complex dtype, or inexact=False."
        )
    return dtype


def _common_dtype(args: Sequence[Any]) -> np.dtype | None:
    """The dtype that all are JAX arrays of, or None."""
    common = None
    for x in args:
        if x is None:
            continue
        if not isinstance(x, jax.Array):
            return None
        if common is None:
            common = x.dtype
        elif x.dtype != common:
            return None
    return common
