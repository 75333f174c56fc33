"""The verbs: split, merge, state, variables, pop, clone, call, and going through a graph."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Pair, Stateful, chain, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


def knot() -> Node:
    """Sharing of nodes, Variables and lists, and a cycle."""
    shared = [nnx.Param(jnp.ones(2))]
    model = Node(b=shared, a=Node(items=shared, cell=shared[0]))
    model.a.up = model
    model.twin = model.a
    return model


def check_knot(model: Node) -> None:
    assert model.b is model.a.items and model.a.cell is model.b[0]
    assert model.a.up is model and model.twin is model.a


# -- split and merge -----------------------------------------------------------------------------


def test_split_and_merge():
    model = Block()
    graphdef, state = nnx.split(model)
    assert isinstance(graphdef, nnx.GraphDef) and isinstance(state, nnx.State)
    new = nnx.merge(graphdef, state)
    assert type(new) is Block and new is not model
    assert new.tied is new.layers[0].kernel and new.tied is not model.tied
    assert new.tied.value is model.tied.value
    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(new(x), model(x))
    assert new.parts["norm"].count == model.parts["norm"].count == 1
    assert state.parts.norm["count"].value == 0  # neither the model nor the copy writes to it


def test_merge_takes_the_states_in_any_order_and_as_dicts():
    model = Block()
    graphdef, params, counts, rest = nnx.split(model, nnx.Param, Count, ...)
    for states in (
        (params, counts, rest),
        (rest, counts, params),
        (nnx.merge_state(params, counts, rest),),
        (nnx.to_pure_dict(params), nnx.to_pure_dict(counts), nnx.to_pure_dict(rest)),
    ):
        new = nnx.merge(graphdef, *states)
        assert nnx.graphdef(new) == graphdef
        np.testing.assert_array_equal(new.tied.value, model.tied.value)
        assert type(new.parts["norm"].count) is Count


def test_merge_errors_name_the_path():
    graphdef, params, rest = nnx.split(Block(), nnx.Param, ...)
    with pytest.raises(nnx.StructureError, match=r"no value for `offset` \(and 2 more\)"):
        nnx.merge(graphdef, params)
    rest["offst"] = rest.raw_mapping.pop("offset")
    with pytest.raises(nnx.StructureError, match=r"`offst`.*Did you mean 'offset'"):
        nnx.merge(graphdef, params, rest)
    with pytest.raises(TypeError, match="merge: graphdef is State, but must be a GraphDef"):
        nnx.merge(params, graphdef)


def test_graphdefs_are_compared_hashed_interned_and_pickled():
    a, b = nnx.graphdef(Dense(2, 3)), nnx.graphdef(Dense(2, 3, seed=1))
    assert a is b and hash(a) == hash(b)
    assert a != nnx.graphdef(Dense(2, 4)) and a != nnx.graphdef(Stateful())
    again = pickle.loads(pickle.dumps(a))
    assert again == a and hash(again) == hash(a)
    assert jax.tree.leaves(a) == [] and jax.tree.map(lambda x: x, a) is a
    assert "kernel: Param" in repr(a) and "inputs=2" in repr(a)
    assert jax.jit(lambda g, s: nnx.merge(g, s).kernel.sum())(*nnx.split(Dense(2, 3))).shape == ()


LEAVES = {
    "int": 3,
    "float": 2.5,
    "text": "text",
    "array": jnp.ones(2),
    "NumPy": np.ones(2),
    "key": jax.random.key(0),
    "abstract": jax.ShapeDtypeStruct((2,), jnp.float32),
}


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_the_state_of_a_leaf_is_that_leaf(leaf):
    graphdef, state = nnx.split(leaf)
    assert state is leaf and nnx.state(leaf) is leaf and nnx.variables(leaf) is leaf
    assert nnx.graphdef(leaf) == graphdef and len(graphdef.paths.leaves) == 1
    assert nnx.flatten(leaf)[1].items() == [((), leaf)]
    assert nnx.flatten(leaf, with_paths=False)[1] == [leaf]
    for back in (
        nnx.merge(graphdef, state),
        nnx.merge(graphdef, [leaf]),
        nnx.unflatten(*nnx.flatten(leaf)),
        nnx.unflatten(*nnx.flatten(leaf, with_paths=False)),
        nnx.clone(leaf),
    ):
        assert back is leaf
    nothing, everything = nnx.state(leaf, nnx.Param, ...)
    assert everything is leaf and nothing == nnx.State()
    with pytest.raises(ValueError, match="the root"):
        nnx.split(leaf, nnx.Param)
    with pytest.raises(TypeError, match="takes an object"):
        nnx.update(leaf, leaf)


@pytest.mark.parametrize("copy", [True, False])
def test_the_state_of_a_variable_is_a_variable(copy):
    cell = nnx.Param(jnp.ones(2), tag="t")
    graphdef, state = nnx.split(cell, copy=copy)
    assert type(state) is nnx.Param and state.tag == "t" and (state is cell) is not copy
    assert type(nnx.state(cell, nnx.Param)) is nnx.Param
    assert nnx.state(cell, nnx.BatchStat) == nnx.State()
    new = nnx.merge(graphdef, state)
    assert type(new) is nnx.Param and new is not state and new.tag == "t"
    assert nnx.unflatten(*nnx.flatten(cell)).value is cell.value
    assert jax.tree.structure(nnx.merge(graphdef, jnp.zeros(2))) == jax.tree.structure(cell)
    for source in (nnx.Param(jnp.zeros(2)), jnp.zeros(2), {"value": jnp.zeros(2)}, state * 0):
        cell.value = jnp.ones(2)
        nnx.update(cell, source)
        assert (cell.value == 0).all()
    doubled = jax.jit(lambda state: jax.tree.map(lambda x: x * 2, state))(state)
    nnx.update(cell, doubled)


def test_nothing_is_a_graph_without_leaves():
    graphdef, state = nnx.split(None)
    assert state == nnx.State() and nnx.merge(graphdef, state) is None
    assert nnx.flatten(None)[1].items() == []


@pytest.mark.parametrize(
    "root",
    [
        lambda: [Dense(1, 1), nnx.Param(jnp.ones(2))],
        lambda: {"b": Dense(1, 1), "a": (jnp.ones(2), nnx.Param(jnp.ones(2)))},
        lambda: Pair(Dense(1, 1), [1, jnp.ones(2)]),
        lambda: nnx.Param(jnp.ones(2), tag="x"),
        lambda: nnx.state(Block()),
        knot,
        lambda: nnx.Rngs(0, dropout=1),
    ],
    ids=["list", "dict", "namedtuple", "Variable", "State", "knot", "Rngs"],
)
def test_any_root(root):
    root = root()
    graphdef, state = nnx.split(root)
    new = nnx.merge(graphdef, state)
    assert type(new) is type(root) and nnx.graphdef(new) == graphdef
    assert jax.tree.structure(nnx.state(new)) == jax.tree.structure(state)
    nnx.update(new, jax.tree.map(lambda x: x, state))
    assert nnx.graphdef(nnx.clone(new)) == graphdef
    graphdef, leaves = nnx.flatten(root)
    assert nnx.graphdef(nnx.unflatten(graphdef, leaves)) == graphdef
    assert nnx.graphdef(nnx.unflatten(graphdef, state)) == graphdef


def test_sharing_and_cycles_survive():
    model = knot()
    assert paths_of(nnx.state(model)) == [("a", "cell")]
    check_knot(nnx.merge(*nnx.split(model)))
    check_knot(nnx.clone(model))
    check_knot(nnx.clone(model, variables=False))
    check_knot(nnx.recursive_map(lambda path, x: x, model))
    check_knot(nnx.unflatten(*nnx.flatten(model)))
    nnx.update(model, nnx.state(model))
    check_knot(model)
    _, pair = nnx.call(nnx.split(model)).a.set_attributes(cell2=1, raise_if_not_found=False)
    check_knot(nnx.merge(*pair))


def test_paths_do_not_depend_on_the_order_of_assignment():
    v = nnx.Param(jnp.ones(()))
    a, b = Node(x=v, y=v, z=Node(w=v)), Node(z=Node(w=v), y=v, x=v)
    assert paths_of(nnx.state(a)) == paths_of(nnx.state(b)) == [("x",)]


def test_long_chains():
    model = chain(5000)
    graphdef, state = nnx.split(model)
    new = nnx.merge(graphdef, state)
    clone = nnx.clone(new)
    nnx.update(clone, state)
    assert len(nnx.to_flat_state(nnx.state(clone, nnx.Param))) == 5000
    assert sum(1 for _ in nnx.iter_graph(clone)) == 10_000
    assert nnx.graphdef(clone) == graphdef
    assert pickle.loads(pickle.dumps(graphdef)) == graphdef
    assert hash(graphdef) == hash(nnx.graphdef(chain(5000)))
    clone.eval()
    assert len(nnx.to_pure_dict(state)) == 2


# -- variables, clone, flatten -------------------------------------------------------------------


def test_variables_are_the_cells_themselves():
    model = Block()
    found = nnx.variables(model, nnx.Param)
    assert found["tied" if "tied" in found else "layers"] is not None
    assert found.layers[1].kernel is model.layers[1].kernel
    found.layers[1].bias.value = jnp.full(2, 9.0)
    np.testing.assert_array_equal(model.layers[1].bias.value, [9, 9])
    params, rest = nnx.variables(model, nnx.Param, ...)
    assert rest.parts.norm["count"] is model.parts["norm"].count
    assert rest.offset is model.offset


def test_clone():
    model = Block()
    new = nnx.clone(model)
    assert new.tied.value is model.tied.value and new.tied is not model.tied
    new.layers.append(Dense(2, 2))
    new.parts["norm"].count += 1
    assert len(model.layers) == 2 and model.parts["norm"].count == 0
    same_cells = nnx.clone(model, variables=False)
    assert same_cells.tied is model.tied and same_cells.layers is not model.layers


def test_flatten():
    model = Node(b=nnx.Param(jnp.ones(2), tag="t"), a=jnp.zeros(3))
    graphdef, leaves = nnx.flatten(model)
    assert type(leaves) is nnx.FlatState and leaves.paths == (("a",), ("b",))
    a, b = leaves.leaves
    assert b is not model.b and b.tag == "t" and a is model.a
    plain = nnx.flatten(model, with_paths=False)[1]
    assert type(plain) is list and plain[0] is model.a and plain[1].tag == "t"
    new = nnx.unflatten(graphdef, [jnp.ones(3), jnp.full(2, 5.0)])
    assert type(new.b) is nnx.Param and new.b.tag == "t"
    np.testing.assert_array_equal(new.b.value, [5, 5])


# -- pop -----------------------------------------------------------------------------------------


def test_pop():
    v = nnx.Intermediate(jnp.ones(2))
    model = Node(a=v, b=Node(again=v, keep=nnx.Param(jnp.ones(2))), c={"x": v, "n": Count(0)})
    seen, counts = nnx.pop(model, nnx.Intermediate, Count)
    assert paths_of(seen) == [("a",)] and seen.a is v
    assert paths_of(counts) == [("c", "n")]
    assert list(vars(model)) == ["b", "c"] and model.c == {} and list(vars(model.b)) == ["keep"]
    with pytest.raises(ValueError, match="at least one filter"):
        nnx.pop(model)


def test_pop_from_a_list_is_refused_before_anything_is_taken():
    model = Node(a=Count(jnp.ones(())), z=[1, Count(jnp.ones(()))])
    with pytest.raises(ValueError, match=r"`z\[1\]`.*list"):
        nnx.pop(model, Count)
    assert hasattr(model, "a")


def test_pop_by_path_and_under_jit():
    model = Node(a=Node(x=Count(jnp.ones(()))), b=Node(x=Count(jnp.ones(()))))
    out = nnx.jit(lambda m: nnx.pop(m, nnx.PathContains("a")))(model)
    assert paths_of(out) == [("a", "x")] and out.a.x.value == 1
    assert not hasattr(model.a, "x") and hasattr(model.b, "x")


# -- call ----------------------------------------------------------------------------------------


def test_call():
    graphdef, state = nnx.split(Node(net=Stateful(), layers=[Dense(2, 3)]))
    y, (graphdef, state) = nnx.call((graphdef, state)).net(jnp.ones((4, 2)))
    assert y.shape == (4, 2) and state.net["count"].value == 1
    y, _ = nnx.call((graphdef, state)).layers[0](jnp.ones((4, 2)))
    assert y.shape == (4, 3)
    _, (graphdef, state) = nnx.call((graphdef, state)).eval()
    assert nnx.merge(graphdef, state).net.use_running_average

    @jax.jit
    def step(pair, x):
        return nnx.call(pair).net(x)

    _, (_, new) = step(nnx.split(Node(net=Stateful())), jnp.ones((4, 2)))
    assert new.net["count"].value == 1


# -- going through a graph -----------------------------------------------------------------------


def test_iter_graph():
    model = Node(b=Dense(1, 1), a=[nnx.Param(jnp.ones(())), 5], c=("s", jnp.ones(1)))
    pairs = list(nnx.iter_graph(model))
    paths = [p for p, _ in pairs]
    assert paths[-1] == () and pairs[-1][1] is model
    assert paths == [
        ("a", 0),
        ("a", 1),
        ("a",),
        ("b", "bias"),
        ("b", "inputs"),
        ("b", "kernel"),
        ("b", "outputs"),
        ("b",),
        ("c", 0),
        ("c", 1),
        ("c",),
        (),
    ]
    assert dict(pairs)[("a", 1)] == 5 and dict(pairs)[("c", 1)] is model.c[1]


def test_iter_graph_of_shared_and_cyclic_graphs():
    model = knot()
    nodes = [(p, v) for p, v in nnx.iter_graph(model) if isinstance(v, nnx.Module)]
    assert [p for p, _ in nodes] == [("a",), ()]
    cells = [p for p, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)]
    assert cells == [("a", "cell")]


def test_find_duplicates():
    model = Block()
    assert nnx.find_duplicates(model) == [[("layers", 0, "kernel"), ("tied",)]]
    assert nnx.find_duplicates(Dense(1, 1)) == []
    found = {frozenset(paths) for paths in nnx.find_duplicates(knot())}
    assert frozenset({("a",), ("twin",)}) in found
    assert frozenset({("b",), ("a", "items")}) in found
    assert frozenset({(), ("a", "up")}) in found
    assert nnx.find_duplicates(knot(), only=nnx.BatchStat) == []
    only = nnx.find_duplicates(knot(), only=nnx.Param)
    assert len(only) == 1 and ("a", "cell") in only[0]


def test_recursive_map():
    model = Node(a=Dense(2, 2), items=[Dense(1, 1), 3], pair=Pair(nnx.Param(jnp.ones(())), "s"))
    seen = []

    def f(path, value):
        seen.append(path)
        if isinstance(value, nnx.Param):
            return value.replace(value.value * 0.0)
        if isinstance(value, Dense) and path == ("items", 0):
            return Node(base=value)
        return value + 1 if value == 3 and isinstance(value, int) else value

    new = nnx.recursive_map(f, model)
    assert seen[-1] == () and seen.index(("a", "kernel")) < seen.index(("a",))
    assert (new.a.kernel.value == 0).all() and (model.a.kernel.value != 0).any()
    assert isinstance(new.items[0], Node) and (new.items[0].base.bias.value == 0).all()
    assert new.items[1] == 4 and model.items[1] == 3
    assert type(new.pair) is Pair and new.pair.first.value == 0
    assert nnx.recursive_map(lambda p, v: 7 if p == () else v, model) == 7


def test_recursive_map_keeps_the_variables_that_are_returned():
    model = Node(a=Dense(2, 2), items=[Dense(1, 1)])
    new = nnx.recursive_map(lambda _, x: Node(base=x) if isinstance(x, Dense) else x, model)
    assert new.a.base.kernel is model.a.kernel and new.a.base is not model.a
    assert isinstance(model.items[0], Dense) and new.items is not model.items


def test_recursive_map_maps_shared_objects_once():
    counts = {}

    def f(path, value):
        if isinstance(value, nnx.Variable):
            counts[path] = counts.get(path, 0) + 1
            return value.replace(value.value + 1.0)
        return value

    new = nnx.recursive_map(f, knot())
    assert counts == {("a", "cell"): 1}
    assert new.a.cell is new.b[0] and new.a.items is new.b
    np.testing.assert_array_equal(new.a.cell.value, [2, 2])


# -- traversals ----------------------------------------------------------------------------------


def test_flatten_and_unflatten_mappings():
    nested = {"a": {"b": 1, "c": {}}, "d": 2}
    flat = nnx.traversals.flatten_mapping(nested)
    assert flat == {("a", "b"): 1, ("d",): 2}
    assert nnx.traversals.unflatten_mapping(flat) == {"a": {"b": 1}, "d": 2}
    kept = nnx.traversals.flatten_mapping(nested, keep_empty_nodes=True)
    assert nnx.traversals.unflatten_mapping(kept) == nested
    assert nnx.traversals.flatten_mapping(nested, sep="/") == {"a/b": 1, "d": 2}
    assert nnx.traversals.unflatten_mapping({"a/b": 1, "d": 2}, sep="/") == {"a": {"b": 1}, "d": 2}
    shallow = nnx.traversals.flatten_mapping(nested, is_leaf=lambda path, x: len(path) == 1)
    assert shallow == {("a",): {"b": 1, "c": {}}, ("d",): 2}
    with pytest.raises(ValueError, match="'a'"):
        nnx.traversals.unflatten_mapping({("a",): 1, ("a", "b"): 2})
    with pytest.raises(TypeError, match="mapping"):
        nnx.traversals.flatten_mapping(3)
    assert nnx.traversals.flatten_to_sequence({"b": 1, "a": 2}) == [(("b",), 1), (("a",), 2)]


def test_states_are_mappings_too():
    state = nnx.state(Dense(1, 1))
    flat = nnx.traversals.flatten_mapping(state)
    assert set(flat) == {("kernel",), ("bias",)} and flat[("kernel",)] is state.kernel
    assert nnx.traversals.unflatten_mapping(flat)["kernel"] is state.kernel
