"""`eval_shape`, `get_abstract_model`, and `remat`: what is particular to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Block, Dense, Node, Stateful, paths_of
from tests.transforms.cases import mesh_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


def test_a_model_that_was_never_made():
    model = nnx.eval_shape(lambda: Dense(100_000, 100_000))
    assert type(model) is Dense and model.inputs == 100_000
    assert model.kernel.value == jax.ShapeDtypeStruct((100_000, 100_000), jnp.float32)
    assert paths_of(nnx.state(model)) == [("bias",), ("kernel",)]
    assert "ShapeDtypeStruct" in repr(model)


def test_abstract_models_of_every_kind_of_leaf():
    def make():
        model = Block()
        model.key = jax.random.key(0)
        model.rngs = nnx.Rngs(0)
        model.up = model
        return model

    model = nnx.eval_shape(make)
    assert model.up is model and model.tied is model.layers[0].kernel
    assert jnp.issubdtype(model.key.dtype, jax.dtypes.prng_key)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(nnx.state(model)))
    assert nnx.graphdef(model) == nnx.graphdef(make())


def test_of_an_abstract_model():
    model = nnx.eval_shape(lambda: Stateful(4))
    y, model = nnx.eval_shape(
        lambda m, x: (m(x), m), model, jax.ShapeDtypeStruct((3, 4), "float32")
    )
    assert y.shape == (3, 4) and model.mean.shape == (4,)


def test_to_fill_in_a_checkpoint():
    abstract = nnx.eval_shape(lambda: Dense(2, 3))
    values = jax.tree.map(lambda x: jnp.full(x.shape, 7.0, x.dtype), nnx.state(abstract))
    model = nnx.merge(nnx.graphdef(abstract), values)
    np.testing.assert_array_equal(model(jnp.ones((1, 2))), jnp.full((1, 3), 21.0))
    nnx.update(abstract, nnx.to_pure_dict(values))
    np.testing.assert_array_equal(abstract.bias.value, jnp.full(3, 7.0))


def test_methods_and_keywords():
    model = Stateful()
    out = nnx.eval_shape(model.__call__, x=jnp.ones((3, 2)))
    assert out.shape == (3, 2) and model.count == 0


def test_get_abstract_model():
    graphdef, state = nnx.get_abstract_model(lambda: Dense(2, 3))
    assert state.kernel.value == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    mesh = mesh_of(8)

    def make():
        return Node(w=nnx.Param(jnp.ones((8, 2)), sharding=("data", None)))

    graphdef, state = nnx.get_abstract_model(make, mesh)
    assert state.w.value.sharding == NamedSharding(mesh, P("data", None))
    assert graphdef == nnx.graphdef(make())


# -- remat ---------------------------------------------------------------------------------------


def count_in(jaxpr, name: str) -> int:
    return str(jaxpr).count(f" {name}")


def test_remat_computes_again_on_the_way_back():
    model = Dense(2, 2)

    def loss(layer):
        return lambda m, x: layer(m, x).sum()

    def layer(m, x):
        return jnp.sin(jnp.sin(m(x)))

    x = jnp.ones((1, 2))
    plain = nnx.make_jaxpr(nnx.grad(loss(layer)))(model, x)
    again = nnx.make_jaxpr(nnx.grad(loss(nnx.remat(layer))))(model, x)
    assert count_in(again, "sin") + count_in(again, "cos") > count_in(plain, "sin") + count_in(
        plain, "cos"
    )
    a, b = nnx.grad(loss(layer))(model, x), nnx.grad(loss(nnx.remat(layer)))(model, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), a, b)


def test_remat_changes_state_once():
    model = Stateful()
    f = nnx.remat(lambda m, x: m(x).sum())
    nnx.jit(nnx.grad(f))(model, jnp.ones((3, 2)))
    assert model.count == 1
    f(model, jnp.ones((3, 2)))
    assert model.count == 2


def test_remat_with_a_policy_and_static_arguments():
    model = Dense(2, 2)

    @nnx.remat(static_argnums=(2,), policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
    def f(m, x, power):
        assert isinstance(power, int)
        return (m(x) ** power).sum()

    grads = nnx.grad(lambda m, x: f(m, x, 2))(model, jnp.ones((1, 2)))
    expected = nnx.grad(lambda m, x: (m(x) ** 2).sum())(model, jnp.ones((1, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), grads, expected)
    assert nnx.checkpoint is nnx.remat


def test_remat_of_methods_with_static_arguments():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        @nnx.remat(static_argnums=(2,))
        def f(self, x, n):
            assert n == 3
            self.w *= 2.0
            return self.w * x * n

    model = Model()
    np.testing.assert_array_equal(model.f(jnp.ones(2), 3), [6, 6])
    g = nnx.remat(lambda x, n: x * n, static_argnums=1)
    assert g(2.0, 3) == 6
