"""Programs as their authors write them, beside the same on one device, or NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from refax import nnx

ROWS, COLUMNS = {"out_sharding": P("model")}, {"out_sharding": P(None, "model")}


class Layer(nnx.Module):
    """A decoder layer, annotated for a mesh with the axis `model`."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, scale_metadata=ROWS, bias_metadata=ROWS, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(
            2, width, decode=False, kernel_metadata=COLUMNS, bias_metadata=ROWS, rngs=rngs
        )
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.wide = nnx.Linear(
            width, 2 * width, kernel_metadata=COLUMNS, bias_metadata=ROWS, rngs=rngs
        )
        self.back = nnx.Linear(2 * width, width, kernel_metadata=COLUMNS, rngs=rngs)

    def __call__(self, x):
        x = x + self.drop(self.attend(inputs_q=self.norm(x), is_causal=True))
        return x + self.back(nnx.gelu(self.wide(x)))


class Decoder(nnx.Module):
    def __init__(self, words: int, width: int, *, rngs: nnx.Rngs):
        self.words = nnx.Embed(words, width, rngs=rngs)
        self.layers = nnx.Sequential(Layer(width, rngs=rngs))
        self.head = nnx.Linear(width, words, kernel_metadata=COLUMNS, bias_metadata=ROWS, rngs=rngs)

    def __call__(self, tokens):
        x = self.layers(self.words(tokens, out_sharding=jax.typeof(tokens).sharding))
        return jax.sharding.reshard(self.head(x), jax.typeof(tokens).sharding)

    @nnx.jit(static_argnames="at")
    def next_word(self, tokens, at):
        return jnp.argmax(self(tokens)[0, at])


def trained(mesh):
    with jax.set_mesh(mesh):
        model = Decoder(16, 8, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))

        @nnx.jit(donate_argnames=("model", "optimizer", "metrics"))
        def step(model, optimizer, metrics, batch):
            def loss(model):
                logits = model(batch["tokens"])
                each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"])
                return each.mean(), logits

            (value, logits), grads = nnx.value_and_grad(loss, has_aux=True)(model)
            metrics.update(loss=value, logits=logits)
            optimizer.update(model, grads)

        tokens = jnp.tile(jnp.arange(8), (4, 1))
        batch = {"tokens": tokens, "next": (tokens + 1) % 16}
        batch = jax.device_put(batch, P("batch", None))
        for _ in range(3):
            step(model, optimizer, metrics, batch)
        word = model.next_word(jnp.arange(8)[None], at=3)
        kernel = model.head.kernel
        return float(metrics.compute()["loss"]), int(word), kernel.value.sharding.spec


@pytest.mark.slow
def test_a_language_model_on_a_mesh():
    def mesh_of(*shape):
        devices = np.array(jax.devices())[: shape[0] * shape[1]].reshape(shape)
        return Mesh(devices, ("batch", "model"), axis_types=(AxisType.Explicit,) * 2)

    loss, word, spec = trained(mesh_of(4, 2))
    expected_loss, expected_word, _ = trained(mesh_of(1, 1))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    assert word == expected_word and spec == P(None, "model")


def test_pretrained_weights_written_through_a_flat_state():
    class Classifier(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs = nnx.Rngs(0)):  # noqa: B008 - as people write it
            self.patches = nnx.Conv(3, 4, (2, 2), strides=(2, 2), padding="VALID", rngs=rngs)
            self.start = nnx.Param(jnp.zeros((1, 1, 4)))
            self.encoder = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.relu)
            self.head = nnx.Linear(4, 10, rngs=rngs)

        def __call__(self, x):
            x = self.patches(x).reshape(len(x), -1, 4)
            x = jnp.concatenate([jnp.tile(self.start, [len(x), 1, 1]), x], axis=1)
            return self.head(self.encoder(x)[:, 0])

    model, random = Classifier(), np.random.default_rng(0)
    flat = dict(nnx.state(model, nnx.Param).flat_state())
    names = {".".join(map(str, path)): path for path in flat}
    weights = {name: random.normal(size=flat[path].shape) for name, path in names.items()}
    unused = set(flat)
    for name, array in weights.items():
        target = flat[names[name]]
        assert target.value.shape == array.shape
        target.value = array.copy()
        unused.remove(names[name])
    assert not unused
    nnx.update(model, nnx.State.from_flat_path(flat))
    images = random.normal(size=(2, 4, 4, 3)).astype(np.float32)
    logits = model(images)  # the token in front does not see the patches
    hidden = np.maximum(
        weights["start"][0] @ weights["encoder.layers.0.kernel"] + weights["encoder.layers.0.bias"],
        0,
    )
    expected = hidden @ weights["head.kernel"] + weights["head.bias"]
    np.testing.assert_allclose(logits, np.tile(expected, (2, 1)), rtol=1e-4, atol=1e-5)
    model.head = nnx.Linear(4, 3, rngs=nnx.Rngs(1))  # for other classes
    optimizer = nnx.ModelAndOptimizer(model, optax.sgd(0.1, momentum=0.9))

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss(model):
            logits = model(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(grads)
        return value

    values = [float(step(model, optimizer, images, jnp.array([0, 1]))) for _ in range(5)]
    assert values[-1] < values[0]
