"""`make_jaxpr` and `checkify`: what is traced of a function of objects, and checks inside of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from refax import nnx
from tests.models import Count, Dense, Node, Stateful

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.ones((3, 2))


def call(model, x):
    return model(x)


# -- make_jaxpr ----------------------------------------------------------------------------------


def test_a_jaxpr_has_the_values_as_inputs_and_what_was_written_as_outputs():
    model = Dense(2, 3)
    jaxpr = nnx.make_jaxpr(call)(model, X).jaxpr
    by_hand = jax.make_jaxpr(lambda kernel, bias, x: x @ kernel + bias[None])(
        model.kernel.value, model.bias.value, X
    ).jaxpr
    assert [v.aval.shape for v in jaxpr.invars] == [(2, 3), (3,), (3, 2)]
    assert [e.primitive.name for e in jaxpr.eqns] == [e.primitive.name for e in by_hand.eqns]
    assert len(jaxpr.outvars) == 1
    stateful = Stateful(2)
    assert len(nnx.make_jaxpr(call)(stateful, X).jaxpr.outvars) == 3  # y, mean, count
    assert int(stateful.count) == 0 and not isinstance(stateful.mean.value, jax.core.Tracer)


def test_static_arguments_methods_and_shapes():
    model = Node(w=nnx.Param(jnp.ones(2)))

    def f(model, x, n):
        model.new = nnx.Param(x)
        return (model, [model.w * n])

    jaxpr, (same, (y,)) = nnx.make_jaxpr(f, static_argnums=2, return_shape=True)(model, X, 3)
    assert "3.0" in str(jaxpr) and not hasattr(model, "new")
    assert same is not model and same.new.shape == (3, 2) and y.shape == (2,)
    assert isinstance(same.new.value, jax.ShapeDtypeStruct)
    assert nnx.make_jaxpr(f, static_argnums=(2,))(model, X, 3).jaxpr.eqns
    assert nnx.make_jaxpr(f, 2)(model, X, 3).jaxpr.eqns
    stateful = Stateful(2)
    assert str(nnx.make_jaxpr(stateful)(X)) == str(nnx.make_jaxpr(call)(stateful, X))
    assert str(nnx.make_jaxpr(stateful.__call__)(X)) == str(nnx.make_jaxpr(call)(stateful, X))


def test_jaxprs_of_nested_transforms():
    model = Dense(2, 3)
    text = str(nnx.make_jaxpr(nnx.jit(nnx.grad(lambda m, x: m(x).sum())))(model, X))
    assert "jit" in text and "dot_general" in text
    layers = nnx.vmap(lambda seed: Dense(2, 2, seed=seed))(jnp.arange(4))
    scan = nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    (eqn,) = [e for e in nnx.make_jaxpr(scan)(layers, X).jaxpr.eqns if e.primitive.name == "scan"]
    assert [v.aval.shape for v in eqn.outvars] == [(3, 2)]


# -- checkify ------------------------------------------------------------------------------------


def positive(model, x):
    checkify.check(jnp.all(x > 0), "must be positive")
    model.count += 1
    return jnp.log(x)


def test_checks_and_changes():
    model = Node(count=Count(jnp.array(0)))
    error, y = nnx.checkify(positive)(model, X)
    error.throw()
    np.testing.assert_array_equal(y, jnp.zeros((3, 2)))
    error, _ = nnx.checkify(positive)(model, -X)
    with pytest.raises(checkify.JaxRuntimeError, match="must be positive"):
        error.throw()
    assert int(model.count) == 2  # as the value is returned, whether or not a check failed


@pytest.mark.parametrize("around", [nnx.jit, nnx.remat, lambda f: f], ids=["jit", "remat", "none"])
def test_checkify_around_and_inside_other_transforms(around):
    model = Node(count=Count(jnp.array(0)))
    assert "positive" in nnx.checkify(around(positive))(model, -X)[0].get()
    error, _ = around(nnx.checkify(positive))(model, -X)
    assert "positive" in error.get() and int(model.count) == 2


def test_kinds_of_errors_and_methods():
    class Divide(nnx.Module):
        def __init__(self):
            self.by = nnx.Param(jnp.zeros(()))

        def __call__(self, x):
            return x / self.by

    model = Divide()
    assert nnx.checkify(model)(1.0)[0].get() is None
    assert "division by zero" in nnx.checkify(model, errors=checkify.all_checks)(1.0)[0].get()
    assert "nan" in nnx.checkify(model.__call__, errors=checkify.nan_checks)(0.0)[0].get()


def test_nothing_changes_when_it_fails():
    model = Node(count=Count(jnp.array(0)), log=[])

    def fails(model, x):
        model.count += 1
        model.log.append(Count(x))
        raise KeyError("on purpose")

    for run in (nnx.checkify(fails), nnx.make_jaxpr(fails)):
        with pytest.raises(KeyError):
            run(model, X)
        assert int(model.count) == 0 and model.log == []
