"""LoRA: no change at first, few parameters, and around a Linear that exists."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


def linear(**options: Any) -> Any:
    return nnx.Linear(6, 5, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_bias": False}, {"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}],
    ids=str,
)
def test_around_a_linear_it_changes_nothing_at_first(options: dict) -> None:
    old = linear(**options)
    new = nnx.LoRALinear(old, rank=2, lora_dtype=old.dtype, rngs=nnx.Rngs(1))
    with jax.numpy_dtype_promotion("standard"):
        expected, actual = old(X), new(X)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    assert isinstance(new, nnx.Linear) and (new.in_features, new.out_features) == (6, 5)
    assert new.lora.lora_a.shape == (6, 2) and new.lora.lora_b.shape == (2, 5)


def test_shares_the_parameters_of_the_linear() -> None:
    old = linear()
    new = nnx.LoRALinear(old, lora_rank=2, rngs=nnx.Rngs(1))
    assert new.kernel is old.kernel and new.bias is old.bias
    old.kernel.value = old.kernel.value + 1
    np.testing.assert_array_equal(new(X), old(X))


@pytest.mark.parametrize(
    ("features", "axis", "shape"),
    [(((6,), (2, 5)), -1, (3, 6)), (((2, 3), (4,)), (-2, -1), (5, 2, 3)),
     (((2, 3), 4), (2, 0), (3, 5, 2)), ((6, 5), -1, (6,))],
)  # fmt: skip
@pytest.mark.parametrize("own", [False, True])
def test_around_a_linear_general(features: Any, axis: Any, shape: Any, own: bool) -> None:
    options = {"dot_general_cls": lambda: jax.lax.dot_general} if own else {}
    old = nnx.LinearGeneral(*features, axis=axis, rngs=nnx.Rngs(0), **options)
    new = nnx.LoRALinear(old, rank=2, rngs=nnx.Rngs(1))
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(new(x), old(x))
    assert new.kernel is old.kernel and new.bias is old.bias
    new.lora.lora_b.value = jnp.ones_like(new.lora.lora_b.value)
    actual = new(x)
    # The change is that of a kernel changed by A·B, of its shape.
    change = new.lora.lora_a.value @ new.lora.lora_b.value
    old.kernel.value = old.kernel.value + change.reshape(old.kernel.shape)
    np.testing.assert_allclose(actual, old(x), rtol=1e-5, atol=1e-5)


def test_all_projections_of_an_attention() -> None:
    attention = nnx.MultiHeadAttention(2, 6, rngs=nnx.Rngs(0))
    before, x = attention(X[None]), X[None]
    for name in ("query", "key", "value", "out"):
        projection = nnx.LoRALinear(getattr(attention, name), rank=2, rngs=nnx.Rngs(1))
        setattr(attention, name, projection)
    np.testing.assert_array_equal(attention(x), before)
    grads = nnx.grad(lambda m: m(x).sum(), argnums=nnx.DiffState(0, nnx.LoRAParam))(attention)
    assert grads["query"]["lora"]["lora_b"].shape == (2, 6) and len(jax.tree.leaves(grads)) == 8


def test_a_kernel_for_each_index_has_no_one_adapter() -> None:
    old = nnx.LinearGeneral(6, 5, batch_axis={0: 3}, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"LoRALinear: this LinearGeneral has batch_axis=\{0: 3\}"):
        nnx.LoRALinear(old, rank=2, rngs=nnx.Rngs(1))


def test_every_linear_of_a_model_replaced_by_assignment() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first, self.second = (nnx.Linear(6, 6, rngs=rngs) for _ in range(2))

        def __call__(self, x: Any) -> jax.Array:
            return self.second(nnx.relu(self.first(x)))

    rngs = nnx.Rngs(0)
    model = Model(rngs)
    before = model(X)
    for name, module in list(vars(model).items()):
        if isinstance(module, nnx.Linear):
            setattr(model, name, nnx.LoRALinear(module, rank=8, rngs=rngs))
    np.testing.assert_array_equal(model(X), before)
    adapters = nnx.state(model, nnx.LoRAParam)
    assert {path[:2] for path, _ in nnx.to_flat_state(adapters)} == {
        ("first", "lora"),
        ("second", "lora"),
    }
    # At first only B has a gradient, since B is zero.
    graphdef, adapters, rest = nnx.split(model, nnx.LoRAParam, ...)
    gradients = jax.grad(lambda a: nnx.merge(graphdef, a, rest)(X).sum())(adapters)
    assert not gradients["second"]["lora"]["lora_a"].any()
    assert gradients["second"]["lora"]["lora_b"].any()


def test_lora_adds_to_a_base_module() -> None:
    layer = nnx.LoRA(6, 2, 5, base_module=linear(), rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(layer(X), linear()(X))
    with pytest.raises(ValueError, match="base_module is a int"):
        nnx.LoRA(6, 2, 5, base_module=3, rngs=nnx.Rngs(1))  # type: ignore[arg-type]


def test_param_type_and_metadata() -> None:
    class Adapter(nnx.Param):
        pass

    layer = nnx.LoRALinear(
        linear(),
        rank=2,
        lora_param_type=Adapter,
        a_metadata={"sharding": ("in", None)},
        rngs=nnx.Rngs(1),
    )
    assert type(layer.lora.lora_a) is Adapter and layer.lora.lora_a.sharding == ("in", None)


def test_wrong_arguments() -> None:
    rngs = nnx.Rngs(0)
    with pytest.raises(TypeError, match="the rank of the adapter is missing"):
        nnx.LoRALinear(linear(), rngs=rngs)
    with pytest.raises(TypeError, match=r"takes sizes.*got int 6\.$"):
        nnx.LoRALinear(6, rank=2, rngs=rngs)
    with pytest.raises(TypeError, match=r"takes sizes.*got LayerNorm\.$"):
        nnx.LoRALinear(nnx.LayerNorm(3, rngs=rngs), rank=2, rngs=rngs)  # type: ignore
    with pytest.raises(TypeError, match="out_features, use_bias cannot be given together"):
        nnx.LoRALinear(linear(), 5, rank=2, use_bias=False, rngs=rngs)
    with pytest.raises(TypeError, match="has an adapter already"):
        nnx.LoRALinear(nnx.LoRALinear(linear(), rank=2, rngs=rngs), rank=2, rngs=rngs)
