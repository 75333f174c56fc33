"""Compiled programs are as lean as hand-written JAX: memory and number of operations, within 5%.

Each pair is a program with objects and the same one on plain arrays. What is measured is what XLA
makes of them, not time.
"""

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx
from refax.nnx import Carry
from tests.models import Count

LAYERS, SIZE, BATCH = 6, 32, 16
X = jnp.ones((BATCH, SIZE))


class Block(nnx.Module):
    def __init__(self, seed):
        keys = jax.random.split(jax.random.key(seed))
        self.up = nnx.Param(jax.random.normal(keys[0], (SIZE, 4 * SIZE)) / 8)
        self.down = nnx.Param(jax.random.normal(keys[1], (4 * SIZE, SIZE)) / 8)
        self.count = Count(jnp.zeros((), jnp.int32))
        self.counting = False

    def __call__(self, x):
        if self.counting:
            self.count += 1
        return x + jnp.tanh(x @ self.up) @ self.down


def by_hand(params, x):
    up, down = params
    return x + jnp.tanh(x @ up) @ down


STACK = nnx.vmap(Block)(jnp.arange(LAYERS))
ONE = Block(0)
PARAMS = (STACK.up.value, STACK.down.value)


class Cost(NamedTuple):
    temporary: int
    outputs: int
    arguments: int
    operations: int


def cost(compiled: Any) -> Cost:
    memory = compiled.memory_analysis()
    operations = re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", compiled.as_text(), re.MULTILINE)
    return Cost(
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        memory.argument_size_in_bytes,
        len(operations),
    )


def assert_as_lean(ours: Cost, theirs: Cost) -> None:
    # The count variables are arguments too, where they are not read.
    slack = Cost(theirs.temporary // 20 + 64, theirs.outputs // 20 + 64, 64 * LAYERS,
                 theirs.operations // 20)  # fmt: skip
    for name in Cost._fields:
        mine, yours, more = getattr(ours, name), getattr(theirs, name), getattr(slack, name)
        assert mine <= yours + more, f"{name}: {ours} and by hand {theirs}"


def call(model, x):
    return model(x)


def scanned(model, x):
    return nnx.scan(call, in_axes=(0, Carry), out_axes=Carry)(model, x)


def scanned_by_hand(params, x):
    return jax.lax.scan(lambda x, p: (by_hand(p, x), None), x, params)[0]


def rematerialized(model, x):
    return nnx.scan(nnx.remat(call), in_axes=(0, Carry), out_axes=Carry)(model, x)


def rematerialized_by_hand(params, x):
    body = jax.checkpoint(lambda x, p: (by_hand(p, x), None))
    return jax.lax.scan(body, x, params)[0]


def mapped(model, x):
    return nnx.vmap(call, in_axes=(0, None))(model, x)


def mapped_by_hand(params, x):
    return jax.vmap(by_hand, (0, None))(params, x)


def grad_of(f: Callable) -> Callable:
    return lambda model, x: nnx.grad(lambda model: f(model, x).sum())(model)


def grad_by_hand(f: Callable) -> Callable:
    return lambda params, x: jax.grad(lambda params: f(params, x).sum())(params)


def either(model, x):
    return nnx.cond(x[0, 0] > 0, call, lambda model, x: x, model, x)


def either_by_hand(params, x):
    return jax.lax.cond(x[0, 0] > 0, by_hand, lambda params, x: x, params, x)


def repeated(model, x):
    return nnx.fori_loop(0, 3, lambda i, v: (v[0], v[0](v[1])), (model, x))[1]


def repeated_by_hand(params, x):
    return jax.lax.fori_loop(0, 3, lambda i, v: (v[0], by_hand(*v)), (params, x))[1]


def until(model, x):
    step = lambda v: (v[0], v[0](v[1]))  # noqa: E731
    return nnx.while_loop(lambda v: v[1][0, 0] < 9, step, (model, x))[1]


def until_by_hand(params, x):
    return jax.lax.while_loop(lambda v: v[1][0, 0] < 9, lambda v: (v[0], by_hand(*v)), (params, x))[
        1
    ]


STACKED = {
    "scan": (scanned, scanned_by_hand),
    "grad of scan": (grad_of(scanned), grad_by_hand(scanned_by_hand)),
    "grad of scan of remat": (grad_of(rematerialized), grad_by_hand(rematerialized_by_hand)),
    "vmap": (mapped, mapped_by_hand),
    "grad of vmap": (grad_of(mapped), grad_by_hand(mapped_by_hand)),
    "vmap of grad": (
        lambda model, x: nnx.vmap(grad_of(call), in_axes=(0, None))(model, x),
        lambda params, x: jax.vmap(grad_by_hand(by_hand), (0, None))(params, x),
    ),
}
SINGLE = {
    "call": (call, by_hand),
    "grad": (grad_of(call), grad_by_hand(by_hand)),
    "remat": (grad_of(nnx.remat(call)), grad_by_hand(jax.checkpoint(by_hand))),
    "vjp": (
        lambda model, x: nnx.vjp(call, model, x)[1](x),
        lambda params, x: jax.vjp(by_hand, params, x)[1](x),
    ),
    "cond": (either, either_by_hand),
    "fori_loop": (repeated, repeated_by_hand),
    "while_loop": (until, until_by_hand),
}


@pytest.mark.parametrize("name", [*STACKED, *SINGLE])
def test_as_lean_as_by_hand(name):
    ours, theirs = (STACKED | SINGLE)[name]
    model = STACK if name in STACKED else ONE
    params = PARAMS if name in STACKED else (ONE.up.value, ONE.down.value)
    expected = cost(jax.jit(theirs).lower(params, X).compile())
    assert_as_lean(cost(nnx.jit(ours).lower(model, X).compile()), expected)
    assert_as_lean(cost(jax.jit(ours).lower(model, X).compile()), expected)


def test_read_only_parameters_do_not_come_out():
    x_bytes = X.size * X.dtype.itemsize
    for f, model in ((call, ONE), (scanned, STACK)):
        compiled = nnx.jit(f).lower(model, X).compile()
        assert cost(compiled).outputs == x_bytes  # the result, nothing else
    counting = nnx.vmap(Block)(jnp.arange(LAYERS))
    counting.counting = True
    compiled = nnx.jit(scanned).lower(counting, X).compile()
    assert x_bytes < cost(compiled).outputs <= x_bytes + 64 * LAYERS  # and the counts
    assert counting.count.value.tolist() == [0] * LAYERS

    def by_hand_counting(params, counts, x):
        def body(x, pc):
            return by_hand(pc[0], x), pc[1] + 1

        return jax.lax.scan(body, x, (params, counts))

    expected = jax.jit(by_hand_counting).lower(PARAMS, counting.count.value, X).compile()
    assert_as_lean(cost(compiled), cost(expected))


def test_a_train_step():
    optimizer = optax.adam(1e-3)

    @nnx.jit
    def step(model, state, x):
        loss, grads = nnx.value_and_grad(lambda m: (scanned(m, x) ** 2).mean())(model)
        state.update(model, grads)
        return loss

    @jax.jit
    def step_by_hand(params, state, x):
        loss, grads = jax.value_and_grad(lambda p: (scanned_by_hand(p, x) ** 2).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return loss, optax.apply_updates(params, updates), state

    ours = step.lower(STACK, nnx.Optimizer(STACK, optimizer, wrt=nnx.Param), X).compile()
    theirs = step_by_hand.lower(PARAMS, optimizer.init(PARAMS), X).compile()
    assert_as_lean(cost(ours), cost(theirs))


def test_scanned_state_is_not_copied_into_a_carry():
    """The loop carries what the body carries: one array, whatever the layers have."""
    jaxpr = nnx.make_jaxpr(scanned)(STACK, X)
    (scan,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert [v.aval.shape for v in scan.outvars] == [(BATCH, SIZE)]
    assert len(scan.invars) <= 1 + len(jax.tree.leaves(nnx.state(STACK)))


# -- what programs keep alive --------------------------------------------------------------------


def with_spec(f):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:1])  # fmt: skip
    return nnx.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P())


