"""Nothing is ever whole on a device, whatever is made and wherever; and layer axes are placed."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx

WIDTH = 128
WHOLE = WIDTH * WIDTH * 4
LAYERS = {nnx.PARTITION_NAME: "layers"}
RULES = {
    "on layers": [("layers", "data"), ("in", None), ("out", "model")],
    "on inputs": [("layers", None), ("in", "data"), ("out", "model")],
    "on both": [("layers", "data"), ("in", "model"), ("out", None)],
}


def mesh_of(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)


def linear(rngs, size=WIDTH):
    names = {"sharding": ("data", "model")}
    return nnx.Linear(size, size, use_bias=False, kernel_metadata=names, rngs=rngs)


def build(tx):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(linear(rngs), linear(rngs))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def of_another_jit(tx):
    model = nnx.make_sharded(lambda: build(tx)[0])
    return model, nnx.jit(lambda model: nnx.Optimizer(model, tx, wrt=nnx.Param))(model)


def beside(tx):
    model = nnx.make_sharded(lambda: build(tx)[0])
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


PLACES = {
    "make_sharded": lambda tx: nnx.make_sharded(lambda: build(tx)),
    "one jit": lambda tx: nnx.jit(build, static_argnums=0)(tx),
    "another jit": of_another_jit,
    "eagerly for a sharded model": beside,
}
OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=32),
    "injected": optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9),
}


def arrays_of(tree) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(nnx.state(tree)) if isinstance(x, jax.Array)]


def mine(before: set[int]) -> int:
    gc.collect()
    new = (x for x in jax.live_arrays() if id(x) not in before)
    return max(s.data.nbytes for x in new for s in x.addressable_shards)


@pytest.mark.parametrize("tx", OPTIMIZERS)
@pytest.mark.parametrize("place", PLACES)
def test_no_live_array_is_whole(place, tx):
    kept = jax.live_arrays()
    before = {id(x) for x in kept}
    with jax.set_mesh(mesh_of()):
        model, optimizer = PLACES[place](OPTIMIZERS[tx])
    # Factored states are vectors; all else is in eight parts.
    assert mine(before) <= WHOLE / 8
    parameters = nnx.sharding_report(model).bytes_per_device
    assert parameters == 2 * WHOLE / 8
    states = {"adam": 2 * parameters, "adafactor": 0, "injected": parameters}[tx]
    assert states <= nnx.sharding_report(optimizer).bytes_per_device <= states + 8 * WIDTH * 4
    assert nnx.sharding_report((model, optimizer)).replicated == []


def test_the_program_that_makes_it_needs_no_more_than_a_part():
    with jax.set_mesh(mesh_of()):
        lowered = nnx.jit(lambda: build(optax.adam(1e-3))).lower()
    memory = lowered.compile().memory_analysis()
    assert memory.output_size_in_bytes <= 6 * WHOLE / 8 + 1000
    assert memory.temp_size_in_bytes < WHOLE


def test_an_abstract_optimizer_has_the_shardings_of_one_that_is_made():
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        abstract = nnx.as_abstract(nnx.eval_shape(lambda: build(optax.adam(1e-3))))
        made = nnx.make_sharded(lambda: build(optax.adam(1e-3)))
    pairs = zip(jax.tree.leaves(nnx.state(abstract)), arrays_of(made), strict=True)
    for wanted, array in pairs:
        assert wanted.shape == array.shape and wanted.dtype == array.dtype
        if array.ndim == 2:
            assert wanted.sharding.is_equivalent_to(array.sharding, 2)


def test_moments_of_a_sharded_model_are_a_part_of_it_in_a_language_model():
    """Embedding and layers over eight devices, with what only biases have whole."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    split = {"sharding": (None, "model")}

    def make():
        rngs = nnx.Rngs(0)
        sizes = [(64, 128), (128, 512), (512, 128)]
        layers = [nnx.Linear(*s, kernel_metadata=split, rngs=rngs) for s in sizes]
        model = nnx.Sequential(nnx.Embed(256, 64, embedding_metadata=split, rngs=rngs), *layers)
        return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    with jax.set_mesh(mesh):
        model, optimizer = nnx.jit(make)()
    whole = sum(x.nbytes for x in arrays_of((model, optimizer)))
    per_device = nnx.sharding_report((model, optimizer)).bytes_per_device
    biases = 3 * sum(x.nbytes for x in arrays_of(model) if x.ndim == 1)
    assert per_device == (whole - biases - 2 * 4) / 8 + biases + 2 * 4


