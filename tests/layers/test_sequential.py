"""A Sequential is a list of layers that can be called."""

from __future__ import annotations

import copy
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx


def linears(n: int) -> list[Any]:
    rngs = nnx.Rngs(0)
    return [nnx.Linear(2, 2, rngs=rngs) for _ in range(n)]


def in_turn(layers: list[Any], x: Any) -> np.ndarray:
    for layer in layers:
        x = np.asarray(x) @ np.asarray(layer.kernel.value) + np.asarray(layer.bias.value)
    return np.asarray(x)


def _operation(rng: random.Random, spare: list[Any]) -> Any:
    """The same change of a list and of a Sequential, as a function of either."""
    i, j, layer = rng.randrange(-2, 3), rng.randrange(-2, 4), rng.choice(spare)

    def assign(s: Any) -> Any:
        s[i] = layer
        return s

    def assign_slice(s: Any) -> Any:
        s[i:j] = [layer, spare[0]]
        return s

    def delete(s: Any) -> Any:
        del s[i]
        return s

    def in_place(s: Any) -> Any:
        s += [layer]
        return s

    def call(name: str, *args: Any) -> Any:
        def run(s: Any) -> Any:
            getattr(s, name)(*args)
            return s

        return run

    step = rng.choice([1, 2, -1])
    return rng.choice([
        assign, assign_slice, delete, in_place, call("append", layer), call("insert", i, layer),
        call("extend", [layer, layer]), lambda s: s[i:j], lambda s: s[::step],
        lambda s: s + [layer], lambda s: [layer] + s, lambda s: s + s,
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_it_does_what_a_list_does(seed: int) -> None:
    rng, spare = random.Random(seed), linears(4)
    reference, model = list(spare[:3]), nnx.Sequential(*spare[:3])
    for _ in range(8):
        change = _operation(rng, spare)
        try:
            reference = change(reference)
        except IndexError:
            with pytest.raises(IndexError, match=r"Sequential: there is no layer -?\d"):
                change(model)
            continue
        model = change(model)
        assert type(model) is nnx.Sequential and len(model) == len(reference)
        assert all(a is b for a, b in zip(model, reference, strict=True))
        assert all((layer in model) == (layer in reference) for layer in spare)
        for index in range(-len(reference), len(reference)):
            assert model[index] is reference[index]
    np.testing.assert_allclose(
        model(jnp.ones(2)), in_turn(reference, np.ones(2)), rtol=1e-5, atol=1e-6
    )


def test_changes_are_seen_by_what_was_compiled_before() -> None:
    layers = linears(3)
    model, call = nnx.Sequential(*layers[:2]), nnx.jit(lambda model, x: model(x))
    x = jnp.ones((1, 2))
    np.testing.assert_allclose(call(model, x), in_turn(layers[:2], x), rtol=1e-5)
    model.append(layers[2])
    np.testing.assert_allclose(call(model, x), in_turn(layers, x), rtol=1e-5)
    model[0] = layers[1]
    np.testing.assert_allclose(call(model, x), in_turn([*layers[1:2], *layers[1:]], x), rtol=1e-5)

    @nnx.jit
    def grow(model: Any) -> None:
        model += [nnx.relu]

    grow(model)
    assert len(model) == 4 and model[3] is nnx.relu


def test_parts_share_their_layers_and_nest() -> None:
    layers = linears(3)
    model = nnx.Sequential(nnx.Sequential(*layers[:2]), layers[2])
    x = jnp.ones((1, 2))
    np.testing.assert_allclose(model(x), in_turn(layers, x), rtol=1e-5)
    body, head = model[:1], model[1:]
    np.testing.assert_allclose(head(body(x)), model(x), rtol=1e-6)
    gradient = nnx.grad(lambda head: head(x).sum())(head)
    assert gradient["layers"][0]["kernel"].shape == (2, 2)
    head[0].bias.value += 1.0
    np.testing.assert_array_equal(layers[2].bias.value, model[1].bias.value)
    assert model[0][1] is layers[1] and list(model[0]) == layers[:2]


def test_a_subclass_stays_what_it_is() -> None:
    class Named(nnx.Sequential):
        def __init__(self, name: str, *layers: Any):
            super().__init__(*layers)
            self.name = name

    model = Named("tower", *linears(3))
    part = model[1:] + model[:1]
    assert type(part) is Named and part.name == "tower" and part[2] is model[0]
    assert len(copy.deepcopy(model)) == 3 and len(model) == 3


def test_an_empty_one_is_true_and_gives_its_input() -> None:
    model = nnx.Sequential()
    assert model and len(model) == 0 and model(3) == 3
    assert len(jax.tree.leaves(model)) == 0


@pytest.mark.parametrize("index", ["kernel", None, 1.5])
def test_an_index_is_an_int_or_a_slice(index: Any) -> None:
    for use in (
        lambda s: s[index],
        lambda s: s.__setitem__(index, nnx.relu),
        lambda s: s.__delitem__(index),
    ):
        with pytest.raises(TypeError, match="Sequential: an index is an int or a slice, but"):
            use(nnx.Sequential(nnx.relu))
    with pytest.raises(TypeError, match="unsupported operand"):
        nnx.Sequential() + 3  # pyright: ignore[reportOperatorIssue]


def test_a_list_in_the_place_of_layers_is_told_what_to_write():
    model = nnx.Sequential([nnx.relu, nnx.tanh])
    with pytest.raises(ValueError, match=r"layers\[0\] is a list.*\nCure: .*\*layers") as caught:
        model(jnp.ones(2))
    assert isinstance(caught.value, nnx.ArgumentError)
