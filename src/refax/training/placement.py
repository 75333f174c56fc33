"""Where the arrays of a training state live: beside the parameters that they serve.

A step compiled for inputs of one placement is compiled again for another. Outputs of a program
over committed arrays (sharded, or restored by a checkpoint library) are committed, so a step count
that starts uncommitted, or a weakly typed number, would cost one more compilation at the second
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ..objects.entering import replicated


def beside(params: Any) -> Callable[[Any], Any]:
    """What brings an array to the devices of `params`: replicated, if it has no place of its own.

    Arrays that are committed already stay where they are; inside a trace nothing is moved.
    """
    arrays = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
    place: Any = None
    if arrays and not any(isinstance(x, Tracer) or not x.committed for x in arrays):
        place = replicated(arrays[0].sharding)

    def settle(x: Any) -> Any:
        if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        x = jnp.asarray(x, x.dtype)  # no longer weakly typed
        if place is None or isinstance(x, Tracer) or x.committed:
            return x
        return jax.device_put(x, place)

    return settle