class FourteenMegabytes(nnx.Module):
    """A tower of perceptrons of 14.7 MB, of which all but the vectors is in eight parts."""

    def __init__(self):
        ones, rngs = nnx.initializers.ones_init(), nnx.Rngs(0)
        split = nnx.with_partitioning(ones, ("data", "model"))
        sizes = [(256, 1024), (1024, 256)] * 6
        self.embed = nnx.Embed(1024, 256, embedding_init=split, rngs=rngs)
        self.layers = [nnx.Linear(*size, kernel_init=split, rngs=rngs) for size in sizes]
        self.norms = [nnx.LayerNorm(256, rngs=rngs) for _ in range(6)]
        self.head = nnx.Linear(256, 1024, kernel_init=split, rngs=rngs)


def with_adam(model):
    return nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def made_whole():
    model = FourteenMegabytes()
    return model, with_adam(model)


def made_apart(make_optimizer):
    model = nnx.jit(FourteenMegabytes)()
    return model, make_optimizer(model)


def filled(mesh):
    """An abstract model and optimizer, that get their arrays from elsewhere."""
    graphdef, state = nnx.get_abstract_model(made_whole, mesh)
    fill = lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(fill, state))


WAYS = {
    "eagerly": lambda mesh: made_whole(),
    "one jit": lambda mesh: nnx.jit(made_whole)(),
    "one jit of JAX": lambda mesh: jax.jit(made_whole)(),
    "make_sharded": lambda mesh: nnx.make_sharded(made_whole),
    "eagerly for a model of a jit": lambda mesh: made_apart(with_adam),
    "another jit": lambda mesh: made_apart(nnx.jit(with_adam)),
    "abstractly": filled,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_of_15_megabytes_and_its_adam_take_6_on_a_device(way):
    """With moments that are whole on every device it would be 31."""
    kept = jax.live_arrays()
    before, mesh = {id(x) for x in kept}, mesh_of()
    with jax.set_mesh(mesh):
        model, optimizer = WAYS[way](mesh)
    gc.collect()
    used = dict.fromkeys(jax.devices(), 0)
    for array in jax.live_arrays():
        for shard in array.addressable_shards if id(array) not in before else ():
            used[shard.device] += shard.data.nbytes
    assert sum(x.nbytes for x in arrays_of(model)) == pytest.approx(14.7e6, rel=0.01)
    assert max(used.values()) == pytest.approx(5.6e6, rel=0.02)
    reported = nnx.sharding_report((model, optimizer)).bytes_per_device
    assert reported == pytest.approx(5.6e6, rel=0.02)


# -- layer axes ------------------------------------------------------------------------------------


def block(rngs):
    names = {"sharding": ("in", "out")}
    return nnx.Linear(8, 8, use_bias=False, kernel_metadata=names, rngs=rngs)


def vmapped():
    make = nnx.vmap(lambda key: block(nnx.Rngs(key)), transform_metadata=LAYERS)
    return make(jax.random.split(jax.random.key(0), 4))


def scanned():
    def body(carry, key):
        return carry, block(nnx.Rngs(key))

    ends = (nnx.Carry, 0)
    make = nnx.scan(body, in_axes=ends, out_axes=ends, transform_metadata=LAYERS)
    return make(0.0, jax.random.split(jax.random.key(0), 4))[1]


class ByConstructor(nnx.Module):
    @nnx.vmap(in_axes=(0, 0), transform_metadata=LAYERS)
    def __init__(self, key):
        self.block = block(nnx.Rngs(key))


STACKS = {
    "Stack": lambda: nnx.Stack(block, 4, rngs=nnx.Rngs(0), transform_metadata=LAYERS),
    "from_list": lambda: nnx.Stack.from_list(
        [block(nnx.Rngs(i)) for i in range(4)], transform_metadata=LAYERS
    ),
    "vmap": vmapped,
    "scan": scanned,
    "constructor": lambda: ByConstructor(jax.random.split(jax.random.key(0), 4)),
}
MAKERS = {"eagerly": lambda make: make(), "nnx.jit": lambda make: nnx.jit(make)()}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("stack", STACKS)
def test_a_layer_axis_is_placed_by_its_name(stack, maker, kind):
    mesh, rules = mesh_of(kind), RULES["on layers" if maker == "eagerly" else "on both"]
    alone = STACKS[stack]()
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        made = MAKERS[maker](STACKS[stack])
        optimizer = nnx.Optimizer(made, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
        wanted = NamedSharding(mesh, P(*(dict(rules)[n] for n in ("layers", "in", "out"))))
    for tree in (made, optimizer):
        [kernel] = [v for _, v in nnx.named_variables(tree) if v.ndim == 3]
        assert kernel.sharding == ("layers", "in", "out")
        assert kernel.value.sharding.is_equivalent_to(wanted, 3)
    [kernel] = [v.value for _, v in nnx.named_parameters(made)]
    [expected] = [v.value for _, v in nnx.named_parameters(alone)]
    # The truncated normal is computed by another program: a few units in the last place.
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-7)


class Annotated(nnx.Module):
    """A kernel that is mapped, and a bias that is the same for all."""

    def __init__(self, key):
        names, of_bias = {"sharding": (None, "out")}, {"sharding": ("out",)}
        self.linear = nnx.Linear(
            8, 16, kernel_metadata=names, bias_metadata=of_bias, rngs=nnx.Rngs(key)
        )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eagerly", "jax"])
@pytest.mark.parametrize("axis", [0, -1])
def test_a_layer_axis_of_the_vmap_of_jax_is_placed(axis, jit, kind):
    mesh, rules = mesh_of(kind), RULES["on layers"]
    keys = jax.random.split(jax.random.key(0), 4)
    make = nnx.transform_metadata(Annotated, out_axes=axis, partition="layers")
    at = axis % 3, axis % 2
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        made = jit(jax.vmap(make, out_axes=axis))(keys).linear
    for variable, inner, i in (
        (made.kernel, [None, "model"], at[0]),
        (made.bias, ["model"], at[1]),
    ):
        spec = P(*inner[:i], "data", *inner[i:])
        assert variable.value.sharding.is_equivalent_to(NamedSharding(mesh, spec), variable.ndim)
        names = [{"model": "out", "data": "layers"}.get(axis) for axis in spec]
        assert variable.sharding == tuple(names)
    expected = jax.vmap(make, out_axes=axis)(keys).linear.kernel
    np.testing.assert_allclose(made.kernel, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [lambda f: f, nnx.jit], ids=["eagerly", "nnx"])
def test_a_layer_axis_of_the_scan_of_jax_is_named_and_placed_by_a_constraint(jit):
    mesh, keys = mesh_of(), jax.random.split(jax.random.key(0), 4)
    ends = nnx.Carry, 0
    body = nnx.transform_metadata(
        lambda carry, key: (carry, Annotated(key)), in_axes=ends, out_axes=ends, partition="layers"
    )

    def make(keys):
        made = jax.lax.scan(body, 0.0, keys)[1]
        return nnx.with_sharding_constraint(made, nnx.get_partition_spec(made))

    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES["on layers"]):
        kernel = jit(make)(keys).linear.kernel
    assert kernel.sharding == ("layers", None, "out")
    assert kernel.value.sharding.is_equivalent_to(NamedSharding(mesh, P("data", None, "model")), 3)


