"""What a jitted function writes stays where it was, so the second step compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.transforms.observing import Counted, compilations

LAYOUTS = {
    "dp": (None, None), "fsdp": ("data", None), "tp": (None, "model"), "2d": ("data", "model")
}  # fmt: skip


def mesh_of(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)


class Block(nnx.Module):
    """Everything that XLA may choose a place for: scales, statistics, a stream, kernels."""

    def __init__(self, names, rngs):
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.statistics = nnx.BatchNorm(16, rngs=rngs)
        self.up = nnx.Linear(16, 32, kernel_metadata={"sharding": names}, rngs=rngs)
        self.down = nnx.Linear(32, 16, kernel_metadata={"sharding": names[::-1]}, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        hidden = jax.nn.gelu(self.up(self.statistics(self.norm(x))))
        return x + self.dropout(self.down(hidden))


def train_step(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss


def build(names=(None, None)):
    model = Block(names, nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


def batch(mesh) -> jax.Array:
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    return x if mesh is None else jax.device_put(x, NamedSharding(mesh, P("data")))


def places(*objects) -> dict:
    state = nnx.to_flat_state(nnx.state(objects))
    return {path: variable.value.sharding for path, variable in state}


def losses_of(step, model, optimizer, x, count=3) -> list[float]:
    return [float(step(model, optimizer, x)) for _ in range(count)]


SPELLINGS = {  # of one spec, for an array of so many axes
    "with every axis": lambda spec, ndim: P(*spec, *[None] * (ndim - len(spec))),
    "names in tuples": lambda spec, ndim: P(*[(n,) if isinstance(n, str) else n for n in spec]),
    "without what is whole": lambda spec, ndim: P(*spec[: 1 + max(
        (i for i, name in enumerate(spec) if name is not None), default=-1)]),
}  # fmt: skip


def respell(objects, spell) -> None:
    """The same arrays where they are, told in another way."""
    state = nnx.state(objects)
    said = jax.tree.map(
        lambda x: NamedSharding(x.sharding.mesh, spell(x.sharding.spec, x.ndim))
        if isinstance(x.sharding, NamedSharding) else x.sharding, state
    )  # fmt: skip
    nnx.update(objects, jax.device_put(state, said))


@pytest.fixture(scope="module")
def on_one_device() -> list[float]:
    return losses_of(nnx.jit(train_step), *build(), batch(None), 6)


@pytest.mark.parametrize("donate", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_second_step_compiles_nothing(layout, donate, on_one_device):
    mesh, counted = mesh_of(), Counted(train_step)
    step = nnx.jit(counted.function, donate_argnums=(0, 1) if donate else None)
    with jax.set_mesh(mesh):
        model, optimizer = build(LAYOUTS[layout])
        before, x = places(model, optimizer), batch(mesh)
        losses = losses_of(step, model, optimizer, x, 1)
        assert places(model, optimizer) == before
        with compilations() as count:
            losses += losses_of(step, model, optimizer, x, 2)
        assert count.number == 0 and counted.runs == 1
        assert places(model, optimizer) == before
        for spell in SPELLINGS.values():
            respell((model, optimizer), spell)
            model.eval(), model.train()
            sharding = NamedSharding(mesh, spell(P("data"), 2))
            with compilations() as count:
                losses += losses_of(step, model, optimizer, jax.device_put(x, sharding), 1)
            assert count.number == 0 and counted.runs == 1, step.explain()
        assert "traced 1 time." in step.explain()
    # Sums over devices go in another order.
    np.testing.assert_allclose(losses, on_one_device, rtol=1e-4)


def test_axes_of_size_one_and_whole_arrays_are_told_in_any_way():
    mesh = jax.make_mesh((8, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    step = nnx.jit(lambda v: setattr(v, "value", v.value * 2))
    for specs in (
        [P("data"), P("data", "model"), P(("data", "model")), P(("model", "data"), None)],
        [P(), P("model"), P(None, "model"), P(None, None), P("model", None)],
    ):
        v, counts = nnx.Param(jnp.ones((8, 8))), []
        for spec in [*specs, specs[0]]:
            v.value = jax.device_put(v.value, NamedSharding(mesh, spec))
            with compilations() as count:
                step(v)
            counts.append(count.number)
        assert counts == [1] + [0] * len(specs), step.explain()
        np.testing.assert_array_equal(v.value, np.full((8, 8), 2.0 ** len(counts)))


def test_explain_names_what_moved_from_where_to_where():
    mesh = mesh_of()
    step = nnx.jit(lambda model, optimizer, x: train_step(model, optimizer, x))
    with jax.set_mesh(mesh):
        (model, optimizer), x = build(LAYOUTS["fsdp"]), batch(mesh)
        losses_of(step, model, optimizer, x, 2)
        assert step.explain().endswith("traced 1 time.")
        for place in (P(None, "model"), P("data")):  # there, and back, which is known
            model.up.kernel.value = jax.device_put(
                model.up.kernel.value, NamedSharding(mesh, place)
            )
            jax.block_until_ready(step(model, optimizer, x))
        step(model, optimizer, jax.device_put(x, NamedSharding(mesh, P(None, "model"))))
    head, *lines = step.explain().splitlines()
    assert head.endswith(": traced 1 time, compiled 3 times.")
    assert [line.strip() for line in lines if "→" in line] == [
        "model.up.kernel: P('data',) → P(None, 'model')",
        "x: P('data',) → P(None, 'model')",
    ]


def test_modes_are_toggled_without_another_compilation():
    mesh = mesh_of()
    evaluate = nnx.jit(lambda model, x: model(x).sum())
    step = nnx.jit(train_step)
    with jax.set_mesh(mesh):
        (model, optimizer), x = build(LAYOUTS["2d"]), batch(mesh)

        def epoch():
            model.train()
            step(model, optimizer, x).block_until_ready()
            model.eval()
            evaluate(model, x).block_until_ready()

        epoch()
        with compilations() as count:
            epoch(), epoch()
    assert count.number == 0


def test_a_part_that_was_made_elsewhere():
    """A count that was made before there was a mesh is the first leaf of the model."""
    count = nnx.Variable(jnp.array(0))

    @nnx.jit
    def step(model):
        model["a"].value += 1
        model["b"].value = model["b"].value.T + 1  # XLA would turn the sharding too

    with jax.set_mesh(mesh_of()):
        model = nnx.Dict(a=count, b=nnx.Param(jnp.zeros((8, 8)), sharding=("data", "model")))
    before = model["b"].value.sharding
    for i in range(1, 4):
        step(model)
        assert model["b"].value.sharding == before and int(model["a"].value) == i
        np.testing.assert_array_equal(model["b"].value, np.full((8, 8), i))


def test_a_model_that_moves():
    """Each placement has a program, also on the way back."""
    mesh, step = mesh_of(), nnx.jit(train_step)
    (model, optimizer), x = build(LAYOUTS["2d"]), batch(None)
    one = jax.devices()[0]
    shardings = nnx.get_named_sharding(nnx.state((model, optimizer)), mesh)
    whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), shardings)

    def move(where):
        nnx.update((model, optimizer), jax.device_put(nnx.state((model, optimizer)), where))

    losses, compiled = [], []
    for where in (shardings, whole, one) * 2:
        move(where)
        before = places(model, optimizer)
        with compilations() as count:
            losses.append(float(step(model, optimizer, x)))
        compiled.append(count.number)
        after = places(model, optimizer)
        assert after == before
    assert compiled[:3] == [1, 1, 1] and compiled[3:] == [0, 0, 0]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("place", ["constraint", "inner jit"])
def test_a_place_that_the_function_says_itself(place):
    """As programs that make a model first and shard it in a jitted function do."""
    mesh = mesh_of()

    def put(x):
        return jax.lax.with_sharding_constraint(x, P("data", "model"))

    @nnx.jit
    def shard(model):
        state = nnx.state(model)
        put_all = lambda state: jax.tree.map(put, state)  # noqa: E731
        nnx.update(model, (jax.jit(put_all) if place == "inner jit" else put_all)(state))

    with jax.set_mesh(mesh):
        model = nnx.Linear(8, 16, use_bias=False, rngs=nnx.Rngs(0))
        assert model.kernel.value.sharding.is_fully_replicated
        before = np.asarray(model.kernel.value)
        shard(model)
    wanted = NamedSharding(mesh, P("data", "model"))
    assert model.kernel.value.sharding.is_equivalent_to(wanted, 2)
    np.testing.assert_array_equal(model.kernel.value, before)


def test_places_of_explicit_axes():
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        v = nnx.Param(jnp.arange(64.0).reshape(8, 8), sharding=("data", "model"))

        @nnx.jit
        def transpose(v):
            v.value = v.value.T

        @nnx.jit
        def turn(v):
            v.value = jax.sharding.reshard(v.value, P("model", "data"))

        transpose(v)
        assert v.value.sharding.spec == P("data", "model")
        turn(v)
        assert v.value.sharding.spec == P("model", "data")


CHANGES = {
    "longer": lambda x: jnp.concatenate([x, x[:1]]),
    "of another rank": lambda x: x.sum(1),
    "a pair": lambda x: (x, x.sum()),
    "of another dtype": lambda x: x.astype(jnp.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("donate", [False, True], ids=["kept", "donated"])
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_values_that_change_their_form(change, donate):
    @nnx.jit(donate_argnums=(0,) if donate else None)
    def write(v):
        v.value = CHANGES[change](v.value)

    x = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    with jax.set_mesh(mesh_of()):
        v = nnx.Param(jnp.asarray(x), sharding=("data", "model"))
        write(v)
    jax.tree.map(np.testing.assert_array_equal, v.value, CHANGES[change](jnp.asarray(x)))


def test_new_variables_and_streams():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((8, 8)), sharding=("data", "model"))
            self.rngs = nnx.Rngs(0)

    @nnx.jit
    def change(model):
        model.b = nnx.Param(model.w.value.sum(0))
        model.w.value += model.rngs.normal((8, 8))
        nnx.reseed(model, default=3)
        return nnx.Variable(model.w.value[0])

    with jax.set_mesh(mesh_of()):
        model, alone = Model(), Model()
        result = change(model)
    expected = change.__wrapped__(alone)
    np.testing.assert_allclose(model.w.value, alone.w.value, rtol=1e-6)
    np.testing.assert_allclose(result.value, expected.value, rtol=1e-6)
    np.testing.assert_array_equal(model.b.value, alone.b.value)
    assert model.w.value.sharding.spec == P("data", "model")
    assert float(model.rngs.normal()) == float(alone.rngs.normal())


def test_an_error_of_the_function_is_its_own():
    def bad(v):
        raise ValueError("no sharding of mine")

    with jax.set_mesh(mesh_of()), pytest.raises(ValueError, match="no sharding of mine"):
        nnx.jit(bad)(nnx.Param(jnp.ones((8, 8)), sharding=("data", "model")))
