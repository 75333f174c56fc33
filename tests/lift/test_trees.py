"""`to_tree`, `from_tree`, `map`: objects as pytrees of States, for code that drives JAX itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refax import nnx
from tests import strategies as graphs
from tests.models import Block, Count, Dense, Node, Pair, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


def test_to_tree_and_back():
    model = Block()
    tree = Pair([model, {"again": model, "cell": model.tied}], 1.0)
    apart = nnx.to_tree(tree)
    assert type(apart) is Pair and apart.second == 1.0
    assert isinstance(apart.first[0], nnx.NodeStates)
    assert len(jax.tree.leaves(apart)) == len(jax.tree.leaves(model)) + 1  # shared leaves once
    back = nnx.from_tree(apart)
    first, rest = back.first
    assert first is rest["again"] and first is not model and first.tied is rest["cell"]
    assert nnx.graphdef(first) == nnx.graphdef(model)


def test_without_objects():
    tree = {"a": [1, jnp.ones(2)], "s": nnx.state(Dense(1, 1))}
    assert nnx.from_tree(nnx.to_tree(tree))["a"][0] == 1
    assert nnx.from_tree({"a": 1}) == {"a": 1}


def test_by_hand_through_vmap():
    models = [Dense(2, 2, seed=i) for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(nnx.to_tree, models))

    def apply(tree, x):
        return nnx.from_tree(tree)(x)

    x = jnp.ones((1, 2))
    y = jax.vmap(apply, in_axes=(0, None))(stacked, x)
    for i, model in enumerate(models):
        np.testing.assert_allclose(y[i], model(x), rtol=1e-6)


def test_a_missing_part_is_named():
    apart = nnx.to_tree([Dense(1, 1), Node(w=nnx.Param(jnp.ones(1)))])
    with pytest.raises(ValueError, match=r"\[1\]\.w|\[1\].*w"):
        nnx.from_tree(apart[:1])


@given(roots=st.lists(graphs.graphs, min_size=1, max_size=3))
def test_random_graphs(roots):
    tree = [*roots, roots[0]]
    back = nnx.from_tree(nnx.to_tree(tree))
    assert graphs.difference(tree, back) == ""


def test_map():
    model = Block()
    doubled = nnx.map(lambda path, leaf: leaf * 2, model)
    assert type(doubled) is Block and doubled.tied is doubled.layers[0].kernel
    np.testing.assert_array_equal(doubled.tied.value, 2 * model.tied.value)
    np.testing.assert_array_equal(doubled.offset, 2 * model.offset)
    assert type(doubled.parts["norm"].count) is Count
    seen = []
    nnx.map(lambda path, leaf: seen.append(path) or leaf, model)
    assert seen == paths_of(nnx.state(model))
    state = nnx.map(lambda path, leaf: leaf.replace(tag="t"), nnx.state(Dense(1, 1)))
    assert state.kernel.tag == "t"
    with pytest.raises(TypeError, match="jax.tree.map"):
        nnx.map(lambda path, leaf: leaf, {"a": 1})
