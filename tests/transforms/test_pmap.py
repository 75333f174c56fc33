"""`pmap` over eight devices: as `vmap`, each slice on a device of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Dense, Node, Stateful
from tests.transforms.observing import Counted, assert_warm

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.arange(48.0).reshape(8, 3, 2) / 48


def make_stack() -> Dense:
    return nnx.vmap(lambda seed: Dense(2, 3, seed=seed))(jnp.arange(8))


def call(model, x):
    return model(x)


def test_equals_vmap():
    stack = make_stack()
    y = nnx.pmap(call)(stack, X)
    np.testing.assert_allclose(y, nnx.vmap(call)(stack, X), rtol=1e-6)
    assert len(y.sharding.device_set) == 8
    one = Dense(2, 3)
    z = nnx.pmap(call, in_axes=(None, 0))(one, X)
    np.testing.assert_allclose(z, nnx.vmap(call, in_axes=(None, 0))(one, X), rtol=1e-6)
    assert nnx.pmap(call, in_axes=(0, 0), out_axes=1)(stack, X).shape == (3, 8, 3)


def test_state_axes_and_collectives():
    node = Node(w=nnx.Param(jnp.ones(2)), rows=nnx.BatchStat(jnp.zeros((8, 2))),
                count=Count(jnp.array(0)))  # fmt: skip
    axes = nnx.StateAxes({nnx.BatchStat: 0, ...: None})

    def f(node, x):
        node.rows.value = node.rows + jax.lax.pmean(x.sum(0), "devices")
        node.count += 1
        return x * node.w[None]

    for _ in range(2):
        nnx.pmap(f, axis_name="devices", in_axes=(axes, 0))(node, X)
    mean = X.sum(1).mean(0)
    np.testing.assert_allclose(node.rows.value, jnp.broadcast_to(2 * mean, (8, 2)), rtol=1e-5)
    assert int(node.count) == 2


def test_objects_and_structure():
    node = Node(w=nnx.Param(jnp.ones((8, 2))))

    def f(node, seed):
        node.new = nnx.Param(node.w * 2.0)
        node.log = [1, "two"]
        return node, Dense(2, 3, seed=seed)

    same, made = nnx.pmap(f, out_axes=(0, 0))(node, jnp.arange(8))
    assert same is node and node.log == [1, "two"] and node.new.shape == (8, 2)
    assert made.kernel.shape == (8, 2, 3) and len(made.kernel.value.sharding.device_set) == 8


def test_random_streams_are_split():
    rngs = nnx.Rngs(0)
    f = nnx.split_rngs(splits=8)(nnx.pmap(lambda rngs: rngs.normal((4,))))
    rows = np.asarray(f(rngs))
    assert len({row.tobytes() for row in rows}) == 8 and int(rngs.default.count) == 1


def test_methods_static_arguments_and_axis_names():
    class Scale(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((8, 2)), sharding=("devices", "in"))

        @nnx.pmap(in_axes=(0,), transform_metadata={nnx.PARTITION_NAME: "devices"})
        def __call__(self, x):
            assert self.w.sharding == ("in",)
            return x * self.w[None]

    model = Scale()
    np.testing.assert_array_equal(model(X), X)
    assert model.w.sharding == ("devices", "in")

    def power(m, x, n):
        return x**n

    f = nnx.pmap(power, static_broadcasted_argnums=2)
    np.testing.assert_allclose(f(model, X, 2), X**2, rtol=1e-6)
    np.testing.assert_allclose(f(model, X, 3), X**3, rtol=1e-6)


def test_inside_and_around_other_transforms():
    stack = make_stack()
    want = nnx.grad(lambda m: nnx.vmap(call)(m, X).sum())(stack).kernel.value
    for grads in (
        nnx.grad(lambda m: nnx.pmap(call)(m, X).sum())(stack),
        nnx.pmap(nnx.grad(lambda m, x: m(x).sum()))(stack, X),
        nnx.jit(nnx.grad(lambda m: nnx.pmap(call)(m, X).sum()))(stack),
    ):
        np.testing.assert_allclose(grads.kernel.value, want, rtol=1e-5)


def test_the_second_call_neither_traces_nor_compiles():
    stack, counted = make_stack(), Counted(call)
    assert_warm(lambda: nnx.pmap(counted.function)(stack, X), counted)
    assert counted.runs == 1
    one, looked = Dense(2, 3), Counted(call)
    assert_warm(lambda: nnx.pmap(looked.function, in_axes=(None, 0))(one, X), looked)


def test_broadcast_state_that_would_need_the_axis():
    model = Stateful(2)
    with pytest.raises(
        nnx.GraphError, match=r"`model\.mean` is written inside pmap with axis None"
    ):
        nnx.pmap(call, in_axes=(None, 0))(model, X)
    assert int(model.count) == 0

    def reduced(model, x):
        y = model(x)
        model.mean.value = jax.lax.pmean(model.mean.value, "devices")
        return y

    nnx.pmap(reduced, axis_name="devices", in_axes=(None, 0))(model, X)
    np.testing.assert_allclose(model.mean.value, X.mean((0, 1)) / 2, rtol=1e-5)
    assert int(model.count) == 1


def test_sizes_that_differ():
    with pytest.raises(nnx.GraphError) as error:
        nnx.pmap(call)(make_stack(), jnp.ones((4, 3, 2)))
    assert "size 4: x (float32[4,3,2], axis 0)" in str(error.value)
    assert "size 8: model.kernel" in str(error.value)
