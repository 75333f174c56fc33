"""Optimizers, averages and metrics with arguments that programs bring."""

import jax.numpy as jnp
import optax
import pytest

from refax import nnx


def test_what_is_optimized_has_to_be_said():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"`wrt` is required(.|\n)*wrt=nnx.Param(.|\n)*ModelAndOpt"):
        nnx.Optimizer(model, optax.adam(1e-3))
    nnx.Optimizer(model, optax.adam(1e-3), wrt=...)
    nnx.ModelAndOptimizer(model, optax.adam(1e-3))


def test_an_average_takes_everything_that_is_float():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.count = nnx.Variable(jnp.array(3))
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.cache = nnx.Cache(None)

    model = Model(nnx.Rngs(0))
    ema = nnx.EMA(model, decay=0.5)
    assert set(ema.params) == {"linear", "norm"}
    model.norm.mean += 1.0
    model.linear.bias += 2.0
    ema.update(model)
    assert ema.params.norm.mean.value.tolist() == [0.5, 0.5]
    assert ema.params.linear.bias.value.tolist() == [1.0, 1.0]
    with ema.swap(model):
        assert model.norm.mean.value.tolist() == [0.5, 0.5]
    assert set(nnx.EMA(model, 0.5, only=nnx.BatchStat).params) == {"norm"}


def test_a_mask_for_each_metric():
    metrics = nnx.MultiMetric(a=nnx.metrics.Average("x"), b=nnx.metrics.Average("y"))
    values = {"x": jnp.array([1.0, 3.0]), "y": jnp.array([1.0, 5.0])}
    metrics.update(**values, mask={"b": jnp.array([True, False])})
    assert {k: float(v) for k, v in metrics.compute().items()} == {"a": 2.0, "b": 1.0}
    metrics.reset()
    metrics.update(**values, mask=jnp.array([False, True]))
    assert {k: float(v) for k, v in metrics.compute().items()} == {"a": 3.0, "b": 5.0}
    with pytest.raises(ValueError, match=r"a mask for 'bb'.*\['a', 'b'\].* Did you mean 'b'"):
        metrics.update(**values, mask={"bb": jnp.array([True, False])})

    @nnx.jit
    def step(metrics, mask):
        metrics.update(**values, mask={"a": mask})

    metrics.reset()
    step(metrics, jnp.array([True, False]))
    assert float(metrics.compute()["a"]) == 1.0
