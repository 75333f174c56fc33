"""Rows for eager code: layers and gradients outside of any compiled function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from . import models
from .harness import Bound, Row, Work
from .models import GPT, MLP, equinox_with_weights, initialize, inputs

__all__ = ["rows"]

_SIZE = GPT(layers=1, width=64, heads=4, length=16)


def rows() -> Iterator[Row]:
    yield EagerLinear()
    yield EagerLayerNorm()
    yield EagerAttention()
    yield EagerGrad(MLP(3))
    # Later: vmap, scan, while_loop, cond and switch called eagerly a second time (≤ 2×, without a
    # compilation), each beside the same JAX transform over flat tuples.


class EagerLayer(Row):
    """Base: one layer of a transformer block, called eagerly on (batch, length, width)."""

    bound = Bound(1.4)
    part: str  # of the block's weights

    def __init__(self) -> None:
        self.params = initialize(_SIZE)["blocks"][0][self.part]
        self.x = jax.random.normal(jax.random.key(0), (_SIZE.batch, _SIZE.length, _SIZE.width))
        self.mask = jnp.tril(jnp.ones((1, 1, _SIZE.length, _SIZE.length), bool))

    def nnx_layer(self, nnx: Any) -> Any:
        """The layer of a whole model, which has the floor's weights."""
        return getattr(models.nnx_model(nnx, _SIZE).blocks[0], self.part)


class EagerLinear(EagerLayer):
    name = "eager Linear"
    part = "up"

    def floor(self) -> Work:
        p, x = self.params, self.x
        return lambda: models.linear(p, x).block_until_ready()

    def nnx(self, nnx: Any) -> Work:
        layer, x = self.nnx_layer(nnx), self.x
        return lambda: layer(x).block_until_ready()

    def equinox(self) -> Work:
        import equinox as eqx

        new = eqx.nn.Linear(_SIZE.width, 4 * _SIZE.width, key=jax.random.key(0))
        layer, x = equinox_with_weights(new, self.params), self.x
        return lambda: jax.vmap(jax.vmap(layer))(x).block_until_ready()


class EagerLayerNorm(EagerLayer):
    name = "eager LayerNorm"
    part = "norm1"

    def floor(self) -> Work:
        p, x = self.params, self.x
        return lambda: models.layer_norm(p, x).block_until_ready()

    def nnx(self, nnx: Any) -> Work:
        layer, x = self.nnx_layer(nnx), self.x
        return lambda: layer(x).block_until_ready()

    def equinox(self) -> Work:
        import equinox as eqx

        layer, x = eqx.nn.LayerNorm(_SIZE.width, eps=1e-6), self.x
        return lambda: jax.vmap(jax.vmap(layer))(x).block_until_ready()


class EagerAttention(EagerLayer):
    name = "eager MultiHeadAttention"
    part = "attention"

    def floor(self) -> Work:
        p, x, mask = self.params, self.x, self.mask
        return lambda: models.attention(p, x, mask).block_until_ready()

    def nnx(self, nnx: Any) -> Work:
        layer, x, mask = self.nnx_layer(nnx), self.x, self.mask
        return lambda: layer(x, mask=mask).block_until_ready()

    def equinox(self) -> Work:
        new = models.equinox_attention(_SIZE)
        layer, x, mask = equinox_with_weights(new, self.params), self.x, self.mask[0, 0]
        return lambda: jax.vmap(lambda x: layer(x, x, x, mask=mask))(x).block_until_ready()


class EagerGrad(Row):
    """The gradient of a loss, nothing compiled."""

    bound = Bound(1.2)

    def __init__(self, size: MLP):
        self.size = size
        self.name = f"eager grad, {size.name}"
        self.x, self.y = inputs(size)

    def comparable(self, result: Any) -> Any:
        return sorted(float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(result))

    def _loss(self, model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return models.squared_error(model(x), y)

    def floor(self) -> Work:
        params, x, y = initialize(self.size), self.x, self.y

        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return models.squared_error(models.mlp(params, x), y)

        return lambda: jax.block_until_ready(jax.grad(loss)(params, x, y))

    def nnx(self, nnx: Any) -> Work:
        model, x, y = models.nnx_model(nnx, self.size), self.x, self.y
        return lambda: jax.block_until_ready(nnx.grad(self._loss)(model, x, y))

    def equinox(self) -> Work:
        import equinox as eqx

        model, x, y = models.equinox_model(self.size), self.x, self.y
        return lambda: jax.block_until_ready(eqx.filter_grad(self._loss)(model, x, y))
