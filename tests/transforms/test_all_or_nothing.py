"""A call that raises leaves the caller's objects as they were, wherever it raises.

That the function itself may raise in every transform is part of the conformance table; here are
random changes of random graphs, and what fails after the function has returned.
"""

import copy
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests import strategies as graphs
from tests.models import Count, Dense, Node, Uncomparable
from tests.transforms.changes import tracers_in

X = jnp.ones(3)


class MineError(BaseException):
    """Not even an Exception: such as KeyboardInterrupt."""


# -- random changes of random graphs -------------------------------------------------------------


def summed(body):
    return lambda model, x: (x.sum(), body(model))


def custom(body):
    f = nnx.custom_vjp(lambda model, x: (body(model), x)[1])
    f.defvjp(lambda model, x: (f(model, x), ()), lambda r, g: (None, g[1]))
    return f


MAKERS = {
    "jit": lambda body: nnx.jit(lambda m, x: body(m)),
    "grad": lambda body: nnx.grad(summed(body), argnums=1, has_aux=True),
    "remat": lambda body: nnx.remat(lambda m, x: body(m)),
    "eval_shape": lambda body: lambda m, x: nnx.eval_shape(lambda m: body(m), m),
    "vmap": lambda body: nnx.vmap(lambda m, x: body(m), in_axes=(None, 0)),
    "pmap": lambda body: nnx.pmap(lambda m, x: body(m), in_axes=(None, 0)),
    "shard_map": lambda body: nnx.shard_map(
        lambda m, x: body(m),
        mesh=jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,),
                           devices=jax.devices()[:1]),
        in_specs=P(), out_specs=P(),
    ),
    "scan": lambda body: nnx.scan(lambda m, x: body(m), in_axes=(None, 0), out_axes=0),
    "scan carry": lambda body: nnx.scan(lambda m, x: (body(m), x)),
    "fori_loop": lambda body: lambda m, x: nnx.fori_loop(0, 2, lambda i, m: body(m), m),
    "while_loop": lambda body: lambda m, x: nnx.while_loop(lambda m: True, body, m),
    "cond": lambda body: lambda m, x: nnx.cond(x[0] > 0, body, lambda m: None, m),
    "switch": lambda body: lambda m, x: nnx.switch(1, [lambda m: None, body], m),
    "vjp": lambda body: lambda m, x: nnx.vjp(lambda m, x: summed(body)(m, x)[0], m, x),
    "custom_vjp": lambda body: custom(body),
    "checkify": lambda body: nnx.checkify(lambda m, x: body(m)),
    "make_jaxpr": lambda body: nnx.make_jaxpr(lambda m, x: body(m)),
}  # fmt: skip


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.sampled_from(sorted(MAKERS)), graphs.graphs, st.lists(graphs.changes, max_size=6)
)
def test_random_changes_and_an_exception(name, model, changes):
    twin = copy.deepcopy(model)
    before, twins = graphs.objects_of(model), graphs.objects_of(twin)

    def body(model):
        for change in changes:
            graphs.apply(model, change)
        raise MineError

    with pytest.raises(MineError):
        MAKERS[name](body)(model, X)
    ours, theirs = Node(root=model, all=before), Node(root=twin, all=twins)
    assert graphs.difference(ours, theirs) == ""
    assert tracers_in(ours) == []
    model.new = 1  # not left in a trace


# -- what fails after the function has returned --------------------------------------------------


def make_model() -> Node:
    return Node(
        w=nnx.Param(jnp.ones((3, 2)), tag="w"), count=Count(jnp.zeros(3, jnp.int32)),
        items=[nnx.Param(jnp.ones((3, 2)))], array=jnp.ones((3, 2)), mode="train",
    )  # fmt: skip


def change(model: Any) -> None:
    model.w.value = model.w * 2
    model.w.set_metadata(tag="other")
    model.count += 1
    model.items.append(model.w)
    model.array = model.array + 1
    model.mode = "eval"
    model.new = Node(parent=model)
    del model.items[0]


def values(model: Any) -> None:
    model.w.value = model.w * 2
    model.count += 1


def after(body, result):
    return lambda model, *rest: (body(model), result(model))[1]


def mapped(*args, **kwargs):
    return lambda model: nnx.vmap(*args, **kwargs)(model, X)


