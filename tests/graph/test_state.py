"""State: the nested mapping from paths to leaves, its verbs, and itself as a pytree."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Stateful, chain, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


def make_state() -> nnx.State:
    return nnx.state(Node(a=Dense(2, 3), layers=[Dense(1, 1), Stateful(2)], offset=jnp.ones(2)))


# -- access --------------------------------------------------------------------------------------


def test_access_by_attribute_and_item():
    state = make_state()
    assert state.a.kernel is state["a"]["kernel"]
    assert type(state.a.kernel) is nnx.Param and state.a.kernel.shape == (2, 3)
    assert state.layers[0].bias.shape == (1,)
    assert isinstance(state.a, nnx.State)
    assert sorted(state) == ["a", "layers", "offset"] and len(state) == 3
    assert "a" in state and "b" not in state
    assert [k for k, _ in state.items()] == list(state.keys())
    assert isinstance(state.offset, jax.Array)


def test_an_unknown_name_suggests_a_near_one():
    state = make_state()
    with pytest.raises(AttributeError, match=r"'kernl'.*Did you mean 'kernel'"):
        _ = state.a.kernl
    with pytest.raises(KeyError, match=r"no entry 'b'"):
        _ = state["b"]
    assert state.get("b") is None


def test_writing_into_a_part_writes_into_the_whole():
    state = make_state()
    state.a.kernel = state.a.kernel.replace(jnp.zeros((2, 3)))
    assert (state["a"]["kernel"].value == 0).all()
    state["a"]["new"] = {"x": jnp.ones(1)}
    assert state.a.new.x.shape == (1,)
    state.other = nnx.State({"y": jnp.ones(2)})
    assert state["other"]["y"].shape == (2,)
    del state.a["new"]
    del state.other
    assert "new" not in state.a and "other" not in state
    state.a.kernel.value = jnp.ones((2, 3))  # the cell itself may be written too
    assert (state.a.kernel.value == 1).all()


def test_made_from_mappings_and_pairs():
    assert nnx.State({"a": {"b": 1}}).a.b == 1
    assert nnx.State([(("a", "b"), 1), (("c",), 2)]).raw_mapping == {"a": {"b": 1}, "c": 2}
    assert nnx.State(nnx.State({"a": 1})).a == 1
    assert nnx.State(nnx.FlatState([(("a",), 1)])).raw_mapping == {"a": 1}
    assert nnx.State().raw_mapping == {}


def test_a_state_holds_copies_of_the_variables():
    model = Dense(1, 1)
    state = nnx.state(model)
    assert state.kernel is not model.kernel and state.kernel.value is model.kernel.value
    state.kernel.value = jnp.zeros((1, 1))
    assert (model.kernel.value != 0).all()
    model.bias.value = jnp.ones(1)
    assert (state.bias.value == 0).all() and (state.kernel.value == 0).all()


# -- flat ----------------------------------------------------------------------------------------


def test_flat_and_back():
    state = make_state()
    flat = nnx.to_flat_state(state)
    assert isinstance(flat, nnx.FlatState)
    assert [p for p, _ in flat] == list(flat.paths) == paths_of(state)
    assert flat[("a", "kernel")] is state.a.kernel
    assert ("a", "kernel") in flat and ("a",) not in flat
    assert len(flat) == len(flat.leaves) == 8
    assert dict(flat)[("offset",)] is state.offset
    for back in (
        nnx.from_flat_state(flat),
        nnx.from_flat_state(dict(flat)),
        flat.to_nested_state(),
        nnx.State.from_flat_path(state.flat_state()),
    ):
        assert jax.tree.structure(back) == jax.tree.structure(state)
    with pytest.raises(KeyError, match=r"no leaf at `a\.b`"):
        flat[("a", "b")]


def test_flat_order_is_the_pytree_order():
    state = make_state()
    leaves = [v.value if isinstance(v, nnx.Variable) else v for _, v in nnx.to_flat_state(state)]
    assert all(a is b for a, b in zip(leaves, jax.tree.leaves(state), strict=True))
    flat = nnx.to_flat_state(state)
    doubled = jax.tree.map(lambda x: x * 2, flat)
    assert doubled.paths == flat.paths and doubled[("offset",)].tolist() == [2, 2]


# -- as a pytree ---------------------------------------------------------------------------------


def test_tree_map_sees_arrays_and_keeps_variables():
    state = make_state()
    kinds = set()
    out = jax.tree.map(lambda x: (kinds.add(isinstance(x, jax.Array)), x + 1)[1], state)
    assert kinds == {True}
    assert isinstance(out, nnx.State) and type(out.a.kernel) is nnx.Param
    np.testing.assert_array_equal(out.a.bias.value, [1, 1, 1])
    assert jax.tree.structure(out) == jax.tree.structure(state)


def test_tree_map_with_variables_as_leaves():
    state = make_state()
    names = jax.tree.map(
        lambda v: type(v).__name__, state, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    assert names.a.kernel == "Param" and names.layers[1].count == "Count"


def test_key_paths():
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(make_state())]
    assert paths[0] == "['a']['bias'].value"
    assert "['layers'][1]['count'].value" in paths and "['offset']" in paths


def test_metadata_takes_part_in_the_structure():
    a, b = (nnx.State({"w": nnx.Param(jnp.ones(2), tag=t)}) for t in "ab")
    assert jax.tree.structure(a) != jax.tree.structure(b)
    out = jax.tree.map(lambda x: x, a)
    assert out.w.tag == "a"


def test_states_through_jax():
    state = nnx.state(Dense(2, 2))

    def loss(state, x):
        return (x @ state.kernel + state.bias[None]).sum()

    grads = jax.jit(jax.grad(loss))(state, jnp.ones((3, 2)))
    assert isinstance(grads, nnx.State)
    np.testing.assert_array_equal(grads.bias.value, [3, 3])
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    out = jax.vmap(loss, in_axes=(0, None))(stacked, jnp.ones((3, 2)))
    assert out.shape == (2,)
    last, _ = jax.lax.scan(lambda s, _: (jax.tree.map(lambda x: x + 1, s), None), state, None, 3)
    np.testing.assert_array_equal(last.bias.value, [3, 3])


def test_integer_and_string_keys_in_one_level():
    state = nnx.State({"a": {1: jnp.ones(1), "x": jnp.zeros(1)}})
    assert len(nnx.to_flat_state(state)) == 2
    assert len(nnx.to_pure_dict(state)["a"]) == 2


# -- pure dicts ----------------------------------------------------------------------------------


def test_pure_dict_and_back():
    state = make_state()
    pure = nnx.to_pure_dict(state)
    assert type(pure) is dict and type(pure["a"]) is dict
    assert pure["a"]["kernel"] is state.a.kernel.value and pure["offset"] is state.offset
    shapes = state.to_pure_dict(lambda v: v.shape)
    assert shapes["a"]["kernel"] == (2, 3)
    doubled = jax.tree.map(lambda x: x * 2, pure)
    nnx.replace_by_pure_dict(state, doubled)
    assert type(state.a.kernel) is nnx.Param and state.offset[0] == 2


def test_replace_by_pure_dict_forms():
    state = make_state()
    state.replace_by_pure_dict({"layers": {"0": {"bias": jnp.full(1, 7.0)}}})  # partial, string key
    assert state.layers[0].bias.value == 7
    state.replace_by_pure_dict({"a": {"bias": {"value": jnp.full(3, 5.0)}}})  # as some checkpoints
    np.testing.assert_array_equal(state.a.bias.value, [5, 5, 5])
    state.replace_by_pure_dict({"offset": jnp.zeros(2)}, lambda old, new: old + 10)
    np.testing.assert_array_equal(state.offset, [11, 11])
    before = jax.tree.leaves(state)
    with pytest.raises(nnx.GraphError, match=r"no leaf at `a\.kernl`.*a\.kernel"):
        state.replace_by_pure_dict({"a": {"bias": jnp.zeros(3), "kernl": jnp.zeros(1)}})
    assert all(a is b for a, b in zip(before, jax.tree.leaves(state), strict=True))


def test_restore_int_paths():
    assert nnx.restore_int_paths({"a": {"0": 1, "-1": 2, "x1": 3}, "10": 4}) == {
        "a": {0: 1, -1: 2, "x1": 3},
        10: 4,
    }


def test_pure_of_any_tree():
    model = Dense(2, 2)
    for tree in (model, nnx.state(model)):
        pure = nnx.pure(tree)
        assert isinstance(pure, nnx.State) and pure["kernel"] is model.kernel.value
    assert nnx.pure({"x": [model.kernel, 1]}) == {"x": [model.kernel.value, 1]}


# -- verbs ---------------------------------------------------------------------------------------


def test_split_filter_merge_map():
    state = make_state()
    params, counts, rest = nnx.split_state(state, nnx.Param, Count, ...)
    assert paths_of(counts) == [("layers", 1, "count")]
    assert state.split(nnx.Param, Count, ...)[0].a.kernel is params.a.kernel
    assert paths_of(state.filter(Count)) == paths_of(counts)
    assert isinstance(nnx.filter_state(state, Count), nnx.State)
    merged = nnx.merge_state(params, counts, rest)
    assert jax.tree.structure(merged) == jax.tree.structure(state)
    assert paths_of(nnx.State.merge(params, counts)) == paths_of(params | counts)
    assert paths_of(state - params) == sorted(paths_of(counts) + paths_of(rest), key=str)
    shapes = state.map(lambda path, v: (path, v.shape))
    assert shapes.a.kernel == (("a", "kernel"), (2, 3))
    assert nnx.map_state(lambda path, v: len(path), state).offset == 1


def test_the_later_state_wins():
    a, b = nnx.State({"x": 1, "y": {"z": 1}}), nnx.State({"y": {"z": 2}})
    assert nnx.merge_state(a, b).raw_mapping == {"x": 1, "y": {"z": 2}}
    assert (a | b).y.z == 2 and a.y.z == 1


def test_copies_and_pickle():
    state = make_state()
    shallow = copy.copy(state)
    shallow["extra"] = 1
    assert "extra" not in state and shallow.a.kernel is state.a.kernel
    for new in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert isinstance(new, nnx.State) and new.a.kernel is not state.a.kernel
        assert jax.tree.structure(new) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, new, state)


def test_create_from_a_deep_graph():
    state = nnx.state(chain(2000))
    assert len(nnx.to_flat_state(state)) == 2000
    assert len(nnx.state(chain(2000), nnx.Param).flat_state()) == 2000


def test_a_state_as_an_attribute_is_a_part_of_the_graph():
    inner = nnx.state(Dense(1, 1))
    model = Node(params=inner)
    assert paths_of(nnx.state(model)) == [("params", "bias"), ("params", "kernel")]

    @nnx.jit
    def f(m):
        m.params.bias.value = jnp.full(1, 3.0)

    f(model)
    assert model.params is inner and inner.bias.value == 3


def test_repr():
    text = repr(nnx.State({"a": {"b": nnx.Param(jnp.ones(2))}}))
    assert text.startswith("State({") and "'b': Param( # 2 (8 B)" in text
    assert repr(nnx.state(Block()))
