"""Writes to objects that plain JAX rebuilt in a trace: told once a function, if they are lost."""

import gc
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Node

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
    assert (
        "Param `Linear.bias`" in text and "Param `Linear.kernel`" in text and " more, and" in text
    )
    assert "Cure: nnx.jit" in text and "or return the object" in text
    assert caught(lambda: step(model, optimizer, X)) == []  # compiled: nothing runs
    assert caught(lambda: step(model, optimizer, X[:1])) == []  # once a function


def stacked(c):
    return jax.tree.map(lambda x: x[None], c)


LOST = {
    "jit": lambda c: jax.jit(lambda c, x: c(x))(c, X),
    "grad": lambda c: jax.grad(lambda c, x: c(x).sum())(c, X),
    "vmap": lambda c: jax.vmap(lambda c, x: c(x), in_axes=(0, None))(stacked(c), X),
    "scan": lambda c: jax.lax.scan(lambda x, c: (x, c(X)), 0, stacked(c)),
    "pmap": lambda c: jax.pmap(lambda c, x: c(x), in_axes=(0, None))(stacked(c), X),
    "checkpoint": lambda c: jax.checkpoint(lambda c, x: c(x))(c, X),
    "vjp": lambda c: jax.vjp(lambda c: c(X), c),
    "jvp": lambda c: jax.jvp(lambda c: c(X), (c,), (c,)),
    "linearize": lambda c: jax.linearize(lambda c: c(X), c),
    "shard_map": lambda c: jax.shard_map(
        lambda c: c(X), mesh=jax.make_mesh((1,), ("i",)), in_specs=P(), out_specs=P()
    )(c),
    "a branch": lambda c: jax.jit(lambda c, x: jax.lax.cond(True, lambda c: c(x), lambda c: x, c))(
        c, X
    ),
    "lower": lambda c: jax.jit(lambda c, x: c(x)).lower(c, X),
    "in nnx.jit": lambda c: nnx.jit(lambda x: jax.jit(lambda c: c(x))(c))(X),
    "through nnx.jit": lambda c: jax.jit(lambda c, x: nnx.jit(lambda c, x: c(x))(c, x))(c, X),
    "through nnx.remat": lambda c: jax.jit(lambda c, x: nnx.remat(lambda c: c(x))(c))(c, X),
    "by update": lambda c: jax.jit(lambda c, x: nnx.update(c, {"n": x.sum()}))(c, X),
    "after a read": lambda c: jax.jit(lambda c, x: (read(c, x), c(x))[0])(c, X),
    "after a verb": lambda c: jax.jit(lambda c, x: (c(x), nnx.state(c), c(x))[0])(c, X),
    "in a list": lambda c: jax.jit(lambda cs, x: cs[1](x))([0, c], X),
    "below": lambda c: jax.jit(lambda m, x: m.inner[0](x))(Node(inner=[c]), X),
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
    "mapped and dropped": lambda c: jax.jit(lambda c, x: jax.tree.map(jnp.sin, c)(x))(c, X),
    "outside of a trace": lambda c: jax.tree.map(lambda x: x + 1, c)(X),
    "eval_shape": lambda c: jax.eval_shape(lambda c, x: c(x), c, X),
    "make_jaxpr": lambda c: jax.make_jaxpr(lambda c, x: c(x))(c, X),
    "nnx.eval_shape": lambda c: nnx.eval_shape(lambda c, x: c(x), c, X),
    "the Variable is returned": lambda c: jax.jit(lambda c, x: (c(x), {"n": c.n}))(c, X),
    "the part is returned": lambda m: jax.jit(lambda m, x: (m.c(x), m.c))(Node(c=m), X),
    "the list is returned": lambda m: jax.jit(lambda m, x: (m.c[0](x), m.c))(Node(c=[m]), X),
    "a copy is returned": lambda c: jax.jit(lambda c, x: (c(x), nnx.clone(c)))(c, X),
    "it is computed with": lambda c: jax.jit(lambda c, x: (c(x), c.n * 2))(c, X),
    "used by another transform": lambda c: jax.jit(
        lambda c, x: (c(x), jax.checkpoint(lambda c: c.n.value)(c))
    )(c, X),
    "of its own": lambda c: jax.jit(lambda x: Counting()(x))(X),
    "merged": lambda c: jax.jit(lambda s, x: nnx.merge(nnx.graphdef(c), s)(x))(nnx.state(c), X),
}


class Noisy(nnx.Module):
    """What it writes, it writes by the way."""

    def __init__(self):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        self.sow(nnx.Intermediate, "x", x)
        return self.dropout(self.norm(x))


def test_what_a_forward_pass_writes_by_the_way_is_not_told():
    assert caught(lambda: jax.jit(lambda m, x: m(x))(Noisy(), X)) == []
    assert caught(lambda: jax.grad(lambda m, x: m(x).sum(), allow_int=True)(Noisy(), X)) == []


def test_a_function_that_raises_is_not_told():
    def f(c, x):
        c(x)
        raise ZeroDivisionError

    def call():
        for transform in (jax.jit, jax.vmap, jax.checkpoint):
            with pytest.raises(ZeroDivisionError):
                transform(f)(stacked(Counting()), X[:1])

    assert caught(call) == []


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.checkpoint])
def test_the_function_is_named(transform):
    def forward_of_mine(c):
        return c(X).sum()

    (text,) = caught(lambda: transform(forward_of_mine)(Counting()))
    assert "forward_of_mine` (" in text and "test_lost_writes.py:" in text


def doubled(c):
    c = jax.tree.map(lambda x: x * 2, c)
    return lambda x: (c(x), c.n.value)


@pytest.mark.parametrize("call", FINE.values(), ids=FINE.keys())
def test_what_is_not_lost_is_not_told(call):
    assert caught(lambda: call(Counting())) == []
