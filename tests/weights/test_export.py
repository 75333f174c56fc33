"""Artifacts of `nnx.export`: they give what the model gives, in a process that has no refax."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

X = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)


def make_model() -> nnx.Sequential:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(2, 3, rngs=rngs),
        nnx.BatchNorm(3, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
        nnx.Linear(3, 2, rngs=rngs),
    )


def make_eval() -> nnx.Sequential:
    model = make_model()
    model.eval()
    return model


def load(artifact: bytes):
    return jax.export.deserialize(bytearray(artifact)).call


def same(a, b) -> None:
    # One program compiled twice, by two routes: a few units in the last place.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), a, b)


def test_weights_inside():
    model = make_eval()
    artifact = nnx.export(model, X)
    expected = model(X)
    model.layers[0].kernel.value += 1  # the artifact has its own
    same(load(artifact)(X), expected)


@pytest.mark.parametrize(
    "make", [lambda m: m, lambda m: m.__call__, nnx.jit, lambda m: nnx.jit(m.__call__)],
    ids=["model", "method", "jitted", "jitted method"],
)  # fmt: skip
def test_what_calls_a_model(make):
    model = make_eval()
    same(load(nnx.export(make(model), X))(X), model(X))
    same(load(nnx.export(lambda x: make(model)(x), X))(X), model(X))


def test_another_method():
    class Tower(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))

        def encode(self, x, *, scale=1.0):
            return {"features": self.linear(x) * scale, "pair": (x, [x + 1])}

    tower = Tower()
    call = load(nnx.export(tower.encode, X, scale=jnp.float32(1)))
    same(call(X, scale=jnp.float32(3)), tower.encode(X, scale=3.0))


@pytest.mark.parametrize("spec", ["batch, ...", ("batch, ...",), ("batch, 2",)])
def test_symbolic_batch_sizes(spec):
    model = make_eval()
    call = load(nnx.export(model, jax.ShapeDtypeStruct((1, 2), jnp.float32), polymorphic=spec))
    for size in (1, 5):
        x = jnp.ones((size, 2))
        same(call(x), model(x))


def test_symbolic_shapes_of_some_arguments():
    def scaled(model, x, offset, *, scale):
        return (model(x) + offset) * scale

    model = make_eval()
    spec = ("batch, 2", None)
    call = load(nnx.export(scaled, model, X, jnp.ones(2), scale=jnp.ones(2), polymorphic=spec))
    x = jnp.ones((7, 2))
    same(call(x, jnp.ones(2), scale=jnp.ones(2)), model(x) + 1)


def test_several_platforms():
    artifact = nnx.export(make_eval(), X, platforms=("cpu", "cuda", "tpu"))
    assert jax.export.deserialize(bytearray(artifact)).platforms == ("cpu", "cuda", "tpu")
    same(load(artifact)(X), make_eval()(X))


def test_derivatives():
    model = make_eval()
    call = load(nnx.export(model, X, vjp_order=1))
    same(jax.grad(lambda x: call(x).sum())(X), jax.grad(lambda x: model(x).sum())(X))


# -- weights beside --------------------------------------------------------------------------------


def test_weights_beside_come_from_a_file(tmp_path):
    import safetensors.numpy

    model = make_eval()
    artifact = nnx.export(model, X, beside=...)
    nnx.save(tmp_path / "w", model)
    file = next(p for p in (tmp_path / "w", *tmp_path.glob("w*")) if p.is_file())
    weights = safetensors.numpy.load_file(file)
    same(load(artifact)(weights, X), model(X))
    same(load(artifact)({name: 0 * x for name, x in weights.items()}, X), jnp.zeros((4, 2)))


def test_a_part_beside():
    model = make_eval()
    kernels = nnx.state_dict(model, filter=nnx.PathContains("kernel"))
    call = load(nnx.export(model, X, beside=nnx.PathContains("kernel")))
    same(call(kernels, X), model(X))


def test_what_is_written_comes_back():
    """A train step of batch statistics and dropout, driven from outside like the model itself."""
    model = make_model()
    beside = (nnx.BatchStat, nnx.RngState)
    call = load(nnx.export(model, X, beside=beside))
    state = nnx.state_dict(model, filter=beside)
    state = {n: jax.random.key_data(x) if n.endswith("key") else x for n, x in state.items()}
    for _ in range(3):
        result, written = call(state, X)
        same(result, model(X))
        assert set(written) == {"layers.1.mean", "layers.1.var", "layers.2.rngs.count"}
        state |= written
    same(state["layers.1.var"], model.layers[1].var.value)


def test_a_decode_step_with_its_cache():
    attention = nnx.MultiHeadAttention(2, 4, 8, decode=True, rngs=nnx.Rngs(0))
    attention.init_cache((1, 6, 4))
    tokens = jax.random.normal(jax.random.key(0), (3, 1, 1, 4))
    call = load(nnx.export(attention, tokens[0], beside=nnx.Cache))
    cache = nnx.state_dict(attention, filter=nnx.Cache)
    for token in tokens:
        result, cache = call(cache, token)
        same(result, attention(token))


def test_several_objects_are_named_by_their_parameters():
    def step(encoder, decoder, x):
        return nnx.state(encoder), decoder(encoder(x))

    encoder, decoder = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))
    call = load(nnx.export(step, encoder, decoder, X, beside=nnx.Param))
    weights = {"encoder.kernel": encoder.kernel, "encoder.bias": encoder.bias,
               "decoder.kernel": decoder.kernel, "decoder.bias": decoder.bias}  # fmt: skip
    state, result = call({name: v.value for name, v in weights.items()}, X)
    same(result, decoder(encoder(X)))
    same(state, nnx.to_pure_dict(nnx.state(encoder)))


def test_a_tied_weight_is_given_once():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = self.b = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.b(self.a(x))

    model = Tied()
    weights = nnx.state_dict(model)
    assert set(weights) == {"a.kernel", "a.bias"}
    same(load(nnx.export(model, X, beside=...))(weights, X), model(X))


@pytest.mark.parametrize("kind", ["state", "variable"])
def test_a_state_or_a_variable_as_argument(kind):
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    if kind == "state":
        artifact = nnx.export(lambda s, x: x @ s["kernel"].value, nnx.state(linear), X)
    else:
        artifact = nnx.export(lambda v, x: x @ v.value, linear.kernel, X)
    same(load(artifact)(X), X @ linear.kernel.value)


# -- without refax ---------------------------------------------------------------------------------

SERVE = """
import sys
sys.modules["refax"] = None  # an import of it fails
import jax, numpy as np, safetensors.numpy
inside, beside, weights, x, expected = sys.argv[1:]
x, expected = np.load(x), np.load(expected)
read = lambda path: jax.export.deserialize(bytearray(open(path, "rb").read()))
weights = safetensors.numpy.load_file(weights)
for result in (read(inside).call(x), read(beside).call(weights, x)):
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
print("served", result.shape)
"""


def test_it_runs_without_refax(tmp_path):
    import safetensors.numpy

    model = make_eval()
    x = np.asarray(X)
    (tmp_path / "inside").write_bytes(nnx.export(model, x, polymorphic="batch, ..."))
    (tmp_path / "beside").write_bytes(nnx.export(model, x, beside=nnx.Param))
    weights = nnx.state_dict(model, filter=nnx.Param)
    safetensors.numpy.save_file({n: np.asarray(w) for n, w in weights.items()}, tmp_path / "w")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.asarray(model(x)))
    files = [tmp_path / name for name in ("inside", "beside", "w", "x.npy", "y.npy")]
    served = subprocess.run(
        [sys.executable, "-c", SERVE, *map(str, files)], capture_output=True, text=True
    )
    assert served.stdout == "served (4, 2)\n", served.stderr


# -- errors ----------------------------------------------------------------------------------------


def test_writes_that_would_be_lost():
    with pytest.raises(ValueError) as error:
        nnx.export(make_model(), X)
    message = str(error.value)
    assert "writes 'layers.1.mean', 'layers.1.var', 'layers.2.rngs.count'" in message
    assert "Cure: beside=nnx.Cache" in message and "model.eval()" in message


def test_objects_where_none_can_be():
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="an object inside of a container"):
        nnx.export(lambda models, x: models[0](x), [linear], X)
    with pytest.raises(TypeError, match="the result has a Linear"):
        nnx.export(lambda m, x: {"model": m}, linear, X)


def test_what_the_model_has_stays_as_it_was():
    model = make_model()
    before = nnx.state_dict(model)
    nnx.export(model, X, beside=...)
    after = nnx.state_dict(model)
    assert all(after[name] is before[name] for name in before)


# -- jax.export itself -----------------------------------------------------------------------------


def test_jax_export_of_a_jitted_function():
    model = make_eval()
    jitted = nnx.jit(lambda model, x: model(x))
    exported = jax.export.export(jitted)(model, X)
    again = jax.export.deserialize(bytearray(exported.serialize()))
    assert again.in_tree == exported.in_tree and again.out_tree == exported.out_tree
    leaves = [*(v.value for v in nnx.state(model).flat_state().leaves), X]
    assert len(leaves) == len(again.in_avals)


@pytest.mark.parametrize(
    "arguments, says", [((), "missing a required argument: 'inputs'"), (("x",), "'x' is no array")]
)
def test_what_is_no_call_is_told_by_its_name(arguments, says):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match=rf"(?s)nnx\.export: .*{says}.*Cure: nnx\.export\(model, x\)"
    ):
        nnx.export(model, *arguments)
    with pytest.raises(TypeError, match=r"(?s)export: function=3, but must be callable.*Cure"):
        nnx.export(3, jnp.ones(2))
