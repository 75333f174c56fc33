"""`shard_map` on eight devices: each Variable is split by its spec, and put together by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Count, Dense, Node, Stateful
from tests.transforms.observing import Counted, assert_warm

pytestmark = pytest.mark.usefixtures("strict_numerics")

AUTO = jax.sharding.AxisType.Auto
X = jnp.arange(32.0).reshape(16, 2) / 32


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AUTO,))


def call(model, x):
    return model(x)


# -- values --------------------------------------------------------------------------------------


def test_data_parallel(mesh):
    model = Dense(2, 3)
    f = nnx.shard_map(call, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    y = f(model, X)
    np.testing.assert_allclose(y, model(X), rtol=1e-6)
    assert y.sharding.spec == P("data")
    np.testing.assert_allclose(f(model, x=X), y)
    with jax.set_mesh(mesh):
        without = nnx.shard_map(call, in_specs=(P(), P("data")), out_specs=P("data"))
        np.testing.assert_allclose(without(model, X), y)


def test_tensor_parallel_with_state_sharding(mesh):
    model = Dense(16, 4)
    specs = nnx.StateSharding({nnx.PathContains("kernel"): P("data", None), ...: P()})

    def f(model, x):
        assert model.kernel.shape == (2, 4) and model.bias.shape == (4,)
        return jax.lax.psum(x @ model.kernel, "data") + model.bias[None]

    x = jnp.ones((3, 16))
    y = nnx.shard_map(f, mesh=mesh, in_specs=(specs, P(None, "data")), out_specs=P())(model, x)
    np.testing.assert_allclose(y, model(x), rtol=1e-5)


def test_a_lift_type_for_a_pytree_of_objects_and_arrays(mesh):
    models = {"a": Dense(2, 3), "b": [Dense(2, 3)]}
    specs = nnx.StateSharding({nnx.Param: P(), ...: P("data")})

    def f(tree):
        models, x = tree
        return models["a"](x) + models["b"][0](x)

    y = nnx.shard_map(f, mesh=mesh, in_specs=(specs,), out_specs=P("data"))((models, X))
    np.testing.assert_allclose(y, f((models, X)), rtol=1e-6)


def test_changes_propagate_once(mesh):
    node = Node(rows=Count(jnp.zeros(8)), total=nnx.BatchStat(jnp.zeros(())), mode="train")

    def f(node, x):
        node.rows.value = node.rows + x.sum()
        node.total.value = node.total + jax.lax.psum(x.sum(), "data")
        node.seen = True
        node.new = nnx.Param(node.rows.value)
        return node

    specs = nnx.StateSharding({Count: P("data"), nnx.BatchStat: P(), ...: P("data")})
    run = nnx.shard_map(f, mesh=mesh, in_specs=(specs, P("data")), out_specs=specs)
    assert run(node, X) is node and node.seen
    np.testing.assert_allclose(node.rows.value, X.reshape(8, 2, 2).sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(node.total.value, X.sum(), rtol=1e-6)
    assert node.new.value.sharding.spec == P("data")


def test_objects_made_inside(mesh):
    specs = nnx.StateSharding({nnx.PathContains("kernel"): P(None, "data"), ...: P("data")})
    made = nnx.shard_map(
        lambda x: Dense(2, 1, seed=0), mesh=mesh, in_specs=P("data"), out_specs=specs,
        check_vma=False,
    )(jnp.ones(8))  # fmt: skip
    assert made.kernel.shape == (2, 8) and made.bias.shape == (8,)


class Layer(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((2, 2)))

    def forward(self, x):
        return x @ self.w


def test_methods(mesh):
    class Sharded(Layer):
        @nnx.shard_map(mesh=mesh, in_specs=(P("data"),), out_specs=P("data"))
        def __call__(self, x):
            return x @ self.w

    layer = Sharded()
    bound = nnx.shard_map(layer.forward, mesh=mesh, in_specs=(P("data"),), out_specs=P("data"))
    np.testing.assert_allclose(layer(X), X @ layer.w)
    np.testing.assert_allclose(bound(X), X @ layer.w)


def test_static_arguments_and_other_options(mesh):
    def f(model, x, power, scale):
        return (x @ model.kernel) ** power * scale

    model = Dense(2, 2)
    run = nnx.shard_map(f, mesh=mesh, in_specs=(P(), P("data"), None, None), out_specs=P("data"))
    for power in (1, 2):
        np.testing.assert_allclose(run(model, X, power, 3.0), f(model, X, power, 3.0), rtol=1e-5)
    both = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AUTO, AUTO))
    part = nnx.shard_map(call, mesh=both, in_specs=(P(), P("data")), out_specs=P("data"),
                         axis_names={"data"})  # fmt: skip
    np.testing.assert_allclose(jax.jit(part)(model, X), model(X), rtol=1e-6)


def test_gradients_and_nesting(mesh):
    model = Stateful(2)

    def f(model, x):
        y = model(x)
        model.mean.value = jax.lax.pmean(model.mean.value, "data")
        return y

    sharded = nnx.shard_map(f, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))

    def by_hand(scale):
        groups = X.reshape(8, 2, 2)
        return ((groups - 0.5 * groups.mean(1, keepdims=True)) * scale[None, None]).sum()

    want = jax.grad(by_hand)(model.scale.value)
    for grad in (nnx.grad, lambda f: nnx.jit(nnx.grad(f)), lambda f: nnx.grad(nnx.jit(f))):
        clone = nnx.clone(model)
        grads = grad(lambda model, x: sharded(model, x).sum())(clone, X)
        np.testing.assert_allclose(grads.scale.value, want, rtol=1e-5)
        assert int(clone.count) == 1
        np.testing.assert_allclose(clone.mean.value, X.mean(0) / 2, rtol=1e-5)


def test_a_model_made_sharded_stays_so(mesh):
    @nnx.jit
    def make():
        model = Dense(2, 8)
        model.kernel.value = jax.lax.with_sharding_constraint(
            model.kernel.value, NamedSharding(mesh, P(None, "data"))
        )
        return model

    model = make()
    specs = nnx.StateSharding({nnx.PathContains("kernel"): P(None, "data"), ...: P("data")})

    def double(model):
        model.kernel.value = model.kernel * 2.0

    nnx.shard_map(double, mesh=mesh, in_specs=(specs,), out_specs=P())(model)
    assert model.kernel.value.sharding.spec == P(None, "data")


def test_the_second_call_neither_traces_nor_compiles(mesh):
    model, counted = Dense(2, 3), Counted(call)

    def go():
        f = nnx.shard_map(
            counted.function, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
        )
        return f(model, X)

    assert_warm(go, counted)
    assert counted.runs == 1


# -- what cannot be ------------------------------------------------------------------------------


def test_what_differs_between_devices_needs_their_axis(mesh):
    model = Stateful(2)
    run = nnx.shard_map(call, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    with pytest.raises(nnx.GraphError) as error:
        run(model, X)
    for part in ("`model.mean`", "P()", "'data'", "StateSharding({BatchStat: P('data')", "pmean"):
        assert part in str(error.value)
    assert int(model.count) == 0 and not isinstance(model.mean.value, jax.core.Tracer)


def test_shapes_that_specs_do_not_divide(mesh):
    model = Dense(3, 5)
    with pytest.raises(nnx.GraphError, match=r"`model\.(kernel|bias)` .* into 8 equal parts"):
        nnx.shard_map(call, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())(model, X)
    with pytest.raises(nnx.GraphError, match=r"`x\['a'\]` \(float32\[3\]\).* size 3"):
        nnx.shard_map(lambda m, x: 0, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())(
            model, {"a": jnp.ones(3)}
        )
    with pytest.raises(nnx.GraphError, match=r"`model\.bias` .*float32\[5\].*has 2 entries"):
        nnx.shard_map(call, mesh=mesh, in_specs=(P(None, None), P()), out_specs=P())(model, X)


def test_aliases_and_prefixes(mesh):
    model = Dense(2, 3)
    with pytest.raises(ValueError, match=r"aliasing(.|\n)*a\.kernel: P\(\)\n  b\.kernel: P"):
        nnx.shard_map(lambda a, b: 0, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())(
            model, model
        )
    with pytest.raises(nnx.GraphError, match="No filter of StateSharding"):
        nnx.shard_map(lambda m: 0, mesh=mesh, in_specs=nnx.StateSharding({Count: P()}),
                      out_specs=P())(model)  # fmt: skip
    with pytest.raises(nnx.GraphError, match="`in_specs` is not a prefix"):
        nnx.shard_map(call, mesh=mesh, in_specs=(P(),), out_specs=P())(model, X)
