"""`jit`: donated buffers and shardings, on eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Block, Dense, Node, Stateful
from tests.transforms.cases import mesh_of

pytestmark = pytest.mark.usefixtures("strict_numerics")

# -- donation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"donate_argnums": 0}, {"donate_argnames": "model"}])
def test_a_donated_object_is_usable_afterwards(options):
    @nnx.jit(**options)
    def f(model, x):
        model.scale += 1.0
        return model.scale * x

    model = Stateful()
    scale, mean = model.scale.value, model.mean.value
    for _ in range(3):
        y = f(model, jnp.ones(2))
    np.testing.assert_array_equal(y, [4, 4])
    assert scale.is_deleted() and mean.is_deleted()  # also what was only passed through
    assert not any(x.is_deleted() for x in jax.tree.leaves(nnx.state(model)))
    np.testing.assert_array_equal(model.mean.value, [0, 0])
    assert model.count == 0
    model(jnp.ones((1, 2)))


def test_donation_by_keyword_and_of_arrays():
    def add(model, x):
        model.scale += x
        return x * 2.0

    f = nnx.jit(add, donate_argnames=("model", "x"))
    model, x = Stateful(), jnp.ones(2)
    scale = model.scale.value
    f(model=model, x=x)
    assert scale.is_deleted() and x.is_deleted()
    np.testing.assert_array_equal(model.scale.value, [2, 2])


def test_what_a_donated_object_shares_with_another_stays_usable():
    model = Stateful()
    other = Node(scale=model.scale, own=nnx.Param(jnp.ones(2)))

    @nnx.jit(donate_argnums=0)
    def f(model, other):
        model.scale += 1.0
        return other.scale * other.own

    own = other.own.value
    np.testing.assert_array_equal(f(model, other), [2, 2])
    assert other.scale is model.scale and not own.is_deleted()
    np.testing.assert_array_equal(f(model, other), [3, 3])


def test_donation_with_a_changed_structure_and_bare_arrays():
    @nnx.jit(donate_argnums=0)
    def f(model):
        model.new = nnx.Param(model.w * 2.0)
        model.array = model.array + 1.0
        del model.w

    model = Node(w=nnx.Param(jnp.ones(2)), array=jnp.ones(3), other=jnp.ones(4), t=(jnp.ones(1), 2))
    f(model)
    assert sorted(vars(model)) == ["array", "new", "other", "t"]
    for x, size in zip(jax.tree.leaves(nnx.state(model)), (3, 2, 4, 1), strict=True):
        assert not x.is_deleted() and x.shape == (size,)
    np.testing.assert_array_equal(model.new.value, [2, 2])


def test_a_train_step_with_donation():
    model = Block()

    @nnx.jit(donate_argnums=(0,))
    def step(model, x):
        grads = nnx.grad(lambda m: (m(x) ** 2).sum())(model)
        nnx.update(
            model, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), grads)
        )

    reference = nnx.jit(step.__wrapped__)
    twin = nnx.merge(*nnx.split(jax.tree.map(jnp.copy, model)))
    for _ in range(3):
        step(model, jnp.ones((3, 2)))
        reference(twin, jnp.ones((3, 2)))
    assert model.tied is model.layers[0].kernel
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        nnx.state(model),
        nnx.state(twin),
    )


# -- shardings -----------------------------------------------------------------------------------


def shardings() -> tuple[NamedSharding, NamedSharding]:
    mesh = mesh_of(8)
    return NamedSharding(mesh, P("data")), NamedSharding(mesh, P())


def test_in_and_out_shardings():
    data, whole = shardings()

    @nnx.jit(in_shardings=(whole, data), out_shardings=data)
    def f(model, x):
        return model(x)

    model = Dense(2, 2)
    y = f(model, jnp.ones((16, 2)))
    assert y.sharding == data
    np.testing.assert_allclose(y, model(jnp.ones((16, 2))), rtol=1e-6)


def test_state_sharding():
    data, whole = shardings()
    model = Stateful(8)
    by_type = nnx.StateSharding({nnx.Param: data, ...: whole})

    @nnx.jit(in_shardings=(by_type, None), out_shardings=None)
    def f(model, x):
        model.scale += x
        return x

    f(model, jnp.ones(8))
    assert model.scale.sharding == data
    np.testing.assert_array_equal(model.scale.value, jnp.full(8, 2.0))
    f(model, jnp.ones(8))
    assert model.count == 0


def test_a_model_is_made_sharded():
    data, _ = shardings()
    make = nnx.jit(
        lambda: Node(w=nnx.Param(jnp.ones((8, 4))), b=nnx.BatchStat(jnp.zeros(8))),
        out_shardings=nnx.StateSharding({nnx.Param: data, ...: None}),
    )
    model = make()
    assert model.w.sharding == data
    assert {s.data.shape for s in model.w.value.addressable_shards} == {(1, 4)}


def test_a_model_is_sharded_by_its_annotations():
    mesh = mesh_of(8)

    @nnx.jit
    def make():
        model = Node(w=nnx.Param(jnp.ones((8, 4)), sharding=("data", None)))
        state = nnx.state(model)
        placed = jax.lax.with_sharding_constraint(state, nnx.get_named_sharding(state, mesh))
        nnx.update(model, placed)
        return model

    model = make()
    assert {s.data.shape for s in model.w.value.addressable_shards} == {(1, 4)}
    assert model.w.sharding == ("data", None)


def test_no_entry_for_a_leaf_is_named():
    data, _ = shardings()
    f = nnx.jit(lambda m: 1, in_shardings=(nnx.StateSharding({nnx.BatchStat: data}),))
    with pytest.raises(
        ValueError, match=r"No filter of .*matches `m\.(scale|count)`, a (Param|Count)"
    ):
        f(Stateful(8))


def test_prefixes_that_do_not_fit_are_refused():
    data, whole = shardings()
    f = nnx.jit(lambda m, x: x, in_shardings=(data, whole, data))
    with pytest.raises(ValueError, match="in_shardings"):
        f(Stateful(8), jnp.ones(8))


def test_in_shardings_of_a_method_leave_self_out():
    data, _ = shardings()

    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        def __call__(self, x):
            return x * self.w[None]

    model = Model()
    y = nnx.jit(model.__call__, in_shardings=(data,), out_shardings=data)(jnp.ones((8, 2)))
    assert y.sharding == data


def test_donation_together_with_shardings():
    data, whole = shardings()

    @nnx.jit(
        in_shardings=(nnx.StateSharding({nnx.Param: data, ...: whole}), None), donate_argnums=0
    )
    def f(model, x):
        model.scale += x

    model = Stateful(8)
    f(model, jnp.ones(8))
    f(model, jnp.ones(8))
    np.testing.assert_array_equal(model.scale.value, jnp.full(8, 3.0))
    assert model.scale.sharding == data and not model.mean.value.is_deleted()


def test_what_is_no_array_is_named_by_its_path():
    class Scaled(nnx.Module):
        def __init__(self):
            self.scale = nnx.data(1.5)

    model = Scaled()
    scale = nnx.jit(lambda model: model.scale)
    assert scale(model) == 1.5
    model.scale = "a text"
    with pytest.raises(TypeError, match=r"`model.scale` holds str 'a text'.*\n.*nnx.static"):
        scale(model)
    with pytest.raises(TypeError, match=r"`x` holds str 's'.*\n.*static_argnames"):
        nnx.jit(lambda x: x)("s")
