"""Unusual meshes and places: the numbers of one device, or an error with the place and a cure."""

import warnings
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
X = jnp.arange(32.0).reshape(4, 8) / 10


def mesh_of(*kinds: AxisType, shape=(2, 4)) -> Mesh:
    return jax.make_mesh(shape, ("data", "model"), axis_types=kinds or (AUTO, AUTO))


def layer(names=(None, "model"), sizes=(8, 16)):
    metadata = {"sharding": names}
    return nnx.Linear(*sizes, kernel_metadata=metadata, rngs=nnx.Rngs(0))


def build():
    model = layer()
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


def new_step():
    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    return step


def losses(model, optimizer, train=None):
    train = train or new_step()
    found = []
    for _ in range(3):
        found.append(float(train(model, optimizer, X)))
        jax.block_until_ready(nnx.state((model, optimizer)))
    return found


def is_close(found, expected=None):
    np.testing.assert_allclose(found, expected or losses(*build()), rtol=2e-5)


@contextmanager
def older_way(mesh):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with mesh:
            yield


# -- right -----------------------------------------------------------------------------------------

MESHES = {
    "one device": lambda: Mesh(np.array(jax.devices()[:1]), ("model",), axis_types=(AUTO,)),
    "an axis of size 1": lambda: mesh_of(shape=(8, 1)),
    "of the last devices": lambda: Mesh(
        np.array(jax.devices()[4:]), ("model",), axis_types=(AUTO,)
    ),
    "explicit and auto axes": lambda: mesh_of(EXPLICIT, AUTO),
    "auto and explicit axes": lambda: mesh_of(AUTO, EXPLICIT),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_gives_the_losses_of_one_device_and_compiles_once(mesh):
    with jax.set_mesh(MESHES[mesh]()):
        model, optimizer = nnx.make_sharded(build)
        train = new_step()
        is_close(losses(model, optimizer, train))
    assert "traced 1 time." in train.explain()


@pytest.mark.parametrize("names", [("data", "model"), (("data", "model"), None), ("data", None)])
@pytest.mark.parametrize("compiled", [False, True])
def test_an_annotation_of_axes_of_both_kinds(names, compiled):
    mesh = mesh_of(EXPLICIT, AUTO)
    with jax.set_mesh(mesh):
        made = (nnx.jit(layer, static_argnums=0) if compiled else layer)(names)
        found = nnx.jit(lambda m, x: m(x))(made, X)
    assert made.kernel.value.sharding.is_equivalent_to(NamedSharding(mesh, P(*names)), 2)
    np.testing.assert_allclose(found, layer()(X), rtol=1e-5, atol=1e-6)


def test_another_mesh_is_set_at_the_next_call():
    train = new_step()
    with jax.set_mesh(mesh_of()):
        pair = nnx.make_sharded(build)
        found = [float(train(*pair, X))]
    jax.block_until_ready(nnx.state(pair))
    for shape in ((4, 2), (8, 1)):
        with jax.set_mesh(mesh_of(shape=shape)):
            found.append(float(train(*pair, X)))
        jax.block_until_ready(nnx.state(pair))
    is_close(found)
    assert dict(pair[0].kernel.value.sharding.mesh.shape) == {"data": 2, "model": 4}


def test_the_innermost_mesh_counts():
    with jax.set_mesh(mesh_of()):
        with jax.set_mesh(mesh_of(shape=(4, 2))):
            inner = layer().kernel.value
        outer = layer().kernel.value
    assert dict(inner.sharding.mesh.shape)["model"] == 2
    assert dict(outer.sharding.mesh.shape)["model"] == 4


def test_the_older_way_to_set_a_mesh_places_too():
    mesh = mesh_of()
    with older_way(mesh):
        made = layer(), nnx.jit(layer)(), nnx.make_sharded(layer), build()[1].opt_state[0].mu
        abstract = nnx.as_abstract(nnx.eval_shape(layer))
        with pytest.raises(ValueError, match=r"Linear\.kernel`, a Param of shape \(8, 10\)"):
            layer(sizes=(8, 10))
        is_close(losses(*nnx.make_sharded(build)))
    wanted = NamedSharding(mesh, P(None, "model"))
    for tree in (*made, abstract):
        kernel = tree["kernel"] if isinstance(tree, nnx.State) else tree.kernel
        assert kernel.value.sharding.is_equivalent_to(wanted, 2)


def test_moments_go_where_their_parameter_is_whatever_its_annotation_says():
    here, other = mesh_of(), mesh_of(shape=(4, 2))
    keys = jax.random.split(jax.random.key(0), 4)
    with jax.set_mesh(here):
        of_another_mesh = layer()
        unnamed = nnx.vmap(lambda key: layer())(keys)  # whose annotation has an entry too few
    moved = layer()
    moved.kernel.value = jax.device_put(moved.kernel.value, NamedSharding(here, P("model")))
    for model in (of_another_mesh, unnamed, moved):
        with jax.set_mesh(other):
            optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        for moment in (optimizer.opt_state[0].mu["kernel"], optimizer.opt_state[0].nu["kernel"]):
            assert moment.value.sharding == model.kernel.value.sharding


def test_numpy_arrays_in_a_sharded_variable():
    with jax.set_mesh(mesh_of()):
        model, optimizer = build()
        expected = losses(*build())
        place = model.kernel.value.sharding
        model.kernel.value = np.asarray(model.kernel.value)
        assert model.kernel.value.sharding == place
        is_close(losses(model, optimizer), expected)


@pytest.mark.parametrize("capturing", ["model", "sharded model"])
def test_shard_map_with_a_captured_model(capturing):
    mesh = mesh_of()
    with jax.set_mesh(mesh) if capturing == "sharded model" else older_way(mesh_of(shape=(8, 1))):
        model = layer()
    f = nnx.shard_map(lambda x: model(x), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(f(X), layer()(X), rtol=1e-6)


def test_vmap_over_an_axis_of_the_mesh():
    mesh, keys = mesh_of(), jax.random.split(jax.random.key(0), 2)
    split = {"sharding": (None, "model")}
    make = nnx.vmap(
        lambda key: nnx.Linear(8, 16, kernel_metadata=split, rngs=nnx.Rngs(key)),
        spmd_axis_name="data",
    )
    with jax.set_mesh(mesh):
        for models in (make(keys), nnx.jit(make)(keys)):
            wanted = NamedSharding(mesh, P("data", None, "model"))
            assert models.kernel.value.sharding.is_equivalent_to(wanted, 3)
            run = nnx.vmap(lambda model, x: model(x), in_axes=(0, None), spmd_axis_name="data")
            found = nnx.jit(run)(models, X)
    for key, y in zip(keys, found, strict=True):
        alone = nnx.Linear(8, 16, rngs=nnx.Rngs(key))
        np.testing.assert_allclose(y, alone(X), rtol=1e-4, atol=1e-5)


def test_memory_of_the_host_is_kept_and_told():
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        model = layer()
    host = model.kernel.value.sharding.with_memory_kind("pinned_host")
    model.kernel.value = jax.device_put(model.kernel.value, host)
    assert "pinned_host" in nnx.sharding_report(model)
    with pytest.raises(ValueError) as error:
        nnx.jit(lambda model, x: model(x))(model, X)
    assert "`model.kernel`: devices 0 to 7" in str(error.value)
    assert "pinned_host" in str(error.value) and "Cure: " in str(error.value)


# -- an abstract mesh, of a cluster that is not here -----------------------------------------------

CLUSTER = AbstractMesh((10, 100), ("data", "model"), axis_types=(AUTO, AUTO))


def big():
    model = layer(("data", "model"), (1000, 4000))
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def test_a_model_for_a_thousand_devices_is_planned_on_one():
    graphdef, state = nnx.get_abstract_model(big, CLUSTER)
    report = nnx.sharding_report(nnx.merge(graphdef, state))
    assert report.bytes_per_device == 3 * (1000 * 4000 // 1000 + 4000) * 4 + 2 * 4
    assert max(map(len, report.splitlines())) <= 80 and "10" in report.splitlines()[-1]
    with jax.sharding.use_abstract_mesh(CLUSTER):
        model = nnx.as_abstract(nnx.eval_shape(big)[0])
        assert len(layer().kernel.value.sharding.device_set) == 1  # of which there are none here
    assert model.kernel.value.sharding == state[0]["kernel"].value.sharding
    with pytest.raises(ValueError, match=r"kernel`, a Param of shape \(8, 16\).*'model': 100"):
        nnx.get_abstract_model(layer, CLUSTER)


def test_an_abstract_model_is_made_inside_of_jit():
    mesh = mesh_of()

    def parts(x):
        _, state = nnx.get_abstract_model(layer, mesh)
        return x * state["kernel"].value.sharding.shard_shape((8, 16))[1]

    assert float(nnx.jit(parts)(1.0)) == 4
    with jax.set_mesh(mesh):
        assert float(jax.jit(parts)(1.0)) == 4


# -- errors with a place and a cure ----------------------------------------------------------------


def two_meshes():
    halves = [Mesh(np.array(part), ("model",), axis_types=(AUTO,))
              for part in np.split(np.array(jax.devices()), 2)]  # fmt: skip
    models = []
    for half in halves:
        with jax.set_mesh(half):
            models.append(layer())
    return halves, models


def on_two_meshes():
    _, (a, b) = two_meshes()
    nnx.jit(lambda a, b: a(X) + b(X))(a, b)


def under_other_devices():
    (_, half), (a, _) = two_meshes()
    with jax.set_mesh(half):
        nnx.jit(lambda a: a(X))(a)


def under_axes_of_another_kind():
    with jax.set_mesh(mesh_of()):
        a = layer()
    with jax.set_mesh(mesh_of(EXPLICIT, EXPLICIT)):
        nnx.jit(lambda a, x: a(x))(a, X)


def donated_and_used():
    with jax.set_mesh(mesh_of()):
        a, b = layer(), layer()
    state = nnx.state(a)
    double = nnx.jit(lambda a: nnx.update(a, jax.tree.map(lambda x: 2 * x, nnx.state(a))),
                     donate_argnums=0)  # fmt: skip
    double(a)
    nnx.update(b, state)
    nnx.jit(lambda a: a(X))(b)


def tied():
    model = nnx.Dict(a=layer(None, (8, 8)), b=layer(None, (8, 8)))
    model.b.kernel = model.a.kernel
    return model


def tied_and_sharded_by_filters():
    by_name = nnx.StateSharding({nnx.PathContains("a"): NamedSharding(mesh_of(), P("data")),
                                 ...: NamedSharding(mesh_of(), P())})  # fmt: skip
    nnx.jit(lambda a: a.a(X), in_shardings=(by_name,))(tied())


def tied_and_sharded_by_patterns():
    nnx.shard(tied(), mesh_of(), {"a.kernel": P("data"), "b.*": P()})


def abstract():
    with jax.set_mesh(mesh_of()):
        nnx.jit(lambda a, x: a(x))(nnx.eval_shape(layer), X)


def written_where_it_is_captured():
    model = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    nnx.shard_map(lambda x: model(x), mesh=mesh_of(), in_specs=P("data"), out_specs=P("data"))(X)


ERRORS = {
    on_two_meshes: ["`a.kernel`, `a.bias`: devices 0 to 3", "`b.kernel`, `b.bias`: devices 4 to 7"],
    under_other_devices: ["`a.kernel`, `a.bias`: devices 0 to 3", "the mesh set: devices 4 to 7"],
    under_axes_of_another_kind: ["`a.kernel`", "of Auto axes", "the mesh set", "of Explicit axes"],
    donated_and_used: ["`a.kernel`", "was deleted: it was donated"],
    tied_and_sharded_by_filters: ["a.a.kernel: ", "a.b.kernel: "],
    tied_and_sharded_by_patterns: ["'a.kernel' and 'b.kernel' are one Variable"],
    abstract: ["`a.kernel`", "is abstract"],
    written_where_it_is_captured: ["BatchStat `BatchNorm.mean`"],
}


@pytest.mark.parametrize("wrong", ERRORS, ids=lambda wrong: wrong.__name__)
def test_the_place_and_the_cure_are_told(wrong):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        wrong()
    message = str(error.value)
    assert all(part in message for part in ERRORS[wrong]), message
    assert "Cure: " in message and len(message) <= 1500


def test_a_tied_variable_may_be_named_by_any_of_its_names():
    mesh, model = mesh_of(), tied()
    nnx.shard(model, mesh, {"b.kernel": P("data")})
    assert model.a.kernel.value.sharding.spec == P("data")
    nnx.shard(model, mesh, {"*.kernel": P("model"), "b.bias": P()})
    assert model.a.kernel.value.sharding.spec == P("model")
