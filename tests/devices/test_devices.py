"""Models made sharded, laid out by patterns, and seen; errors that tell every place at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx


def mesh_of(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)


class Tower(nnx.Module):
    def __init__(self, names=("in", "out")):
        rngs = nnx.Rngs(0)
        self.layers = [
            nnx.Linear(64, 64, kernel_metadata={"sharding": names}, rngs=rngs) for _ in range(4)
        ]
        self.norm = nnx.LayerNorm(64, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.norm(x)


RULES = [("in", None), ("out", "model")]


def build():
    model = Tower()
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


# -- make_sharded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_model_and_its_optimizer_are_made_sharded(kind):
    mesh = mesh_of(kind)
    model, optimizer = nnx.make_sharded(build, mesh, RULES)
    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        again = nnx.make_sharded(build)[0]
    wanted = NamedSharding(mesh, P(None, "model"))
    for kernel in (model.layers[2].kernel, again.layers[2].kernel):
        assert kernel.value.sharding.is_equivalent_to(wanted, 2)
    moment = optimizer.opt_state[0].nu["layers"][2]["kernel"]
    assert moment.value.sharding.is_equivalent_to(wanted, 2)
    expected = Tower().layers[2].kernel.value
    # The truncated normal is computed by another program: a few units in the last place.
    np.testing.assert_allclose(model.layers[2].kernel.value, expected, rtol=1e-5, atol=1e-7)


def test_nothing_is_ever_whole_on_a_device():
    """In the compiled maker: what it gives, and the memory it needs on the way."""
    mesh = mesh_of()

    def make():
        names = {"sharding": ("data", "model")}
        return nnx.Linear(512, 512, use_bias=False, kernel_metadata=names, rngs=nnx.Rngs(0))

    with jax.set_mesh(mesh):
        compiled = nnx.jit(make).lower().compile()
    memory, whole = compiled.memory_analysis(), 512 * 512 * 4
    assert memory.output_size_in_bytes < whole / 8 + 1000
    assert memory.temp_size_in_bytes < whole


def test_no_mesh():
    with pytest.raises(ValueError, match="make_sharded: there is no mesh.\nCure: "):
        nnx.make_sharded(build)


# -- shard -----------------------------------------------------------------------------------------


def test_a_model_without_annotations():
    mesh = mesh_of()
    model = Tower(names=None)
    model.shared = model.layers[0].kernel
    before = nnx.state_dict(model)
    patterns = {"layers.0.kernel": P("data"), "*.kernel": P(None, "model"), "norm.*": P("model")}
    assert nnx.shard(model, mesh, patterns) is model
    specs = {name: v.value.sharding.spec for name, v in nnx.named_variables(model)}
    assert specs["layers.0.kernel"] == P("data") and specs["layers.3.kernel"] == P(None, "model")
    assert specs["norm.scale"] == P("model") and specs["layers.3.bias"] == P()
    assert model.layers[0].kernel is model.shared
    after = nnx.state_dict(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    with jax.set_mesh(mesh):
        optimizer = nnx.jit(lambda m: nnx.Optimizer(m, optax.adam(1e-3), wrt=nnx.Param))(model)
    moments = optimizer.opt_state[0].mu
    assert moments["layers"][3]["kernel"].value.sharding.spec == P(None, "model")
    assert nnx.get_partition_spec(model).norm.scale.value == P("model")


def test_rngs_and_several_values_are_placed_too():
    model = nnx.Dict(a=nnx.Rngs(0), b=nnx.Variable((jnp.ones(3), jnp.ones(()))))
    mesh = mesh_of()
    nnx.shard(model, mesh, {})
    for leaf in jax.tree.leaves(nnx.state(model)):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8


@pytest.mark.parametrize("spec", [P("model"), "model", ("model",), ("out",)], ids=str)
def test_a_spec_by_names_and_the_mesh_that_is_set(spec):
    mesh = mesh_of()
    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        model = nnx.shard(Tower(names=None), None, {"norm.scale": spec})
    assert model.norm.scale.value.sharding.spec == P("model")
    whole = nnx.shard(Tower(names=None), mesh, {"norm.scale": None})
    assert whole.norm.scale.value.sharding.spec == P()
    with pytest.raises(ValueError, match="shard: there is no mesh"):
        nnx.shard(Tower(names=None), None, {})


def test_a_model_is_laid_out_inside_of_jit():
    mesh = mesh_of()

    def make():
        return nnx.shard(Tower(names=None), mesh, {"*.kernel": P(None, "model")})

    for model in (nnx.jit(make)(), jax.jit(make)()):
        wanted = NamedSharding(mesh, P(None, "model"))
        assert model.layers[1].kernel.value.sharding.is_equivalent_to(wanted, 2)


def test_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError) as error:
        nnx.shard(Tower(names=None), mesh_of(), {"norm.scal": P("model")})
    assert "'norm.scal' matches none of the 10 Variables" in str(error.value)
    assert "Did you mean 'norm.scale'?" in str(error.value)


def test_patterns_that_do_not_fit_leave_everything():
    model = Tower(names=None)
    with pytest.raises(ValueError) as error:
        nnx.shard(model, mesh_of(), {"norm.*": P("model"), "*.bias": P(("model", "data"), "data")})
    message = str(error.value)
    assert all(f"layers.{i}.bias of shape (64,)" in message for i in range(4))
    assert "it has 2 entries, and the array 1 axes" in message
    assert all(len(v.value.sharding.device_set) == 1 for _, v in nnx.named_variables(model))
    assert not model.norm.scale.has_metadata("sharding")


# -- constraints of activations --------------------------------------------------------------------


def test_logical_constraints():
    mesh, x = mesh_of(), jnp.arange(32.0).reshape(8, 4)

    @jax.jit
    def f(x):
        return nnx.with_logical_constraint(2 * x, ("batch", "features"))

    assert len(f(x).sharding.device_set) == 1
    for to in ("data", "model"):
        with jax.set_mesh(mesh), nnx.logical_axis_rules([("batch", to), ("features", None)]):
            y = f(x)
            assert y.sharding.is_equivalent_to(NamedSharding(mesh, P(to)), 2)
            np.testing.assert_array_equal(y, 2 * x)
            eager = nnx.with_logical_constraint(x, ("batch", None))
            assert eager.sharding.is_equivalent_to(NamedSharding(mesh, P(to)), 2)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="no axis 'batch'"):
        f(x)


# -- objects of shardings --------------------------------------------------------------------------


def test_modules_of_shardings_for_jit():
    mesh = mesh_of()
    with nnx.logical_axis_rules(RULES):
        shardings = nnx.get_named_sharding(Tower(), mesh)
    wanted = NamedSharding(mesh, P(None, "model"))
    for jit in (nnx.jit, jax.jit):
        made = jit(Tower, out_shardings=shardings)()
        assert made.layers[1].kernel.value.sharding.is_equivalent_to(wanted, 2)
        model, x = Tower(), jnp.ones((2, 64))
        y = jit(lambda model, x: model(x), in_shardings=(shardings, None))(model, x)
        np.testing.assert_allclose(y, model(x), rtol=1e-5, atol=1e-5)  # sums in another order


# -- errors ----------------------------------------------------------------------------------------


def test_all_annotations_that_do_not_fit_are_told():
    model = nnx.List([Tower(("in", "aut")) for _ in range(10)])
    with nnx.logical_axis_rules(RULES), pytest.raises(ValueError) as error:
        nnx.get_named_sharding(model, mesh_of())
    message = str(error.value)
    assert message.count("the mesh has no axis 'aut', and no rule maps such a name") == 9
    assert "0.layers.0.kernel" in message.replace("[", ".").replace("]", "")
    assert "and 31 more" in message and "{'data': 2, 'model': 4}" in message
    assert "{'in': None, 'out': 'model'}" in message and len(message) < 1500


# -- sharding_report -------------------------------------------------------------------------------


def test_a_report():
    mesh = mesh_of()
    with nnx.logical_axis_rules(RULES):
        model, optimizer = nnx.make_sharded(build, mesh)
        kernel = model.layers[1].kernel
        kernel.value = jax.device_put(kernel.value, NamedSharding(mesh, P()))
        report = nnx.sharding_report((model, optimizer))
    lines = report.splitlines()
    assert lines[0].split() == ["name", "shape", "annotation", "on", "devices", "per", "device"]
    row = next(line for line in lines if line.startswith("0.layers.1.kernel "))
    assert "(64, 64)" in row and "('in', 'out')" in row and "16.4 KB" in row
    assert "← whole on each" in row
    row = next(line for line in lines if line.startswith("0.layers.2.kernel "))
    assert "P(None, 'model')" in row and "4.1 KB" in row
    assert lines[-1] == "The mesh is {'data': 2, 'model': 4}."
    assert report.replicated == ["0.layers.1.kernel"]
    arrays = [x for x in jax.tree.leaves(nnx.state((model, optimizer)))]
    first = [s.data.nbytes for x in arrays for s in x.addressable_shards if s.device.id == 0]
    assert report.bytes_per_device == sum(first)


def test_a_report_has_at_most_80_columns():
    class Odd(nnx.Module):
        def __init__(self):
            long = "the_logical_name_of_an_axis_of_hidden_units_that_is_long"
            self.an_attribute_with_a_long_name = [
                nnx.Param(jnp.ones((8, 8)), sharding=(long, long))
            ]
            self.many_axes = nnx.Param(
                jnp.ones((8,) + (1,) * 20), sharding=("data",) + 20 * (None,)
            )
            self.whole = nnx.Param(jax.device_put(jnp.ones(8), NamedSharding(mesh, P())))
            self.whole.set_metadata(sharding=("model",))
            self.elsewhere = nnx.Param(jax.device_put(jnp.ones(8), NamedSharding(other, P("x"))))

    mesh, other = mesh_of(), jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    report = nnx.sharding_report(Odd())
    assert max(map(len, report.splitlines())) == 80
    rows = [line.split()[0] for line in report.splitlines()]
    assert rows[0] == "name" and {"elsewhere", "many_axes", "whole", "total"} < set(rows)
    assert report.replicated == ["whole"]


def test_a_report_of_what_is_abstract_or_on_one_device():
    abstract = nnx.sharding_report(nnx.eval_shape(Tower))
    assert "nowhere yet" in abstract and abstract.bytes_per_device == 0
    alone = nnx.sharding_report(Tower())
    assert "1 device" in alone and alone.replicated == []
    assert alone.bytes_per_device == 4 * (64 * 64 + 64) * 4 + 2 * 64 * 4
