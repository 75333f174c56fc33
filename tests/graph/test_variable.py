"""Variables as mutable cells: value, metadata, hooks, copies. Operators: `test_operators.py`."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")

# -- value ---------------------------------------------------------------------------------------


def test_value_is_read_and_written():
    v = nnx.Variable(jnp.zeros(2))
    new = jnp.ones(2)
    v.value = new
    assert v.value is new
    assert v[...] is new
    assert v.get_value() is new
    v[...] = 2 * new
    np.testing.assert_array_equal(v.value, [2, 2])
    v.set_value(3 * new)
    np.testing.assert_array_equal(v.raw_value, [3, 3])


def test_a_variable_given_as_value_is_read():
    v, w = nnx.Param(jnp.zeros(2)), nnx.Param(jnp.ones(2))
    v.value = w
    assert v.value is w.value
    v[...] = nnx.Param(jnp.full(2, 3.0))
    np.testing.assert_array_equal(v.value, [3, 3])
    v[0] = nnx.Param(jnp.array(5.0))
    np.testing.assert_array_equal(v.value, [5, 3])


def test_a_variable_of_a_variable_takes_value_and_metadata_over():
    v = nnx.Param(jnp.zeros(2), tag="a", extra=1)
    w = nnx.BatchStat(v, tag="b")
    assert w.value is v.value
    assert w.get_metadata() == {"tag": "b", "extra": 1}


def test_indexing():
    v = nnx.Variable(jnp.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(v[0], [0, 1, 2])
    np.testing.assert_array_equal(v[:, 1], [1, 4])
    assert v[1, 2] == 5
    np.testing.assert_array_equal(v[None].shape, (1, 2, 3))
    v[0] = 7
    np.testing.assert_array_equal(v.value, [[7, 7, 7], [3, 4, 5]])
    v[1, 1:] = jnp.array([8, 9])
    np.testing.assert_array_equal(v.value, [[7, 7, 7], [3, 8, 9]])
    assert v.get_value(index=(1, 2)) == 9
    v.set_value(0, index=(1, 2))
    assert v[1, 2] == 0
    assert isinstance(v.value, jax.Array)


def test_values_may_be_pytrees():
    v = nnx.Cache({"k": jnp.zeros(2), "v": jnp.ones(2)})
    old = v.value
    v["k"] = jnp.full(2, 3.0)
    np.testing.assert_array_equal(v["k"], [3, 3])
    np.testing.assert_array_equal(old["k"], [0, 0])  # what was read before stays as it was
    seq = nnx.Variable(["a", "b", "c"])
    seq[1] = "d"
    assert seq.value == ["a", "d", "c"]
    assert list(seq) == ["a", "d", "c"] and len(seq) == 3 and "d" in seq


def test_numpy_values_are_arrays():
    v = nnx.Variable(np.zeros(3, np.float32))
    v[1] = 2.0
    np.testing.assert_array_equal(v.value, [0, 2, 0])


def test_callable_values_are_called():
    v = nnx.Variable(jnp.tanh)
    assert v(0.0) == 0.0


def test_attributes_of_the_array():
    v = nnx.Param(jnp.arange(6.0).reshape(2, 3))
    assert (v.shape, v.ndim, v.size, v.dtype) == ((2, 3), 2, 6, jnp.float32)
    assert v.T.shape == (3, 2)
    assert v.sum() == 15
    assert v.at[0, 0].set(9.0)[0, 0] == 9
    assert v.astype(jnp.int32).dtype == jnp.int32
    assert v.reshape(-1).shape == (6,)
    assert v.sharding == v.value.sharding


def test_an_unknown_attribute_names_type_metadata_and_value():
    v = nnx.Param(jnp.zeros(2), tag="a")
    with pytest.raises(AttributeError, match=r"Param has no attribute.*'nothing'.*tag.*ArrayImpl"):
        _ = v.nothing
    assert not hasattr(v, "nothing")


# -- metadata ------------------------------------------------------------------------------------


def test_metadata_is_read_and_written_as_attributes():
    v = nnx.Param(jnp.zeros(2), tag="a")
    assert v.tag == "a"
    v.tag = "b"
    v.note = ("x", 1)
    assert v.get_metadata() == {"tag": "b", "note": ("x", 1)}
    assert v.get_metadata("note") == ("x", 1)
    assert v.get_metadata("missing", None) is None
    with pytest.raises(KeyError):
        v.get_metadata("missing")
    assert v.has_metadata("note") and not v.has_metadata("missing")
    del v.note
    assert v.get_metadata() == {"tag": "b"}
    with pytest.raises(AttributeError, match="note"):
        del v.note


def test_set_metadata_forms():
    v = nnx.Param(jnp.zeros(2), tag="a")
    v.set_metadata("note", 1)
    v.set_metadata(other=2)
    assert v.get_metadata() == {"tag": "a", "note": 1, "other": 2}
    v.set_metadata({"only": 3})
    assert v.get_metadata() == {"only": 3}
    v.del_metadata("only")
    assert v.get_metadata() == {}


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), (0.0, -0.0)])
def test_equal_metadata_of_another_type_is_written(old, new):
    v = nnx.Param(jnp.zeros(2), note=old)
    v.note = new
    assert repr(v.note) == repr(new)


ALIASES = ("sharding", "sharding_names", "out_sharding")


@pytest.mark.parametrize("given", ALIASES)
@pytest.mark.parametrize("read", ALIASES)
def test_the_sharding_annotation_has_three_names(given, read):
    v = nnx.Param(jnp.zeros((2, 3)), **{given: ("a", None)})
    if read != "sharding" or given == read:  # else it is the array's
        assert getattr(v, read) == ("a", None)
    assert v.get_metadata(read) == ("a", None)
    assert v.has_metadata(read)
    setattr(v, read, ("b", None))
    assert getattr(v, given) == ("b", None)
    assert len(v.get_metadata()) == 1
    v.del_metadata(read)
    assert not v.has_metadata(given)


def test_metadata_wins_over_the_array():
    v = nnx.Param(jnp.zeros((2, 3)), sharding=("a", "b"), T="tag")
    assert v.sharding == ("a", "b")
    assert v.T == "tag"


def test_metadata_never_replaces_value_or_methods():
    v = nnx.Param(jnp.zeros(2))
    v.value = jnp.ones(2)
    assert v.get_metadata() == {}


# -- hooks ---------------------------------------------------------------------------------------


def test_hooks_of_one_cell():
    v = nnx.Variable(
        jnp.array(1.0),
        on_get_value=lambda variable, x: x * 2,
        on_set_value=lambda variable, x: x + 1,
        on_create_value=lambda variable, x: x * 10,
    )
    assert v.raw_value == 10
    assert v.value == 20 and v[...] == 20 and v + 0.0 == 20
    v.value = jnp.array(5.0)
    assert v.raw_value == 6
    v += 1.0  # read 12, add 1, stored 14
    assert v.raw_value == 14


def test_hooks_set_later_and_removed():
    v = nnx.Variable(jnp.array(1.0))
    v.on_get_value = lambda variable, x: -x
    assert v.value == -1
    del v.on_get_value
    assert v.value == 1


def test_hooks_of_a_class():
    class Positive(nnx.Variable):
        calls: ClassVar[list] = []

        def on_get_value(self, value):
            return jnp.exp(value)

        def on_set_value(self, value):
            return jnp.log(value)

        def on_create_value(self, value):
            return jnp.log(value)

        def on_add_axis(self, index, name):
            self.calls.append(("add", index, name))

        def on_remove_axis(self, index, name):
            self.calls.append(("remove", index, name))

    v = Positive(jnp.array(4.0))
    np.testing.assert_allclose(v.value, 4.0, rtol=1e-6)
    np.testing.assert_allclose(v.raw_value, np.log(4.0), rtol=1e-6)
    v.value = jnp.array(9.0)
    np.testing.assert_allclose(v.raw_value, np.log(9.0), rtol=1e-6)
    v.add_axis(0, "layers")
    v.remove_axis(1, None)
    assert Positive.calls == [("add", 0, "layers"), ("remove", 1, None)]


def test_axis_hooks_of_one_cell():
    seen = []
    v = nnx.Param(
        jnp.zeros(2),
        on_add_axis=lambda variable, index, name: seen.append((variable, "add", index, name)),
    )
    v.add_axis(1, "b")
    v.remove_axis(1, "b")
    assert seen == [(v, "add", 1, "b")]


def test_with_metadata_chains_hooks_in_order():
    def initializer(key, shape):
        return jnp.ones(shape)

    init = nnx.with_metadata(
        initializer,
        set_value_hooks=[lambda v, x: x + 1, lambda v, x: x * 10],
        get_value_hooks=lambda v, x: x - 1,
        sharding_names=("a",),
        tag="t",
    )
    v = nnx.Param(init(jax.random.key(0), (2,)), tag="own")
    assert v.sharding_names == ("a",)
    assert v.tag == "own"
    np.testing.assert_array_equal(v.value, [0, 0])
    v.value = jnp.zeros(2)
    np.testing.assert_array_equal(v.raw_value, [10, 10])
