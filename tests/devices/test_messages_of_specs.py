"""Every spec that does not fit, by every way that it comes in: one short message with the place."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from refax import nnx

RULES = [(f"name_{i}", None) for i in range(40)]
WRONG = {
    ("nope", None): "the mesh has no axis 'nope'",
    (3, None): "the mesh has no axis 3",
    ("model", "model"): "it has the axis 'model' 2 times",
    (None, "model"): "axis 1 of size 10 cannot be divided into 4 equal parts",
    (None, ("data", "model")): "axis 1 of size 10 cannot be divided into 8 equal parts",
    (None, None, "data"): "it has 3 entries, and the array 2 axes",
}
ODD = [5, 1.5, {"a": 1}, {"data"}, object, ("model", {"a": 1}), (b"data", None)]


class Net(nnx.Module):
    def __init__(self, names=None):
        rngs = nnx.Rngs(0)
        metadata = {} if names is None else {"sharding": names}
        self.blocks = [nnx.Linear(6, 10, kernel_metadata=metadata, rngs=rngs) for _ in range(30)]

    def __call__(self, x):
        return self.blocks[0](x)


def mesh_of() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def unplaced(names):
    with nnx.use_eager_sharding(False):
        return Net(names)


def restored(names, path):
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: Net(names))
    nnx.load(path, model, mesh=mesh_of())


def by_filter(names):
    return nnx.StateSharding({nnx.PathContains("kernel"): P(*names), ...: P()})


def by_state(names):
    return nnx.get_partition_spec(nnx.state(unplaced(names)))


def optimizer(names):
    return nnx.Optimizer(unplaced(names), optax.adam(1e-3), wrt=nnx.Param)


MADE = "`Net.blocks….kernel`, a Param of shape (6, 10)"
INIT = nnx.initializers.ones_init()
ONES = jnp.ones((2, 6))
KERNEL = "blocks[0].kernel"
WAYS = {  # way: (what is done, what of the place is told)
    "eagerly": (lambda names: Net(names), MADE),
    "nnx.jit": (lambda names: nnx.jit(lambda: Net(names))(), MADE),
    "jax.jit": (lambda names: jax.jit(lambda: Net(names))(), MADE),
    "vmap": (lambda names: nnx.vmap(lambda _: Net(names))(jnp.arange(2)), MADE),
    "make_sharded": (lambda names: nnx.make_sharded(lambda: Net(names)), MADE),
    "abstract": (lambda n: nnx.get_abstract_model(lambda: Net(n), mesh_of()), MADE),
    "with_partitioning": (
        lambda names: nnx.Linear(6, 10, kernel_init=nnx.with_partitioning(INIT, names),
                                 rngs=nnx.Rngs(0)),
        "`Linear.kernel`, a Param of shape (6, 10)",
    ),
    "optimizer made abstract": (lambda names: nnx.eval_shape(lambda: optimizer(names)), KERNEL),
    "optimizer": (optimizer, KERNEL),
    "shard": (lambda names: nnx.shard(Net(), None, {"*.kernel": P(*names)}), "blocks.0.kernel"),
    "get_named_sharding": (lambda n: nnx.get_named_sharding(unplaced(n), mesh_of()), KERNEL),
    "as_abstract": (lambda names: nnx.as_abstract(unplaced(names)), KERNEL),
    "constraint": (lambda n: nnx.with_logical_constraint(jnp.ones((6, 10)), n), "An array"),
    "in_shardings": (
        lambda n: nnx.jit(lambda m, x: m(x), in_shardings=(by_filter(n), None))(Net(), ONES),
        f"`m.{KERNEL}`",
    ),
    "in_shardings by State": (
        lambda n: nnx.jit(lambda m: m(ONES), in_shardings=(by_state(n),))(Net()),
        f"`m.{KERNEL}`",
    ),
    "out_shardings": (lambda n: nnx.jit(Net, out_shardings=by_filter(n))(), "kernel"),
    "out_shardings of an input": (
        lambda n: nnx.jit(lambda m: m, out_shardings=by_filter(n))(Net()), "kernel"
    ),
    "in_specs": (
        lambda n: nnx.shard_map(
            lambda m, x: m(x), mesh=mesh_of(), in_specs=(by_filter(n), P()), out_specs=P()
        )(Net(), ONES),
        f"m.{KERNEL}",
    ),
    "in_specs of an array": (
        lambda n: nnx.shard_map(
            lambda x: 0, mesh=mesh_of(), in_specs=({"x": P(*n)},), out_specs=P()
        )({"x": jnp.ones((6, 10))}),
        "`x['x']` (float32[6,10])",
    ),
    "in_shardings of an array": (
        lambda n: nnx.jit(lambda x: 0, in_shardings=P(*n))({"x": jnp.ones((6, 10))}),
        "`x['x']` (float32[6,10])",
    ),
}  # fmt: skip


TELLING_ALL = {
    "shard", "get_named_sharding", "as_abstract", "in_shardings", "in_shardings by State",
    "in_specs",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_short_message_with_the_place(way):
    make, place = WAYS[way]
    with jax.set_mesh(mesh_of()), nnx.logical_axis_rules(RULES):
        for names, why in WRONG.items():
            if way == "constraint" and 3 in names:
                continue  # an argument, which is checked as such
            with pytest.raises((ValueError, TypeError)) as error:
                make(names)
            message = str(error.value)
            assert place in message and len(message) <= 1500, message
            assert "Cure: " in message and "refax/" not in message
            assert why in message and "{'data': 2, 'model': 4}" in message
            if way in TELLING_ALL:
                assert message.count(why) >= 5 and "\n  and 2" in message


def test_loading_into_a_mesh(tmp_path):
    path = str(tmp_path / "model.safetensors")
    nnx.save(path, Net())
    with nnx.logical_axis_rules(RULES):
        for names, why in WRONG.items():
            with pytest.raises(ValueError) as error:
                restored(names, path)
            message = str(error.value)
            assert KERNEL in message and why in message and len(message) <= 1500


@pytest.mark.parametrize("names", ODD, ids=str)
def test_what_is_no_annotation(names):
    with jax.set_mesh(mesh_of()), pytest.raises(ValueError, match="the mesh has no axis") as error:
        nnx.Param(jnp.ones((6, 10)), sharding=names)
    assert "Param of shape (6, 10)" in str(error.value) and len(str(error.value)) < 800


def test_rules_that_give_several_axes_or_none_within_a_tuple():
    rules = [("rows", ("data", "model")), ("nothing", None), ("one", "model")]
    specs = {
        (("rows",), None): P(("data", "model"), None),
        (("nothing", "one"), None): P("model", None),
        ("rows", "nothing"): P(("data", "model"), None),
    }
    with jax.set_mesh(mesh_of()), nnx.logical_axis_rules(rules):
        for names, spec in specs.items():
            variable = nnx.Param(jnp.ones((8, 8)), sharding=names)
            assert nnx.get_partition_spec(variable).value == spec
            whole = jax.sharding.NamedSharding(mesh_of(), spec)
            assert variable.value.sharding.is_equivalent_to(whole, 2)


def test_results_of_plain_arrays_that_do_not_fit():
    with jax.set_mesh(mesh_of()):
        f = nnx.jit(lambda: {"a": jnp.ones(8), "b": jnp.ones(6)}, out_shardings=P("model"))
        with pytest.raises(ValueError) as error:
            f()
    assert "`result['b']` (float32[6])" in str(error.value)
    assert "cannot be divided into 4" in str(error.value) and "Cure: " in str(error.value)


def own_method(self):
    return nnx.Param(jnp.ones((6, 10)), sharding=(None, "model"))


class Own(nnx.Module):
    def __init__(self):
        self.weight = self.make()

    make = own_method


class InList(nnx.Module):
    def __init__(self):
        self.several = nnx.List([own_method(self)])


class Deep(nnx.Module):
    def __init__(self):
        self.inner = Own()


class Trainer:  # no part of the model, whose attribute it is
    def __init__(self):
        self.model = Deep()


class InPair(nnx.Module):
    def __init__(self):
        self.a, self.b = nnx.Param(jnp.ones(4)), own_method(self)


class ByName(nnx.Module):
    def __init__(self):
        weight = own_method(self)
        self.weight = weight


MADE_BY = {
    Own: "`Own.weight`, a Param of",
    InList: "`InList.several…`, a Param of",
    Deep: "`Deep.inner.weight`, a Param of",
    Trainer: "`Trainer.model.inner.weight`, a Param of",
    InPair: "Param of",  # not known, rather than wrong
    ByName: "Param of",
    lambda: own_method(None): "Param of",
    lambda: nnx.Stack(lambda rngs: Deep(), 2, rngs=nnx.Rngs(0)): "`Deep.inner.weight`, a Param of",
    lambda: nnx.Sequential(Deep()): "`Deep.inner.weight`, a Param of",
}


@pytest.mark.parametrize("make", MADE_BY, ids=lambda make: getattr(make, "__name__", ""))
def test_what_is_being_made_is_named_by_those_who_make_it(make):
    with jax.set_mesh(mesh_of()), pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(MADE_BY[make] + " shape (6, 10) does not fit")


@pytest.mark.parametrize("spec", [P(None, None, None), P("data", None, "model")], ids=str)
def test_out_specs_with_more_entries_than_a_result_has_axes(spec):
    def change(model):
        model.kernel.value = model.kernel.value.sum(0)

    model, rows = nnx.Linear(6, 10, rngs=nnx.Rngs(0)), P(None, None)
    kernel = nnx.StateSharding({nnx.PathContains("kernel"): rows, ...: P()})
    ways = {  # (function, spec of its argument, of its result, argument)
        "`result` (float32[2,6])": (lambda x: x, P(), spec, ONES),
        "`result['b'][1]` (float32[])": (lambda x: {"b": [x, x.sum()]}, P(), P("data"), ONES),
        "`result.kernel` (float32[6,10])": (lambda _: nnx.clone(model), P(), spec, ONES),
        "`model.kernel` (float32[10])": (change, kernel, P(), model),
    }
    for place, (f, of_argument, of_result, given) in ways.items():
        f = nnx.shard_map(f, mesh=mesh_of(), in_specs=(of_argument,), out_specs=of_result)
        with pytest.raises(ValueError) as error:
            f(given)
        message = str(error.value)
        assert place in message and "entries, and the array" in message and "Cure: " in message
        assert "{'data': 2, 'model': 4}" in message and len(message) < 700


@pytest.mark.parametrize("names", [("nope", None), ("model", "model")], ids=str)
def test_out_specs_that_are_none_of_the_mesh(names):
    f = nnx.shard_map(Net, mesh=mesh_of(), in_specs=(), out_specs=P(*names))
    with pytest.raises(ValueError, match="`out_specs` has P"):
        f()


@pytest.mark.parametrize("value", [3, "model", nnx.Linear, jnp.ones(3)], ids=str)
def test_a_report_of_what_is_no_object(value):
    with pytest.raises(TypeError, match="nnx.sharding_report takes an object"):
        nnx.sharding_report(value)


def test_a_report_has_arrays_beside_variables():
    report = nnx.sharding_report({"table": jnp.ones((4, 8)), "layer": nnx.Param(jnp.ones(2))})
    assert "table" in report and "(4, 8)" in report and report.bytes_per_device == 136
