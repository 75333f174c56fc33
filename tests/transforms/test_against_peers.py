"""The same program text, run with refax and with its peer: the same numbers.

Each program is a function of the namespace `nnx`; it uses what both libraries spell alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx as refax_nnx

peer = pytest.importorskip("flax.nnx")

X = jnp.arange(24.0).reshape(4, 6) / 24
Y = jnp.arange(12.0).reshape(4, 3) / 12


def make_mlp(nnx):
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(6, 8, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)
            self.down = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(self.dropout(nnx.relu(self.norm(self.up(x)))))

    return MLP


def arrays(nnx, *objects) -> list[Any]:
    """The values of objects as arrays, keys as their words."""
    leaves = jax.tree.leaves([nnx.state(o) for o in objects])
    return [words(x) for x in leaves]


def words(x):
    x = jnp.asarray(x)
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


PROGRAMS = {}


def program(f):
    PROGRAMS[f.__name__] = f
    return f


# -- programs ------------------------------------------------------------------------------------


@program
def vmapped_ensemble(nnx):
    ensemble = nnx.vmap(lambda key: nnx.Linear(6, 3, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 5)
    )
    y = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))(ensemble, X)
    grads = nnx.grad(lambda m: (nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(m, X) ** 2).mean())(
        ensemble
    )
    return [y, *arrays(nnx, ensemble), *jax.tree.leaves(grads)]


@program
def split_rngs_over_init_and_scan_over_layers(nnx):
    class Stack(nnx.Module):
        @nnx.split_rngs(splits=4)
        @nnx.vmap(in_axes=(0, 0))
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 6, rngs=rngs)
            self.norm = nnx.LayerNorm(6, rngs=rngs)

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def __call__(self, x):
            return x + nnx.gelu(self.norm(self.linear(x)))

    stack = Stack(nnx.Rngs(0))
    grads = nnx.grad(lambda m: m(X).sum())(stack)
    return [stack(X), *arrays(nnx, stack), *jax.tree.leaves(grads)]


@program
def recurrent_cell(nnx):
    class Cell(nnx.Module):
        def __init__(self, rngs):
            self.state_to_state = nnx.Linear(3, 3, rngs=rngs)
            self.input_to_state = nnx.Linear(6, 3, use_bias=False, rngs=rngs)
            self.steps = nnx.Variable(jnp.array(0))

        def __call__(self, h, x):
            h = jnp.tanh(self.state_to_state(h) + self.input_to_state(x))
            return h, h

    cell = Cell(nnx.Rngs(1))
    run = nnx.scan(
        lambda cell, h, x: cell(h, x), in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0)
    )
    xs = jnp.stack([X, X * 2, X - 1])
    h, hs = run(cell, jnp.zeros((4, 3)), xs)
    grads = nnx.grad(lambda cell: run(cell, jnp.zeros((4, 3)), xs)[1].sum())(cell)
    return [h, hs, *jax.tree.leaves(grads)]


@program
def dropout_under_split_rngs(nnx):
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    axes = nnx.StateAxes({nnx.RngState: 0, ...: None})

    @nnx.split_rngs(splits=4)
    @nnx.vmap(in_axes=(axes, 0))
    def f(dropout, x):
        return dropout(x)

    return [f(dropout, X), f(dropout, X), *arrays(nnx, dropout)]


@program
def noise_from_a_vmapped_stream(nnx):
    class Noisy(nnx.Module):
        def __init__(self, seed):
            self.w = nnx.Param(jnp.ones(6))
            self.count = nnx.BatchStat(jnp.array(0))
            self.rngs = nnx.Rngs(noise=seed)

    model = Noisy(jax.random.split(jax.random.key(0), 4))
    axes = nnx.StateAxes({nnx.RngState: 0, (nnx.Param, nnx.BatchStat): None})

    @nnx.vmap(in_axes=(axes, 0))
    def f(model, x):
        model.count[...] += 1
        return x * model.w + jax.random.normal(model.rngs.noise(), x.shape)

    return [f(model, X), f(model, X), *arrays(nnx, model)]


@program
def train_step_with_batch_norm_and_dropout(nnx):
    model = make_mlp(nnx)(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_fn(model):
            return ((model(x) - y) ** 2).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer, X, Y) for _ in range(3)]
    model.eval()
    return [*losses, model(X), *arrays(nnx, model)]


@program
def custom_derivative(nnx):
    class Scale(nnx.Module):
        def __init__(self):
            self.x = nnx.Param(jnp.array(1.0))
            self.y = nnx.Param(jnp.array(2.0))

    @nnx.custom_vjp
    def f(m):
        return jnp.sin(m.x[...]) * m.y[...]

    def f_fwd(m):
        return f(m), (jnp.cos(m.x[...]), jnp.sin(m.x[...]), m)

    def f_bwd(res, g):
        _, out_g = g
        cos_x, sin_x, m = res
        m_g = nnx.state(m, nnx.Param)
        m_g["x"][...] = cos_x * out_g * m.y[...]
        m_g["y"][...] = sin_x * out_g * 3
        return (m_g,)

    f.defvjp(f_fwd, f_bwd)
    grads = nnx.grad(f)(Scale())
    return [grads["x"][...], grads["y"][...]]


@program
def conditional(nnx):
    model = make_mlp(nnx)(nnx.Rngs(0))
    results = []
    for pred in (True, False, True):
        y = nnx.cond(pred, lambda m, x: m(x), lambda m, x: m.down(m.up(x)), model, X)
        results += [y, *arrays(nnx, model)]
    return results


@program
def switched(nnx):
    model = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    branches = [lambda m, x: m(x), lambda m, x: x, lambda m, x: m(m(x))]
    return [nnx.switch(i, branches, model, X) for i in (0, 1, 2)]


@program
def while_loop(nnx):
    model = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    def cond(carry):
        return carry[2] < 4

    def body(carry):
        module, x, count = carry
        return module, jnp.tanh(module(x)), count + 1

    return list(nnx.while_loop(cond, body, (model, X, 0))[1:])


@program
def fori_loop_with_a_counter(nnx):
    class Counter(nnx.Module):
        def __init__(self):
            self.total = nnx.Variable(jnp.array(0.0))

    def body(i, carry):
        counter, x = carry
        counter.total[...] += x.sum() * i
        return counter, x * 2

    counter = Counter()
    _, x = nnx.fori_loop(0, 5, body, (counter, X))
    return [x, counter.total[...]]


@program
def gradients_with_diff_state(nnx):
    model = make_mlp(nnx)(nnx.Rngs(0))
    x = X

    def loss(model, x):
        return (model.norm(model.up(x)) ** 3).mean()

    by_path = nnx.All(nnx.Param, lambda path, value: "kernel" in path)
    results = []
    for argnums in (nnx.DiffState(0, nnx.BatchStat), nnx.DiffState(0, by_path),
                    (nnx.DiffState(0, nnx.Param), 1)):  # fmt: skip
        results += jax.tree.leaves(nnx.grad(loss, argnums=argnums)(model, x))
    return results


@program
def low_rank_adapters(nnx):
    rngs = nnx.Rngs(0)

    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(6, 3, rngs=rngs)
            self.lora = nnx.LoRA(6, 2, 3, base_module=self.base, rngs=rngs)

        def __call__(self, x):
            return self.lora(x)

    model = Adapted(rngs)
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.LoRAParam)
    for _ in range(3):
        grads = nnx.grad(
            lambda m: ((m(X) - Y) ** 2).mean(), argnums=nnx.DiffState(0, nnx.LoRAParam)
        )(model)
        optimizer.update(model, grads)
    return [model(X), *arrays(nnx, model)]


@program
def rematerialized(nnx):
    model = make_mlp(nnx)(nnx.Rngs(0))
    loss = nnx.remat(lambda model, x: (model(x) ** 2).mean())
    value, grads = nnx.value_and_grad(loss)(model, X)
    return [value, *jax.tree.leaves(grads), *arrays(nnx, model)]


@program
def attention_under_jit(nnx):
    model = nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=nnx.Rngs(0))
    mask = nnx.make_causal_mask(jnp.ones((1, 4)))
    y = nnx.jit(lambda m, x: m(x, mask=mask))(model, X[None])
    grads = nnx.jit(nnx.grad(lambda m: (m(X[None], mask=mask) ** 2).sum()))(model)
    return [y, *jax.tree.leaves(grads)]


@program
def split_merge_and_update(nnx):
    model = make_mlp(nnx)(nnx.Rngs(0))
    model.eval()  # the peer may not write to what jax.grad does not differentiate
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params, rest, x, y):
        def loss(params):
            return ((nnx.merge(graphdef, params, rest)(x) - y) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    losses = []
    for _ in range(3):
        params, value = step(params, rest, X, Y)
        losses.append(value)
    nnx.update(model, params)
    return [*losses, *arrays(nnx, model)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_numbers(name):
    ours, theirs = PROGRAMS[name](refax_nnx), PROGRAMS[name](peer)
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        a, b = np.asarray(words(a)), np.asarray(words(b))
        assert a.shape == b.shape and a.dtype == b.dtype, i
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=str(i))
