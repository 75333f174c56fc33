"""Layers of a scan whose body takes them apart: other Variables, pytrees for arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from refax.nnx import Carry
from tests.models import Count

pytestmark = pytest.mark.usefixtures("strict_numerics")


class Layer(nnx.Module):
    def __init__(self, key):
        self.kernel = nnx.Param(jax.random.normal(key, (2, 2)))
        self.calls = Count(jnp.array(0))


def quantize(kernel):
    scale = jnp.abs(kernel).max(0) / 127
    return {"q": jnp.round(kernel / scale[None]).astype(jnp.int8), "scale": scale}


def dequantize(value):
    return value["q"].astype(jnp.float32) * value["scale"][None]


def writes_a_pytree(layer):
    layer.kernel.value = quantize(layer.kernel.value)


def swaps_for_a_pytree(layer):
    layer.kernel = nnx.Param(quantize(layer.kernel.value))


def swaps_for_several(layer):
    layer.kernel = {k: nnx.Param(v) for k, v in quantize(layer.kernel.value).items()}


def swaps(layer):
    layer.kernel = nnx.Param(layer.kernel.value * 2.0)


def swaps_for_another_type(layer):
    layer.kernel = nnx.LoRAParam(layer.kernel.value * 2.0)


def swaps_for_an_array(layer):
    layer.kernel = layer.kernel.value * 2.0


def deletes(layer):
    layer.twice = nnx.Param(layer.kernel.value * 2.0)
    del layer.kernel


CHANGES = [writes_a_pytree, swaps_for_a_pytree, swaps_for_several, swaps, swaps_for_another_type,
           swaps_for_an_array, deletes]  # fmt: skip
LAYERS_AXES = {
    "0": 0,
    "the rest is carried": nnx.StateAxes({(nnx.Param, nnx.PathContains("kernel")): 0, ...: Carry}),
    "the rest is broadcast": nnx.StateAxes({(nnx.Param, nnx.PathContains("kernel")): 0, ...: None}),
}


@pytest.mark.parametrize("axes", LAYERS_AXES)
@pytest.mark.parametrize("first", ["carry", "layers"])
@pytest.mark.parametrize("change", CHANGES)
def test_layers_get_what_the_body_gives_them(change, first, axes):
    """In any order of the arguments; the old Variable is left as it was."""
    axes = LAYERS_AXES[axes]
    layers = nnx.vmap(Layer)(jax.random.split(jax.random.key(0), 3))
    old, value, calls = layers.kernel, layers.kernel.value, layers.calls
    by_hand = jax.vmap(quantize)(value)

    def body(x, layer):
        change(layer)
        return x + 1.0

    def read(x, layer):
        kernel = getattr(layer, "kernel", getattr(layer, "twice", None))
        kernel = getattr(kernel, "value", kernel)
        if isinstance(kernel, dict):
            return x @ dequantize({k: getattr(v, "value", v) for k, v in kernel.items()})
        return x @ kernel

    def scan(f, x):
        if first == "carry":
            return nnx.scan(f, in_axes=(Carry, axes), out_axes=Carry)(x, layers)
        g = lambda layer, x: f(x, layer)  # noqa: E731
        return nnx.scan(g, in_axes=(axes, Carry), out_axes=Carry)(layers, x)

    assert float(scan(body, jnp.array(0.0))) == 3
    now = getattr(layers, "kernel", getattr(layers, "twice", None))
    if change in (writes_a_pytree, swaps_for_a_pytree, swaps_for_several):
        found = now if isinstance(now, dict) else now.value
        found = {k: getattr(v, "value", v) for k, v in found.items()}
        jax.tree.map(np.testing.assert_array_equal, found, by_hand)
    else:
        np.testing.assert_array_equal(jnp.asarray(now), 2 * value)
    if change is not writes_a_pytree:
        assert now is not old and old.value is value
    assert layers.calls is calls and calls.shape == (3,)
    expected = ones = jnp.ones((1, 2))
    for i in range(3):
        kernel = jax.tree.map(lambda a, i=i: a[i], by_hand)
        quantized = change in CHANGES[:3]
        expected = expected @ (dequantize(kernel) if quantized else 2 * value[i])
    np.testing.assert_allclose(scan(read, ones), expected, rtol=1e-5)


def test_mapped_layers_get_what_the_function_gives_them():
    for change in CHANGES[:4]:
        layers = nnx.vmap(Layer)(jax.random.split(jax.random.key(0), 3))
        expected = jax.tree.map(jnp.shape, jax.vmap(quantize)(layers.kernel.value))
        nnx.vmap(lambda x, layer, change=change: change(layer), in_axes=(None, 0))(1.0, layers)
        found = nnx.to_pure_dict(nnx.state(layers))["kernel"]
        assert jax.tree.map(jnp.shape, found) == (expected if change in CHANGES[:3] else (3, 2, 2))