LATE = {
    "vmap: aliased output": lambda m: nnx.vmap(after(change, lambda m: m), out_axes=1)(m),
    "vmap: result is no array": lambda m: nnx.vmap(after(change, lambda m: object()))(m),
    "vmap: result is not mapped": lambda m: nnx.vmap(
        after(values, lambda m: m.w), in_axes=0, out_axes=None
    )(m),
    "vmap: broadcast state written": lambda m: nnx.vmap(
        lambda m, x: (change(m), setattr(m.w, "value", m.w * x)), in_axes=(None, 0)
    )(m, X),
    "vmap: sizes": lambda m: nnx.vmap(after(change, lambda m: 0))(m, jnp.ones(4)),
    "pmap: broadcast state written": lambda m: nnx.pmap(
        lambda m, x: (change(m), setattr(m.w, "value", m.w * x)), in_axes=(None, 0)
    )(m, X),
    "scan: broadcast state written": lambda m: nnx.scan(
        lambda m, x: change(m), in_axes=(None, 0), out_axes=0
    )(m, X),
    "scan: grown carry": lambda m: nnx.scan(lambda m, x: (change(m), (m, x))[1])(m, X),
    "scan: result has the wrong form": lambda m: nnx.scan(after(change, lambda m: 1))(m, X),
    "scan: result is no array": lambda m: nnx.scan(
        after(change, lambda m: object()), in_axes=0, out_axes=0
    )(m),
    "scan: out axis": lambda m: nnx.scan(after(change, lambda m: m.w), in_axes=0, out_axes=7)(m),
    "while_loop: other carry": lambda m: nnx.while_loop(
        lambda m: True, after(change, lambda m: m), m
    ),
    "while_loop: result": lambda m: nnx.while_loop(lambda m: True, after(values, lambda m: 0), m),
    "while_loop: condition": lambda m: nnx.while_loop(
        after(values, lambda m: True), lambda m: m, m
    ),
    "while_loop: condition is no bool": lambda m: nnx.while_loop(
        lambda m: m.w, after(values, lambda m: m), m
    ),
    "fori_loop: result": lambda m: nnx.fori_loop(0, 2, lambda i, m: values(m), m),
    "cond: structures": lambda m: nnx.cond(True, change, lambda m: None, m),
    "cond: values": lambda m: nnx.cond(True, after(values, lambda m: 1.0), lambda m: (1.0,), m),
    "grad: not a scalar": lambda m: nnx.grad(after(change, lambda m: m.w))(m),
    "grad: no aux": lambda m: nnx.grad(after(change, lambda m: m.w.sum()), has_aux=True)(m),
    "vjp: an object": lambda m: nnx.vjp(after(change, lambda m: m), m),
    "jit: result is no array": lambda m: nnx.jit(after(change, lambda m: object()))(m),
    "remat: result is no array": lambda m: nnx.remat(after(change, lambda m: object()))(m),
    "uncomparable static": lambda m: nnx.jit(
        lambda m: (change(m), setattr(m, "bad", Uncomparable()))
    )(m),
    "inner call was fine": lambda m: nnx.jit(
        lambda m: (nnx.jit(change)(m), nnx.vmap(values)(m), 1 / 0)
    )(m),
    "leak in the function": lambda m: nnx.jit(lambda x: (change(m), x)[1])(X),
}


@pytest.mark.filterwarnings("ignore:.*donated buffers were not usable")
@pytest.mark.parametrize("name", LATE)
def test_late_failures(name):
    model, twin = make_model(), make_model()
    before, twins = graphs.objects_of(model), graphs.objects_of(twin)
    for _ in range(2):  # the second time with what the first one may have left in caches
        with pytest.raises((ValueError, TypeError, RuntimeError, ZeroDivisionError)):
            LATE[name](model)
        ours, theirs = Node(root=model, all=before), Node(root=twin, all=twins)
        assert graphs.difference(ours, theirs) == ""
        assert tracers_in(ours) == []
    nnx.jit(change)(model)
    change(twin)
    assert graphs.difference(model, twin) == ""


def test_an_error_while_the_program_runs():
    def fails(x):
        raise MineRuntimeError

    class MineRuntimeError(Exception):
        pass

    model = make_model()
    w = model.w.value

    @nnx.jit
    def f(model, x):
        model.w.value = model.w * jax.pure_callback(fails, jax.ShapeDtypeStruct((), x.dtype), x)
        return x

    with pytest.raises(Exception, match="MineRuntimeError"):
        jax.block_until_ready(f(model, jnp.ones(())))
        jax.block_until_ready(model.w.value)
    if model.w.value is not w:  # the program was started; JAX tells of the error when it is read
        with pytest.raises(Exception, match="MineRuntimeError"):
            np.asarray(model.w.value)


def test_a_training_step():
    model = Dense(2, 3)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    rngs = nnx.Rngs(0)
    everything = Node(model=model, optimizer=optimizer, rngs=rngs)
    before = jax.tree.leaves(nnx.state(everything))

    @nnx.jit
    def step(model, optimizer, rngs, x):
        noise = rngs.normal((2, 3))
        grads = nnx.grad(lambda m: (m(x) * noise).sum())(model)
        optimizer.update(model, grads)
        raise MineError

    with pytest.raises(MineError):
        step(model, optimizer, rngs, jnp.ones((2, 2)))
    after = jax.tree.leaves(nnx.state(everything))
    assert all(a is b for a, b in zip(before, after, strict=True))
