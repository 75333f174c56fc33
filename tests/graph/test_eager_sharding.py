"""Annotated Variables that are made under a mesh are placed by it, and so are their moments."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx

SHAPE = (4, 8)


def mesh_of(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)


def ones(**metadata):
    return nnx.Param(jnp.ones(SHAPE), **metadata)


def linear(**keywords):
    return nnx.Linear(*SHAPE, rngs=nnx.Rngs(0), **keywords).kernel


SPELLINGS = {
    "sharding": lambda: ones(sharding=(None, "model")),
    "sharding_names": lambda: ones(sharding_names=(None, "model")),
    "out_sharding": lambda: ones(out_sharding=(None, "model")),
    "spec": lambda: ones(sharding=P(None, "model")),
    "numpy": lambda: nnx.Param(np.ones(SHAPE, np.float32), sharding=(None, "model")),
    "of another": lambda: nnx.Variable(ones(sharding=(None, "model"))),
    "own rules": lambda: ones(
        sharding=("in", "out"), sharding_rules=[("out", "model"), ("in", None)]
    ),
    "kernel_metadata": lambda: linear(kernel_metadata={"sharding": (None, "model")}),
    "with_partitioning": lambda: linear(
        kernel_init=nnx.with_partitioning(nnx.initializers.ones_init(), (None, "model"))
    ),
    "with_metadata": lambda: linear(
        kernel_init=nnx.with_metadata(nnx.initializers.ones_init(), sharding=(None, "model"))
    ),
}
MAKERS = {
    "eagerly": lambda make: make(),
    "nnx.jit": lambda make: nnx.jit(make)(),
    "jax.jit": lambda make: jax.jit(make)(),
    "nnx.jit of nnx.jit": lambda make: nnx.jit(lambda: nnx.jit(make)())(),
    "nnx.cond": lambda make: nnx.jit(lambda: nnx.cond(True, make, make))(),
    "nnx.remat": lambda make: nnx.remat(make)(),
}


def lies_as(array: jax.Array, mesh, *spec) -> bool:
    return array.sharding.is_equivalent_to(NamedSharding(mesh, P(*spec)), array.ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(spelling, kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        eager, compiled = SPELLINGS[spelling](), nnx.jit(SPELLINGS[spelling])()
    for variable in (eager, compiled):
        assert lies_as(variable.value, mesh, None, "model")
    if os.environ.get("REFAX_TESTS") != "quick":  # less optimized, a product may round otherwise
        np.testing.assert_array_equal(eager.value, compiled.value)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("maker", MAKERS)
def test_wherever_it_is_made(maker, kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        variable = MAKERS[maker](SPELLINGS["sharding"])
    assert variable.sharding == (None, "model")
    assert lies_as(variable.value, mesh, None, "model")


@pytest.mark.parametrize("vmap", [nnx.vmap, jax.vmap], ids=["nnx", "jax"])
def test_layers_made_by_vmap(vmap):
    mesh = mesh_of()
    make = lambda x: nnx.Param(x, sharding=(None, "model"))  # noqa: E731
    with jax.set_mesh(mesh):
        variable = vmap(make)(jnp.ones((3, *SHAPE)))
    assert lies_as(variable.value, mesh, None, None, "model")


def test_a_stack_is_made_sharded():
    mesh = mesh_of()

    def block(rngs):
        return nnx.Linear(8, 8, kernel_metadata={"sharding": ("data", "model")}, rngs=rngs)

    with jax.set_mesh(mesh):
        stack = nnx.Stack(block, 3, rngs=nnx.Rngs(0))
    [kernel] = [v for _, v in nnx.named_parameters(stack) if v.ndim == 3]
    assert lies_as(kernel.value, mesh, None, "data", "model")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_mesh_of_its_own(compiled):
    mesh = mesh_of()
    make = lambda: ones(sharding=(None, "model"), mesh=mesh)  # noqa: E731
    whole = lambda: ones(sharding=NamedSharding(mesh, P(None, "model")))  # noqa: E731
    for maker in (make, whole):
        variable = nnx.jit(maker)() if compiled else maker()
        assert lies_as(variable.value, mesh, None, "model")


def test_one_name_is_one_axis():
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        assert lies_as(nnx.Param(jnp.ones(8), sharding="model").value, mesh, "model")
        free = nnx.jit(lambda: nnx.Param(jnp.ones(SHAPE), sharding=(P.UNCONSTRAINED, "model")))()
        assert free.value.sharding.shard_shape(SHAPE)[1] == 2
    assert nnx.get_partition_spec(nnx.Param(jnp.ones(8), sharding="model")).value == P("model")


def test_without_a_mesh_nothing_happens():
    for make in SPELLINGS.values():
        assert len(make().value.sharding.device_set) == 1


def test_switched_off():
    make = SPELLINGS["sharding"]
    with jax.set_mesh(mesh_of()):
        assert ones(
            sharding=(None, "model"), eager_sharding=False
        ).value.sharding.is_fully_replicated
        with nnx.use_eager_sharding(False):
            assert not nnx.using_eager_sharding()
            assert make().value.sharding.is_fully_replicated
            own = ones(sharding=(None, "model"), eager_sharding=True)
            assert not own.value.sharding.is_fully_replicated
        assert nnx.using_eager_sharding()
        assert not make().value.sharding.is_fully_replicated


def test_what_is_no_array_stays():
    with jax.set_mesh(mesh_of()):
        pair = nnx.Param((jnp.ones(3), jnp.ones(5)), sharding=("model",))
        nothing = nnx.Param(None, sharding=("model",))
    assert pair.value[0].sharding.is_fully_replicated and nothing.value is None


def test_inside_shard_map_values_are_parts_already():
    mesh = mesh_of()

    def inside(x):
        return nnx.Param(x, sharding=("data", "model")).value * 2

    f = jax.shard_map(inside, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(f(jnp.ones(SHAPE)), 2 * np.ones(SHAPE))


def test_gradients_through_a_placed_variable():
    def loss(x):
        return (nnx.Param(x, sharding=("data", "model")).value ** 2).sum()

    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(mesh_of(kind)):
            x = jnp.arange(32.0).reshape(SHAPE)
            np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), 2 * x, rtol=1e-6)  # one product


# -- rules -----------------------------------------------------------------------------------------


def test_logical_rules_and_the_key_of_compiled_functions():
    mesh, traces = mesh_of(), []

    def make():
        traces.append(1)
        return ones(sharding=("in", "out"))

    made = nnx.jit(make), jax.jit(make)
    with jax.set_mesh(mesh):
        for function in made:
            for rules in ({"in": "model", "out": None}, {"in": None, "out": "model"}):
                for _ in range(2):
                    with nnx.logical_axis_rules(list(rules.items())):
                        variable = function()
                    assert lies_as(variable.value, mesh, *rules.values())
    assert len(traces) == 4  # one a function and set of rules


def test_rules_that_are_set_once():
    before = nnx.get_logical_axis_rules()
    nnx.set_logical_axis_rules([("in", None), ("out", ["data", "model"])])
    try:
        mesh = mesh_of()
        with jax.set_mesh(mesh):
            assert lies_as(ones(sharding=("in", "out")).value, mesh, None, ("data", "model"))
    finally:
        nnx.set_logical_axis_rules(before)


# -- errors ----------------------------------------------------------------------------------------

MISFITS = {
    (1, None): "the mesh has no axis 1, and no rule maps such a name",
    ("in", "model"): "the mesh has no axis 'in', and no rule maps such a name",
    ("model", "model"): "it has the axis 'model' 2 times",
    (("model", "data"), None): "axis 0 of size 4 cannot be divided into 8 equal parts",
    (None, None, "model"): "it has 3 entries, and the array 2 axes",
}


@pytest.mark.parametrize("names", MISFITS, ids=str)
@pytest.mark.parametrize("maker", ["eagerly", "nnx.jit", "jax.jit"])
def test_an_annotation_that_does_not_fit(names, maker):
    with jax.set_mesh(mesh_of()), pytest.raises(ValueError) as error:
        MAKERS[maker](lambda: ones(sharding=names))
    message = str(error.value)
    assert MISFITS[names] in message and "Param of shape (4, 8)" in message
    assert "{'data': 2, 'model': 4}" in message and "Cure: " in message and len(message) < 700


# -- optimizers ------------------------------------------------------------------------------------


def build(tx):
    model = nnx.Sequential(
        nnx.Linear(16, 32, kernel_metadata={"sharding": ("data", "model")}, rngs=nnx.Rngs(0)),
        nnx.Linear(32, 16, kernel_metadata={"sharding": ("model", None)}, rngs=nnx.Rngs(1)),
    )
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def in_another_jit(tx):
    model = nnx.jit(lambda: build(tx)[0])()
    return model, nnx.jit(lambda model: nnx.Optimizer(model, tx, wrt=nnx.Param))(model)


PLACES = {
    "eagerly": build,
    "one jit": lambda tx: nnx.jit(lambda: build(tx))(),
    "jax.jit": lambda tx: jax.jit(lambda: build(tx))(),
    "another jit": in_another_jit,
}


def parts_of(tree) -> int:
    """Bytes on the first device."""
    arrays = [x for x in jax.tree.leaves(nnx.state(tree)) if isinstance(x, jax.Array)]
    first = jax.devices()[0]
    shards = [s for x in arrays for s in x.addressable_shards if s.device == first]
    return sum(s.data.nbytes for s in shards)


@pytest.mark.parametrize("place", PLACES)
def test_moments_lie_as_their_parameters(place):
    with jax.set_mesh(mesh_of()):
        model, optimizer = PLACES[place](optax.adam(1e-3))
    for moments in (optimizer.opt_state[0].mu, optimizer.opt_state[0].nu):
        for i in range(2):
            kernel = model.layers[i].kernel.value
            assert moments["layers"][i]["kernel"].value.sharding.is_equivalent_to(
                kernel.sharding, 2
            )
    # step and count, and two moments for each parameter
    assert parts_of(optimizer) == 2 * parts_of(nnx.state(model, nnx.Param)) + 2 * 4


@pytest.mark.parametrize("place", PLACES)
def test_factored_states_have_no_annotation_of_another_rank(place):
    tx = optax.adafactor(1e-2, min_dim_size_to_factor=8)
    with jax.set_mesh(mesh_of()):
        model, optimizer = PLACES[place](tx)
    for name in ("v_row", "v_col", "v"):
        kernel = getattr(optimizer.opt_state[0], name)["layers"][0]["kernel"]
        assert not kernel.has_metadata("sharding") and kernel.value.sharding.is_fully_replicated

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer, jnp.ones((4, 16)))) for _ in range(3)]
    assert losses[2] < losses[0]


def test_a_placement_of_the_moments_alone():
    mesh = mesh_of()

    class Model(nnx.Module):
        def __init__(self):
            self.w = ones(sharding=(None, "model"), optimizer_sharding=("data", "model"))

    with jax.set_mesh(mesh):
        optimizer = nnx.jit(lambda: nnx.Optimizer(Model(), optax.adam(1e-3), wrt=nnx.Param))()
    moment = optimizer.opt_state[0].mu["w"]
    assert lies_as(moment.value, mesh, "data", "model")
    assert tuple(moment.out_sharding) == ("data", "model")


# -- shardings of objects --------------------------------------------------------------------------


def test_a_module_of_shardings_for_a_module():
    mesh = mesh_of()
    model = nnx.Linear(*SHAPE, kernel_metadata={"sharding": (None, "model")}, rngs=nnx.Rngs(0))
    shardings = nnx.get_named_sharding(model, mesh)
    assert type(shardings) is nnx.Linear
    assert shardings.kernel.value == NamedSharding(mesh, P(None, "model"))
    assert nnx.get_partition_spec(model).kernel.value == P(None, "model")
    for placed in (
        jax.device_put(model, shardings),
        jax.jit(lambda m: m, out_shardings=shardings)(model),
    ):
        assert lies_as(placed.kernel.value, mesh, None, "model")
    assert len(model.kernel.value.sharding.device_set) == 1


def test_an_abstract_model_is_made_in_the_mesh():
    mesh = mesh_of()

    class Model(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(
                *SHAPE, kernel_metadata={"sharding": (None, "model")}, rngs=nnx.Rngs(0)
            )
            self.sum = nnx.Variable(
                jax.lax.with_sharding_constraint(self.linear(jnp.ones((2, 4))), P("data", "model"))
            )

    graphdef, state = nnx.get_abstract_model(Model, mesh)
    assert state["linear"]["kernel"].value.sharding == NamedSharding(mesh, P(None, "model"))
    assert type(nnx.merge(graphdef, state)) is Model
