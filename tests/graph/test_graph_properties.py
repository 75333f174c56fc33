"""Properties of the verbs over random graphs, checked by a naive walk."""

import copy
import pickle

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refax import nnx
from tests import strategies as graphs
from tests.models import paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")

COPIES = {
    "split and merge": lambda m: nnx.merge(*nnx.split(m)),
    "split by filters and merge": lambda m: nnx.merge(*nnx.split(m, nnx.Param, nnx.Variable, ...)),
    "merge of a pure dict": lambda m: nnx.merge(nnx.graphdef(m), nnx.to_pure_dict(nnx.state(m))),
    "flatten and unflatten": lambda m: nnx.unflatten(*nnx.flatten(m)),
    "clone": nnx.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle of the parts": lambda m: nnx.merge(*pickle.loads(pickle.dumps(nnx.split(m)))),
    "tree.map": lambda m: jax.tree.map(lambda x: x, m),
}
SHARING = {
    "clone": lambda m: nnx.clone(m, variables=False),
    "recursive_map": lambda m: nnx.recursive_map(lambda path, x: x, m),
}


@pytest.mark.parametrize("copy_of", COPIES.values(), ids=COPIES.keys())
@given(root=graphs.graphs)
def test_copies_are_isomorphic_and_share_nothing(copy_of, root):
    new = copy_of(root)
    assert graphs.difference(root, new) == ""
    assert not set(map(id, graphs.objects_of(root))) & set(map(id, graphs.objects_of(new)))
    assert nnx.graphdef(new) == nnx.graphdef(root)
    assert hash(nnx.graphdef(new)) == hash(nnx.graphdef(root))


@pytest.mark.parametrize("copy_of", SHARING.values(), ids=SHARING.keys())
@given(root=graphs.graphs)
def test_copies_that_share_exactly_the_variables(copy_of, root):
    new = copy_of(root)
    assert graphs.difference(root, new) == ""
    ours, theirs = graphs.objects_of(root), graphs.objects_of(new)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is b) == isinstance(a, nnx.Variable)


@given(root=graphs.graphs)
def test_paths_are_those_of_a_naive_walk(root):
    expected = graphs.leaf_paths(root)
    assert paths_of(nnx.state(root)) == expected
    reached = {path: value for path, value in nnx.iter_graph(root)}
    assert set(expected) <= set(reached)
    for path, leaf in nnx.to_flat_state(nnx.variables(root)):
        assert reached[path] is leaf


@given(root=graphs.graphs)
def test_iter_graph_meets_every_object_once(root):
    met = [x for _, x in nnx.iter_graph(root) if graphs.has_identity(x)]
    assert sorted(map(id, met)) == sorted(map(id, graphs.objects_of(root)))
    assert met[-1] is root


@given(root=graphs.graphs)
def test_update_with_new_values_writes_exactly_those(root):
    def next_value(x):
        return x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x

    before = graphs.objects_of(root)
    new = jax.tree.map(next_value, nnx.state(root))
    nnx.update(root, new)
    jax.tree.map(lambda a, b: graphs.same_content(a, b) or pytest.fail(), nnx.state(root), new)
    assert all(a is b for a, b in zip(before, graphs.objects_of(root), strict=True))


@given(root=graphs.graphs)
def test_states_split_by_filters_make_up_the_whole(root):
    _, *parts = nnx.split(root, nnx.Param, nnx.BatchStat, "x", ...)
    whole = nnx.merge_state(*parts)
    assert jax.tree.structure(whole) == jax.tree.structure(nnx.state(root))
    again = nnx.split_state(whole, nnx.Param, nnx.BatchStat, "x", ...)
    assert [paths_of(p) for p in parts] == [paths_of(p) for p in again]


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 5))
def test_graphs_made_in_the_same_way_have_one_graphdef(seed, size):
    a, b = graphs.make_graph(seed, size), graphs.make_graph(seed, size)
    assert nnx.graphdef(a) is nnx.graphdef(b)


@given(root=graphs.graphs, change=graphs.traced_changes)
def test_graphdefs_are_equal_where_structures_are(root, change):
    before, skeleton = nnx.graphdef(root), graphs.skeleton(root)
    graphs.apply(root, change)
    assert (nnx.graphdef(root) == before) == (graphs.skeleton(root) == skeleton)


@given(root=graphs.graphs)
def test_leaves_of_a_module_are_those_of_its_state(root):
    leaves, expected = jax.tree.leaves(root), jax.tree.leaves(nnx.state(root))
    assert all(a is b for a, b in zip(leaves, expected, strict=True))
