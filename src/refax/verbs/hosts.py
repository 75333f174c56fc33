"""Programs of several processes: what each of them says is told to all, and one's error ends all.

Processes work together in collective operations, in which each waits for all others. One that
raised an error beforehand never comes, so the others would hang: before a collective operation that
one of them may not reach, they agree that all are well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax_compat import gathered
from ..objects.arguments import checked


def said_by_all(text: str) -> list[str]:
    """What each process says, in their order. All of them must call it, at the same place."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = gathered(np.array(own.size, np.int32))
    rows = gathered(np.pad(own, (0, int(sizes.max()) - own.size)))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
@checked
def fail_together(what: str, /) -> Iterator[None]:
    """An error that one process has in the block is raised on all of them, at its end.

    For what each process does by itself, such as reading its part of the data: without this, the
    others would wait for the one with the error in their next collective operation. With a single
    process, it does nothing.

    Args:
        what: what is done, for the message.

    Raises:
        RuntimeError: another process has an error; with its number, and that error's message.

    Example:
        >>> from refax import nnx
        >>> with nnx.fail_together("reading the data"):
        ...     data = [1, 2, 3]
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    said = said_by_all("" if own is None else f"{type(own).__name__}: {own}"[:500])
    if own is not None:
        raise own
    if failed := [f"process {process}: {text}" for process, text in enumerate(said) if text]:
        count = f"{len(failed)} of {len(said)} processes failed, so all do"
        raise RuntimeError(f"{what}: {count}. First {failed[0]}\nCure: mend it there, not here.")


# -- A number for the content of an array, the same however the array is spread over devices ------

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