def test_a_layer_axis_of_the_vmap_of_jax_that_does_not_fit():
    make = nnx.transform_metadata(Annotated, partition="out")
    with jax.set_mesh(mesh_of()), nnx.logical_axis_rules(RULES["on layers"]):
        with pytest.raises(ValueError) as error:
            jax.vmap(make)(jax.random.split(jax.random.key(0), 4))
    assert "result.linear.kernel of shape (4, 8, 16)" in str(error.value)
    assert "it has the axis 'model' 2 times" in str(error.value)


def test_a_layer_axis_that_does_not_fit():
    rules = [("layers", "model"), ("in", None), ("out", "model")]
    with jax.set_mesh(mesh_of()), nnx.logical_axis_rules(rules):
        with pytest.raises(ValueError) as error:
            STACKS["vmap"]()
    message = str(error.value)
    assert "result.kernel of shape (4, 8, 8)" in message and "('layers', 'in', 'out')" in message
    assert "it has the axis 'model' 2 times" in message and "Cure: " in message


def test_without_a_mesh_a_layer_axis_does_nothing():
    for make in STACKS.values():
        assert all(len(x.sharding.device_set) == 1 for x in arrays_of(make()))


def test_unconstrained_axes_are_whole_where_nobody_chooses():
    mesh = mesh_of()
    free = P(P.UNCONSTRAINED, "model")
    with jax.set_mesh(mesh):
        eager = nnx.Param(jnp.ones((4, 8)), sharding=free)
    assert eager.value.sharding.spec == P(None, "model")
    placed = jax.device_put(eager, nnx.get_named_sharding(eager, mesh))
    assert placed.value.sharding.spec == P(None, "model")
    assert nnx.get_partition_spec(eager).value == free
