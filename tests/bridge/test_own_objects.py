"""nnx.bridge.ToNNX around objects of the user's own, which offer `init` and `apply`; no Flax."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

ToNNX = nnx.bridge.ToNNX
X = jnp.arange(6.0).reshape(2, 3)


def weight(key, x):
    return jax.random.normal(key, (x.shape[-1], 2))


class Transformed(NamedTuple):
    """Pure functions in a pair, as Haiku makes them."""

    init: Any
    apply: Any


def dot(params, x):
    return x @ params["linear"]["w"] + params["~"]["b"]


def init_dot(rng, x):
    return {"linear": {"w": weight(rng, x)}, "~": {"b": jnp.zeros(2)}}


class LikeLinen:
    def init(self, rngs, x, **options):
        return {"params": {"linear": {"w": weight(rngs["params"], x)}, "~": {"b": jnp.zeros(2)}}}

    def apply(self, variables, x, *, rngs=None, mutable=False):
        return dot(variables["params"], x)


class OneKey(LikeLinen):
    def init(self, key, x):
        return super().init({"params": key}, x)

    def apply(self, params, x):  # its first parameter is all variables, whatever it is called
        return dot(params["params"], x)


class Forwarding:
    """A wrapper whose signature says nothing."""

    def init(self, *args, **kwargs):
        return LikeLinen().init(*args, **kwargs)

    def apply(self, *args, **kwargs):
        return LikeLinen().apply(*args, **kwargs)


class Unhashable(LikeLinen):
    __hash__ = None  # type: ignore[assignment]


OBJECTS = {
    "like Linen": LikeLinen(),
    "one key": OneKey(),
    "forwarding": Forwarding(),
    "unhashable": Unhashable(),
    "with a key": Transformed(init_dot, lambda params, rng, x: dot(params, x)),
    "without a key": Transformed(init_dot, lambda params, x: dot(params, x)),
    "compiled": Transformed(jax.jit(init_dot), jax.jit(lambda params, rng, x: dot(params, x))),
    "partial": Transformed(init_dot, functools.partial(lambda scale, params, x: dot(params, x), 1)),
    "flat": Transformed(
        lambda rng, x: {"w": weight(rng, x), "b": jnp.zeros(2)},
        lambda weights, x: x @ weights["w"] + weights["b"],
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_parameters_are_trained(name):
    model = nnx.bridge.lazy_init(ToNNX(OBJECTS[name], rngs=nnx.Rngs(0)), X)
    params = nnx.state(model, nnx.Param)
    by_name = {path[-1]: leaf.value for path, leaf in nnx.to_flat_state(params)}
    assert by_name.keys() == {"w", "b"}
    np.testing.assert_allclose(model(X), X @ by_name["w"] + by_name["b"], rtol=1e-6)

    @nnx.jit
    def step(model):
        grads = nnx.grad(lambda model: model(X).sum())(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - g, nnx.state(model, nnx.Param), grads))

    step(model), step(nnx.clone(model))
    found = {path[-1]: leaf.value for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    np.testing.assert_allclose(found["b"], [-2, -2])
    expected = by_name["w"] - X.sum(0)[:, None]
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6)


def test_the_key_of_one_call():
    noise = Transformed(lambda rng, x: {}, lambda params, rng, x: jax.random.normal(rng, x.shape))
    model = ToNNX(noise, rngs=nnx.Rngs(0)).lazy_init(X)
    key = nnx.Rngs(0).fork().default.key.value
    for i in (1, 2):
        expected = jax.random.normal(jax.random.fold_in(key, i), X.shape)
        np.testing.assert_array_equal(model(X), expected)
    without = ToNNX(Transformed(lambda rng, x: {}, lambda params, rng, x: rng is None))
    assert without.lazy_init(X)(X)


def test_state_beside_parameters():
    def init(rng, x):
        return {"linear": {"w": weight(rng, x)}}, {"linear": {"mean": jnp.zeros(2)}}

    def apply(params, state, rng, x, train=True):
        y = x @ params["linear"]["w"]
        mean = 0.9 * state["linear"]["mean"] + 0.1 * y.mean(0)
        return y, {"linear": {"mean": mean}} if train else state

    model = ToNNX(Transformed(init, apply), rngs=nnx.Rngs(0)).lazy_init(X)
    assert isinstance(model.linear["w"], nnx.Param)
    assert type(model.linear["mean"]) is nnx.variable_type_from_name("state")
    before = model.linear["mean"].value  # what lazy_init ran is not kept
    np.testing.assert_array_equal(before, [0, 0])
    y = nnx.jit(lambda model, x: model(x))(model, X)
    np.testing.assert_allclose(model.linear["mean"].value, 0.1 * y.mean(0), rtol=1e-6)
    after = model.linear["mean"].value
    model(X, train=False)
    np.testing.assert_array_equal(model.linear["mean"].value, after)


class Counting:
    def init(self, rngs, x):
        return {"params": {"count": {"w": jnp.ones(())}}, "counts": {"count": jnp.zeros(())}}

    def apply(self, variables, x, mutable=False):
        count = variables["counts"]["count"] + 1
        y = x * variables["params"]["count"]["w"] + count
        if not mutable:
            return y
        return y, {"counts": {"count": count, "first": {"seen": (x, count)}}}


def test_a_name_that_is_a_part_in_one_collection_and_an_array_in_another():
    model = ToNNX(Counting()).lazy_init(X)
    np.testing.assert_array_equal(model(X, mutable=["counts"]), X + 1)
    np.testing.assert_array_equal(model(X), X + 2)
    assert isinstance(model.count["w"], nnx.Param)
    assert isinstance(model.first["seen"].value, tuple)
    assert float(nnx.state(model)["count:counts"].value) == 1


def test_methods_are_called_by_apply_only_where_it_offers_them():
    class Offers(LikeLinen):
        def apply(self, variables, x, method=None, rngs=None):
            y = dot(variables["params"], x)
            return y if method is None else method(self, y)

        def double(self, y):
            return 2 * y

    class Not(LikeLinen):
        size = 2

        def double(self, y):
            return 2 * y

    offers = ToNNX(Offers(), rngs=nnx.Rngs(0)).lazy_init(X)
    np.testing.assert_array_equal(offers.double(X), 2 * offers(X))
    other = ToNNX(Not(), rngs=nnx.Rngs(0)).lazy_init(X)
    assert other.double(3) == 6 and other.size == 2


@dataclasses.dataclass
class Box:
    value: Any
    names: tuple

    def unbox(self):
        return self.value


def test_boxes_of_the_users_own():
    class Boxed(LikeLinen):
        def init(self, rngs, x):
            return {"params": {"w": Box(weight(rngs["params"], x), ("in", None))}}

        def apply(self, variables, x, rngs=None):
            assert variables["params"]["w"].names == ("in", None)
            return x @ variables["params"]["w"].unbox()

    model = ToNNX(Boxed(), rngs=nnx.Rngs(0)).lazy_init(X)
    assert model.w.sharding == ("in", None)
    np.testing.assert_allclose(model(X), X @ model.w.value, rtol=1e-6)


def test_an_object_without_init_and_apply():
    for other in (nnx.silu, nnx.Linear(2, 3, rngs=nnx.Rngs(0))):
        with pytest.raises(TypeError, match="ToNNX takes .* `init` and `apply`; got(.|\n)*Cure: "):
            ToNNX(other, rngs=nnx.Rngs(0))
