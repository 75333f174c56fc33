"""Every transform lifts the object of what it calls: what a method changes comes back.

The table: transforms × kinds of callable. A call of a kind takes `x` and gives `2 * x`, and counts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Count
from tests.transforms.observing import assert_warm

X = jnp.arange(3.0)


class Double(nnx.Module):
    def __init__(self):
        self.count = Count(jnp.zeros(3, jnp.int32))
        self.factor = nnx.Param(jnp.full(3, 2.0))

    def __call__(self, x):
        self.count += 1
        return self.factor.mean() * x

    def times(self, y, x):
        self.count += 1
        return y * x

    def reads(self, x):
        return self.factor.mean() * x

    @nnx.jit
    def compiled(self, x):
        return self(x)

    @classmethod
    def of_class(cls, x):
        return 2.0 * x

    @staticmethod
    def static(x):
        return 2.0 * x


KINDS = {
    "bound method": lambda m: m.__call__,
    "callable object": lambda m: m,
    "partial of a bound method": lambda m: functools.partial(m.times, 2.0),
    "partial of a partial": lambda m: functools.partial(functools.partial(m.times), 2.0),
    "partial of a callable object": lambda m: functools.partial(m),
    "jax.tree_util.Partial": lambda m: jax.tree_util.Partial(m.times, 2.0),
    "decorated method": lambda m: m.compiled,
    "transform of a bound method": lambda m: nnx.remat(m.__call__),
    "transform of a transform": lambda m: nnx.jit(nnx.remat(m.__call__)),
    "partial of a transform": lambda m: functools.partial(nnx.jit(m.times), 2.0),
}
NOT_LIFTED = {
    "class method": lambda m: m.of_class,
    "static method": lambda m: m.static,
    "function": lambda m: lambda x: 2.0 * x,
}


def mesh():
    auto = jax.sharding.AxisType.Auto
    return jax.make_mesh((3,), ("data",), axis_types=(auto,), devices=jax.devices()[:3])


def with_rules(f, x):
    rule = nnx.custom_vjp(f)
    rule.defvjp(lambda x: (2.0 * x, None), lambda residuals, g: (g,))
    return rule(x)


TRANSFORMS = {
    "jit": lambda f, x: nnx.jit(f)(x),
    "remat": lambda f, x: nnx.remat(f)(x),
    "vmap": lambda f, x: nnx.vmap(f)(x),
    "pmap": lambda f, x: nnx.pmap(f)(x),
    "shard_map": lambda f, x: nnx.shard_map(
        f, mesh=mesh(), in_specs=(P("data"),), out_specs=P("data")
    )(x),
    "cond": lambda f, x: nnx.cond(True, f, lambda x: x, x),
    "cond, the other branch": lambda f, x: nnx.cond(False, lambda x: x, f, x),
    "switch": lambda f, x: nnx.switch(2, [jnp.sin, jnp.cos, f], x),
    "while_loop": lambda f, x: nnx.while_loop(lambda x: x[1] < 2.0, f, x),
    "checkify": lambda f, x: nnx.checkify(f)(x)[1],
    "vjp": lambda f, x: nnx.vjp(f, x)[0],
    "jvp": lambda f, x: nnx.jvp(f, (x,), (x,))[0],
    "custom_vjp": with_rules,
    "inside of jit": lambda f, x: nnx.jit(nnx.jit(f))(x),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_a_method_changes_comes_back(name, kind):
    model = Double()
    for calls in (1, 2) if kind == "bound method" else (1,):
        y = TRANSFORMS[name](KINDS[kind](model), X)
        assert model.count.value.tolist() == [calls] * 3
    np.testing.assert_allclose(y, 2 * X)


@pytest.mark.parametrize("kind", NOT_LIFTED)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_holds_no_object_is_called_as_it_is(name, kind):
    np.testing.assert_allclose(TRANSFORMS[name](NOT_LIFTED[kind](Double()), X), 2 * X)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_broadcasts_the_object(kind):
    """As `self` does by default: it may be read in every step, not written."""
    model = Double()
    np.testing.assert_allclose(nnx.scan(model.reads, in_axes=(0,), out_axes=0)(X), 2 * X)
    with pytest.raises(nnx.GraphError, match=r"`self\.count` is written inside scan"):
        nnx.scan(KINDS[kind](model), in_axes=(0,), out_axes=0)(X)
    assert model.count.value.tolist() == [0] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_looking_at_a_method_changes_nothing(kind):
    model = Double()
    assert nnx.eval_shape(KINDS[kind](model), X).shape == (3,)
    jaxpr = nnx.make_jaxpr(KINDS[kind](model))(X)
    assert len(jaxpr.jaxpr.invars) == 3 and model.count.value.tolist() == [0] * 3


class Loop(nnx.Module):
    """A loop's functions as methods."""

    def __init__(self):
        self.count = Count(jnp.array(0))
        self.limit = nnx.Param(jnp.array(5.0))

    def body(self, i, x):
        self.count += i
        return 2.0 * x

    def double(self, x):
        self.count += 1
        return 2.0 * x

    def goes_on(self, x):
        return x < self.limit

    def writes(self, x):
        self.count += 1
        return x < self.limit

    def loss(self, x):
        self.count += 1
        return self.limit * x

    def fwd(self, x):
        return self.loss(x), x

    def bwd(self, x, g):
        return 10.0 * g[1] * self.limit

    def bwd_with_self(self, x, g):
        return nnx.State({"limit": 100.0 * g[1] * x}), 10.0 * g[1] * self.limit


