"""Rows for transforms called eagerly: what a second call of the same function costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .harness import Bound, Row, Work
from .models import MLP, initialize, inputs

_SIZE = MLP(8)


_TRUE = jnp.array(True)


def rows() -> Iterator[Row]:
    yield Eager("vmap", None, lambda w, x: jax.vmap(_layer, in_axes=(0, None))(w, x),
                lambda nnx: nnx.vmap(_layer, in_axes=(0, None)))  # fmt: skip
    yield Eager(
        "scan",
        2.0,
        lambda w, x: jax.lax.scan(_step, x, w)[0],
        lambda nnx: nnx.scan(_layer, in_axes=(0, nnx.Carry), out_axes=nnx.Carry),
    )
    yield Eager("cond", 2.0, lambda w, x: jax.lax.cond(_TRUE, _first, _last, w, x),
                lambda nnx: lambda w, x: nnx.cond(_TRUE, _first, _last, w, x))  # fmt: skip
    # Later: while_loop, fori_loop and switch; lines of HLO and temporary memory of each of these,
    # compiled (as in rows_programs), beside the same JAX transform over flat tuples.


class Weights(NamedTuple):
    """Of stacked layers, for the floor; the NNX models have Params under the same names."""

    kernel: jax.Array
    bias: jax.Array


def _layer(layer: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ layer.kernel + layer.bias)


def _step(x: jax.Array, layer: Weights) -> tuple[jax.Array, None]:
    return _layer(layer, x), None


def _first(layers: Any, x: jax.Array) -> jax.Array:
    return x @ layers.kernel[0]


def _last(layers: Any, x: jax.Array) -> jax.Array:
    return x @ layers.kernel[-1]


class Eager(Row):
    """A transform called on stacked layers and `x` outside of any jit: of (layers, x)."""

    def __init__(
        self,
        name: str,
        bound: float | None,
        floor: Callable[[Weights, jax.Array], jax.Array],
        nnx: Callable[[Any], Callable],
    ):
        self.name = f"eager {name}, second call"
        self.bound = Bound(bound)
        self._floor, self._nnx = floor, nnx
        each = initialize(_SIZE)["layers"].values()
        self.weights = Weights(**jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
        self.x = inputs(_SIZE)[0]

    def floor(self) -> Work:
        return lambda: self._floor(self.weights, self.x).block_until_ready()

    def nnx(self, nnx: Any) -> Work:
        class Layers(nnx.Module):
            def __init__(self, weights: Weights):
                self.kernel = nnx.Param(weights.kernel)
                self.bias = nnx.Param(weights.bias)

        layers, call = Layers(self.weights), self._nnx(nnx)
        return lambda: call(layers, self.x).block_until_ready()
