"""nnx.bridge.to_linen: Modules in Linen, beside the Modules themselves."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx

linen = pytest.importorskip("flax.linen")
from flax import errors, serialization  # noqa: E402
from flax.training.train_state import TrainState  # noqa: E402

bridge = nnx.bridge
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(42), (4, 6))


class Tally(nnx.Variable):
    pass


@pytest.fixture(autouse=True)
def named(registry):
    nnx.register_variable_name("tallies", Tally)


class Net(nnx.Module):
    def __init__(self, din, dout=3, *, rngs):
        self.linear = nnx.Linear(din, dout, rngs=rngs)
        self.layers = [nnx.Linear(dout, dout, rngs=rngs) for _ in range(2)]
        self.shared = self.linear
        self.norm = nnx.BatchNorm(dout, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = Tally(jnp.zeros((), jnp.int32))
        self.scale = jnp.arange(1.0, dout + 1)

    def __call__(self, x, train=False):
        self.calls += 1
        x = self.norm(self.encode(x), use_running_average=not train)
        x = self.dropout(x, deterministic=not train)
        self.sow(nnx.Intermediate, "hidden", x)
        for layer in self.layers:
            x = layer(x)
        return x

    def encode(self, x):
        return self.linear(x) * self.scale


def shapes(variables):
    return jax.tree.map(jnp.shape, variables)


def make(**rngs):
    return bridge.to_linen(Net, 6), bridge.to_linen(Net, 6).init({"params": KEY, **rngs}, X)


def module_of(variables):
    """The Module with these variables, by hand."""
    module = Net(6, rngs=nnx.Rngs(0))
    for collection in ("params", "batch_stats", "tallies"):
        nnx.update(module, variables[collection])
    return module


# -- variables -----------------------------------------------------------------------------------


def test_variables_by_collection():
    _, variables = make()
    affine = {"kernel": (3, 3), "bias": (3,)}
    assert shapes(variables) == {
        "params": {
            "linear": {"kernel": (6, 3), "bias": (3,)},
            "layers": {0: affine, 1: affine},
            "norm": {"scale": (3,), "bias": (3,)},
        },
        "batch_stats": {"norm": {"mean": (3,), "var": (3,)}},
        "tallies": {"calls": ()},
        "arrays": {"scale": (3,)},
    }
    # As they were made, before the call that `init` runs.
    assert int(variables["tallies"]["calls"]) == 0
    assert shapes(jax.eval_shape(lambda: make()[1])) == shapes(variables)


def test_a_type_without_a_name_gives_the_collection_its_own():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.lora = nnx.LoRA(6, 2, 3, rngs=rngs)

        def __call__(self, x):
            return self.lora(x)

    assert [*bridge.to_linen(Model).init(KEY, X)] == ["LoRAParam"]


def test_the_parameters_come_from_linens_key():
    variables = bridge.to_linen(nnx.Linear, 6, 3).init(KEY, X)
    named = linen.Dense(3).init(KEY, X)
    assert shapes(variables) == shapes(named)

    class Key(linen.Module):
        @linen.compact
        def __call__(self):
            return self.make_rng("params")

    key = Key().apply({}, rngs={"params": KEY})
    expected = nnx.Linear(6, 3, rngs=nnx.Rngs(params=key)).kernel.value
    np.testing.assert_array_equal(variables["params"]["kernel"], expected)
    # An old style key, and a stream of its own for each submodule of a Linen module.
    assert shapes(bridge.to_linen(nnx.Linear, 6, 3).init(jax.random.PRNGKey(0), X)) == shapes(named)
    both = linen.Sequential([bridge.to_linen(nnx.Linear, 6, 6), bridge.to_linen(nnx.Linear, 6, 6)])
    params = both.init(KEY, X)["params"]
    assert (params["layers_0"]["kernel"] != params["layers_1"]["kernel"]).any()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("abstract_init", [True, False])
def test_apply_computes_what_the_module_computes(compiled, abstract_init):
    _, variables = make()
    model = bridge.to_linen(Net, 6, abstract_init=abstract_init)
    apply = jax.jit(model.apply) if compiled else model.apply
    np.testing.assert_allclose(apply(variables, X), module_of(variables)(X), rtol=1e-5)
    as_text = {**variables, "params": serialization.to_state_dict(variables["params"])}
    assert [*as_text["params"]["layers"]] == ["0", "1"]  # as checkpoints have the numbers
    np.testing.assert_allclose(apply(as_text, X), apply(variables, X), rtol=1e-6)


@pytest.mark.parametrize(
    "mutable, collections",
    [
        (["batch_stats"], {"batch_stats"}), ("tallies", {"tallies"}),
        (["intermediates"], {"intermediates"}), ([], set()),
        (True, {"params", "batch_stats", "tallies", "arrays", "intermediates"}),
        (linen.DenyList("params"), {"batch_stats", "tallies", "arrays", "intermediates"}),
    ],
)  # fmt: skip
def test_what_is_mutable_is_returned(mutable, collections):
    model, variables = make()
    y, updates = model.apply(variables, X, mutable=mutable)
    assert set(updates) == collections
    module = module_of(variables)
    np.testing.assert_allclose(y, module(X), rtol=1e-5)
    if "tallies" in updates:
        assert int(updates["tallies"]["calls"]) == 1
        again = model.apply({**variables, **updates}, X, mutable=mutable)[1]
        assert int(again["tallies"]["calls"]) == 2
    if "intermediates" in updates:
        (hidden,) = updates["intermediates"]["hidden"]
        np.testing.assert_allclose(hidden, module.hidden.value[0], rtol=1e-5)


def test_running_statistics_are_those_of_the_module():
    model, variables = make()
    _, updates = model.apply(
        variables, X, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    module = module_of(variables)
    module(X, train=True)
    np.testing.assert_allclose(updates["batch_stats"]["norm"]["mean"], module.norm.mean, rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["norm"]["var"], module.norm.var, rtol=1e-5)


def test_what_is_left_out():
    model, variables = make()
    # Arrays that are no variables may be left out: they are made again.
    rest = {name: variables[name] for name in ("params", "batch_stats", "tallies")}
    np.testing.assert_allclose(model.apply(rest, X), model.apply(variables, X), rtol=1e-6)
    # A collection that is mutable begins anew; another one is missed by name.
    del rest["tallies"]
    y, updates = model.apply(rest, X, mutable=["tallies"])
    assert int(updates["tallies"]["calls"]) == 1
    with pytest.raises(nnx.StructureError, match="Net: no value for `calls` in .*'tallies'"):
        model.apply(rest, X)
    params = {**variables["params"], "linear": {"kernel": jnp.ones((6, 3))}}
    with pytest.raises(nnx.StructureError, match=r"no value for `linear.bias` in .*'params'"):
        model.apply({**variables, "params": params}, X)
    params = {**variables["params"], "linear": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}
    with pytest.raises(nnx.StructureError, match="linear.kernel"):
        model.apply({**variables, "params": params}, X)


# -- random keys ---------------------------------------------------------------------------------


class Noise(nnx.Module):
    def __init__(self, rngs):
        self.rngs = rngs.fork()

    def __call__(self, x):
        return x + self.rngs.noise.normal(x.shape)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: bridge.to_linen(nnx.Dropout, rate=0.5), "dropout"),
        (lambda: bridge.to_linen(Noise), "noise"),
        (lambda: linen.Sequential([bridge.to_linen(Noise), bridge.to_linen(Noise)]), "noise"),
    ],
    ids=["dropout", "noise", "nested"],
)
def test_keys_come_from_linen_at_each_call(make, name):
    model = make()
    ones = jnp.ones((1, 64))
    variables = model.init({name: KEY, "params": KEY}, ones)
    assert variables == {}

    def run(key, name=name):
        return model.apply(variables, ones, rngs={name: jax.random.key(key)})

    np.testing.assert_array_equal(run(1), run(1))
    np.testing.assert_allclose(run(1), jax.jit(run, static_argnums=0)(1), rtol=1e-5)
    assert (run(1) != run(2)).any() and (run(1, "params") != run(2, "params")).any()
    with pytest.raises(errors.InvalidRngError, match="no key for it.\nCure: apply"):
        model.apply(variables, ones)


def test_no_keys_are_needed_where_none_is_drawn():
    model = bridge.to_linen(nnx.Dropout, 0.5)
    np.testing.assert_array_equal(model.apply({}, X, deterministic=True), X)


def test_two_dropouts_drop_different_numbers():
    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.both = [nnx.Dropout(0.5, rngs=rngs) for _ in range(2)]

        def __call__(self, x):
            return [dropout(x) for dropout in self.both]

    model, ones = bridge.to_linen(Pair), jnp.ones((1, 64))
    (a, b) = model.apply(model.init(KEY, ones), ones, rngs={"dropout": KEY})
    assert (a != b).any()


def test_without_rngs():
    class Add(nnx.Module):
        def __init__(self, amount):
            self.amount = nnx.Variable(jnp.array(amount))

        def __call__(self, x):
            return x + self.amount

    model = bridge.ToLinen(Add, args=(1,), skip_rng=True)
    y, variables = model.init_with_output(KEY, X)
    np.testing.assert_allclose(y, X + 1)
    np.testing.assert_allclose(model.apply(variables, X), X + 1)
    assert bridge.to_linen(Add, amount=2, skip_rng=True, name="add").name == "add"


# -- methods -------------------------------------------------------------------------------------


def test_methods():
    model, variables = make()
    expected = module_of(variables).encode(X)
    bound = model.bind(variables)
    for y in (
        model.apply(variables, X, nnx_method="encode"),
        model.apply(variables, X, nnx_method=Net.encode),
        model.apply(variables, X, method="encode"),
        bound.encode(X),
    ):
        np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert model.init(KEY, X, nnx_method="encode").keys() == variables.keys()
    with pytest.raises(AttributeError, match="decode"):
        _ = bound.decode


# -- inside Linen --------------------------------------------------------------------------------


class LinenOuter(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = bridge.to_linen(nnx.Linear, x.shape[-1], 6)(x)
        x = bridge.to_linen(Net, 6, name="net")(x, train)
        return linen.Dense(2)(x)


def test_a_submodule_trains_as_a_part_of_linens_model():
    model = LinenOuter()
    variables = model.init(KEY, X)
    assert set(variables["params"]) == {"ToLinen_0", "net", "Dense_0"}
    assert shapes(variables["batch_stats"]) == {"net": {"norm": {"mean": (3,), "var": (3,)}}}
    params = variables.pop("params")
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.1))

    @jax.jit
    def train_step(state, others, key):
        def loss_fn(params):
            y, updates = state.apply_fn(
                {"params": params, **others}, X, train=True, rngs={"dropout": key},
                mutable=["batch_stats", "tallies"],
            )  # fmt: skip
            return jnp.mean((y - 1) ** 2), updates

        (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), {**others, **updates}, loss

    losses = []
    for key in jax.random.split(KEY, 20):
        state, variables, loss = train_step(state, variables, key)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert int(variables["tallies"]["net"]["calls"]) == 20

    # The gradient, beside that of the same computation by hand.
    def by_hand(params):
        x = X @ params["ToLinen_0"]["kernel"] + params["ToLinen_0"]["bias"]
        net = module_of({**{k: v["net"] for k, v in variables.items()}, "params": params["net"]})
        return net(x) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    loss = lambda f: jax.grad(lambda params: (f(params) ** 2).sum())(state.params)  # noqa: E731
    found = loss(lambda params: model.apply({"params": params, **variables}, X))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, loss(by_hand)
    )


def test_transforms_of_linen():
    mapped = linen.vmap(
        bridge.ToLinen, variable_axes={"params": 0}, split_rngs={"params": True}
    )(nnx.Linear, args=(6, 3))  # fmt: skip
    variables = mapped.init(KEY, X)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (4, 6, 3) and (kernel[0] != kernel[1]).any()
    np.testing.assert_allclose(
        mapped.apply(variables, X), jnp.einsum("bi,bio->bo", X, kernel), rtol=1e-5
    )

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 6, rngs=rngs)

        def __call__(self, x, _):
            return nnx.tanh(self.linear(x)), None

    scanned = linen.scan(
        linen.remat(bridge.ToLinen), variable_axes={"params": 0}, split_rngs={"params": True},
        length=3,
    )(Layer)  # fmt: skip
    variables = scanned.init(KEY, X, None)
    y, expected = scanned.apply(variables, X, None)[0], X
    for i in range(3):
        layer = jax.tree.map(lambda a, i=i: a[i], variables["params"]["linear"])
        expected = jnp.tanh(expected @ layer["kernel"] + layer["bias"])
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a_value_that_is_perturbed():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.perturb("hidden", self.linear(x)) ** 2

    model = bridge.to_linen(Model)
    variables = model.init(KEY, X)
    assert shapes(variables["perturbations"]) == {"hidden": (4, 3)}

    def loss(perturbations):
        return model.apply({**variables, "perturbations": perturbations}, X).sum()

    hidden = X @ variables["params"]["linear"]["kernel"]
    found = jax.grad(loss)(variables["perturbations"])["hidden"]
    np.testing.assert_allclose(found, 2 * hidden, rtol=1e-5)


# -- metadata ------------------------------------------------------------------------------------


class Sharded(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
        self.w = nnx.Param(init(rngs.params(), (6, 4)))
        self.b = nnx.Param(jnp.zeros(4), note="kept")
        self.c = nnx.Param(jnp.zeros(4))

    def __call__(self, x):
        return x @ self.w + self.b + self.c


def test_metadata_is_kept_in_boxes():
    model = bridge.to_linen(Sharded)
    variables = model.init(KEY, X)
    params = variables["params"]
    assert type(params["w"]) is bridge.NNXMeta and params["w"].var_type is nnx.Param
    assert params["w"].metadata["sharding"] == params["w"].metadata["out_sharding"] == ("in", "out")
    assert params["b"].metadata["note"] == "kept" and isinstance(params["c"], jax.Array)
    unboxed = linen.unbox(variables)
    assert all(isinstance(leaf, jax.Array) for leaf in unboxed["params"].values())
    specs = linen.get_partition_spec(variables)["params"]
    P = jax.sharding.PartitionSpec
    assert (specs["w"], specs["b"]) == (P("in", "out"), P())
    for given in (variables, unboxed):
        np.testing.assert_allclose(model.apply(given, X), X @ unboxed["params"]["w"], rtol=1e-5)
    jax.jit(model.apply)(variables, X)  # a box is a pytree whose static part can be hashed
    updates = jax.jit(lambda v: model.apply(v, X, mutable=["params"])[1])(variables)
    assert updates["params"]["w"].metadata == params["w"].metadata
    variable = params["w"].to_nnx_variable()
    assert isinstance(variable, nnx.Param) and variable.out_sharding == ("in", "out")
    bare = bridge.to_linen(Sharded, metadata_fn=None).init(KEY, X)
    jax.tree.map(np.testing.assert_array_equal, bare, unboxed)


def test_axes_of_boxes_follow_linens_transforms():
    mapped = linen.vmap(
        bridge.ToLinen, variable_axes={"params": 0}, split_rngs={"params": True},
        metadata_params={linen.PARTITION_NAME: "layers"},
    )(Sharded)  # fmt: skip
    variables = mapped.init(KEY, X)
    w = variables["params"]["w"]
    assert w.value.shape == (4, 6, 4) and w.metadata["sharding"] == ("layers", "in", "out")
    _, updates = mapped.apply(variables, X, mutable=["params"])
    assert updates["params"]["w"].metadata["sharding"] == ("layers", "in", "out")


# -- there and back ------------------------------------------------------------------------------


def test_there_and_back():
    model = bridge.ToNNX(bridge.to_linen(Net, 6), rngs=nnx.Rngs(0)).lazy_init(X)
    expected = module_of(
        {
            name: nnx.to_pure_dict(nnx.state(model, kind))
            for name, kind in {
                "params": nnx.Param, "batch_stats": nnx.BatchStat, "tallies": Tally
            }.items()
        }
    )  # fmt: skip
    np.testing.assert_allclose(model(X), expected(X), rtol=1e-5)
    np.testing.assert_allclose(model.encode(X), expected.encode(X), rtol=1e-5)
    sharded = bridge.ToNNX(bridge.to_linen(Sharded), rngs=nnx.Rngs(0)).lazy_init(X)
    assert sharded.w.out_sharding == ("in", "out") and sharded.b.note == "kept"
    sharded(X)


PROGRAM = """
import sys
class NoFlax:
    @staticmethod
    def find_spec(name, *args):
        if name.partition(".")[0] == "flax":
            raise ModuleNotFoundError(f"No module named {name!r}", name="flax")
sys.meta_path.insert(0, NoFlax)
from refax import nnx
from refax.nnx.bridge import NNXMeta, ToLinen, ToNNX, lazy_init, to_linen
for make in (lambda: to_linen(nnx.Linear, 2, 3), lambda: nnx.bridge.ToLinen(nnx.Linear)):
    try:
        make()
    except ImportError as error:
        print(error)
"""


def test_without_flax_the_names_stand_and_their_use_is_an_error():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert run.stdout.count("makes a Linen module, and Flax is not installed.\nCure: ") == 2, run
    with pytest.raises(AttributeError, match="no_such"):
        _ = bridge.no_such
