"""EMA: against float64 NumPy and optax, in jit, under sharding, and in the place of the model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from refax import nnx

from .common import Net, X, loss_of

FLOAT32: dict[str, Any] = {
    "rtol": 2e-6,
    "atol": 2e-7,
}  # a few roundings of numbers near 1, which may cancel
VALUES = np.random.default_rng(0).normal(size=(6, 2, 3))


class Cell(nnx.Module):
    def __init__(self, value: Any, dtype: Any = jnp.float32):
        self.w = nnx.Param(jnp.asarray(value, dtype))


def averaged(decay: Any, zero_debias: bool = False, jit: bool = True, **options: Any) -> nnx.EMA:
    """An EMA that started at VALUES[0] and saw the others."""
    model = Cell(VALUES[0])
    ema = nnx.EMA(model, decay, zero_debias=zero_debias, **options)
    update = nnx.jit(lambda ema, model: ema.update(model)) if jit else nnx.EMA.update
    for value in VALUES[1:]:
        model.w.value = jnp.asarray(value, jnp.float32)
        update(ema, model)
    return ema


def schedule(step: Any) -> Any:
    return (1 + step) / (10 + step)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("zero_debias", [True, False])
@pytest.mark.parametrize("decay", [0.9, 0.0, schedule])
def test_against_float64(decay: Any, zero_debias: bool, jit: bool) -> None:
    total = np.zeros_like(VALUES[0]) if zero_debias else VALUES[0]
    weight = 0.0 if zero_debias else 1.0
    for step, value in enumerate(VALUES[1:]):
        d: Any = decay(step) if callable(decay) else decay
        total, weight = d * total + (1 - d) * value, d * weight + (1 - d)
    ours = averaged(decay, zero_debias, jit)
    np.testing.assert_allclose(ours.params.w.value, total / weight, **FLOAT32)
    assert int(ours.step.value) == len(VALUES) - 1


def test_against_optax() -> None:
    tx = optax.ema(0.99, debias=True)
    state = tx.init(jnp.zeros((2, 3)))
    out: Any = None
    for value in VALUES[1:]:
        out, state = tx.update(jnp.asarray(value, jnp.float32), state)
    # optax rounds decay ** count and 1 - it in float32: 1e-2 loses two digits.
    np.testing.assert_allclose(averaged(0.99, True).params.w.value, out, rtol=2e-5)


def test_against_the_peer() -> None:
    peer = pytest.importorskip("flax.nnx")
    if not hasattr(peer, "EMA"):
        pytest.skip("this version of the peer has no EMA")
    linear = peer.Linear(3, 2, rngs=peer.Rngs(0))
    linear.kernel[...] = jnp.asarray(VALUES[0].T, jnp.float32)
    theirs = peer.EMA(linear, decay=0.9, only=peer.Param)
    for value in VALUES[1:]:
        linear.kernel[...] = jnp.asarray(value.T, jnp.float32)
        theirs.update(linear)
    ours = averaged(0.9).params.w.value
    np.testing.assert_allclose(ours, theirs.params["kernel"][...].T, **FLOAT32)


def test_dtype() -> None:
    model = Cell(np.ones(3), jnp.bfloat16)
    low, wide = nnx.EMA(model, 0.999), nnx.EMA(model, 0.999, dtype=jnp.float32)
    model.w.value = model.w.value + 1
    for _ in range(100):
        low.update(model)
        wide.update(model)
    assert (low.params.w.dtype, wide.params.w.dtype) == (jnp.bfloat16, jnp.float32)
    assert low.params.w.value.tolist() == [1.0] * 3  # 0.001 is less than half a unit: it stands
    np.testing.assert_allclose(wide.params.w.value, 2 - 0.999**100, rtol=1e-5)  # 100 roundings
    with wide.swap(model):
        assert model.w.dtype == jnp.bfloat16


def test_other_variables() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    model = Model()
    only_params = nnx.EMA(model, 0.5, only=nnx.Param)
    everything = nnx.EMA(model, 0.5, only=...)
    model.norm.mean.value = jnp.full(3, 4.0)
    model.drop(X)
    everything.update(model)
    assert "mean" not in only_params.params.norm
    assert everything.params.norm.mean.value.tolist() == [2.0] * 3
    assert int(everything.params.drop.rngs.count.value) == 1  # no average of a count


def test_apply_to_shares_the_averages_and_all_else() -> None:
    model = nnx.Sequential(Net(), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    ema = nnx.EMA(model, 0.9, only=nnx.Param)
    average = ema.apply_to(model)
    model.layers[0].head.bias += 1.0
    ema.update(model)
    assert average.layers[0].head.bias is ema.params.layers[0].head.bias
    np.testing.assert_allclose(average.layers[0].head.bias.value, 0.1, rtol=1e-6)  # float32
    assert average.layers[1].mean is model.layers[1].mean


def test_swap_restores_also_on_error() -> None:
    model = Net()
    ema = nnx.EMA(model, 0.5)
    model.head.bias += 1.0
    ema.update(model)
    with pytest.raises(KeyError):
        with ema.swap(model) as same:
            assert same is model and model.head.bias.value.tolist() == [0.5, 0.5]
            raise KeyError
    assert model.head.bias.value.tolist() == [1.0, 1.0]

    @nnx.jit
    def evaluate(model: Net, ema: nnx.EMA) -> jax.Array:
        with ema.swap(model):
            return loss_of(model)

    loss = evaluate(model, ema)
    np.testing.assert_allclose(loss, loss_of(ema.apply_to(model)), rtol=1e-6)  # float32, fused
    assert model.head.bias.value.tolist() == [1.0, 1.0]


def test_sharding_and_donation() -> None:
    mesh = jax.make_mesh((8,), ("x",))
    model = Net(hidden=8)
    where = NamedSharding(mesh, PartitionSpec(None, "x"))
    model.encoder.kernel.value = jax.device_put(model.encoder.kernel.value, where)
    ema = nnx.EMA(model, 0.9)
    assert ema.params.encoder.kernel.value.sharding == where
    step = nnx.jit(lambda model, ema: ema.update(model), donate_argnums=(0, 1))
    step(model, ema)  # the averages are copies: no buffer is donated twice
    assert ema.params.encoder.kernel.value.sharding.is_equivalent_to(where, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nnx.EMA(Net(), 1.5), r"decay=1.5, but must be a number between 0 and 1"),
        (lambda: nnx.EMA(Net(), 0.9).update(Cell(1.0)), "the EMA has `encoder.bias`, the model"),
        (lambda: nnx.EMA(Cell(1.0), 0.9).update(Net()), "the EMA has `w`, the model has not"),
        (lambda: nnx.EMA(Net(), 0.9).update(Net(hidden=5)), r"`encoder.bias` is float32\[4\]"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_bare_arrays_are_refused() -> None:
    class Bare(nnx.Module):
        def __init__(self) -> None:
            self.table = jnp.ones(2)

    with pytest.raises(TypeError, match=r"`table` is float32\[2\]"):
        nnx.EMA(Bare(), 0.9, only=...)


def test_an_average_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no Variable of the Linear matches only='typo'"):
        nnx.EMA(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), 0.9, only="typo")
