"""An input that does not fit a layer: the error says which layer, by path, what it got, a cure."""

import re
from typing import Any

import jax.numpy as jnp
import pytest

from refax import nnx

R = nnx.Rngs(0)


def cell(kind: type, **options: Any) -> Any:
    return nnx.RNN(kind(3, 4, rngs=R, **options))


# By layer: how it is made, the shape of an input that fits, what says the number of its features.
LAYERS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "Linear": (lambda: nnx.Linear(3, 4, rngs=R), (2, 3), "in_features=3"),
    "LinearGeneral": (
        lambda: nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=R), (5, 2, 3), "(2, 3)"),
    "Einsum": (lambda: nnx.Einsum("bij,jk->bik", (3, 4), (4,), rngs=R), (5, 2, 3), "(3, 4)"),
    "Conv": (lambda: nnx.Conv(3, 4, (3,), rngs=R), (2, 8, 3), "in_features=3"),
    "ConvTranspose": (lambda: nnx.ConvTranspose(3, 4, (3,), rngs=R), (2, 8, 3), "in_features=3"),
    "BatchNorm": (lambda: nnx.BatchNorm(3, rngs=R), (2, 3), "num_features=3"),
    "LayerNorm": (lambda: nnx.LayerNorm(3, rngs=R), (2, 3), "num_features=3"),
    "RMSNorm": (lambda: nnx.RMSNorm(3, rngs=R), (2, 3), "num_features=3"),
    "GroupNorm": (lambda: nnx.GroupNorm(4, num_groups=2, rngs=R), (2, 4), "num_features=4"),
    "InstanceNorm": (lambda: nnx.InstanceNorm(3, rngs=R), (2, 5, 3), "num_features=3"),
    "SpectralNorm": (
        lambda: nnx.SpectralNorm(nnx.Linear(3, 4, rngs=R), rngs=R), (2, 3), "in_features=3"),
    "WeightNorm": (
        lambda: nnx.WeightNorm(nnx.Linear(3, 4, rngs=R), rngs=R), (2, 3), "in_features=3"),
    "MultiHeadAttention": (
        lambda: nnx.MultiHeadAttention(num_heads=2, in_features=4, decode=False, rngs=R),
        (2, 5, 4), "(4,)"),
    "LoRA": (lambda: nnx.LoRA(3, 2, 4, rngs=R), (2, 3), "in_features=3"),
    "LoRALinear": (lambda: nnx.LoRALinear(3, 4, lora_rank=2, rngs=R), (2, 3), "in_features=3"),
    "LSTMCell": (lambda: cell(nnx.LSTMCell), (2, 5, 3), "in_features=3"),
    "GRUCell": (lambda: cell(nnx.GRUCell), (2, 5, 3), "in_features=3"),
    "SimpleCell": (lambda: cell(nnx.SimpleCell), (2, 5, 3), "in_features=3"),
    "Bidirectional": (
        lambda: nnx.Bidirectional(cell(nnx.GRUCell), cell(nnx.GRUCell)), (2, 5, 3),
        "in_features=3"),
}  # fmt: skip


class Block(nnx.Module):
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Any) -> Any:
        return self.layer(x)


class Model(nnx.Module):
    def __init__(self, layer: Any) -> None:
        self.blocks = [Block(layer)]

    def __call__(self, x: Any) -> Any:
        return self.blocks[0](x)


def told(call: Any, x: Any, place: str) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(x)
    text = str(caught.value)
    assert f"\nIn `{place}.blocks[0].layer" in text, text
    assert text.count("\nCure: ") == 1 and text.count("\nIn `") == 1, text
    assert text.index("\nIn `") < text.index("\nCure: ")
    return text


@pytest.mark.parametrize("name", LAYERS)
def test_an_input_that_does_not_fit(name: str) -> None:
    make, shape, wanted = LAYERS[name]
    model = Model(make())
    jitted = nnx.jit(lambda model, x: model(x))
    wide = (*shape[:-1], shape[-1] + 4)
    seen = name not in ("LSTMCell", "GRUCell", "SimpleCell", "Bidirectional")  # (one step of it)
    for call, place in ((model, "Model"), (lambda x: jitted(model, x), "model")):
        text = told(call, jnp.ones(wide), place)
        assert wanted in text and (str(wide) in text or not seen), text
        assert str(wide[-1]) in text.partition("\nCure: ")[2] or "such axes" in text, text
        assert re.search(r"\(\)|0 axes", told(call, jnp.ones(()), place))
        assert "=0, …)" not in told(call, jnp.ones((*shape[:-1], 0)), place)
    text = told(model, "abc", "Model")
    assert "'abc'" in text and "array of numbers" in text
    # By itself it is in no other object, and says nothing of one.
    with pytest.raises(ValueError, match=r"(?s)Cure: ") as caught:
        make()(jnp.ones(wide))
    assert "blocks" not in str(caught.value)
    assert model(jnp.ones(shape)) is not None


def test_other_dtypes_and_methods() -> None:
    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.blocks = [Block(nnx.Embed(7, 3, rngs=R))]

        def __call__(self, x: Any) -> Any:
            return self.blocks[0].layer.attend(x)

    embed = Model(nnx.Embed(7, 3, rngs=R))
    for call, place in (
        (embed, "Model"),
        (lambda x: nnx.jit(lambda model, x: model(x))(embed, x), "model"),
    ):
        assert "float32 of shape (2,)" in told(call, jnp.ones(2), place)
    text = told(Tied(), jnp.ones((2, 7)), "Tied")
    assert "Embed.attend" in text and "Embed(features=7, …)" in text
    norm = Model(nnx.LayerNorm(3, rngs=R))
    masked = nnx.jit(lambda model, x: model.blocks[0].layer(x, mask=jnp.ones((5, 5), bool)))
    assert "(5, 5)" in told(lambda x: masked(norm, x), jnp.ones((2, 3)), "model")


def test_paths_in_transforms() -> None:
    model, x = Model(nnx.Linear(3, 4, rngs=R)), jnp.ones((2, 2, 7))
    loss = lambda model, x: model(x).sum()  # noqa: E731
    told(lambda x: nnx.grad(loss)(model, x), x, "model")
    told(lambda x: nnx.vmap(lambda model, x: model(x), in_axes=(None, 0))(model, x), x, "model")
    told(lambda x: nnx.remat(lambda model, x: model(x))(model, x), x, "model")
    told(nnx.vmap(lambda x: model(x)), x, "Model")
    told(nnx.jit(lambda x: model(x)), x, "Model")
    told(lambda x: nnx.jit(lambda m, x: nnx.grad(loss)(m, x))(model, x), x, "m")
    stack = nnx.Stack(lambda rngs: Block(nnx.Linear(3, 3, rngs=rngs)), 2, rngs=R)
    jitted = nnx.jit(lambda holder, x: holder(x))
    with pytest.raises(ValueError, match=r"In `holder\.stack\.blocks\[\*\]\.layer`"):
        jitted(Holder(stack), x)


class Holder(nnx.Module):
    def __init__(self, stack: Any) -> None:
        self.stack = stack

    def __call__(self, x: Any) -> Any:
        return self.stack(x)


def test_errors_of_jax_are_noted_with_the_path() -> None:
    class Bad(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return jnp.dot(x, jnp.ones(11))

    model = Model(Bad())
    with pytest.raises(TypeError, match="dot_general") as caught:
        nnx.jit(lambda model, x: model(x))(model, jnp.ones(3))
    assert "In `model.blocks.0.layer`, Bad.__call__." in caught.value.__notes__
