"""Shardings and specs for objects: every spelling, for every form of arguments and results."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.transforms.observing import compilations

NAMES = [("data", "model"), (None, "model"), ("model", None), (None, None)]


def mesh_of() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


class Pair(nnx.Module):
    def __init__(self, names=(None, "model")):
        self.up = nnx.Linear(
            8, 16, use_bias=False, kernel_metadata={"sharding": names}, rngs=nnx.Rngs(0)
        )
        self.scale = nnx.Param(jnp.ones(8))

    def __call__(self, x):
        return self.up(x * self.scale)


def build():
    model = Pair()
    return model, nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)


def specs(tree) -> dict[str, str]:
    """By name, the spec of each array; its devices where it has none."""
    named = [(n, v.value) for n, v in nnx.named_variables(tree)]
    return {n: getattr(x.sharding, "spec", None) for n, x in named if x.size > 1}


def wanted(names=(None, "model")) -> dict[str, P]:
    return {"scale": P(), "up.kernel": P(*names)}


def spellings(example, mesh) -> dict:
    """The shardings of an object, as people write them."""
    kernel, whole = NamedSharding(mesh, P(None, "model")), NamedSharding(mesh, P())
    state = nnx.get_named_sharding(nnx.state(example), mesh)
    by_type = {nnx.PathContains("kernel"): kernel, ...: whole}
    found = {
        "an object": nnx.get_named_sharding(example, mesh),
        "a State": state,
        "StateSharding of a State": nnx.StateSharding(state),
        "StateSharding by filter": nnx.StateSharding(by_type),
    }
    if not isinstance(example, tuple):
        found["a dict"] = nnx.to_pure_dict(state)
    return found


KINDS = ["an object", "a State", "StateSharding of a State", "StateSharding by filter", "a dict"]
RESULTS = {
    "object": lambda r: r,
    "state": lambda r: nnx.state(r),
    "in a tuple": lambda r: (r, jnp.ones(3)),
    "in a dict": lambda r: {"model": r, "x": jnp.ones(3)},
}


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_out_shardings(kind, result):
    given = spellings(Pair(), mesh_of())[kind]
    wrap = {"in a tuple": lambda s: (s, None), "in a dict": lambda s: {"model": s, "x": None}}
    prefix = wrap.get(result, lambda s: s)(given)
    made = nnx.jit(lambda: RESULTS[result](Pair()), out_shardings=prefix)()
    made = made[0] if isinstance(made, tuple) else made
    made = made["model"] if type(made) is dict else made
    assert specs(made) == wanted()
    np.testing.assert_array_equal(nnx.state(made)["scale"].value, np.ones(8))


@pytest.mark.parametrize("argument", ["object", "state"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_shardings_place_what_is_only_read(kind, argument):
    model, x = Pair(), jnp.ones((2, 8))
    expected = np.asarray(model(x))
    given = spellings(Pair(), mesh_of())[kind]
    if argument == "state":
        double = nnx.jit(lambda s: jax.tree.map(lambda v: 2 * v, s), in_shardings=(given,))
        assert double(nnx.state(model))["up"]["kernel"].value.sharding.spec == P(None, "model")
        return
    forward = nnx.jit(lambda model, x: model(x), in_shardings=(given, None))
    first = forward(model, x)
    assert specs(model) == wanted()
    with compilations() as count:
        second = forward(model, x)
    assert count.number == 0 and forward.traces.count == 1
    for y in (first, second):
        np.testing.assert_allclose(y, expected, rtol=1e-6)  # sums in another order


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_one_prefix_for_a_tuple_of_objects(kind):
    mesh = mesh_of()
    given = spellings(build(), mesh)[kind]

    def step(pair, x):
        model, optimizer = pair
        grads = nnx.grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return pair

    made = nnx.jit(build, out_shardings=given)()
    again = build()
    result = nnx.jit(step, in_shardings=(given, None), out_shardings=given)(again, jnp.ones((2, 8)))
    assert result[0] is again[0] and result[1] is again[1]
    for pair in (made, again):
        found = specs(pair)
        assert found["0.up.kernel"] == P(None, "model") and found["0.scale"] == P()
        [moment] = [s for name, s in found.items() if name.endswith("trace.up.kernel")]
        assert moment == P(None, "model")


@pytest.mark.parametrize("donate", [None, 0], ids=["kept", "donated"])
@pytest.mark.parametrize("written", [False, True], ids=["read", "written"])
def test_an_input_that_is_returned_by_out_shardings(written, donate):
    mesh = mesh_of()
    whole = NamedSharding(mesh, P("data"))

    def touch(model):
        if written:
            model.scale.value += 1
        return model, model.scale.value.sum(), model

    model = Pair()
    f = nnx.jit(touch, out_shardings=(whole, None, None), donate_argnums=donate)
    for i in range(1, 3):
        result, total, same = f(model)
        assert result is model and same is model
        assert float(total) == 8 * (1 + i * written)
        assert specs(model) == {"scale": P("data"), "up.kernel": P("data")}
    with compilations() as count:
        f(model)
    assert count.number == 0


def test_contradictions_are_told():
    mesh = mesh_of()
    one, other = (NamedSharding(mesh, P(axis)) for axis in ("data", "model"))
    f = nnx.jit(lambda model: model, in_shardings=(one,), out_shardings=other)
    model = Pair()
    with pytest.raises(ValueError) as error:
        f(model)
    message = str(error.value)
    assert "model.scale" in message and "result.scale" in message and "Cure: " in message
    assert len(message) < 1500
    f = nnx.jit(lambda: [Pair()], out_shardings=(one,))
    with pytest.raises(ValueError, match="`out_shardings` is not a prefix") as error:
        f()
    assert len(str(error.value)) < 1500


def test_a_committed_argument_elsewhere_is_refused_as_by_jax():
    mesh = mesh_of()
    one, other = (NamedSharding(mesh, P(axis)) for axis in ("data", "model"))
    model = jax.device_put(Pair(), one)
    with pytest.raises(ValueError):
        nnx.jit(lambda m: m.scale.value, in_shardings=(other,))(model)
    assert specs(model)["scale"] == P("data")


@pytest.mark.parametrize("donate", [None, (0, 1)], ids=["kept", "donated"])
@pytest.mark.parametrize("given", ["of the batch", "of the result", "of all"])
def test_what_has_no_sharding_stays_where_it_is(given, donate):
    """XLA would spread the scale over the devices, and the second step be compiled again."""
    mesh = mesh_of()
    batch, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))

    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    with jax.set_mesh(mesh):
        model, optimizer = build()
        options = {
            "of the batch": {"in_shardings": (None, None, batch)},
            "of the result": {"out_shardings": whole},
            "of all": {
                "in_shardings": (*nnx.get_named_sharding((model, optimizer), mesh), batch),
                "out_shardings": whole,
            },
        }[given]
        f, before = nnx.jit(step, donate_argnums=donate, **options), specs((model, optimizer))
        x = np.ones((4, 8), np.float32)
        losses = [float(f(model, optimizer, x))]
        with compilations() as count:
            losses += [float(f(model, optimizer, x)) for _ in range(2)]
    assert count.number == 0 and f.traces.count == 1
    assert specs((model, optimizer)) == before
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("kind", ["an object", "a State", "StateSharding of a State", "a dict"])
def test_specs_of_shard_map(kind):
    mesh, model = mesh_of(), Pair()
    specs_of = nnx.get_partition_spec(nnx.state(model))
    given = {
        "an object": nnx.get_partition_spec(model),
        "a State": specs_of,
        "StateSharding of a State": nnx.StateSharding(specs_of),
        "a dict": nnx.to_pure_dict(specs_of),
    }[kind]
    seen = []

    def body(model):
        seen.append(model.up.kernel.shape)
        model.up.kernel.value *= 2
        return nnx.clone(model), model, nnx.state(model)

    kernel = np.asarray(model.up.kernel.value)
    f = nnx.shard_map(body, mesh=mesh, in_specs=(given,), out_specs=(given,) * 3)
    new, same, state = f(model)
    assert seen[0] == (8, 4) and same is model
    for made in (new, model, state):
        found = nnx.state(made)["up"]["kernel"].value
        np.testing.assert_array_equal(found, 2 * kernel)
        assert found.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "model")), 2)
    both = nnx.shard_map(
        lambda pair: pair[0].up.kernel.value + pair[1]["up"]["kernel"].value,
        mesh=mesh,
        in_specs=((given, given),),
        out_specs=P(None, "model"),
    )
    np.testing.assert_array_equal(both((model, nnx.state(model))), 4 * kernel)


def test_axes_by_path_for_a_tuple_of_objects():
    keys = jax.random.split(jax.random.key(0), 3)
    models = nnx.vmap(
        lambda key: (nnx.Linear(2, 4, rngs=nnx.Rngs(key)), nnx.Linear(4, 2, rngs=nnx.Rngs(key)))
    )(keys)
    axes = jax.tree.map(lambda _: 0, nnx.state(models))
    expected = [np.asarray(b(a(jnp.ones(2)))) for a, b in map(lambda i: part(models, i), range(3))]
    for given in (axes, nnx.StateAxes(axes)):
        f = nnx.vmap(lambda models, x: models[1](models[0](x)), in_axes=(given, None))
        np.testing.assert_allclose(f(models, jnp.ones(2)), np.stack(expected), rtol=1e-5)
        moved = nnx.vmap(lambda models: nnx.state(models), in_axes=(given,), out_axes=given)
        jax.tree.map(np.testing.assert_array_equal, moved(models), nnx.state(models))


def part(models, i):
    return [jax.tree.map(lambda x: x[i], model) for model in models]
