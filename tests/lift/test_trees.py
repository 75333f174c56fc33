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
    model = Dense(1, 1)
    apart = nnx.to_tree([model, Node(w=nnx.Param(jnp.ones(1)), inner=model)])
    with pytest.raises(ValueError, match=r"inner"):
        nnx.from_tree(apart[1:])


def test_bare_arrays_of_a_shared_object_are_in_one_place():
    model = Node(a=jnp.ones(2), deep=((jnp.zeros(1), "x"), [jnp.zeros(3)]))
    apart = nnx.to_tree({"one": model, "two": Node(inner=model, own=jnp.ones(1))})
    assert len(jax.tree.leaves(apart["one"])) == 3 and len(jax.tree.leaves(apart["two"])) == 1
    back = nnx.from_tree(jax.tree.map(lambda x: x + 1, apart))
    assert back["two"].inner is back["one"] and (back["one"].a == 2).all()
    assert (back["one"].deep[0][0] == 1).all() and (back["two"].own == 2).all()


AXES = nnx.StateAxes({nnx.Param: 0, ...: None})


def split_by_prefix(ctx, path, prefix, leaf):
    assert isinstance(ctx, nnx.SplitContext)
    if isinstance(prefix, nnx.StateAxes):
        split = ctx.split(leaf, *prefix.filters)
        return nnx.NodeStates.from_split(*split, metadata=prefix)
    return nnx.NodeStates.from_split(*ctx.split(leaf))


def as_axes(prefix):
    if isinstance(prefix, nnx.StateAxes):
        return nnx.NodeStates.from_prefixes(prefix.axes, metadata=prefix)
    return prefix


def test_a_transform_of_ones_own():
    """vmap with StateAxes, written on `to_tree`, NodeStates and prefixes of them."""

    def vmap(f, in_axes):
        def pure(tree):
            args = nnx.from_tree(tree)
            out = f(*args)
            return nnx.to_tree((args, out), prefix=(in_axes, 0), split_fn=split_by_prefix)

        def call(*args):
            tree = nnx.to_tree(args, prefix=in_axes, split_fn=split_by_prefix)
            axes = tuple(map(as_axes, in_axes))
            changed, out = jax.vmap(pure, in_axes=(axes,), out_axes=(axes, 0))(tree)
            for arg, new in zip(args, nnx.from_tree(changed), strict=True):
                if isinstance(arg, nnx.Module):
                    nnx.update(arg, nnx.state(new))
            return out

        return call

    def f(model, x):
        model.kernel.value *= 2.0
        return model(x)

    def make():
        return nnx.vmap(lambda seed: Stateless(nnx.Rngs(seed)))(jnp.arange(3))

    ours, theirs, x = make(), make(), jnp.ones((1, 2))
    theirs.scale.value = ours.scale.value = jnp.ones(())
    y = vmap(f, in_axes=(AXES, None))(ours, x)
    np.testing.assert_allclose(y, nnx.vmap(f, in_axes=(AXES, None))(theirs, x), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(ours), nnx.state(theirs))


