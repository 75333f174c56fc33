"""`vjp` and `jvp` against hand-written JAX, with objects among the primals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Stateful, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.arange(6.0).reshape(3, 2) / 6


def close(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def call(model, x):
    return model(x)


def by_hand(kernel, bias, x):
    return x @ kernel + bias[None]


# -- vjp -----------------------------------------------------------------------------------------


def test_vjp_equals_jax():
    model = Dense(2, 3)
    y, pullback = nnx.vjp(call, model, X)
    value, expected = jax.vjp(by_hand, model.kernel.value, model.bias.value, X)
    np.testing.assert_allclose(y, value)
    ct = jnp.ones_like(y) * 2
    grads, x_bar = pullback(ct)
    close((grads.kernel.value, grads.bias.value, x_bar), expected(ct))
    assert paths_of(grads) == paths_of(nnx.state(model, nnx.Param))
    assert grads.kernel.type is nnx.Param
    close(nnx.vjp(model, X)[1](ct)[0], x_bar)  # a bound object is no primal
    close(nnx.vjp(model.__call__, X)[1](ct)[0], x_bar)


@pytest.mark.parametrize(
    "argnums, indices", [(None, None), (0, 0), ((1,), (1,)), ((0, 1), (0, 1)), (-1, 1)]
)
def test_argnums(argnums, indices):
    def f(a, b):
        return jnp.sin(a) * b

    args, ct = (jnp.ones(2), jnp.full(2, 3.0)), jnp.ones(2)
    everything = jax.vjp(f, *args)[1](ct)
    picked = everything if indices is None else (
        everything[indices] if isinstance(indices, int) else tuple(everything[i] for i in indices)
    )  # fmt: skip
    close(nnx.vjp(f, *args, argnums=argnums)[1](ct), picked)


def test_diff_state():
    model = Stateful(2)
    only = (nnx.DiffState(0, nnx.BatchStat), 1)
    y, pullback = nnx.vjp(call, model, X, argnums=only)
    stats, x_bar = pullback(jnp.ones_like(y))
    assert paths_of(stats) == [("mean",)] and x_bar.shape == X.shape
    _, expected = jax.vjp(lambda mean, x: x - (0.5 * mean + 0.5 * x.mean(0))[None], jnp.zeros(2), X)
    close((stats.mean.value, x_bar), expected(jnp.ones_like(y)))


def test_state_changes_once_when_the_value_is_computed():
    model = Stateful(2)
    y, pullback = nnx.vjp(call, model, X)
    assert int(model.count) == 1
    pullback(y), pullback(y)
    assert int(model.count) == 1
    np.testing.assert_allclose(model.mean.value, X.mean(0) / 2, rtol=1e-6)


def test_aux_and_objects_in_it():
    model = Stateful(2)
    y, pullback, aux = nnx.vjp(
        lambda m, x: (m(x), {"m": m, "new": Node(x=x)}), model, X, has_aux=True
    )
    assert aux["m"] is model and isinstance(aux["new"], Node)
    assert pullback(y)[0].scale.shape == (2,)


def test_gradients_are_of_the_object_as_it_came_in():
    def f(model, x):
        model.new = nnx.Param(jnp.ones(2))
        y = x * model.w[None]
        del model.w
        return y

    model = Node(w=nnx.Param(jnp.ones(2)))
    y, pullback = nnx.vjp(f, model, X)
    assert paths_of(pullback(y)[0]) == [("w",)] and list(vars(model)) == ["new"]
    grads = nnx.grad(lambda model, x: f(model, x).sum())(Node(w=nnx.Param(jnp.ones(2))), X)
    assert paths_of(grads) == [("w",)]


def test_pytrees_of_objects_and_sharing():
    block, dense = Block(2), Dense(2, 2)

    def f(models, x):
        return models["b"](models["d"][0](x))

    models = {"b": block, "d": [dense]}
    expected = nnx.grad(lambda models: f(models, X).sum())(nnx.clone(models))
    y, pullback = nnx.vjp(f, models, X)
    grads, _ = pullback(jnp.ones_like(y))
    assert paths_of(grads["b"]) == paths_of(nnx.state(block, nnx.Param))
    assert paths_of(grads["d"][0]) == paths_of(nnx.state(dense, nnx.Param))
    close(grads, expected)


def test_nested_in_and_around_other_transforms():
    model = Stateful(2)

    def inner(model, x):
        y, pullback = nnx.vjp(call, model, x)
        return pullback(jnp.ones_like(y))[0].scale.value

    expected = inner(nnx.clone(model), X)
    close(nnx.jit(inner)(model, X), expected)
    assert int(model.count) == 1
    stacked = nnx.vmap(inner, in_axes=(None, 0), axis_size=2)
    with pytest.raises(nnx.GraphError, match=r"`model\.mean`"):
        stacked(model, jnp.stack([X, X + 1]))
    y, pullback = nnx.vjp(nnx.jit(call), model, X)
    assert pullback(y)[0].scale.shape == (2,) and int(model.count) == 2
    second = nnx.grad(lambda m: inner(m, X).sum() + (m.scale**2).sum())(model)
    close(second.scale.value, 2 * model.scale.value)


# -- jvp -----------------------------------------------------------------------------------------


def test_jvp_equals_jax():
    model = Dense(2, 3)
    tangent = jax.tree.map(lambda p: p * 0.1 + 1, nnx.state(model, nnx.Param))
    y, dy = nnx.jvp(call, (model, X), (tangent, X * 2))
    plain = (model.kernel.value, model.bias.value, X)
    moving = (tangent.kernel.value, tangent.bias.value, X * 2)
    close((y, dy), jax.jvp(by_hand, plain, moving))
    other = nnx.clone(model)
    nnx.update(other, tangent)
    close(nnx.jvp(call, (model, X), (other, X * 2))[1], dy)
    close(
        nnx.jvp(model.__call__, (X,), (X,)), jax.jvp(lambda x: by_hand(*plain[:2], x), (X,), (X,))
    )


def test_jvp_changes_state_once_and_returns_aux():
    model = Stateful(2)
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    y, dy, aux = nnx.jvp(lambda m, x: (m(x), m), (model, X), (zeros, X), has_aux=True)
    assert aux is model and int(model.count) == 1
    close(dy, X - X.mean(0)[None] / 2)


def test_jvp_of_a_variable():
    v = nnx.Param(jnp.array(3.0))
    close(nnx.jvp(lambda v: v * v, (v,), (jnp.array(2.0),))[1], 12.0)
    close(nnx.jvp(lambda v: v * v, (v,), (nnx.Param(jnp.array(2.0)),))[1], 12.0)


@pytest.mark.parametrize(
    "tangent, message",
    [
        (jnp.ones(2), r"the tangent of `model` is float32\[2\], but `model` is a Dense"),
        (nnx.State({}), r"no value for `model\.(bias|kernel)`"),
        (nnx.State({"kernel": jnp.ones((2, 3)), "bais": jnp.ones(3)}), "`bais`(.|\n)*'bias'"),
        (
            nnx.State({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(3)}),
            r"float32\[2,2\] for `model\.kernel`, which is float32\[2,3\]",
        ),
    ],
)
def test_tangents_that_do_not_fit(tangent, message):
    with pytest.raises(nnx.GraphError, match=message):
        nnx.jvp(call, (Dense(2, 3), X), (tangent, X))


# -- what cannot be ------------------------------------------------------------------------------


def test_an_object_as_the_value():
    with pytest.raises(TypeError, match="as aux"):
        nnx.vjp(lambda m, x: m, Stateful(2), X)
    with pytest.raises(TypeError, match="as aux"):
        nnx.jvp(lambda m: m, (Stateful(2),), (nnx.state(Stateful(2), nnx.Param),))


def test_wrong_argnums_and_counts():
    with pytest.raises(ValueError, match="argnums names argument 2.*2 positional"):
        nnx.vjp(call, Stateful(2), X, argnums=2)
    with pytest.raises(ValueError, match="twice"):
        nnx.vjp(call, Stateful(2), X, argnums=(0, nnx.DiffState(0)))
    with pytest.raises(TypeError, match="must be an int, or of type DiffState"):
        nnx.vjp(call, Stateful(2), X, argnums="x")
    with pytest.raises(ValueError, match="2 primals, but 1 tangents"):
        nnx.jvp(call, (Stateful(2), X), (X,))
    shared = Stateful(2)
    with pytest.raises(ValueError, match="Inconsistent aliasing"):
        nnx.vjp(lambda a, b: (a.scale * b.scale).sum(), shared, shared)


def test_nothing_changes_when_it_fails():
    model = Stateful(2)
    model.log = []

    def fails(model, x):
        model(x)
        model.log.append(Count(x))
        raise KeyError("on purpose")

    for run in (
        lambda: nnx.vjp(fails, model, X),
        lambda: nnx.jvp(fails, (model, X), (nnx.state(model, nnx.Param), X)),
    ):
        with pytest.raises(KeyError):
            run()
        assert int(model.count) == 0 and model.log == []


# -- as decorators -------------------------------------------------------------------------------


class Power(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.array(2.0))
        self.calls = Count(jnp.array(0))

    @nnx.vjp
    def cube(self, x):
        self.calls += 1
        return self.w * x**3

    def plain(self, x):
        self.calls += 1
        return self.w * x**3


def cube(m, x):
    m.calls += 1
    return m.w * x**3


def test_vjp_as_a_decorator():
    model = Power()
    with_aux = nnx.vjp(has_aux=True)(lambda m, x: (cube(m, x), m))
    for pulled in (
        nnx.vjp(cube, model, 3.0),
        nnx.vjp(cube)(model, 3.0),
        nnx.vjp()(cube)(model, 3.0),
        nnx.vjp(argnums=(0, 1))(cube)(model, 3.0),
        model.cube(3.0),
        with_aux(model, 3.0)[:2],
    ):
        value, pullback = pulled
        grads, slope = pullback(1.0)
        assert (float(value), float(grads.w.value), float(slope)) == (54, 27, 54)
    assert int(model.calls) == 6 and with_aux(model, 3.0)[2] is model
    assert float(nnx.vjp(argnums=1)(cube)(model, 3.0)[1](1.0)) == 54
    assert float(nnx.vjp(model.plain)(3.0)[1](1.0)[0]) == 54
    assert float(nnx.jit(lambda m, x: nnx.vjp(cube)(m, x)[1](1.0)[1])(model, 3.0)) == 54
    ours, theirs = (v(lambda: jnp.ones(())) for v in (nnx.vjp, jax.vjp))
    assert ours()[1](1.0) == theirs[1](1.0) == ()  # a function of nothing


def test_jvp_as_a_decorator():
    model = Power()
    along = nnx.State({"w": jnp.array(1.0)})
    primals, tangents = (model, 3.0), (along, 1.0)
    for moved in (
        nnx.jvp(cube, primals, tangents),
        nnx.jvp(cube)(primals, tangents),
        nnx.jvp(cube)(primals=primals, tangents=tangents),
        nnx.jvp()(cube)(primals, tangents),
        nnx.jvp(has_aux=True)(lambda m, x: (cube(m, x), 1))(primals, tangents)[:2],
        nnx.jvp(primals=primals, tangents=tangents)(cube),
    ):
        assert tuple(map(float, moved)) == (54, 27 + 54)
    assert int(model.calls) == 6
    assert tuple(map(float, nnx.jvp(model.plain)((3.0,), (1.0,)))) == (54, 54)
    assert int(model.calls) == 7
