"""`sow` and `perturb` under every transform: values arrive outside, or an error says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")

STEPS, SIZE = 4, 3
X = jnp.arange(float(SIZE))
XS = jnp.arange(float(STEPS * SIZE)).reshape(STEPS, SIZE)


class Scale(nnx.Module):
    def __init__(self, factor=2.0):
        self.factor = nnx.Param(jnp.full(SIZE, factor))

    def __call__(self, x):
        y = x * self.factor
        self.sow(nnx.Intermediate, "y", y)
        return y


def per_index(axis):
    return nnx.StateAxes({nnx.Intermediate: axis, ...: None})


def scan(m, xs, axes):
    step = nnx.scan(
        lambda m, c, x: (c, m(x)), in_axes=(axes, nnx.Carry, 0), out_axes=(nnx.Carry, 0)
    )
    return step(m, 0.0, xs)[1]


def while_loop(m, x):
    return nnx.while_loop(lambda c: c[1].sum() < 99.0, lambda c: (c[0], c[0](c[1])), (m, x))[1]


ONE_VALUE = {
    "call": lambda m: m(X),
    "jit": lambda m: nnx.jit(lambda m: m(X))(m),
    "grad": lambda m: nnx.grad(lambda m: m(X).sum())(m),
    "remat": lambda m: nnx.grad(lambda m: nnx.remat(lambda m: m(X).sum())(m))(m),
    "vjp": lambda m: nnx.vjp(lambda m: m(X), m),
    "cond": lambda m: nnx.cond(True, lambda m: m(X), lambda m: m(-X), m),
    "switch": lambda m: nnx.switch(1, [lambda m: m(-X), lambda m: m(X)], m),
    "jit of grad of jit": nnx.jit(lambda m: nnx.grad(nnx.jit(lambda m: m(X).sum()))(m)),
}


@pytest.mark.parametrize("name", ONE_VALUE)
def test_a_sown_value_arrives_once(name):
    model = Scale()
    ONE_VALUE[name](model)
    [y] = nnx.pop(model, nnx.Intermediate)["y"].value
    np.testing.assert_array_equal(y, 2 * X)
    assert list(vars(model)) == ["factor"]


STACKED = {
    "vmap, axis 0": (lambda m: nnx.vmap(Scale.__call__, in_axes=(per_index(0), 0))(m, XS), 0),
    "vmap, axis 1": (lambda m: nnx.vmap(Scale.__call__, in_axes=(per_index(1), 0))(m, XS), 1),
    "scan, axis 0": (lambda m: scan(m, XS, per_index(0)), 0),
    "scan, axis 1": (lambda m: scan(m, XS, per_index(1)), 1),
    "jit of vmap": (
        nnx.jit(lambda m: nnx.vmap(Scale.__call__, in_axes=(per_index(0), 0))(m, XS)),
        0,
    ),
}


@pytest.mark.parametrize("name", STACKED)
def test_sown_values_arrive_stacked_as_the_prefix_says(name):
    model = Scale()
    run, axis = STACKED[name]
    run(model)
    [y] = nnx.pop(model, nnx.Intermediate)["y"].value
    np.testing.assert_array_equal(y, 2 * (XS if axis == 0 else XS.T))


def test_layers_that_are_stacked_themselves_sow_along_their_axis():
    model = nnx.vmap(Scale)(jnp.arange(1.0, STEPS + 1))
    nnx.scan(lambda m, x: m(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(model, X)
    [y] = nnx.pop(model, nnx.Intermediate)["y"].value
    np.testing.assert_array_equal(y, np.cumprod(np.arange(1.0, STEPS + 1))[:, None] * X[None])


REFUSED = {
    "vmap": (
        lambda m: nnx.vmap(Scale.__call__, in_axes=(None, 0))(m, XS),
        r"`\w+\.y` is written inside vmap with axis None.*\nCure: .*Intermediate: 0",
    ),
    "scan": (
        lambda m: scan(m, XS, None),
        r"`m\.y` is written inside scan.*\nCure: .*\{Intermediate: 0",
    ),
    "while_loop": (lambda m: while_loop(m, X), r"while_loop: .*`c\[0\]\.y` is new.*\nCure: "),
    "cond": (
        lambda m: nnx.cond(True, lambda m: m(X), lambda m: X, m),
        r"`m\.y` is a new Intermediate after the first branch.*\nCure: ",
    ),
    "closure": (
        lambda m: nnx.jit(lambda x: m(x))(X),
        r"Cannot set the attribute `y` of a Scale(.|\n)*\nCure: ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_sow_cannot_work_the_error_says_so(name):
    model = Scale()
    run, message = REFUSED[name]
    with pytest.raises((ValueError, nnx.TraceContextError), match=message):
        run(model)
    assert list(vars(model)) == ["factor"]


class Squares(nnx.Module):
    """The gradient of `h` is 2·h·scale², at h = w·x."""

    def __init__(self):
        self.w = nnx.Param(jnp.full(SIZE, 3.0))

    def __call__(self, x):
        return (self.perturb("h", x * self.w) ** 2).sum()

    def perturb_like_a_method(self, x):
        return self.perturb("perturb_like_a_method", x)


GRADS = {
    "grad": lambda m: nnx.grad(lambda m: m(X), argnums=nnx.DiffState(0, nnx.Perturbation))(m),
    "jit": nnx.jit(
        lambda m: nnx.grad(lambda m: m(X), argnums=nnx.DiffState(0, nnx.Perturbation))(m)
    ),
    "remat": lambda m: nnx.grad(
        nnx.remat(lambda m: m(X)), argnums=nnx.DiffState(0, nnx.Perturbation)
    )(m),
}


@pytest.mark.parametrize("name", GRADS)
def test_perturb_gives_gradients_of_intermediates(name):
    model = Squares()
    model(X)
    np.testing.assert_array_equal(GRADS[name](model)["h"].value, 2 * 3 * X)
    np.testing.assert_array_equal(model.h.value, jnp.zeros(SIZE))


def test_perturb_under_a_vmap_has_a_gradient_for_each_example():
    model = Squares()
    axes = nnx.StateAxes({nnx.Perturbation: 0, nnx.Param: None})
    batched = nnx.vmap(Squares.__call__, in_axes=(axes, 0))
    batched(model, XS)
    assert model.h.shape == XS.shape
    grads = nnx.grad(lambda m: batched(m, XS).sum(), argnums=nnx.DiffState(0, nnx.Perturbation))(
        model
    )
    np.testing.assert_array_equal(grads["h"].value, 2 * 3 * XS)


def test_perturb_under_the_name_of_a_method():
    model = Squares()
    for _ in range(2):
        np.testing.assert_array_equal(model.perturb_like_a_method(X), X)
    assert nnx.pop(model, nnx.Perturbation)["perturb_like_a_method"].shape == (SIZE,)
    jax.tree.map(np.asarray, nnx.state(model))  # nothing was left traced