class Stateless(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(rngs.normal((2, 3)))
        self.scale = nnx.BatchStat(jnp.ones(()))

    def __call__(self, x):
        return x @ self.kernel * self.scale[None, None]


def test_what_the_functions_get():
    model, seen = Dense(1, 1), []

    def split(ctx, path, prefix, leaf):
        seen.append((jax.tree_util.keystr(path), prefix, type(leaf).__name__))
        return ctx.split(leaf)[1] if nnx.graph.is_graph_node(leaf) else leaf

    tree = {"a": [model, 1.0], "b": model}
    nnx.to_tree(tree, prefix={"a": 0, "b": 0}, split_fn=split)
    assert seen == [("['a'][0]", 0, "Dense"), ("['b']", 0, "Dense")]
    seen.clear()
    nnx.to_tree(tree, prefix=0, split_fn=split, map_non_graph_nodes=True)
    assert [name for _, _, name in seen] == ["Dense", "float", "Dense"]
    apart, seen = nnx.to_tree(tree), []

    def merge(ctx, path, prefix, leaf):
        seen.append((jax.tree_util.keystr(path), prefix))
        return ctx.merge(leaf.graphdef, *leaf.states) if isinstance(leaf, nnx.NodeStates) else "x"

    back = nnx.from_tree(apart, prefix={"a": 1, "b": 2}, merge_fn=merge, map_non_graph_nodes=True)
    assert seen == [("['a'][0]", 1), ("['a'][1]", 1), ("['b']", 2)]
    assert back["a"][0] is back["b"] and back["a"][1] == "x"


def test_two_prefixes_of_one_object():
    model = Dense(1, 1)
    with pytest.raises(ValueError, match=r"Inconsistent aliasing(.|\n)*kernel: 0(.|\n)*kernel: 1"):
        nnx.to_tree({"a": model, "b": [model]}, prefix={"a": 0, "b": 1})
    apart = nnx.to_tree([model, model], prefix=[0, 1], check_aliasing=False)
    assert apart[1].state == nnx.State()
    shared = nnx.StateAxes({nnx.Param: 0, ...: None})
    assert len(nnx.to_tree([model, model], prefix=[shared, shared])) == 2


def test_node_states():
    graphdef, params, rest = nnx.split(nnx.BatchNorm(1, rngs=nnx.Rngs(0)), nnx.Param, ...)
    both = nnx.NodeStates.from_split(graphdef, params, rest, metadata="m")
    assert both.graphdef is graphdef and both.states == (params, rest) and both.metadata == "m"
    assert nnx.NodeStates.from_split(graphdef, params).state is params
    assert both.replace(metadata="n").metadata == "n" and both.replace(metadata="n").states
    alone = nnx.NodeStates.from_states(params, rest)
    assert len(jax.tree.leaves(alone)) == 4 and "State" in repr(alone)
    for wrong in (lambda: alone.graphdef, lambda: both.state):
        with pytest.raises(nnx.StructureError, match="Cure"):
            wrong()
    prefixes = nnx.NodeStates.from_prefixes([0, None], metadata="m")
    doubled = jax.vmap(lambda n: n.states[0].scale * 2, in_axes=(prefixes,))(both)
    assert doubled.shape == (1,)


def test_inside_an_update_context():
    model = Dense(1, 1)

    @nnx.update_context("t")
    def outer(model):
        assert nnx.current_update_context("t").ctxtag == "t"
        back = nnx.from_tree(inner(nnx.to_tree((model, model), ctxtag="t")), ctxtag="t")
        assert back[0] is back[1] is model

    @jax.jit
    def inner(tree):
        one, other = nnx.from_tree(tree, ctxtag="t")
        assert one is other
        one.extra = nnx.Param(one.kernel.value * 2)
        return nnx.to_tree((one, other), ctxtag="t")

    outer(model)
    np.testing.assert_array_equal(model.extra.value, model.kernel.value * 2)
    with pytest.raises(ValueError, match="no update context 't'"):
        nnx.current_update_context("t")


@pytest.mark.parametrize("with_paths", [True, False])
def test_contexts_flatten(with_paths):
    shared = Dense(1, 1)
    a, b = Node(x=shared), Node(y=shared, z=nnx.Param(jnp.ones(1)))
    with nnx.split_context() as ctx:
        (def_a, leaves_a) = ctx.flatten(a, with_paths=with_paths)
        (def_b, leaves_b) = ctx.flatten(b, with_paths=with_paths)
    assert isinstance(ctx, nnx.SplitContext) and isinstance(ctx, nnx.UpdateContext)
    assert type(leaves_a) is (nnx.FlatState if with_paths else list) and len(leaves_b) == 1
    with nnx.merge_context() as ctx:
        a, b = ctx.unflatten(def_a, leaves_a), ctx.unflatten(def_b, leaves_b)
    assert a.x is b.y and b.z == 1


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
