"""`layer(x, out_sharding=…)` on a mesh with explicit axes: the values of one device, so placed.

Each layer × how the input and the kernel are sharded × what is asked for × eagerly, jit, grad.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx

RNGS = {"rngs": nnx.Rngs(0)}


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def lora() -> Any:
    layer = nnx.LoRALinear(4, 8, lora_rank=2, **RNGS)
    layer.lora.lora_b.value = array(2, 8)
    return layer


LAYERS: dict[str, tuple[Callable[[], Any], jax.Array]] = {
    "Linear": (lambda: nnx.Linear(4, 8, **RNGS), array(8, 4)),
    "LinearGeneral": (lambda: nnx.LinearGeneral(4, 8, **RNGS), array(8, 4)),
    "Einsum": (lambda: nnx.Einsum("...i,io->...o", (4, 8), (8,), **RNGS), array(8, 4)),
    "LoRALinear": (lora, array(8, 4)),
    "Embed": (lambda: nnx.Embed(16, 8, **RNGS), jnp.arange(8)),
    "Embed of one row": (lambda: nnx.Embed(1, 8, **RNGS), jnp.arange(8)),
    "Conv": (lambda: nnx.Conv(4, 8, 3, **RNGS), array(8, 6, 4)),
    "Conv of two batch axes": (lambda: nnx.Conv(4, 8, 3, **RNGS), array(2, 4, 6, 4)),
    "LayerNorm": (lambda: nnx.LayerNorm(8, **RNGS), array(8, 8)),
    "RMSNorm": (lambda: nnx.RMSNorm(8, **RNGS), array(8, 8)),
    "BatchNorm": (lambda: nnx.BatchNorm(8, use_running_average=True, **RNGS), array(8, 8)),
    "GroupNorm": (lambda: nnx.GroupNorm(8, 2, **RNGS), array(8, 6, 8)),
    "InstanceNorm": (lambda: nnx.InstanceNorm(8, **RNGS), array(8, 6, 8)),
    "attention": (lambda: nnx.MultiHeadAttention(4, 8, decode=False, **RNGS), array(8, 6, 8)),
}  # fmt: skip
ASKED = [("d", "m"), ("d", None), (None, "m"), (None, None)]


@pytest.fixture(autouse=True)
def mesh() -> Any:
    mesh = jax.make_mesh((2, 4), ("d", "m"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def spec(ndim: int, first: Any, last: Any) -> P:
    return P(first, *[None] * (ndim - 2), last)


@pytest.mark.parametrize(
    ("name", "on_kernel"), [*itertools.product(LAYERS, [False, True])], ids=lambda x: str(x)
)
def test_the_result_is_placed_as_asked(name: str, on_kernel: bool, mesh: Any) -> None:
    make, x = LAYERS[name]
    layer = make()
    plain = np.asarray(layer(x, out_sharding=P()) if "Embed" in name else layer(x))
    if on_kernel:
        for _, v in nnx.iter_graph(layer):
            if isinstance(v, nnx.Param) and v.shape[-1:] == (8,):
                features = P(*[None] * (v.ndim - 1), "m")
                v.value = jax.device_put(v.value, NamedSharding(mesh, features))
    specs = [spec(plain.ndim, first, last) for first, last in ASKED]
    asked = [(spec, out) for spec in specs for out in (spec, NamedSharding(mesh, spec))]

    def call(layer: Any, x: Any) -> list[Any]:
        return [layer(x, out_sharding=out) for _, out in asked]

    for on_input in (None, "d"):
        given = jax.device_put(x, NamedSharding(mesh, P(on_input)))
        for results in (call(layer, given), nnx.jit(call)(layer, given)):
            for y, (wanted, out) in zip(results, asked, strict=True):
                assert jax.typeof(y).sharding.spec == wanted, (on_input, out)
                np.testing.assert_allclose(y, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Linear", "LinearGeneral", "Einsum", "RMSNorm", "Conv"])
def test_gradients_are_those_of_one_device(name: str, mesh: Any) -> None:
    make, x = LAYERS[name]
    layer = make()

    def loss(layer: Any, x: Any, **options: Any) -> Any:
        return jnp.sum(jnp.sin(layer(x, **options)))

    expected = nnx.grad(loss)(layer, x)
    out = spec(x.ndim, "d", None)
    given = jax.device_put(x, NamedSharding(mesh, P("d")))
    actual = nnx.jit(nnx.grad(lambda layer, x: loss(layer, x, out_sharding=out)))(layer, given)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
