"""TrainState: in plain jax.jit, with fields of a subclass, against the Optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx

from .common import Net, X, Y, loss_of


def made(tx: Any = None) -> nnx.TrainState:
    graphdef, params = nnx.split(Net(), nnx.Param)
    return nnx.TrainState.create(graphdef, params=params, tx=tx or optax.adam(1e-2))


def loss(state: nnx.TrainState, params: nnx.State) -> jax.Array:
    y, _ = state.apply(params)(X)
    return ((y - Y) ** 2).mean()


def step(state: nnx.TrainState) -> nnx.TrainState:
    return state.apply_gradients(grads=jax.grad(lambda p: loss(state, p))(state.params))


@pytest.mark.parametrize("transform", [jax.jit, nnx.jit, lambda f: f], ids=["jax", "nnx", "eager"])
def test_steps_as_an_optimizer_makes_them(transform: Any) -> None:
    compiled = transform(step)
    state = compiled(compiled(made()))
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.grad(loss_of)(model))
    assert int(state.step) == 2 and isinstance(state, nnx.TrainState)
    ours, theirs = nnx.to_pure_dict(state.params), nnx.to_pure_dict(nnx.state(model))
    # The same operations, fused differently: a few ulp of float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_equal_transformations_share_one_program() -> None:
    traces = 0

    def counted(state: nnx.TrainState) -> nnx.TrainState:
        nonlocal traces
        traces += 1
        return step(state)

    compiled = jax.jit(counted)
    compiled(compiled(made()))
    compiled(made())
    assert traces == 1


def test_in_scan_and_tree_map() -> None:
    state, _ = jax.lax.scan(lambda state, _: (step(state), None), made(), length=3)
    assert int(state.step) == 3
    zeros = jax.tree.map(jnp.zeros_like, state)
    assert isinstance(zeros, nnx.TrainState) and not zeros.params.head.kernel.value.any()


def test_fields_of_a_subclass() -> None:
    class WithStatistics(nnx.TrainState):
        statistics: nnx.State

    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    state = WithStatistics.create(graphdef, params=params, tx=optax.sgd(0.1), statistics=statistics)

    @jax.jit
    def train(state: WithStatistics) -> WithStatistics:
        def loss(params: nnx.State) -> Any:
            y, (_, new) = state.apply(params, "statistics")(X)
            return ((y - Y) ** 2).mean(), nnx.filter_state(new, nnx.BatchStat)

        grads, statistics = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, statistics=statistics)

    state = train(state)
    model(X)
    expected = nnx.state(model, nnx.BatchStat).layers[1].mean.value
    assert isinstance(state, WithStatistics) and expected.any()
    got = state.statistics.layers[1].mean.value
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)  # float32, fused


def test_extra_arguments_and_errors() -> None:
    plateau = optax.contrib.reduce_on_plateau(patience=1)
    state = made(optax.chain(optax.sgd(0.1), plateau))
    grads = jax.grad(lambda p: loss(state, p))(state.params)
    assert float(state.apply_gradients(grads, value=3.0).opt_state[1].best_value) == 3.0
    assert int(made(optax.scale(-0.1)).apply_gradients(grads, value=3.0).step) == 1  # left out
    with pytest.raises(ValueError, match="no gradient for `encoder.bias`"):
        state.apply_gradients(nnx.filter_state(grads, nnx.PathContains("head")))


def test_against_the_peer() -> None:
    peer = pytest.importorskip("flax.nnx")
    linear, theirs = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), peer.Linear(3, 2, rngs=peer.Rngs(0))
    ours = nnx.TrainState.create(
        *nnx.split(linear)[:1], params=nnx.state(linear), tx=optax.adam(0.1)
    )
    graphdef, params = peer.split(theirs)
    other = peer.TrainState.create(graphdef, params=params, tx=optax.adam(0.1))
    ours = ours.apply_gradients(grads=jax.tree.map(jnp.ones_like, ours.params))
    other = other.apply_gradients(grads=jax.tree.map(jnp.ones_like, other.params))
    np.testing.assert_array_equal(ours.params.kernel.value, other.params["kernel"][...])
    assert int(ours.step) == int(other.step) == 1
