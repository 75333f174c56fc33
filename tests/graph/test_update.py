"""`update`: whole or partial, States or dicts, all or nothing, with errors that name the path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Pair, Stateful

pytestmark = pytest.mark.usefixtures("strict_numerics")


def test_whole_states():
    model, other = Block(), Block()
    other = nnx.merge(
        nnx.graphdef(other), jax.tree.map(lambda x: x + jnp.ones_like(x), nnx.state(other))
    )
    cell, layers = model.tied, model.layers
    nnx.update(model, nnx.state(other))
    assert model.tied is cell and model.layers is layers
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(other))
    np.testing.assert_array_equal(model.offset, [1.5, 1.5])


def test_partial_states_and_several():
    model = Block()
    old = model.layers[0].kernel.value
    nnx.update(
        model,
        nnx.State({"layers": {1: {"bias": jnp.full(2, 3.0)}}}),
        {"parts": {"norm": {"count": jnp.array(7)}}},
        {"offset": jnp.zeros(2)},
    )
    np.testing.assert_array_equal(model.layers[1].bias.value, [3, 3])
    assert model.parts["norm"].count == 7
    np.testing.assert_array_equal(model.offset, [0, 0])
    assert model.layers[0].kernel.value is old
    nnx.update(model, {})
    nnx.update(model, nnx.State())


def test_a_module_or_variable_as_the_source():
    model, other = Dense(2, 2), Dense(2, 2, seed=1)
    nnx.update(model, other)
    assert model.kernel.value is other.kernel.value and model.kernel is not other.kernel
    nnx.update(model.bias, nnx.Param(jnp.full(2, 4.0)))
    np.testing.assert_array_equal(model.bias.value, [4, 4])
    nnx.update(model.bias, nnx.state(nnx.Param(jnp.full(2, 5.0))))
    np.testing.assert_array_equal(model.bias.value, [5, 5])


@pytest.mark.parametrize(
    "layers",
    [
        {0: {"bias": 1}},
        {"0": {"bias": 1}},
        [{"bias": 1}],
        [{"bias": 1}, None],
        ({"bias": 1}, {}),
        {0: {"bias": {"value": 1}}},
        {"0": {"bias": {"raw_value": 1}}},
    ],
    ids=str,
)
def test_the_forms_in_which_a_checkpoint_comes_back(layers):
    model = Block()
    tree = {"layers": jax.tree.map(lambda _: jnp.full(2, 6.0), layers)}
    nnx.update(model, tree)
    np.testing.assert_array_equal(model.layers[0].bias.value, [6, 6])


def test_string_attributes_of_integer_look():
    model = Node(parts={"0": nnx.Param(jnp.zeros(())), 1: nnx.Param(jnp.zeros(()))})
    nnx.update(model, {"parts": {0: jnp.array(5.0), "1": jnp.array(6.0)}})
    assert model.parts["0"].value == 5 and model.parts[1].value == 6


def test_numpy_values_and_scalars():
    model = Node(w=nnx.Param(jnp.zeros(2)), n=Count(jnp.array(0)))
    nnx.update(model, {"w": np.ones(2, np.float32), "n": np.int32(3)})
    np.testing.assert_array_equal(model.w + 1.0, [2, 2])
    assert model.n + 1 == 4


def test_metadata_comes_along():
    model = Node(w=nnx.Param(jnp.zeros(2), sharding=("a",)))
    nnx.update(model, {"w": nnx.Param(jnp.ones(2), sharding=("b",))})
    assert model.w.sharding == ("b",)
    nnx.update(model, {"w": jnp.zeros(2)})  # a bare value says nothing of metadata
    assert model.w.sharding == ("b",)


def test_bare_arrays_wherever_they_stand():
    model = Node(
        a=jnp.zeros(2),
        items=[jnp.zeros(2), 1],
        pair=Pair(jnp.zeros(2), nnx.Param(jnp.zeros(2))),
        arrays=(jnp.zeros(1), jnp.zeros(3)),
        deep=((jnp.zeros(2), "x"), [(jnp.zeros(1), "y")]),
    )
    items, cell = model.items, model.pair.second
    state = jax.tree.map(lambda x: x + 1, nnx.state(model))
    nnx.update(model, state)
    assert model.items is items and model.pair.second is cell
    assert type(model.pair) is Pair and model.deep[0][1] == "x" and model.items[1] == 1
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), state)
    assert all((x == 1).all() for x in jax.tree.leaves(nnx.state(model)))
    assert (nnx.jit(lambda m: m.arrays[1])(model) == 1).all()
    assert (nnx.jit(lambda m: m.deep[0][0])(model) == 1).all()


def test_values_that_are_pytrees():
    model = Node(cache=nnx.Cache({"k": jnp.zeros(2), "v": (jnp.zeros(1), jnp.zeros(1))}))
    nnx.update(model, {"cache": {"k": jnp.ones(2), "v": [jnp.ones(1), jnp.ones(1)]}})
    assert type(model.cache.value["v"]) is tuple and (model.cache["k"] == 1).all()


def test_shared_variables_are_updated_once_for_all():
    model = Block()
    nnx.update(model, {"layers": {0: {"kernel": jnp.zeros((2, 2))}}})
    assert (model.tied.value == 0).all()


def test_a_shared_variable_goes_by_each_of_its_paths():
    model = Block()
    nnx.update(model, {"tied": jnp.ones((2, 2))})
    assert (model.layers[0].kernel.value == 1).all() and model.tied is model.layers[0].kernel


GOOD = {"layers": {0: {"bias": jnp.ones(2)}}, "offset": jnp.ones(2)}


@pytest.mark.parametrize(
    ("bad", "error", "pattern"),
    [
        ({"layers": {0: {"biass": 1}}}, ValueError, r"`layers\[0\]\.biass`.*Did you mean 'bias'"),
        ({"layers": {5: {"bias": 1}}}, ValueError, r"`layers\[5\]`"),
        ({"layers": 3}, ValueError, r"`layers`"),
        ({"nothing": {"x": 1}}, ValueError, r"`nothing`"),
        ({"offset": jnp.ones(3)}, ValueError, r"`offset`.*float32\[2\].*float32\[3\]"),
        (
            {"layers": {1: {"kernel": jnp.ones((2, 5))}}},
            ValueError,
            r"`layers\[1\]\.kernel` is float32\[2,2\] in the object but float32\[2,5\]",
        ),
        ({"parts": {"norm": {"count": jnp.ones(1)}}}, ValueError, r"`parts\.norm\.count`"),
        (3, TypeError, "a State or nested dicts"),
        ([jnp.ones(2)], TypeError, "a State or nested dicts"),
    ],
)
def test_errors_name_the_path_and_nothing_is_written(bad, error, pattern):
    model = Block()
    before = jax.tree.leaves(nnx.state(model))
    for states in ((bad,), (GOOD, bad), (bad, GOOD)):
        with pytest.raises(error, match=pattern):
            nnx.update(model, *states)
    after = jax.tree.leaves(nnx.state(model))
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_a_shape_may_be_changed_by_assignment():
    model = Dense(2, 2)
    model.bias.value = jnp.zeros(5)
    nnx.update(model, {"bias": jnp.ones(5)})
    assert model.bias.shape == (5,)


def test_inside_a_transform():
    model, new = Stateful(), Stateful(2)
    new.scale.value = jnp.full(2, 8.0)

    @nnx.jit
    def load(model, state):
        nnx.update(model, state)

    load(model, nnx.state(new, nnx.Param))
    np.testing.assert_array_equal(model.scale.value, [8, 8])

    with pytest.raises(nnx.TraceContextError, match="update"):
        jax.jit(lambda state: nnx.update(model, state))(nnx.state(new))
    np.testing.assert_array_equal(model.scale.value, [8, 8])


def test_bare_arrays_of_an_outer_object_are_refused_in_a_trace():
    model = Node(x=jnp.zeros(2), items=[jnp.zeros(2)])
    for path in ("x", "items"):
        with pytest.raises(nnx.TraceContextError):
            jax.jit(lambda x, p=path: nnx.update(model, {p: x if p == "x" else {0: x}}))(
                jnp.ones(2)
            )
    assert not isinstance(model.x, jax.core.Tracer)
    assert not isinstance(model.items[0], jax.core.Tracer)


def test_plans_stay_right():
    model = Block()
    before = nnx.check_plans(True)
    try:
        f = nnx.jit(lambda m: m.offset + m.layers[0].bias.value)
        for i in range(3):
            value = jnp.full(2, float(i))
            nnx.update(model, {"offset": value, "layers": {0: {"bias": value}}})
            np.testing.assert_array_equal(f(model), 2 * value)
    finally:
        nnx.check_plans(before)
