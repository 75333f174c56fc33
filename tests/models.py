"""Small models for tests of the core, which does not know of layers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from refax import nnx


class Count(nnx.Variable):
    """A Variable type of the user's, with no registration."""


class Dense(nnx.Module):
    """A linear layer: two parameters and two static sizes."""

    def __init__(self, inputs: int, outputs: int, *, seed: int = 0):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(seed), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.inputs = inputs
        self.outputs = outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel + self.bias[None]


class Stateful(nnx.Module):
    """A layer that writes to itself: a statistic, a count and a mode."""

    def __init__(self, size: int = 2):
        self.scale = nnx.Param(jnp.ones((size,)))
        self.mean = nnx.BatchStat(jnp.zeros((size,)))
        self.count = Count(jnp.array(0))
        self.deterministic = False
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.use_running_average:
            self.mean.value = 0.5 * self.mean.value + 0.5 * x.mean(0)
            self.count += 1
        return (x - self.mean[None]) * self.scale[None]


class Pair(NamedTuple):
    first: Any
    second: Any


class Block(nnx.Module):
    """A bit of everything: layers, a plain list and dict, a shared Variable, a bare array."""

    def __init__(self, size: int = 2):
        self.layers = [Dense(size, size, seed=i) for i in range(2)]
        self.parts = {"norm": Stateful(size), "extra": Pair(nnx.Param(jnp.ones(())), "static")}
        self.tied = self.layers[0].kernel
        self.offset = jnp.full((size,), 0.5)
        self.activation = jnp.tanh
        self.name = "block"

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.parts["norm"](x @ self.tied) + self.offset[None]


class Node(nnx.Module):
    """An object with whatever attributes a test gives it."""

    def __init__(self, **attributes: Any):
        for name, value in attributes.items():
            setattr(self, name, value)


def chain(length: int) -> Node:
    """Modules nested `length` deep, each with one parameter."""
    node = Node(weight=nnx.Param(jnp.zeros(())))
    for _ in range(length - 1):
        node = Node(weight=nnx.Param(jnp.zeros(())), child=node)
    return node


def paths_of(state: Any) -> list[tuple]:
    return [path for path, _ in nnx.to_flat_state(state)]


class Uncomparable:
    """It has no hash, and its comparison says nothing."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other):
        return "perhaps"
