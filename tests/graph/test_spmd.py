"""Sharding annotations: partition specs, named shardings, logical axis rules."""

import threading

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Node
from tests.transforms.cases import mesh_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


def annotated() -> Node:
    return Node(
        w=nnx.Param(jnp.ones((8, 4)), sharding=("data", None)),
        deep=[{"b": nnx.Param(jnp.ones(8), sharding_names=("data",))}],
        plain=nnx.BatchStat(jnp.ones(4)),
        array=jnp.ones(2),
    )


def test_partition_specs():
    specs = nnx.get_partition_spec(nnx.state(annotated()))
    assert isinstance(specs, nnx.State)
    assert specs.w.value == P("data", None) and specs.deep[0].b.value == P("data")
    assert specs.plain.value == P() and specs.array == P()
    assert type(specs.plain) is nnx.BatchStat and specs.w.sharding == ("data", None)
    model = annotated()
    of_model = nnx.get_partition_spec(model)
    assert of_model.w.value == P("data", None)
    assert isinstance(model.w.value, jax.Array)


def test_specs_of_other_trees():
    v = nnx.Param(jnp.ones(8), sharding=("data",))
    assert nnx.get_partition_spec(v).value == P("data")
    found = nnx.get_partition_spec({"a": [v, jnp.ones(2)], "m": annotated()})
    assert found["a"][0].value == P("data") and found["a"][1] == P()
    assert found["m"].w.value == P("data", None)


def test_specs_of_annotations_that_are_shardings():
    sharding = NamedSharding(mesh_of(8), P("data"))
    assert nnx.get_partition_spec(nnx.Param(jnp.ones(8), sharding=sharding)).value == P("data")
    assert nnx.get_partition_spec(nnx.Param(jnp.ones(8), sharding=P("data"))).value == P("data")
    two = nnx.Param(jnp.ones(8), sharding=(("data", "model"), None))
    assert nnx.get_partition_spec(two).value == P(("data", "model"), None)


def test_named_shardings_place_a_model():
    mesh, model = mesh_of(8), annotated()
    shardings = nnx.get_named_sharding(nnx.state(model), mesh)
    assert shardings.w.value == NamedSharding(mesh, P("data", None))
    placed = jax.device_put(nnx.state(model), shardings)
    nnx.update(model, placed)
    assert {s.data.shape for s in model.w.value.addressable_shards} == {(1, 4)}
    assert model.w.sharding == ("data", None)
    assert model.plain.value.sharding.is_fully_replicated


def test_logical_axis_rules():
    v = nnx.Param(jnp.ones((8, 4)), sharding=("batch", "embed"))
    assert nnx.get_partition_spec(v).value == P("batch", "embed")
    assert nnx.get_logical_axis_rules() == ()
    with nnx.logical_axis_rules([("batch", "data"), ("embed", None)]):
        assert nnx.get_partition_spec(v).value == P("data", None)
        with nnx.logical_axis_rules([("batch", ("data", "model"))]):
            assert nnx.get_partition_spec(v).value == P(("data", "model"), "embed")
        assert nnx.get_partition_spec(v).value == P("data", None)
    assert nnx.get_partition_spec(v).value == P("batch", "embed")


def test_rules_of_one_variable():
    v = nnx.Param(jnp.ones((8, 4)), sharding=("batch", None), sharding_rules=(("batch", "data"),))
    assert nnx.get_partition_spec(v).value == P("data", None)
    with nnx.logical_axis_rules([("batch", "model")]):
        assert nnx.get_partition_spec(v).value == P("data", None)


def test_rules_are_of_one_thread_and_are_undone_on_errors():
    seen = []
    with nnx.logical_axis_rules([("batch", "data")]):
        thread = threading.Thread(target=lambda: seen.append(nnx.get_logical_axis_rules()))
        thread.start()
        thread.join()
    assert seen == [()]
    with pytest.raises(KeyError):
        with nnx.logical_axis_rules([("batch", "data")]):
            raise KeyError
    assert nnx.get_logical_axis_rules() == ()
    nnx.set_logical_axis_rules([("batch", "data")])
    assert nnx.get_logical_axis_rules() == (("batch", "data"),)
    nnx.set_logical_axis_rules(())


