"""What a path is, in every maker of a State; and FlatState, between a list of pairs and a dict."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from refax import nnx
from refax.nnx import statelib
from tests.models import Block

PAIRS = {
    "names": [("kernel", 1), ("b", 2)],
    "numbers": [(0, 1), (10, 2)],
    "paths": [(("a", "kernel"), 1), (("a", 0), 2), (("b",), 3)],
    "mixed": [("kernel", 1), (("layers", 0, "b"), 2), (7, 3)],
}
MAKERS = {
    "State": nnx.State,
    "State of an iterator": lambda pairs: nnx.State(iter(pairs)),
    "State of a FlatState": lambda pairs: nnx.State(nnx.FlatState(pairs)),
    "from_flat_state": nnx.from_flat_state,
    "from_flat_state of a dict": lambda pairs: nnx.from_flat_state(dict(pairs)),
    "from_flat_path": lambda pairs: nnx.State.from_flat_path(dict(pairs)),
    "FlatState": lambda pairs: nnx.FlatState(pairs).to_nested_state(),
    "FlatState of a dict": lambda pairs: nnx.FlatState(dict(pairs)).to_nested_state(),
    "sorted FlatState": lambda pairs: nnx.FlatState(pairs, sort=True).to_nested_state(),
    "unflatten_mapping": lambda pairs: nnx.State(nnx.traversals.unflatten_mapping(dict(pairs))),
}


def expected(pairs):
    nested = {}
    for path, value in pairs:
        *above, last = path if isinstance(path, tuple) else (path,)
        inner = nested
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return nested


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_key_alone_is_the_path_of_that_key(make, pairs):
    assert nnx.to_pure_dict(make(pairs)) == expected(pairs)


def test_values_of_pairs_may_be_nested():
    state = nnx.State([("a", {"b": 1}), (1, nnx.State({"c": 2}))])
    assert state.a.b == 1 and state[1]["c"] == 2


def test_orbax_restores_a_part_into_a_state(tmp_path):
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1)))
    state = nnx.state(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "all", state)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    part = nnx.State({"layers": {0: {"kernel": abstract.layers[0].kernel}}})
    arguments = ocp.args.PyTreeRestore(
        item=part,
        restore_args=ocp.checkpoint_utils.construct_restore_args(part),
        partial_restore=True,
    )
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "all", args=arguments)
    assert type(restored) is nnx.State and jax.tree.structure(restored) == jax.tree.structure(part)
    np.testing.assert_array_equal(restored.layers[0].kernel.value, model.layers[0].kernel.value)


# -- FlatState ------------------------------------------------------------------------------------


def flat_of(model):
    return nnx.state(model).flat_state()


def test_a_set_of_a_flat_state_is_a_set_of_paths():
    flat, other = flat_of(Block()), flat_of(Block())
    assert set(flat) == set(flat.paths) == set(flat.keys())
    assert set(flat) - set(other) == set() == set(flat.paths[1:]) - set(flat)
    assert set(flat) - set(flat.paths[1:]) == {flat.paths[0]}
    assert {path: 1 for path in set(flat)}[flat.paths[2]] == 1


def test_paths_and_pairs_are_in_it():
    flat = flat_of(Block())
    for path, leaf in flat:
        assert path in flat and (path, leaf) in flat and list(path) in flat
        assert path in list(flat) and flat[path] is leaf
        assert (path, jnp.zeros(9)) not in flat and (*path, "x") not in flat
    assert "offset" in flat and flat["offset"] is flat[("offset",)] and "offse" not in flat
    assert flat.index(flat.paths[3]) == flat.index(flat[3]) == 3
    assert flat.count(flat[0]) == 1 and flat.count(("nothing",)) == 0
    with pytest.raises(ValueError):
        flat.index(("nothing",))


def test_numbers_as_leaves_are_compared():
    flat = nnx.FlatState([("a", 1), ("b", 2)])
    assert (("a",), 1) in flat and (("a",), 2) not in flat
    assert flat[0] == (("a",), 1) and flat[0] != (("a",), 2) and flat[0] != flat[1]
    assert [path for path, _ in flat] == [("a",), ("b",)] and flat[0][1] == 1


def test_order_and_sorting():
    pairs = [(("b",), 1), (("a", 10), 2), (("a", 9), 3)]
    assert nnx.FlatState(pairs).items() == pairs
    in_order = [(("a", 9), 3), (("a", 10), 2), (("b",), 1)]
    assert nnx.FlatState(pairs, sort=True).items() == in_order
    assert nnx.to_flat_state(nnx.from_flat_state(pairs)).items() == in_order
    assert nnx.FlatState.from_sorted_keys_values((("a",),), [1]).items() == [(("a",), 1)]


def test_split_filter_and_merge():
    model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    flat = flat_of(model)
    params, rest = flat.split(nnx.Param, ...)
    assert params.paths == (("bias",), ("scale",)) and rest.paths == (("mean",), ("var",))
    assert type(params) is nnx.FlatState and params["bias"] is flat["bias"]
    assert flat.filter(nnx.BatchStat).paths == rest.paths
    assert [f.paths for f in flat.filter(nnx.Param, nnx.Cache)] == [params.paths, ()]
    with pytest.raises(nnx.GraphError, match="`mean`"):
        flat.split(nnx.Param)
    for merged in (rest.merge(params), nnx.FlatState.merge(rest, params)):
        assert merged.items() == flat.items()
    other = nnx.FlatState([("mean", 1)])
    assert flat.merge(other)["mean"] == 1 and other.merge(flat)["mean"] is flat["mean"]


def test_merging_states_is_by_method_and_by_class():
    a, b = nnx.State({"x": 1, "y": 1}), nnx.State({"y": 2})
    for merged in (a.merge(b), nnx.State.merge(a, b), nnx.merge_state(a, b.flat_state())):
        assert nnx.to_pure_dict(merged) == {"x": 1, "y": 2}
    assert type(nnx.merge_state(a, b, cls=dict)) is dict


def test_the_difference_of_states():
    state = nnx.state(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    params = nnx.filter_state(state, nnx.Param)
    for rest in (state - params, statelib.diff(state, params), state - params.flat_state()):
        assert list(rest) == ["mean", "var"] and rest.mean is state.mean


def test_generic_in_annotations():
    assert nnx.State[str, jax.Array] is not None and nnx.FlatState[jax.Array] is not None
    assert list(nnx.State[str, int]({"a": 1})) == ["a"]
    assert list(nnx.FlatState[int]([("a", 1)])) == [("a",)]
