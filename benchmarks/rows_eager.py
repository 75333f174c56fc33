"""Rows for eager code: layers and gradients outside of any compiled function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from . import models
from .harness import Bound, Row, Work
from .models import GPT, MLP, Size, equinox_with_weights, initialize, inputs

_SIZE = GPT(layers=1, width=64, heads=4, length=16, batch=2)
_MASK = jnp.tril(jnp.ones((_SIZE.length, _SIZE.length), bool))


def rows() -> Iterator[Row]:
    yield Layer("Linear", "up", models.linear, lambda layer, x: layer(x),
                lambda eqx, key: eqx.nn.Linear(_SIZE.width, 4 * _SIZE.width, key=key),
                lambda layer, x: jax.vmap(jax.vmap(layer))(x))  # fmt: skip
    yield Layer("LayerNorm", "norm1", models.layer_norm, lambda layer, x: layer(x),
                lambda eqx, key: eqx.nn.LayerNorm(_SIZE.width, eps=1e-6),
                lambda layer, x: jax.vmap(jax.vmap(layer))(x))  # fmt: skip
    yield Layer("MultiHeadAttention", "attention",
                lambda p, x: models.attention(p, x, _MASK[None, None]),
                lambda layer, x: layer(x, mask=_MASK[None, None]),
                lambda eqx, key: models.equinox_attention(_SIZE),
                lambda layer, x: jax.vmap(lambda x: layer(x, x, x, mask=_MASK))(x))  # fmt: skip
    yield Grad(MLP(3))


class Layer(Row):
    """One layer of a transformer block, called eagerly on (batch, length, width).

    Args:
        name: of the layer.
        part: of the block: where the NNX models have the layer, and its weights.
        floor: the same in jnp, of (weights, x).
        nnx, equinox: the call, of (layer, x).
        make: the layer of Equinox, of (equinox, key).
    """

    bound = Bound(1.4)

    def __init__(
        self,
        name: str,
        part: str,
        floor: Callable[[Any, jax.Array], jax.Array],
        nnx: Callable[[Any, jax.Array], jax.Array],
        make: Callable[[Any, jax.Array], Any],
        equinox: Callable[[Any, jax.Array], jax.Array],
    ):
        self.name = f"eager {name}"
        self.part, self.make = part, make
        self.call_of = {"floor": floor, "nnx": nnx, "equinox": equinox}
        self.params = initialize(_SIZE)["blocks"][0][part]
        self.x = jax.random.normal(jax.random.key(0), (_SIZE.batch, _SIZE.length, _SIZE.width))

    def floor(self) -> Work:
        return self._work("floor", self.params)

    def nnx(self, nnx: Any) -> Work:
        return self._work("nnx", getattr(models.nnx_model(nnx, _SIZE).blocks[0], self.part))

    def equinox(self) -> Work:
        import equinox as eqx

        new = self.make(eqx, jax.random.key(0))
        return self._work("equinox", equinox_with_weights(new, self.params))

    def _work(self, side: str, layer: Any) -> Work:
        call, x = self.call_of[side], self.x
        return lambda: call(layer, x).block_until_ready()


class Grad(Row):
    """The gradient of a loss, nothing compiled."""

    bound = Bound(1.2)

    def __init__(self, size: Size):
        self.size = size
        self.name = f"eager grad, {size.name}"

    def comparable(self, result: Any) -> Any:
        return sorted(float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(result))

    def floor(self) -> Work:
        apply = models.apply_of(self.size)
        return self._work(jax.grad, initialize(self.size), lambda params, x: apply(params, x))

    def nnx(self, nnx: Any) -> Work:
        return self._work(nnx.grad, models.nnx_model(nnx, self.size), lambda model, x: model(x))

    def equinox(self) -> Work:
        import equinox as eqx

        model = models.equinox_model(self.size)
        return self._work(eqx.filter_grad, model, lambda model, x: model(x))

    def _work(self, grad: Callable, model: Any, apply: Callable) -> Work:
        (x, y), loss_function = inputs(self.size), models.loss_of(self.size)

        def loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return loss_function(apply(model, x), y)

        return lambda: jax.block_until_ready(grad(loss)(model, x, y))
