"""Dropout; and how a layer keeps a random stream and draws from the one it is given.

The time goes into the random bits, one number of 32 bits an element, and not into the form of what
follows. Masks of 16 bits would take half of it, but drop other elements than hand-written JAX with
`jax.random.bernoulli` and the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..objects import arguments as fit
from ..verbs.module import Module
from ..verbs.rngs import Rngs, RngStream
from .dtypes import as_array
from .options import keep_options, positive_axes, resolve_flag


def fork_stream(rngs: Rngs | RngStream | None, collection: str) -> RngStream | None:
    """A stream of its own for a layer to keep, from what the user passed at construction."""
    if isinstance(rngs, Rngs):
        rngs = rngs[collection]
    return None if rngs is None else rngs.fork()


def draw_key(
    layer: Module, collection: str, rngs: Rngs | RngStream | fit.Key | None, kept: RngStream | None
) -> jax.Array:
    """The key for one call: of `rngs` from the call (a key is used as it is), else of `kept`."""
    given = kept if rngs is None else rngs
    if given is None:
        name = type(layer).__name__
        raise fit.ArgumentError(
            f"{name}: it is to draw random numbers (deterministic=False), but has no `rngs`.\n"
            f"Cure: {name}(..., rngs=rngs), layer(x, rngs=nnx.Rngs({collection}=0)), or "
            "deterministic=True (model.eval())."
        )
    if isinstance(given, Rngs):
        given = given[collection]
    return given() if isinstance(given, RngStream) else given


def keep_mask(key: jax.Array, keep: Any, shape: tuple[int, ...], like: jax.Array) -> jax.Array:
    """True with probability `keep`, drawn in `shape`, broadcast to (and sharded as) `like`."""
    mask = jnp.broadcast_to(jax.random.bernoulli(key, keep, shape), like.shape)
    spec = jax.typeof(like).sharding.spec
    if any(axis is not None for axis in spec):  # on a mesh with explicit axes
        mask = jax.sharding.reshard(mask, spec)
    return mask


def _drop(x: jax.Array, key: jax.Array, keep: Any, mask_shape: tuple[int, ...]) -> jax.Array:
    return jnp.where(keep_mask(key, keep, mask_shape, x), x / keep, jnp.zeros_like(x))


class Dropout(Module):
    """Zeroes each element with probability p, and scales the others: y = x·m / (1 - p).

    Shapes: `(...)` → `(...)`. With `deterministic` it is the identity.

    Args:
        rate: the probability p to drop an element.
        broadcast_dims: axes along which all elements share one m.
        deterministic: switch dropout off; `model.train()` and `model.eval()` set it.
        rng_collection: the name of the stream that gives the keys.
        rngs: `Rngs` or a stream, of which the layer keeps a fork; without, pass `rngs` to the call.

    Paper: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    JMLR 15 (2014).

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        >>> sorted(set(dropout(jnp.ones((8, 8))).ravel().tolist()))
        [0.0, 2.0]
        >>> dropout.eval()
        >>> float(dropout(jnp.ones(())))
        1.0
    """

    broadcast_dims: Sequence[fit.Axis] = ()
    rng_collection: str = "dropout"

    @fit.checked
    def __init__(
        self,
        rate: fit.Rate,
        *,
        broadcast_dims: Sequence[fit.Axis] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Rngs | RngStream | None = None,
    ):
        keep_options(self, locals())
        self.rate = rate
        self.deterministic = deterministic
        self.rngs: RngStream | None = fork_stream(rngs, rng_collection)

    def set_view(self, deterministic: bool | None = None) -> None:
        """The mode of this layer, for `nnx.view`.

        Args:
            deterministic: True: nothing is dropped.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    @fit.checked
    def __call__(
        self,
        inputs: fit.Array,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | RngStream | fit.Key | None = None,
    ) -> jax.Array:
        """Drop elements of `inputs`.

        Args:
            inputs: x, of any shape.
            deterministic: overrules the attribute.
            rngs: `Rngs`, a stream or a key, in place of the layer's own stream.
        """
        x = as_array(inputs)
        if resolve_flag(self, "deterministic", deterministic, self.deterministic):
            return x
        if self.rate == 0.0:
            return x
        if self.rate == 1.0:
            return jnp.zeros_like(x)
        key = draw_key(self, self.rng_collection, rngs, self.rngs)
        mask_shape = x.shape
        if self.broadcast_dims:
            shared = positive_axes("broadcast_dims", self.broadcast_dims, x.ndim)
            mask_shape = tuple(1 if i in shared else n for i, n in enumerate(x.shape))
        return _drop(x, key, 1.0 - self.rate, mask_shape)
