"""Variables: copies, pickle, types and their names, Variables as pytrees, repr."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Node

pytestmark = pytest.mark.usefixtures("strict_numerics")

# -- copies --------------------------------------------------------------------------------------


def test_copy_is_another_cell_with_the_same_content():
    v = nnx.Param(jnp.zeros(2), tag="a")
    for w in (v.copy(), copy.copy(v), v.to_state()):
        assert w is not v and type(w) is nnx.Param
        assert w.value is v.value and w.tag == "a"
        w.value = jnp.ones(2)
        np.testing.assert_array_equal(v.value, [0, 0])


def test_replace():
    v = nnx.Param(jnp.zeros(2), tag="a")
    w = v.replace(jnp.ones(3))
    assert w.shape == (3,) and w.tag == "a" and type(w) is nnx.Param
    assert v.shape == (2,)
    w = v.replace(tag="b", note=1)
    assert w.value is v.value and w.get_metadata() == {"tag": "b", "note": 1}
    w = v.replace(nnx.Param(jnp.ones(2), note=2))
    assert w.get_metadata() == {"tag": "a", "note": 2}
    assert v.replace(None).value is None
    with pytest.raises(ValueError, match="Param by a BatchStat"):
        v.replace(nnx.BatchStat(jnp.ones(2)))


def test_copy_from():
    v, w = nnx.Param(jnp.zeros(2), tag="a"), nnx.Param(jnp.ones(2), tag="b")
    v.copy_from(w)
    assert v.value is w.value and v.tag == "b"
    with pytest.raises(ValueError, match="BatchStat into a Param"):
        v.copy_from(nnx.BatchStat(jnp.ones(2)))
    v.update_from_state(nnx.Param(jnp.full(2, 3.0)))
    np.testing.assert_array_equal(v.value, [3, 3])
    assert v.get_metadata() == {}


def test_deepcopy_copies_the_buffer():
    v = nnx.Param(jnp.zeros(2), tag="a")
    first, second = copy.deepcopy([v, v])
    assert first is second and first is not v
    assert first.value is not v.value and first.tag == "a"
    np.testing.assert_array_equal(first.value, v.value)


@pytest.mark.parametrize("cls", [nnx.Param, Count, nnx.RngKey])
def test_pickle(cls):
    value = jax.random.key(7) if cls is nnx.RngKey else jnp.arange(3)
    first, second = pickle.loads(pickle.dumps([cls(value, tag="a")] * 2))
    assert first is second and type(first) is cls and first.tag == "a"
    assert first.dtype == value.dtype
    np.testing.assert_array_equal(
        jax.random.key_data(first.value) if cls is nnx.RngKey else first.value,
        jax.random.key_data(value) if cls is nnx.RngKey else value,
    )


def test_pickle_keeps_the_generator_of_a_key():
    key = jax.random.key(3, impl="rbg")
    v = pickle.loads(pickle.dumps(nnx.RngKey(key)))
    assert jax.random.key_impl(v.value) == jax.random.key_impl(key)


# -- types, pytrees, repr ------------------------------------------------------------------------


def test_types_and_names():
    assert issubclass(nnx.Perturbation, nnx.Intermediate)
    assert issubclass(nnx.LoRAParam, nnx.Param)
    assert issubclass(nnx.RngKey, nnx.RngState) and issubclass(nnx.RngCount, nnx.RngState)
    assert issubclass(nnx.OptVariable, nnx.OptState) and issubclass(nnx.OptArray, nnx.OptState)
    assert nnx.VariableState is nnx.Variable
    for made in (
        nnx.VariableState(type=nnx.Param, value=2, tag="a"),
        nnx.VariableState(nnx.Param, 2, tag="a"),
    ):
        assert type(made) is nnx.Param and int(made) == 2 and made.get_metadata() == {"tag": "a"}
        assert made.type is nnx.Param and nnx.OfType(nnx.Param)((), made)
    assert nnx.Variable(2, type="weight").get_metadata("type") == "weight"
    assert nnx.variable_type_from_name("params") is nnx.Param
    assert nnx.variable_name_from_type(nnx.BatchStat) == "batch_stats"
    with pytest.raises(ValueError, match="test_unknown"):
        nnx.variable_type_from_name("test_unknown")


def test_names_of_types_can_be_registered():
    made = nnx.variable_type_from_name("test_made", allow_register=True)
    assert issubclass(made, nnx.Variable)
    assert nnx.variable_type_from_name("test_made") is made

    @nnx.register_variable_name("test_named")
    class Named(nnx.Variable):
        pass

    assert nnx.variable_type_from_name("test_named") is Named
    with pytest.raises(ValueError, match="already stands for Named"):
        nnx.register_variable_name("test_named", nnx.Param)
    nnx.register_variable_name("test_named", nnx.Param, overwrite=True)
    assert nnx.variable_name_from_type(Named, allow_register=True) == "Named"


def test_subclasses_with_their_own_init_and_methods():
    class Sized(nnx.Param):
        def __init__(self, size: int, **metadata):
            super().__init__(jnp.zeros(size), **metadata)

        def double(self):
            self.value = self.value * 2

        @property
        def half(self):
            return self.value / 2

    v = Sized(3, tag="a")
    v.value = jnp.ones(3)
    v.double()
    np.testing.assert_array_equal(v.half, [1, 1, 1])
    assert v.type is Sized
    mapped = jax.tree.map(lambda x: x + 1, v)
    assert type(mapped) is Sized and mapped.tag == "a"
    np.testing.assert_array_equal(mapped.value, [3, 3, 3])


def test_generic_spelling():
    v = nnx.Param[jax.Array](jnp.zeros(2))
    assert type(v) is nnx.Param and v.get_metadata() == {}


def test_as_a_jax_pytree():
    v = nnx.Param(jnp.zeros(2), sharding=("a",))
    leaves, treedef = jax.tree.flatten(v)
    assert leaves[0] is v.value and len(leaves) == 1
    w = treedef.unflatten([jnp.ones(2)])
    assert type(w) is nnx.Param and w.sharding == ("a",)
    [(path, _)], _ = jax.tree_util.tree_flatten_with_path({"a": v})
    assert jax.tree_util.keystr(path) == "['a'].value"
    out = jax.jit(lambda v: v.replace(v * 2))(nnx.Param(jnp.ones(2)))
    assert type(out) is nnx.Param
    assert jax.tree.structure(v) != jax.tree.structure(nnx.Param(jnp.zeros(2)))


def test_identity_is_what_is_hashed():
    v, w = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))
    assert len({v, w, v}) == 2
    assert {v: 1}[v] == 1


def test_repr_is_a_tree_with_sizes():
    v = Count(jnp.arange(1, 11))
    assert repr(v) == (
        "Count( # 10 (40 B)\n"
        "  value=Array([ 1,  2,  3,  4,  5,  6,  7,  8,  9, 10], dtype=int32)\n"
        ")"
    )
    assert str(v) == f"{v}" == repr(v)
    text = repr(nnx.Param(jnp.zeros((100, 20)), sharding=("a", None)))
    assert text == (
        "Param( # 2,000 (8.0 KB)\n"
        "  value=Array(shape=(100, 20), dtype=dtype('float32')),\n"
        "  sharding=('a', None)\n"
        ")"
    )
    assert "Count( # 1 (4 B)\n  value=Array(1, dtype=int32, weak_type=True)" in repr(
        Count(1 + jnp.asarray(0))
    )
    model = Node(count=v)
    assert repr(model).startswith(
        "Node( # Count: 10 (40 B)\n  count=Count( # 10 (40 B)\n    value="
    )


def test_repr_inside_a_trace_and_of_deleted_arrays():
    texts = []
    jax.jit(lambda v: texts.append(repr(v)))(nnx.Param(jnp.zeros(2)))
    assert "Traced<float32[2]>" in texts[0]
    v = nnx.Param(jnp.zeros(2))
    v.value.delete()
    assert "deleted" in repr(v)
