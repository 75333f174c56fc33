"""A model of 2,400 parameters: everything that looks at it stays short, and nothing recurses.

What these things cost is measured by the benchmarks; here is what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx

BLOCKS, WIDTH = 200, 4


class Block(nnx.Module):
    """A pre-norm feed-forward block with a gate: six layers of two parameters each."""

    def __init__(self, rngs: nnx.Rngs):
        self.norms = [nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)]
        self.linears = {
            name: nnx.Linear(WIDTH, WIDTH, rngs=rngs) for name in ("up", "down", "gate", "out")
        }
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norms[0](x)
        h = self.linears["down"](nnx.relu(self.linears["up"](h))) * self.linears["gate"](h)
        return x + self.dropout(self.linears["out"](self.norms[1](h)))


class Big(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = [Block(rngs) for _ in range(BLOCKS)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def built() -> Big:
    return Big(nnx.Rngs(0))


@pytest.fixture
def big(built: Big) -> Big:
    return nnx.clone(built)


def test_every_parameter_has_its_path(big: Big) -> None:
    named = dict(nnx.named_parameters(big))
    assert len(named) == 12 * BLOCKS
    assert named["blocks.199.linears.out.kernel"] is big.blocks[-1].linears["out"].kernel
    assert nnx.get_path(big, "blocks[7].norms[1].scale") is big.blocks[7].norms[1].scale


@pytest.mark.parametrize("show", [repr, lambda model: nnx.tabulate(model, jnp.ones((1, WIDTH)))])
def test_what_is_shown_is_short_and_says_how_much_is_left_out(show: Callable, big: Big) -> None:
    text = show(big)
    assert len(text.splitlines()) < 200
    parameters = BLOCKS * (2 * 2 * WIDTH + 4 * (WIDTH * WIDTH + WIDTH))
    assert f"{parameters:,}" in text


def test_verbs_give_back_what_they_took(big: Big) -> None:
    graphdef, state = nnx.split(big)
    again = nnx.merge(graphdef, state)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(again, nnx.Param), nnx.state(big, nnx.Param)
    )
    nnx.update(big, jax.tree.map(jnp.zeros_like, nnx.state(big, nnx.Param)))
    assert not any(value.any() for value in jax.tree.leaves(nnx.state(big, nnx.Param)))
    assert big.blocks[100].linears["up"].kernel is not again.blocks[100].linears["up"].kernel
    again.eval()
    assert all(block.dropout.deterministic for block in again.blocks)


def test_a_jitted_change_of_one_leaf_reaches_it_alone(big: Big) -> None:
    @nnx.jit
    def write(model: Any) -> None:
        model.blocks[150].linears["gate"].bias.value += 1.0

    before = nnx.state(nnx.clone(big), nnx.Param)
    with nnx.assert_max_traces(1):
        write(big)
        write(big)
    changed = [
        path
        for (path, was), (_, now) in zip(
            nnx.to_flat_state(before), nnx.to_flat_state(nnx.state(big, nnx.Param)), strict=True
        )
        if (was.value != now.value).any()
    ]
    assert changed == [("blocks", 150, "linears", "gate", "bias")]
    np.testing.assert_array_equal(big.blocks[150].linears["gate"].bias.value, np.full(WIDTH, 2.0))


def test_an_optimizer_steps_every_parameter(big: Big) -> None:
    optimizer = nnx.Optimizer(big, optax.sgd(0.5), wrt=nnx.Param)
    before = nnx.state(nnx.clone(big), nnx.Param)
    nnx.jit(lambda m, o: o.update(m, jax.tree.map(jnp.ones_like, nnx.state(m, nnx.Param))))(
        big, optimizer
    )
    jax.tree.map(
        lambda was, now: np.testing.assert_allclose(was - now, 0.5, atol=1e-6),  # float32 of O(1)
        before,
        nnx.state(big, nnx.Param),
    )