def test_loops_of_methods():
    one, other = Loop(), Loop()
    assert float(nnx.fori_loop(0, 4, one.body, 1.0)) == 16
    assert int(one.count) == 0 + 1 + 2 + 3
    assert float(nnx.while_loop(other.goes_on, one.double, 1.0)) == 8
    assert int(one.count) == 6 + 3 and int(other.count) == 0
    assert float(nnx.while_loop(one.goes_on, one.double, 1.0)) == 8
    with pytest.raises(nnx.GraphError, match=r"cond_fun changes `cond_fun\.self\.count`"):
        nnx.while_loop(other.writes, one.double, 1.0)
    value, same = nnx.fori_loop(0, jnp.array(3), lambda i, v: (other.goes_on(v[0]) * v[0], v[1]),
                                (1.0, one))  # fmt: skip
    assert same is one and float(value) == 1


def test_branches_of_several_objects():
    models = [Loop() for _ in range(3)]
    for i in range(3):
        nnx.switch(i, [m.double for m in models], 1.0)
        nnx.cond(i > 0, models[0].double, models[1].double, 1.0)
    assert [int(m.count) for m in models] == [1 + 2, 1 + 1, 1]
    one = models[0]
    y, same = nnx.cond(True, lambda x, m: (one.goes_on(x), m), lambda x, m: (x > 0, m), 1.0, one)
    assert same is one
    # The object is an operand too: one object inside.
    nnx.cond(True, one.double, lambda x: x, 1.0)
    assert int(one.count) == 4

    def grows(self, x):
        self.more = nnx.Param(x)
        return x

    Loop.grows = grows
    with pytest.raises(nnx.GraphError, match=r"`branches\[1\]\.self\.more` is nothing after"):
        nnx.switch(0, [models[0].double, models[1].grows], 1.0)
    del Loop.grows


def test_the_second_call_of_a_method_neither_traces_nor_compiles():
    model, other = Loop(), Loop()

    def go():
        nnx.cond(True, model.double, other.double, 1.0)
        nnx.fori_loop(0, 3, model.body, 1.0)
        nnx.while_loop(model.goes_on, other.double, 1.0)

    assert_warm(go)


def test_rules_of_a_derivative_as_methods():
    model = Loop()
    f = nnx.custom_vjp(model.loss)
    f.defvjp(model.fwd, model.bwd)
    value, slope = nnx.value_and_grad(f)(3.0)
    assert float(value) == 15 and float(slope) == 50
    before = int(model.count)
    f(3.0)
    assert int(model.count) == before + 1
    with pytest.raises(nnx.TraceContextError, match=r"Count `Loop\.count`"):
        nnx.grad(lambda m, x: f(x))(model, 3.0)  # writes the object of the level outside
    assert int(model.count) == before + 1
    f = nnx.custom_vjp(model.loss)
    f.defvjp(model.fwd, model.bwd_with_self)
    assert float(nnx.grad(f)(3.0)) == 50


def test_derivatives_of_methods_in_any_nesting():
    model = Loop()
    for f in (
        nnx.grad(model.loss),
        nnx.jit(nnx.grad(model.loss)),
        nnx.jit(nnx.grad(nnx.remat(model.loss))),
        nnx.remat(nnx.grad(nnx.jit(model.loss))),
        lambda x: nnx.value_and_grad(model.loss)(x)[1],
        lambda x: nnx.vjp(model.loss, x)[1](1.0)[0],
        lambda x: nnx.cond(True, nnx.grad(model.loss), lambda x: x, x),
    ):
        before = int(model.count)
        assert float(f(3.0)) == 5 and int(model.count) == before + 1


def test_a_wrapper_of_the_users_own_is_what_it_is():
    """`functools.wraps` copies the attributes of what it wraps."""
    model = Loop()
    inner = nnx.jit(model.loss)

    @functools.wraps(inner)
    def twice(x):
        return 2 * inner(x)

    assert float(twice(1.0)) == 10
    assert float(nnx.grad(nnx.remat(lambda x: 2 * model.limit.value * x))(1.0)) == 10
    with pytest.raises(nnx.TraceContextError, match=r"Count `Loop\.count`"):
        nnx.jit(twice)(1.0)  # reads the model from its surroundings, as any function
