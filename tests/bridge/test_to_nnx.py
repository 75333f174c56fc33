"""nnx.bridge.ToNNX around Linen modules, beside the same modules in plain Linen."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx
from refax.objects import variable_types

linen = pytest.importorskip("flax.linen")
bridge = nnx.bridge

X = jax.random.normal(jax.random.key(42), (4, 6))


class Dot(linen.Module):
    out: int

    @linen.compact
    def __call__(self, x):
        return x @ self.param("w", linen.initializers.lecun_normal(), (x.shape[-1], self.out))


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Dense(8)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        self.sow("intermediates", "hidden", x)
        return x


class Net(linen.Module):
    def setup(self):
        self.block = Block()
        self.heads = [linen.Dense(2), linen.Dense(3)]

    def __call__(self, x, train=False):
        x = self.block(x, train=train)
        return self.heads[1](self.heads[0](x))

    def encode(self, x):
        return self.block(x)


def first_keys(**seeds):
    """The keys that the first call of a ToNNX made with these seeds hands to Linen."""
    rngs = nnx.Rngs(**seeds).fork()
    return {name: stream() for name, stream in rngs.items()}


def net(**seeds):
    return bridge.lazy_init(bridge.ToNNX(Net(), rngs=nnx.Rngs(**seeds)), X)


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)


# -- variables -----------------------------------------------------------------------------------


def test_variables_are_those_of_linen_with_the_same_key():
    model = net(params=0, dropout=1)
    variables = Net().init(first_keys(params=0, dropout=1), X)
    assert_trees_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), variables["params"])
    assert_trees_equal(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), variables["batch_stats"])
    np.testing.assert_array_equal(model(X), Net().apply(variables, X))


def test_names_and_types_of_the_variables():
    found = {path: type(v) for path, v in nnx.to_flat_state(nnx.state(net(params=0, dropout=0)))}
    affine = {"kernel": nnx.Param, "bias": nnx.Param}
    stream = {"key": nnx.RngKey, "count": nnx.RngCount}
    assert found == {
        **{("block", "Dense_0", name): kind for name, kind in affine.items()},
        **{("block", "BatchNorm_0", name): nnx.Param for name in ("scale", "bias")},
        **{("block", "BatchNorm_0", name): nnx.BatchStat for name in ("mean", "var")},
        **{(f"heads_{i}", name): kind for i in (0, 1) for name, kind in affine.items()},
        **{("to_nnx__rngs", "params", name): kind for name, kind in stream.items()},
        **{("to_nnx__rngs", "dropout", name): kind for name, kind in stream.items()},
    }


class ManyCollections(linen.Module):
    @linen.compact
    def __call__(self, x):
        w = self.param("w", linen.initializers.ones, (x.shape[-1], 3))
        calls = self.variable("tally", "calls", lambda: jnp.zeros((), jnp.int32))
        nested = self.variable("tally", "nested", lambda: {"a": jnp.zeros(2), "b": (jnp.ones(1),)})
        if not self.is_initializing() and self.is_mutable_collection("tally"):
            calls.value += 1
            nested.value = {**nested.value, "a": nested.value["a"] + 1}
        y = x @ w
        self.sow("intermediates", "total", jnp.sum(y))
        return y


def test_any_collection_is_a_type_of_variable():
    model = bridge.ToNNX(ManyCollections(), rngs=nnx.Rngs(0)).lazy_init(X)
    Tally = nnx.variable_type_from_name("tally")
    assert isinstance(model.w, nnx.Param) and type(model.calls) is Tally
    assert type(model.nested["a"]) is Tally and isinstance(model.nested["b"].value, tuple)
    graphdef, params, tally, rest = nnx.split(model, nnx.Param, Tally, ...)
    assert [*params] == ["w"] and [*tally] == ["calls", "nested"] and [*rest] == ["to_nnx__rngs"]
    again = nnx.merge(graphdef, params, tally, rest)
    again(X, mutable="tally")
    assert (int(again.calls), int(model.calls), float(again.nested["a"][0])) == (1, 0, 1)


@pytest.mark.parametrize(
    "mutable, written, sown",
    [
        (None, 0, 0), (False, 0, 0), ("tally", 1, 0), (["tally"], 1, 0), (["params"], 0, 0),
        (["intermediates"], 0, 1), (True, 1, 1), (linen.DenyList("intermediates"), 1, 0),
        ([], 0, 0),
    ],
)  # fmt: skip
def test_mutable_says_what_is_written(mutable, written, sown):
    model = bridge.ToNNX(ManyCollections(), rngs=nnx.Rngs(0)).lazy_init(X)
    for call in (1, 2):
        y = model(X, mutable=mutable)
        np.testing.assert_allclose(y, X @ jnp.ones((6, 3)), rtol=1e-5)
        assert int(model.calls) == call * written
        assert len(vars(model)["total"].value if sown else ()) == call * sown
    if sown:
        assert len(nnx.pop(model, nnx.Intermediate)["total"].value) == 2
        model(X, mutable=mutable)
        assert len(model.total.value) == 1


def test_types_made_for_collections_are_pickled_by_name(monkeypatch):
    model = bridge.ToNNX(ManyCollections(), rngs=nnx.Rngs(0)).lazy_init(X)
    data = pickle.dumps(model)
    assert type(pickle.loads(data).calls) is type(model.calls)
    monkeypatch.setattr(variable_types, "_TYPE_OF_NAME", {"params": nnx.Param})  # another process
    again = pickle.loads(data)
    assert type(again.calls) is nnx.variable_type_from_name("tally") is not type(model.calls)
    again(X, mutable=["tally"])
    assert int(again.calls) == 1 and type(again.w) is nnx.Param
    assert pickle.loads(pickle.dumps(nnx.Param)) is nnx.Param


class SameName(linen.Module):
    @linen.compact
    def __call__(self, x):
        w = self.param("w", linen.initializers.ones, (6,))
        seen = self.variable("cache", "w", lambda: jnp.zeros(6))
        self.sow("intermediates", "w", x)
        if not self.is_initializing() and self.is_mutable_collection("cache"):
            seen.value += 1
        return linen.Dense(6)(x * w + seen.value)


def test_one_name_in_several_collections():
    model = bridge.ToNNX(SameName(), rngs=nnx.Rngs(0)).lazy_init(X)
    variables = SameName().init(first_keys(params=0), X)
    for _ in range(2):
        y, updates = SameName().apply(variables, X, mutable=True)
        np.testing.assert_allclose(model(X, mutable=True), y, rtol=1e-6)
        variables = {**variables, **updates}
    assert isinstance(model.w, nnx.Param)
    np.testing.assert_array_equal(nnx.state(model, nnx.Cache)["w:cache"].value, 2 * jnp.ones(6))
    assert len(nnx.state(model, nnx.Intermediate)["w:intermediates"].value) == 2


# -- random keys ---------------------------------------------------------------------------------


class Drop(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic=False):
        return linen.Dropout(0.5, deterministic=deterministic)(x)


ONES = jnp.ones((1, 64))


@pytest.mark.parametrize("seeds", [{"dropout": 3}, {"default": 3}, {"default": 4, "dropout": 3}])
def test_each_call_draws_new_keys_which_linen_gets(seeds):
    model = bridge.ToNNX(Drop(), rngs=nnx.Rngs(**seeds))
    keys = nnx.Rngs(**seeds).fork()
    for _ in range(3):
        drawn = {name: stream() for name, stream in keys.items()}
        if "dropout" not in seeds:  # Linen draws it from `params`
            drawn = {"params": drawn["default"]}
        np.testing.assert_array_equal(model(ONES), Drop().apply({}, ONES, rngs=drawn))
    assert all(int(count) == 3 for _, count in nnx.to_flat_state(nnx.state(model, nnx.RngCount)))
    np.testing.assert_array_equal(model(ONES, deterministic=True), ONES)


def test_reseed_begins_again():
    model = bridge.lazy_init(bridge.ToNNX(Drop(), rngs=nnx.Rngs(dropout=0)), ONES)
    nnx.reseed(model, dropout=7)
    first = model(ONES)
    assert (first != model(ONES)).any()
    nnx.reseed(model, dropout=7)
    np.testing.assert_array_equal(model(ONES), first)


@pytest.mark.parametrize("own", [None, 0], ids=["no streams", "streams"])
def test_keys_of_one_call(own):
    model = bridge.ToNNX(Drop(), rngs=None if own is None else nnx.Rngs(own))
    key = jax.random.key(5)
    expected = Drop().apply({}, ONES, rngs={"dropout": key})
    np.testing.assert_array_equal(model(ONES, rngs={"dropout": key}), expected)
    rngs = nnx.Rngs(dropout=5)
    np.testing.assert_array_equal(
        model(ONES, rngs=rngs), Drop().apply({}, ONES, rngs={"dropout": jax.random.fold_in(key, 0)})
    )
    assert int(rngs.dropout.count.value) == 1
    if own is not None:
        assert int(model.rngs.default.count.value) == 0
    assert bridge.ToNNX(linen.Dense(2), rngs=key).lazy_init(X).kernel.shape == (6, 2)


def test_the_streams_are_forks():
    rngs = nnx.Rngs(0)
    models = [bridge.ToNNX(linen.Dense(3), rngs=rngs).lazy_init(X) for _ in range(2)]
    assert (models[0].kernel.value != models[1].kernel.value).any()
    models[0](X)
    assert int(rngs.default.count.value) == 2


# -- methods and fields --------------------------------------------------------------------------


def test_methods_by_name_as_functions_and_as_attributes():
    model = net(params=0, dropout=1)
    variables = Net().init(first_keys(params=0, dropout=1), X)
    expected = Net().apply(variables, X, method="encode")
    for y in (model(X, method="encode"), model(X, method=Net.encode), model.encode(X)):
        np.testing.assert_array_equal(y, expected)
    assert model.encode(X, mutable=["intermediates"]).shape == (4, 8)
    assert model.block["hidden"].value[0].shape == (4, 8)
    assert bridge.ToNNX(Dot(5)).out == 5 and bridge.ToNNX(Dot(5)).module == Dot(5)
    with pytest.raises(AttributeError, match="decode"):
        _ = model.decode


class Two(linen.Module):
    def setup(self):
        self.encoder, self.decoder = linen.Dense(3), linen.Dense(6)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


def test_methods_that_make_variables():
    one = bridge.ToNNX(Two(), rngs=nnx.Rngs(0)).lazy_init(X, method="encode")
    assert set(nnx.state(one, nnx.Param)) == {"encoder"}
    bridge.lazy_init(one.decode, X[:, :3])
    assert one(X).shape == (4, 6)


# -- lazy_init -----------------------------------------------------------------------------------


class Outer(nnx.Module):
    def __init__(self, rngs):
        self.two = bridge.ToNNX(Two(), rngs=rngs)
        self.layers = [bridge.ToNNX(linen.Dense(6), rngs=rngs), nnx.Linear(6, 6, rngs=rngs)]
        self.offset = nnx.Param(rngs.params.normal((1, 6)))

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.two.decode(self.two.encode(x)) + self.offset

    @nnx.jit
    def compiled(self, x):
        return self(x)


@pytest.mark.parametrize(
    "init",
    [
        lambda: bridge.lazy_init(Outer(nnx.Rngs(0)), X),
        lambda: bridge.lazy_init(Outer(nnx.Rngs(0)).compiled, X).__self__,
        lambda: nnx.jit(lambda x: bridge.lazy_init(Outer(nnx.Rngs(0)), x))(X),
        lambda: (m := Outer(nnx.Rngs(0)), bridge.lazy_init(lambda m, x: m(x), m, X))[0],
        lambda: nnx.clone(bridge.lazy_init(Outer(nnx.Rngs(0)), X)),
    ],
    ids=["module", "jitted method", "inside jit", "function", "clone"],
)
def test_lazy_init_of_a_module_with_several(init):
    model = init()
    assert model(X).shape == (4, 6)
    # Two methods of one ToNNX made their variables in one lazy_init.
    assert set(nnx.state(model.two, nnx.Param)) == {"encoder", "decoder"}
    expected = bridge.lazy_init(Outer(nnx.Rngs(0)), X)(X)
    np.testing.assert_allclose(model(X), expected, rtol=1e-5)


def test_shapes_alone():
    def make(x):
        return bridge.lazy_init(Outer(nnx.Rngs(0)), x)

    abstract = nnx.eval_shape(make, jax.ShapeDtypeStruct((4, 6), jnp.float32))
    assert isinstance(abstract.two.encoder["kernel"].value, jax.ShapeDtypeStruct)
    nnx.update(abstract, nnx.state(make(X)))
    np.testing.assert_array_equal(abstract(X), make(X)(X))


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.layer = bridge.ToNNX(linen.Dense(6), rngs=rngs)
        self.kernels = []

    def __call__(self, x):
        for _ in range(2):
            x = self.layer(x)
            self.kernels.append(nnx.Variable(self.layer.kernel.value))
        return x


def test_a_layer_that_is_called_twice_is_made_once():
    model = bridge.lazy_init(Tied(nnx.Rngs(0)), X)
    np.testing.assert_array_equal(model.kernels[0].value, model.kernels[1].value)
    first = model.kernels[0].value
    bridge.lazy_init(model, X)
    assert (model.layer.kernel.value != first).any()  # anew, as `init` with another key


def test_without_variables_the_cure_is_told():
    model = bridge.ToNNX(linen.Dense(3), rngs=nnx.Rngs(0))
    with pytest.raises(Exception, match="kernel") as caught:
        model(X)
    assert "Cure: nnx.bridge.lazy_init(model" in "".join(caught.value.__notes__)
    assert vars(model).keys() == {"to_nnx__form", "to_nnx__rngs"}


# -- training ------------------------------------------------------------------------------------


def loss_of(y):
    return jnp.mean((y - 1) ** 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_training_steps_are_those_of_plain_linen(compiled):
    tx = optax.sgd(0.1, momentum=0.9)
    model = net(params=0, dropout=1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def train_step(model, optimizer, x):
        def loss_fn(model):
            return loss_of(model(x, train=True, mutable=["batch_stats"]))

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    keys = nnx.Rngs(params=0, dropout=1).fork()
    variables = Net().init({name: stream() for name, stream in keys.items()}, X)
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = tx.init(params)
    step = nnx.jit(train_step) if compiled else train_step
    for _ in range(3):
        loss = step(model, optimizer, X)
        drawn = {name: stream() for name, stream in keys.items()}

        def loss_fn(params, stats=stats, drawn=drawn):
            y, updates = Net().apply(
                {"params": params, "batch_stats": stats}, X, train=True, rngs=drawn,
                mutable=["batch_stats"],
            )  # fmt: skip
            return loss_of(y), updates["batch_stats"]

        (expected, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, params)
    found = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, stats)


class Mapped(nnx.Module):
    def __init__(self, rngs):
        self.dot = bridge.ToNNX(linen.Dense(5, use_bias=False), rngs=rngs)

    def __call__(self, x):
        @nnx.split_rngs(splits=4)
        @nnx.vmap(in_axes=(0, 0), axis_size=4)
        def each(dot, x):
            return dot(x)

        return each(self.dot, x)


def test_vmap_makes_and_runs_a_stack():
    model = bridge.lazy_init(Mapped(nnx.Rngs(0)), X)
    assert model.dot.kernel.shape == (4, 6, 5)
    np.testing.assert_allclose(
        model(X), jnp.einsum("bi,bio->bo", X, model.dot.kernel.value), rtol=1e-5
    )


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, model, x: nnx.jit(f)(model, x),
        lambda f, model, x: nnx.remat(f)(model, x),
        lambda f, model, x: nnx.cond(True, f, lambda model, x: jnp.zeros((4, 3)), model, x),
        lambda f, model, x: nnx.scan(
            lambda model, _: (model, f(model, x)),
            in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0),
        )(model, jnp.arange(1))[1][0],
        lambda f, model, x: f(nnx.merge(*nnx.split(model)), x),
        lambda f, model, x: f(pickle.loads(pickle.dumps(model)), x),
        lambda f, model, x: f(nnx.clone(model), x),
        lambda f, model, x: jax.jit(f)(model, x),
    ],
    ids=["jit", "remat", "cond", "scan", "split and merge", "pickle", "clone", "jax.jit"],
)  # fmt: skip
def test_transforms_and_copies(transform):
    def f(model, x):
        return model(x, train=True, mutable=["batch_stats"])

    model, expected = net(params=0, dropout=1), net(params=0, dropout=1)
    np.testing.assert_allclose(transform(f, model, X), f(expected, X), rtol=1e-4, atol=1e-6)


def test_writes_reach_the_callers_model():
    @nnx.jit
    def run(model, x):
        return model(x, train=True, mutable=True)

    model, expected = net(params=0, dropout=1), net(params=0, dropout=1)
    run(model, X), expected(X, train=True, mutable=True)
    assert nnx.graphdef(model) == nnx.graphdef(expected)
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngKey))),
        nnx.to_flat_state(nnx.state(expected, nnx.Not(nnx.RngKey))),
        strict=True,
    ):
        jax.tree.map(lambda a, b, path=path: np.testing.assert_allclose(a, b, rtol=1e-5), a, b)
    assert set(vars(model)) == set(vars(expected)) and "hidden" in model.block


def test_a_model_of_the_surroundings_is_not_written():
    model = net(params=0, dropout=1)
    before = model.block

    @nnx.jit
    def run(x):
        return model(x, mutable=True, rngs={})

    with pytest.raises(nnx.TraceContextError, match="block"):
        run(X)
    assert model.block is before and "hidden" not in before


def test_a_state_goes_to_disk_and_back(tmp_path):
    model, other = net(params=0, dropout=1), net(params=5, dropout=6)
    flat = {"/".join(p): np.asarray(v.value) for p, v in nnx.to_flat_state(
        nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))}  # fmt: skip
    np.savez(tmp_path / "weights.npz", **flat)
    loaded = np.load(tmp_path / "weights.npz")
    nnx.update(other, nnx.from_flat_state({tuple(k.split("/")): loaded[k] for k in loaded}))
    np.testing.assert_array_equal(model(X), other(X))


def test_weights_are_swapped_in_place():
    model = bridge.ToNNX(Dot(5), rngs=nnx.Rngs(0)).lazy_init(X)
    model.w.value = jnp.ones((6, 5))
    np.testing.assert_allclose(model(X), X.sum(1, keepdims=True) * jnp.ones(5), rtol=1e-5)
    model.w = nnx.LoRAParam(jnp.zeros((6, 5)), tag="mine")
    with pytest.raises(Exception, match="w"):  # which is no collection of the Linen module
        model(X)


# -- partition metadata --------------------------------------------------------------------------


class Partitioned(linen.Module):
    @linen.compact
    def __call__(self, x):
        make = linen.with_partitioning(linen.initializers.lecun_normal(), ("in", "out"))
        w = self.param("w", make, (x.shape[-1], 4))
        make = linen.with_logical_partitioning(linen.initializers.ones, ("out",))
        return x @ w + self.param("b", make, (4,))


def test_boxes_become_metadata_and_go_back_as_boxes():
    model = bridge.ToNNX(Partitioned(), rngs=nnx.Rngs(0)).lazy_init(X)
    assert model.w.sharding == ("in", "out") and model.b.out_sharding == ("out",)
    assert isinstance(model.w.value, jax.Array)
    specs = nnx.get_partition_spec(nnx.state(model, nnx.Param))
    assert specs["w"].value == jax.sharding.PartitionSpec("in", "out")
    with nnx.logical_axis_rules([("out", "model")]):
        specs = nnx.get_partition_spec(nnx.state(model, nnx.Param))
        assert specs["b"].value == jax.sharding.PartitionSpec("model")
    model.w.note = "the user's own"
    variables = Partitioned().init(first_keys(params=0), X)
    np.testing.assert_allclose(model(X), Partitioned().apply(variables, X), rtol=1e-6)

    class Boxes(linen.Module):
        @linen.compact
        def __call__(self, x):
            Partitioned(name="inner")(x)
            return x

        def boxes(self):
            return linen.get_partition_spec({"params": self.variables["params"]})

    outer = bridge.ToNNX(Boxes(), rngs=nnx.Rngs(0)).lazy_init(X)
    assert outer.boxes()["params"]["inner"]["w"] == jax.sharding.PartitionSpec("in", "out")
    mesh = jax.make_mesh((1, 1), ("in", "out"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shardings = nnx.get_named_sharding(nnx.state(model, nnx.Param), mesh)
    assert tuple(shardings["w"].value.spec) == ("in", "out")


def test_a_linen_module_whose_fields_are_containers():
    class Configured(linen.Module):
        sizes: list
        options: dict

        @linen.compact
        def __call__(self, x):
            for size in self.sizes:
                x = linen.Dense(size, **self.options)(x)
            return x

    model = bridge.ToNNX(Configured([3, 2], {"use_bias": False}), rngs=nnx.Rngs(0)).lazy_init(X)
    assert nnx.jit(lambda m, x: m(x))(model, X).shape == (4, 2)