def test_with_partitioning():
    init = nnx.with_partitioning(jax.nn.initializers.ones, ("data", None), note="x")
    v = nnx.Param(init(jax.random.key(0), (8, 4)))
    assert v.out_sharding == ("data", None) and v.note == "x" and v.shape == (8, 4)
    mesh = mesh_of(8)
    v = nnx.Param(nnx.with_partitioning(jax.nn.initializers.ones, ["data"], mesh=mesh)(None, (8,)))
    assert v.mesh is mesh and v.out_sharding == ("data",)
    boxed = init(jax.random.key(0), (8, 4))
    assert isinstance(boxed, nnx.VariableMetadata)


def test_annotations_that_are_shardings_and_specs():
    mesh = mesh_of(8)
    spec = P(None, "data")
    for given in (jax.sharding.NamedSharding(mesh, spec), spec, (None, "data"), [None, "data"]):
        init = nnx.with_partitioning(nnx.initializers.ones_init(), given)
        linear = nnx.Linear(2, 8, kernel_init=init, rngs=nnx.Rngs(0))
        assert nnx.get_partition_spec(nnx.state(linear)).kernel.value == spec
        assert nnx.get_partition_spec(nnx.Param(jnp.ones((2, 8)), out_sharding=given)).value == spec


def annotations(*names):
    """The same annotation in every form that has one."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return [names, list(names), P(*names), NamedSharding(mesh, P(*names))]


@pytest.mark.parametrize("form", range(4), ids=["tuple", "list", "spec", "sharding"])
@pytest.mark.parametrize("key", ["sharding", "sharding_names", "out_sharding"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_axis_names_are_kept_in_step_in_every_form_of_an_annotation(form, key, axis):
    annotation = annotations(None, "model")[form]
    metadata = {nnx.PARTITION_NAME: "data"}

    def make(rngs):
        return nnx.Linear(4, 8, kernel_metadata={key: annotation}, use_bias=False, rngs=rngs)

    def inside(layer):
        assert nnx.get_partition_spec(layer.kernel).value == P(None, "model")

    keys = nnx.Rngs(0).fork(splits=2)
    stack = nnx.vmap(make, out_axes=axis, transform_metadata=metadata)(keys)
    expected = [None, "model"]
    expected.insert(axis if axis >= 0 else 3 + axis, "data")
    assert nnx.get_partition_spec(stack.kernel).value == P(*expected)
    nnx.vmap(inside, in_axes=axis, out_axes=None, transform_metadata=metadata)(stack)
    assert nnx.get_partition_spec(stack.kernel).value == P(*expected)


def test_a_spec_may_leave_out_axes_that_a_new_one_stands_behind():
    def make(rngs):
        return nnx.Param(rngs.normal((8, 4)), sharding=P("model"))

    metadata = {nnx.PARTITION_NAME: "data"}
    keys = nnx.Rngs(0).fork(splits=2)
    stack = nnx.vmap(make, out_axes=2, transform_metadata=metadata)(keys)
    assert nnx.get_partition_spec(stack).value == P("model", None, "data")


SPECS = [P("data"), ("data", None), ("rows", None), (None, "data"), (None, ("data",))]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("run", [lambda f: f, jax.jit, nnx.jit], ids=["eager", "jax.jit", "jit"])
def test_constraints_are_those_of_jax_by_names(spec, run):
    x, mesh = jnp.ones((8, 8)), mesh_of(8)
    names = ["data" if name == "rows" else name for name in spec]

    def constrained(given):
        return run(lambda x: nnx.with_sharding_constraint(x, spec, given))(x).sharding

    with nnx.logical_axis_rules([("rows", "data")]):
        expected = NamedSharding(mesh, P(*names))
        assert constrained(mesh).is_equivalent_to(expected, 2)
        with jax.set_mesh(mesh):
            assert constrained(None).is_equivalent_to(expected, 2)
        assert constrained(None) == x.sharding  # no mesh


def test_constraints_on_explicit_axes_move_the_array():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        for run in (jax.jit, nnx.jit, lambda f: f):
            y = run(lambda x: nnx.with_sharding_constraint(x, (None, "data")) + 1)(jnp.ones((8, 8)))
            assert y.sharding.spec == P(None, "data")


def test_constraints_of_a_state():
    mesh, state = mesh_of(8), nnx.state(annotated())
    with jax.set_mesh(mesh):
        placed = jax.jit(
            lambda state: nnx.with_sharding_constraint(state, nnx.get_partition_spec(state))
        )(state)
    assert placed.w.value.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
    assert placed.deep[0].b.value.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 1)
    assert nnx.with_sharding_constraint(state, None, mesh) is state
    sharding = NamedSharding(mesh, P(None, "data"))
    assert nnx.with_sharding_constraint(jnp.ones((8, 8)), sharding, mesh).sharding == sharding
