"""Plain JAX transforms and nnx ones, on objects, States and Modules as pytrees, in any nesting.

The same number comes out of every way to write a thing; nothing raises where nothing leaks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx
from refax.nnx import Carry
from tests.models import Dense, Node, Stateful

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.arange(6.0).reshape(3, 2) / 6


def close(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def make_stack(count=4, size=2) -> Dense:
    return nnx.vmap(lambda seed: Dense(size, size, seed=seed))(jnp.arange(count))


# -- every nesting of three ----------------------------------------------------------------------


def loss_of(model, x):
    return (model(x) ** 2).sum()


def gradients(model, x):
    """By hand, on arrays."""

    def loss(kernel, bias):
        return ((x @ kernel + bias[None]) ** 2).sum()

    grads = jax.grad(loss, (0, 1))(model.kernel.value, model.bias.value)
    return {"kernel": grads[0], "bias": grads[1]}


def as_dict(grads):
    grads = nnx.state(grads) if isinstance(grads, nnx.Pytree) else grads
    return nnx.to_pure_dict(grads)


JITS = {"jax.jit": jax.jit, "nnx.jit": nnx.jit, "none": lambda f: f}
GRADS = {
    "jax.grad": jax.grad,
    "nnx.grad": nnx.grad,
    "jax.grad of a State": lambda f: (
        lambda model, x: jax.grad(lambda state: f(nnx.merge(nnx.graphdef(model), state), x))(
            nnx.state(model)
        )
    ),
    "nnx.vjp": lambda f: lambda model, x: nnx.vjp(f, model, x)[1](jnp.ones(()))[0],
}
INNER = {
    "direct": lambda f: f,
    "nnx.vmap": lambda f: lambda m, x: nnx.vmap(f, in_axes=(None, 0))(m, x[:, None]).sum(),
    "jax.vmap": lambda f: lambda m, x: jax.vmap(f, in_axes=(None, 0))(m, x[:, None]).sum(),
    "nnx.remat": nnx.remat,
    "jax.checkpoint": jax.checkpoint,
    "nnx.jit": nnx.jit,
    "jax.jit": jax.jit,
    "nnx.scan": lambda f: (
        lambda m, x: nnx.scan(
            lambda m, c, x: c + f(m, x), in_axes=(None, Carry, 0), out_axes=Carry
        )(m, jnp.zeros(()), x[:, None])
    ),
    "lax.scan": lambda f: (
        lambda m, x: jax.lax.scan(lambda c, x: (c + f(m, x), None), jnp.zeros(()), x[:, None])[0]
    ),
    "nnx.cond": lambda f: lambda m, x: nnx.cond(x[0, 0] < 9, f, lambda m, x: 0.0 * f(m, x), m, x),
    "lax.cond": lambda f: (
        lambda m, x: jax.lax.cond(x[0, 0] < 9, f, lambda m, x: 0.0 * f(m, x), m, x)
    ),
}


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("jit", JITS)
def test_jit_of_grad_of_anything(jit, grad):
    model = Dense(2, 2)
    expected = gradients(model, X)
    for inner in INNER.values():
        close(as_dict(JITS[jit](GRADS[grad](inner(loss_of)))(model, X)), expected)


# -- state that changes --------------------------------------------------------------------------


def test_plain_jit_on_split_and_merge():
    model, twin = Stateful(2), Stateful(2)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params, rest, x):
        model = nnx.merge(graphdef, params, rest)
        y = model(x)
        return y, nnx.state(model, nnx.Not(nnx.Param))

    for _ in range(3):
        y, rest = step(params, rest, X)
        close(y, twin(X))
    assert int(model.count) == 0
    nnx.update(model, rest)
    close(model.mean.value, twin.mean.value)
    assert int(model.count) == 3


def test_modules_as_pytrees_have_value_semantics():
    model, twin = Stateful(2), Stateful(2)

    @jax.jit
    def step(model, x):
        y = model(x)
        return y, model

    y, new = step(model, X)
    close(y, twin(X))
    assert new is not model and int(model.count) == 0 and int(new.count) == 1
    (loss, new), grads = jax.value_and_grad(
        lambda model, x: (model(x).sum(), model), has_aux=True, allow_int=True
    )(new, X)
    assert int(new.count) == 2 and isinstance(grads, Stateful)
    (ys, many) = jax.vmap(lambda model, x: (model(x), model), in_axes=(None, 0))(new, X[:, None])
    assert ys.shape == (3, 1, 2) and many.mean.shape == (3, 2)


@pytest.mark.parametrize("outer", [nnx.jit, jax.jit], ids=["nnx.jit", "jax.jit"])
def test_split_and_merge_inside_of_a_transform(outer):
    """As in the quick reference: jax.grad of merge inside of nnx.jit, then update."""
    model = Stateful(2)

    def step(model, x):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            inner = nnx.merge(graphdef, params, rest)
            return (inner(x) ** 2).sum(), nnx.state(inner, nnx.Not(nnx.Param))

        grads, rest = jax.grad(loss, has_aux=True)(params)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), rest)
        return model.scale.value, model.count.value

    scale, count = outer(step)(model, X)
    twin = Stateful(2)
    grads = nnx.grad(lambda m, x: (m(x) ** 2).sum())(twin, X)
    close(scale, 1 - 0.1 * grads.scale.value)
    assert int(count) == 1
    if outer is nnx.jit:
        close(model.scale.value, scale)
        close(model.mean.value, twin.mean.value)
    else:
        assert int(model.count) == 0


def test_nnx_transforms_inside_of_plain_ones():
    model = Stateful(2)

    @jax.jit
    def f(state, x):
        inner = nnx.merge(nnx.graphdef(model), state)
        nnx.jit(lambda m, x: m(x))(inner, x)
        nnx.grad(lambda m, x: m(x).sum())(inner, x)
        nnx.remat(lambda m, x: m(x))(inner, x)
        nnx.vmap(lambda m: m.scale * 2, in_axes=None, axis_size=2)(inner)
        nnx.cond(x[0, 0] > 9, lambda m, x: m(x), lambda m, x: x, inner, x)
        nnx.fori_loop(0, 2, lambda i, m: (m(x), m)[1], inner)
        return nnx.state(inner)

    state = f(nnx.state(model), X)
    assert int(state["count"].value) == 5 and int(model.count) == 0
    assert not isinstance(model.mean.value, jax.core.Tracer)


def test_objects_made_in_a_plain_transform_may_be_changed_there():
    @jax.jit
    def f(x):
        model = Stateful(2)
        model(x)
        model.extra = Node(w=nnx.Param(x))
        model.extra.w += 1.0
        grads = jax.grad(lambda s: (x * s[None]).sum())(model.scale.value)
        model.scale.value = model.scale - grads
        return model.count.value, model.scale.value, model

    count, scale, model = f(X)
    assert int(count) == 1 and isinstance(model, Stateful)
    model.extra.w += 1.0
    close(model.extra.w.value, X + 2)
    close(model.scale.value, scale)


# -- loops over layers ---------------------------------------------------------------------------


def test_scan_over_layers_in_every_style():
    layers = make_stack()
    graphdef, state = nnx.split(layers)

    def run(layer, x):
        return layer(x)

    ways = [
        lambda x: nnx.scan(run, in_axes=(0, Carry), out_axes=Carry)(layers, x),
        lambda x: jax.lax.scan(lambda x, layer: (layer(x), None), x, layers)[0],
        lambda x: jax.lax.scan(lambda x, s: (nnx.merge(graphdef, s)(x), None), x, state)[0],
        lambda x: nnx.scan(
            lambda s, x: nnx.merge(graphdef, s)(x), in_axes=(0, Carry), out_axes=Carry
        )(state, x),
        lambda x: nnx.scan(nnx.remat(run), in_axes=(0, Carry), out_axes=Carry)(layers, x),
        lambda x: jax.lax.fori_loop(
            0, 4, lambda i, x: jax.tree.map(lambda p: p[i], layers)(x), x
        ),
    ]  # fmt: skip
    expected = ways[0](X)
    for way in ways:
        for transform in (lambda f: f, jax.jit, nnx.jit):
            close(transform(way)(X), expected)


def test_stacks_made_in_every_style():
    keys = jax.random.split(jax.random.key(0), 4)

    def make(key):
        return nnx.Linear(2, 3, rngs=nnx.Rngs(key))

    expected = nnx.state(nnx.vmap(make)(keys))
    close(nnx.state(jax.vmap(make)(keys)), expected)
    close(jax.vmap(lambda key: nnx.state(make(key)))(keys), expected)
    close(nnx.state(nnx.jit(nnx.vmap(make))(keys)), expected)
    close(nnx.state(jax.jit(jax.vmap(make))(keys)), expected)
    close(nnx.state(jax.tree.map(lambda *xs: jnp.stack(xs), *map(make, keys))), expected)


def test_jax_shard_map_and_pmap():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model = Dense(2, 3)
    graphdef, state = nnx.split(model)
    x = jnp.arange(16.0).reshape(8, 2)
    specs = {"mesh": mesh, "in_specs": (P(), P("data")), "out_specs": P("data")}
    expected = model(x)
    close(jax.shard_map(lambda m, x: m(x), **specs)(model, x), expected)
    close(jax.shard_map(lambda s, x: nnx.merge(graphdef, s)(x), **specs)(state, x), expected)
    close(nnx.shard_map(lambda s, x: nnx.merge(graphdef, s)(x), **specs)(state, x), expected)
    rows = jax.pmap(lambda m, x: m(x), in_axes=(None, 0))(model, x[:, None])
    close(rows[:, 0], expected)
    inside = nnx.jit(lambda m, x: jax.shard_map(lambda m, x: m(x), **specs)(m, x))
    close(inside(model, x), expected)


# -- a training step -----------------------------------------------------------------------------


def test_a_training_step_in_every_style():
    tx = optax.sgd(0.1)

    def loss(model):
        return (model(X) ** 2).mean()

    def by_objects():
        model = Stateful(2)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(loss)(model))

        for _ in range(3):
            step(model, optimizer)
        return model

    def by_states():
        graphdef, params, rest = nnx.split(Stateful(2), nnx.Param, ...)
        state = tx.init(params)

        @jax.jit
        def step(params, rest, state):
            def of_params(params):
                model = nnx.merge(graphdef, params, rest)
                return loss(model), nnx.state(model, nnx.Not(nnx.Param))

            grads, rest_ = jax.grad(of_params, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), rest_, state

        for _ in range(3):
            params, rest, state = step(params, rest, state)
        return nnx.merge(graphdef, params, rest)

    def with_everything_as_a_pytree():
        model = Stateful(2)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @jax.jit
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(loss)(model))
            return model, optimizer

        for _ in range(3):
            model, optimizer = step(model, optimizer)
        return model

    def with_a_loop_inside():
        model = Stateful(2)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def steps(model, optimizer):
            def step(i, both):
                both[1].update(both[0], nnx.grad(loss)(both[0]))
                return both

            nnx.fori_loop(0, 3, step, (model, optimizer))

        steps(model, optimizer)
        return model

    with jax.numpy_dtype_promotion("standard"):
        states = [nnx.state(f()) for f in (by_objects, by_states, with_everything_as_a_pytree,
                                           with_a_loop_inside)]  # fmt: skip
    for state in states[1:]:
        close(nnx.to_pure_dict(state), nnx.to_pure_dict(states[0]))
    assert int(states[0]["count"].value) == 3


# -- only real leaks raise -----------------------------------------------------------------------


def test_only_real_leaks_raise():
    model = Stateful(2)

    @jax.jit
    def reads(x):
        return x * model.scale[None]  # reading from outside is fine

    close(reads(X), X)
    copied = jax.jit(lambda x: nnx.clone(model)(x))  # so is a copy, and so is merge
    assert copied(X).shape == X.shape
    merged = jax.jit(lambda x: nnx.merge(*nnx.split(model))(x))
    assert merged(X).shape == X.shape
    assert int(model.count) == 0
    for transform in (jax.jit, nnx.jit, jax.vmap, jax.checkpoint, nnx.remat):
        with pytest.raises(nnx.TraceContextError, match="`Stateful.mean`"):
            transform(lambda x: model(x.reshape(-1, 2)))(X)
    with pytest.raises(nnx.TraceContextError):
        jax.grad(lambda x: model(x).sum())(X)
    with pytest.raises(nnx.TraceContextError):
        nnx.jit(lambda m, x: jax.vmap(lambda x: m(x[None]))(x))(model, X)
