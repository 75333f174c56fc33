"""Writes to objects that plain JAX rebuilt in a trace: told once a function, if they are lost."""

import gc
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

from refax import nnx

X = jnp.ones((3, 2))


class Counting(nnx.Module):
    def __init__(self):
        self.n = nnx.Variable(jnp.array(0.0))

    def __call__(self, x):
        self.n.value += x.sum()
        return x * 2.0


def caught(call) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
        gc.collect()
    assert all(w.category is nnx.LostWriteWarning for w in found), [str(w.message) for w in found]
    return [str(w.message) for w in found]


def test_a_training_step_that_moves_nothing():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

    @jax.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    (text,) = caught(lambda: step(model, optimizer, X))
    assert text.startswith("`step` (") and "by jit, writes" in text
    assert "Param `Linear.bias`" in text and "Param `Linear.kernel`" in text and " more in" in text
    assert "Cure: nnx.jit" in text and "or return the object" in text
    assert caught(lambda: step(model, optimizer, X)) == []  # compiled: nothing runs
    assert caught(lambda: step(model, optimizer, X[:1])) == []  # once a function


LOST = {
    "jit": lambda c: jax.jit(lambda c, x: c(x))(c, X),
    "vmap": lambda c: jax.vmap(lambda c, x: c(x), in_axes=(0, None))(
        jax.tree.map(lambda x: x[None], c), X
    ),
    "a branch": lambda c: jax.jit(lambda c, x: jax.lax.cond(True, lambda c: c(x), lambda c: x, c))(
        c, X
    ),
}


@pytest.mark.parametrize("call", LOST.values(), ids=LOST.keys())
def test_transforms_of_jax(call):
    assert len(caught(lambda: call(Counting()))) == 1


def read(c, x):
    c(x)
    return c.n.value


FINE = {
    "returned": lambda c: jax.jit(lambda c, x: (c(x), c))(c, X),
    "its state is returned": lambda c: jax.jit(lambda c, x: (c(x), nnx.state(c)))(c, X),
    "split": lambda c: jax.jit(lambda c, x: (c(x), nnx.split(c)[1]))(c, X),
    "read": lambda c: jax.jit(read)(c, X),
    "only read": lambda c: jax.jit(lambda c, x: c.n.value + x)(c, X),
    "carried": lambda c: jax.lax.scan(lambda c, x: (c, c(x)), c, X),
    "in nnx.jit": lambda c: nnx.jit(lambda c, x: c(x))(c, X),
    "returned from a branch": lambda c: jax.lax.cond(True, lambda c: (c(X), c)[1], lambda c: c, c),
    "mapped in a trace": lambda c: nnx.jit(lambda c: jax.tree.map(lambda x: x + 1, c))(c),
    "mapped and written": lambda c: nnx.jit(lambda c, x: doubled(c)(x))(c, X),
    "outside of a trace": lambda c: jax.tree.map(lambda x: x + 1, c)(X),
}


def doubled(c):
    c = jax.tree.map(lambda x: x * 2, c)
    return lambda x: (c(x), c.n.value)


@pytest.mark.parametrize("call", FINE.values(), ids=FINE.keys())
def test_what_is_not_lost_is_not_told(call):
    assert caught(lambda: call(Counting())) == []