USES = {
    "jit": lambda f: nnx.jit(f),
    "scan": lambda f: nnx.scan(f, in_axes=(None, 0), out_axes=0),
    "scan with a carry": lambda f: nnx.scan(lambda m, x: (m, f(m, x))),
    "cond": lambda f: lambda m, x: nnx.cond(True, f, f, m, x),
    "switch": lambda f: lambda m, x: nnx.switch(0, [f, f], m, x),
    "fori_loop": lambda f: lambda m, x: nnx.fori_loop(0, 2, lambda i, v: (v[0], f(*v)), (m, x)),
    "while_loop": lambda f: (
        lambda m, x: nnx.while_loop(lambda v: v[1][0, 0] < 0, lambda v: (v[0], f(*v)), (m, x))
    ),
    "vmap": lambda f: nnx.vmap(f, in_axes=(None, 0)),
    "pmap": lambda f: nnx.pmap(f, in_axes=(None, 0)),
    "shard_map": with_spec,
    "grad": lambda f: nnx.grad(lambda m, x: (m.up.value.sum(), f(m, x)), has_aux=True),
    "remat": lambda f: nnx.remat(f),
    "checkify": lambda f: nnx.checkify(f),
}


@pytest.mark.parametrize("name", USES)
def test_programs_keep_no_objects_arrays_or_functions_alive(name):
    def function(model, x):
        return x * 2

    model, x = Block(0), jnp.ones((2, 2))
    transformed = USES[name](function)
    transformed(model, x)
    watched = [weakref.ref(o) for o in (model, model.up, model.up.value, x)]
    del model, x
    gc.collect()
    assert [ref() for ref in watched] == [None] * 4  # the program is still there
    watched = weakref.ref(function)
    del function, transformed
    jax.clear_caches()  # JAX's own, of jaxprs by function
    gc.collect()
    assert watched() is None
