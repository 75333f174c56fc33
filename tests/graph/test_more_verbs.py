"""Verbs on whole objects: `prefix`, `unpack`, `map`, `pop` of arrays, `clone`, what is data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Block, Count, Dense, Node, Stateful, paths_of

# -- prefix ---------------------------------------------------------------------------------------


class Scaled(nnx.Module):
    def __init__(self, seed):
        key = jax.random.key(seed)
        self.kernel = nnx.Param(jax.random.normal(key, (2, 3)))
        self.tied = self.kernel
        self.offset = nnx.BatchStat(jnp.ones(3))
        self.count = Count(jnp.array(0))

    def __call__(self, x):
        self.count.value += 1
        return x @ self.kernel + self.offset[None]


def stack(n=4):
    axes = nnx.StateAxes({nnx.Param: 0, ...: None})
    return nnx.vmap(Scaled, in_axes=0, out_axes=axes)(jnp.arange(n))


FILTERS = {nnx.Param: 0, ...: None}
FORMS = {
    "filters": FILTERS,
    "StateAxes": nnx.StateAxes(FILTERS),
    "pairs": list(FILTERS.items()),
    "function": lambda path, leaf: 0 if path[-1] in ("kernel", "tied") else None,
}
X = jnp.ones((5, 2))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_prefix_in_vmap(form):
    model, expected = stack(), stack()
    axes = nnx.prefix(model, form)
    y = nnx.vmap(lambda m, x: m(x), in_axes=(axes, None))(model, X)
    theirs = nnx.vmap(lambda m, x: m(x), in_axes=(nnx.StateAxes(FILTERS), None))(expected, X)
    np.testing.assert_array_equal(y, theirs)
    assert model.count.value == expected.count.value == 1
    made = nnx.vmap(Scaled, out_axes=axes)(jnp.arange(4))
    assert made.kernel.shape == (4, 2, 3) and made.offset.shape == (3,)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_prefix_in_scan(form):
    model = stack()
    model.count = Count(jnp.zeros(4, int))
    axes = nnx.prefix(model, lambda path, leaf: None if path == ("offset",) else 0)
    del form
    y = nnx.scan(
        lambda x, m: m(x) @ jnp.ones((3, 2)), in_axes=(nnx.Carry, axes), out_axes=nnx.Carry
    )(X, model)
    assert y.shape == (5, 2) and (model.count.value == 1).all()


def test_prefix_in_jit_and_shard_map():
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Auto,))
    model = Node(kernel=nnx.Param(jnp.ones((8, 2))), bias=nnx.BatchStat(jnp.ones(2)))
    split, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    placed = nnx.prefix(model, {nnx.Param: split, ...: whole})

    def f(m):
        m.kernel.value *= 2.0
        return m.kernel.value

    assert nnx.jit(f, in_shardings=(placed,), out_shardings=split)(model).sharding == split
    specs = nnx.prefix(model, lambda path, leaf: P("d") if path == ("kernel",) else P())
    y = nnx.shard_map(f, mesh=mesh, in_specs=(specs,), out_specs=P("d"))(model)
    np.testing.assert_array_equal(y, np.full((8, 2), 4.0))


def test_prefix_of_a_state_is_one_for_plain_jax():
    model = stack()
    state = nnx.state(model, nnx.Param, nnx.BatchStat)
    axes = tuple(nnx.prefix(s, FILTERS) for s in state)
    assert [nnx.to_pure_dict(a) for a in axes] == [{"kernel": 0}, {"offset": None}]

    def apply(params, rest):
        return X @ params.kernel + rest.offset[None]

    y = jax.vmap(apply, in_axes=axes)(*state)
    np.testing.assert_allclose(y[1], X @ model.kernel[1] + 1.0, rtol=1e-6)


def test_prefix_of_a_pytree():
    model = stack()
    mixed = nnx.prefix([model, {"x": X}, nnx.state(model, nnx.Param)], FORMS["function"])
    assert mixed[1] == {"x": None} and mixed[2].kernel == 0
    axes = nnx.prefix((model, X), FORMS["function"])
    assert nnx.vmap(lambda m, x: m(x), in_axes=axes)(model, X).shape == (4, 5, 3)


def test_prefix_with_what_no_filter_matches():
    with pytest.raises(ValueError, match=r"count|offset"):
        nnx.prefix(stack(), {nnx.Param: 0})


def test_implicit_randomness_by_prefix():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.lin = nnx.Linear(4, 3, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.lin(x))

    net = Net(nnx.Rngs(params=0, dropout=1))
    axes = nnx.prefix(net, {"dropout": 0, ...: None})

    @nnx.split_rngs(splits=5, only="dropout")
    @nnx.vmap(in_axes=(axes, None), out_axes=0)
    def run(net, x):
        return net(x)

    y = run(net, jnp.ones((6, 4)))
    assert y.shape == (5, 6, 3) and not jnp.allclose(y[0], y[1])


def test_lift_types_are_mappings_of_their_filters():
    axes, model = nnx.StateAxes(FILTERS), Scaled(0)
    assert axes.map_prefix(("kernel",), model.kernel) == 0 and axes[nnx.Param] == 0
    assert axes.map_prefix(("count",), model.count) is None and list(axes) == list(FILTERS)
    assert dict(axes.items()) == FILTERS and len(axes) == 2
    assert (tuple(axes.keys()), tuple(axes.values())) == (axes.filters, axes.axes)
    diff = nnx.DiffState(0, nnx.Param)
    assert diff.map_prefix(("kernel",), model.kernel) and not diff.map_prefix((), model.count)
    shardings = nnx.StateSharding({nnx.Param: P("d")})
    assert shardings.map_prefix(("kernel",), model.kernel) == P("d")


# -- unpack, GraphDef -----------------------------------------------------------------------------


def test_unpack():
    model = Block()
    whole = nnx.unpack(model)
    assert type(whole) is nnx.GraphState and set(whole) == set(nnx.state(model))
    params, rest = nnx.unpack(model, nnx.Param, ...)
    for new in (nnx.merge(whole), whole.merge(), nnx.merge(params, rest), params.merge(rest)):
        assert nnx.graphdef(new) == nnx.graphdef(model) and new.tied is new.layers[0].kernel
        assert new.offset is model.offset

    @jax.jit
    def double(params, rest):
        assert type(params) is nnx.GraphState
        return nnx.merge(jax.tree.map(lambda x: x * 2, params), rest)(jnp.ones((1, 2))), params

    y, back = double(params, rest)
    assert type(back) is nnx.GraphState and y.shape == (1, 2)
    params["extra"] = 1
    del params["extra"]
    assert set(params) == {"layers", "parts"} and "GraphState" in repr(params)
    nnx.update(model, whole)
    union = nnx.GraphState.merge(
        *nnx.split(model, nnx.Param, ...)[1:]
    )  # the States of an older way
    assert type(union) is nnx.State and set(union) == set(whole)
    with pytest.raises(ValueError, match="none matches"):
        nnx.unpack(model, nnx.Param)


def test_graphdef_as_object():
    model = Stateful(2)
    graphdef, state = nnx.split(model)
    y, (new_def, new_state) = graphdef.apply(state)(jnp.ones((3, 2)))
    assert y.shape == (3, 2) and new_def == graphdef and type(new_state) is nnx.State
    params, rest = nnx.state(model, nnx.Param, ...)
    assert type(graphdef.merge(params, rest)) is Stateful
    assert graphdef.apply(params, rest)(jnp.ones((3, 2)))[0].shape == (3, 2)
    assert graphdef.num_leaves == len(state.flat_state())
    assert graphdef.nodes[0] == ((), Stateful)
    linear = nnx.graphdef(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert (("out_features",), 3) in linear.attributes and (("kernel",), nnx.Param) in linear.nodes


# -- map, clone, as_pure --------------------------------------------------------------------------


def test_map_gives_the_variables_themselves():
    model, seen = Block(), []

    def f(path, leaf):
        seen.append(leaf)
        if path == ("parts", "norm", "count"):
            leaf.value += 5
        return leaf

    new = nnx.map(f, model)
    assert model.parts["norm"].count.value == 5 == new.parts["norm"].count.value
    assert any(x is model.tied for x in seen) and len(seen) == nnx.graphdef(model).num_leaves
    assert new.tied is new.layers[0].kernel and new.tied is not model.tied
    shared = nnx.map(lambda path, leaf: leaf, model, recreate_variables=False)
    assert shared.tied is model.tied and shared is not model


def test_map_of_other_things():
    state = nnx.state(Dense(2, 2))
    assert nnx.map(lambda path, leaf: leaf, state).kernel is not state.kernel
    kept = nnx.map(lambda path, leaf: leaf, state, recreate_variables=False)
    assert kept.kernel is state.kernel
    cell = nnx.Param(jnp.ones(2), tag="t")
    doubled = nnx.map(lambda path, leaf: leaf * 2, cell)
    assert type(doubled) is nnx.Param and doubled.tag == "t" and (doubled.value == 2).all()
    assert nnx.map(lambda path, leaf: (path, leaf), 3) == ((), 3)
    listed = nnx.map(lambda path, leaf: path, [Dense(1, 1), {"a": jnp.ones(1)}])
    assert listed[0].kernel.value == (0, "kernel") and listed[1]["a"] == (1, "a")


def test_clone_with_arrays_of_its_own():
    model = Node(w=nnx.Param(jnp.ones(2)), table=jnp.ones(3), key=nnx.Rngs(0))
    for copy in (nnx.clone(model), nnx.clone(node=model, variables=True)):
        assert copy.w is not model.w and copy.w.value is model.w.value and copy.table is model.table
    copy = nnx.clone(model, arrays=True)
    assert copy.table is not model.table and copy.w.value is not model.w.value
    step = functools.partial(jax.jit, donate_argnums=0)(lambda m: jax.tree.map(lambda x: x, m))
    step(nnx.clone(model, arrays=True))
    assert (model.w.value == 1).all() and (model.table == 1).all()


def test_pure_reaches_modules_in_containers():
    model = Dense(2, 2)
    (inside,) = nnx.pure([model])
    assert type(inside) is Dense and inside.kernel is model.kernel.value
    assert nnx.pure({"s": nnx.state(model)})["s"]["kernel"] is model.kernel.value


def test_values_without_identity_are_met_at_each_place():
    empty, cell = (), nnx.Param(jnp.ones(()))
    pair = (cell, empty)
    paths = [path for path, _ in nnx.iter_graph([pair, pair])]
    assert paths == [(0, 0), (0, 1), (0,), (1, 1), (1,), ()]
    assert nnx.find_duplicates([pair, pair]) == [[(0, 0), (1, 0)]]


def test_as_pure():
    pure = nnx.as_pure({"m": Block(), "s": nnx.state(Dense(1, 1)), "v": nnx.Param(1.0), "n": 2})
    assert type(pure["m"]) is Block and isinstance(pure["m"].layers[0].kernel, jax.Array)
    assert pure["m"].tied is pure["m"].layers[0].kernel
    assert isinstance(pure["s"].kernel, jax.Array) and pure["v"] == 1.0 and pure["n"] == 2
    assert pure["m"].layers[0](jnp.ones((1, 2))).shape == (1, 2)


def test_as_abstract():
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Auto,))
    n = jax.device_count()

    def make():
        return nnx.Linear(4, n, kernel_metadata={"sharding": (None, "d")}, rngs=nnx.Rngs(0))

    for model in (make(), nnx.eval_shape(make)):
        without = nnx.as_abstract(model)
        assert type(without) is nnx.Linear and without.kernel.shape == (4, n)
        assert isinstance(without.kernel.value, jax.ShapeDtypeStruct)
        with jax.set_mesh(mesh):
            placed = nnx.as_abstract({"m": model, "s": nnx.state(model), "n": 1})
        assert placed["m"].kernel.value.sharding.spec == P(None, "d") and placed["n"] == 1
        assert placed["s"].kernel.value.sharding.spec == P(None, "d")
        assert placed["s"].kernel.value.sharding.mesh.devices.size == n


# -- pop ------------------------------------------------------------------------------------------


def test_pop_of_arrays_and_by_path():
    model = Node(
        table=jnp.ones(2),
        inner=Node(w=nnx.Param(jnp.ones(1)), b=jnp.zeros(3)),
        items={"x": np.ones(1), "y": 1},
        pair=(jnp.ones(1), jnp.ones(2)),
        number=nnx.data(2.0),
    )
    arrays = nnx.pop(model, lambda path, leaf: path[0] == "items" or path[-1] == "b")
    assert paths_of(arrays) == [("inner", "b"), ("items", "x")]
    assert vars(model.inner).keys() == {"w"} and model.items == {"y": 1}
    table, inner, rest = nnx.pop(model, nnx.OfType(jax.Array), nnx.PathContains("inner"), ...)
    assert paths_of(table) == [("table",)] and paths_of(inner) == [("inner", "w")]
    assert set(rest) == {"pair", "number"} and rest.number == 2.0
    assert set(vars(model)) == {"inner", "items"} and nnx.state(model) == nnx.State()


def test_pop_takes_all_or_nothing():
    model = Node(a=jnp.ones(1), items=[jnp.ones(1)])
    with pytest.raises(ValueError, match=r"`items\[0\]` stands in a list"):
        nnx.pop(model, jax.Array)
    assert hasattr(model, "a") and len(model.items) == 1
    assert nnx.jit(lambda m: nnx.pop(m, nnx.PathContains("a")))(model).a.shape == (1,)
    assert not hasattr(model, "a")


# -- data -----------------------------------------------------------------------------------------


def test_what_is_data():
    data = [jnp.ones(1), np.ones(1), nnx.Param(1), Dense(1, 1), nnx.Rngs(0), jax.random.key(0),
            nnx.List([]), nnx.Dict()]  # fmt: skip
    other = [1, 1.0, "a", None, len, [jnp.ones(1)], (Dense(1, 1), 1), {"a": nnx.Param(1)}]
    assert all(map(nnx.is_data, data)) and not any(map(nnx.is_data, other))
    assert [len(nnx.has_data(x)) for x in data] == [1] * 8
    assert [len(nnx.has_data(x)) for x in other] == [0] * 5 + [1, 1, 1]
    held = Dense(1, 1)
    assert nnx.has_data({"x": [held, 1]})[0] is held


def test_registered_types_are_leaves():
    @nnx.register_data_type
    @dataclasses.dataclass(frozen=True)
    class Handle:
        number: int

    model = Node(handle=Handle(3), w=nnx.Param(jnp.ones(1)))
    assert nnx.is_data(Handle(1)) and nnx.state(model).handle == Handle(3)
    graphdef, state = nnx.split(model)
    assert graphdef == nnx.graphdef(Node(handle=Handle(4), w=nnx.Param(jnp.ones(1))))
    assert nnx.merge(graphdef, {**state, "handle": Handle(5)}).handle == Handle(5)
    nnx.update(model, {"handle": Handle(6)})
    assert model.handle == Handle(6)


def test_checking_a_pytree():
    class Table(nnx.Pytree):
        rows: nnx.Static[list]

        def __init__(self):
            self.rows = []

    table = Table()
    nnx.check_pytree(table)
    table.rows.append(jnp.ones(1))
    with pytest.raises(ValueError, match=r"`Table\.rows` is marked static"):
        nnx.check_pytree(table)
    with pytest.raises(TypeError):
        nnx.check_pytree(3)


def test_set_metadata():
    model = Block()
    nnx.set_metadata(model, note="a")
    assert model.tied.note == "a" == model.parts["norm"].count.note
    nnx.set_metadata(model, only=nnx.Param, note="b")
    assert model.tied.note == "b" and model.parts["norm"].count.note == "a"
    nnx.set_metadata(model, only=nnx.PathContains("layers"), sharding=("x", None))
    assert model.layers[1].kernel.sharding == ("x", None) and nnx.state(model, nnx.Param)
    with pytest.raises(nnx.TraceContextError):
        jax.jit(lambda x: nnx.set_metadata(model, note="c") or x)(1.0)
    assert model.tied.note == "b"


# -- the verbs as methods -------------------------------------------------------------------------


def test_verbs_as_methods():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graphdef, state = model.split()
    assert type(graphdef.merge(state)) is nnx.Linear
    assert type(model.merge(graphdef, state)) is nnx.Linear
    params, rest = model.split(nnx.Param, ...)[1:]
    assert list(params) == ["bias", "kernel"] and list(rest) == []
    model.update(jax.tree.map(jnp.zeros_like, model.state(nnx.Param)))
    assert (model.kernel.value == 0).all() and model.clone().kernel is not model.kernel
    assert list(model.pop(nnx.PathContains("bias"))) == ["bias"]


def test_what_a_module_has_of_its_own_wins():
    class Own(nnx.Module):
        def __init__(self):
            self.state = nnx.Param(jnp.ones(2))
            self.split = 3

        def update(self, x):
            return x

        @property
        def pop(self):
            return self.missing

    model = Own()
    assert model.split == 3 and model.update(4) == 4 and list(nnx.state(model)) == ["state"]
    assert (model.state.value == 1).all()
    with pytest.raises(AttributeError, match="missing"):
        _ = model.pop
    del model.split
    assert len(model.split()) == 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = model.nothing


def test_fields_and_sown_values_of_these_names():
    @dataclasses.dataclass
    class Fields(nnx.Module):
        update: int
        state: nnx.Param

        def __call__(self, x):
            self.sow(nnx.Intermediate, "split", x)
            return x

    with pytest.raises(TypeError, match="state"):
        Fields(1)
    model = Fields(1, nnx.Param(jnp.ones(2)))
    model(2.0)
    assert model.update == 1 and model.split.value == (2.0,)
    assert set(nnx.pop(model, nnx.Intermediate)) == {"split"}
    with pytest.raises(ValueError, match="clone"):
        model.set_attributes(clone=1)


def test_children():
    model = Node(a=Dense(1, 1), b=nnx.Param(1), c=[Dense(1, 1)])
    for children in (
        nnx.iter_children(model),
        nnx.iter_module_children(model),
        model.iter_children(),
    ):
        assert [name for name, _ in children] == ["a"]
    assert [path for path, _ in nnx.iter_modules(model)] == [("a",), ("c", 0), ()]
