"""A vision transformer, with the names and files of the checkpoints at Hugging Face.

It cuts images of handwritten digits into patches of 2×2 pixels and learns, from 1,437 of them, to
read the other 360. It is compared with the same network that is not told where a patch lies, and
with logistic regression on the pixels. At the end it is written as a folder that
`transformers.ViTForImageClassification.from_pretrained` opens, and read from it.

`vit.read(folder)` reads a published one in the same way (`google/vit-base-patch16-224`, …), from
its `config.json` and `model.safetensors`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, positive
from common.digits import LARGEST, SIDE, Digits, logistic_regression, read_digits

from refax import nnx

Array = jax.Array | np.ndarray  # what JAX takes for an array

# -- the model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """The sizes, by the names in `config.json`; by default those of `vit-base-patch16-224`."""

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12


class Block(nnx.Module):
    """Attention, then a two-layer perceptron, each on a normalized input and added to it."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        size, wide, epsilon = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention_norm = nnx.LayerNorm(size, epsilon=epsilon, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            config.num_attention_heads, size, decode=False, rngs=rngs
        )
        self.mlp_norm = nnx.LayerNorm(size, epsilon=epsilon, rngs=rngs)
        self.up = nnx.Linear(size, wide, rngs=rngs)
        self.down = nnx.Linear(wide, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        hidden = nnx.gelu(self.up(self.mlp_norm(x)), approximate=False)
        return x + self.down(hidden)


class ViT(nnx.Module):
    """Images (batch, height, width, channels) → logits (batch, labels).

    Each patch becomes a vector; one more, of the class, stands before them, and what has become of
    it after all blocks is what is classified.
    """

    def __init__(self, config: Config, labels: int, *, rngs: nnx.Rngs):
        self.config = config
        size, patch = config.hidden_size, (config.patch_size, config.patch_size)
        self.patches = nnx.Conv(config.num_channels, size, patch, patch, rngs=rngs)
        init, n = nnx.initializers.normal(0.02), (config.image_size // config.patch_size) ** 2
        self.of_class = nnx.Param(init(rngs.params(), (1, 1, size)))
        self.places = nnx.Param(init(rngs.params(), (1, n + 1, size)))
        self.blocks = nnx.Stack(
            lambda rngs: Block(config, rngs=rngs), config.num_hidden_layers, rngs=rngs
        )
        self.norm = nnx.LayerNorm(size, epsilon=config.layer_norm_eps, rngs=rngs)
        self.head = nnx.Linear(size, labels, rngs=rngs)

    def __call__(self, images: Array) -> jax.Array:
        x = self.patches(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        first = jnp.broadcast_to(self.of_class, (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


# -- files ---------------------------------------------------------------------------------------

# From the names at Hugging Face to those that PyTorch would have for the attributes above.
OURS = {
    r"^vit\.": "",
    r"^embeddings\.patch_embeddings\.projection\.": "patches.",
    r"^embeddings\.cls_token$": "of_class",
    r"^embeddings\.position_embeddings$": "places",
    r"^layernorm\.": "norm.",
    r"^classifier\.": "head.",
    r"^pooler\.": None,  # of those that were not trained to classify
    r"^encoder\.layer\.": "blocks.",
    r"\.layernorm_before\.": ".attention_norm.",
    r"\.layernorm_after\.": ".mlp_norm.",
    r"\.attention\.output\.dense\.": ".attention.out_proj.",
    r"\.attention\.attention\.(query|key|value)\.": r".attention.\1.",
    r"\.intermediate\.dense\.": ".up.",
    r"\.output\.dense\.": ".down.",
}
THEIRS = {
    r"^patches\.": "embeddings.patch_embeddings.projection.",
    r"^of_class$": "embeddings.cls_token",
    r"^places$": "embeddings.position_embeddings",
    r"^norm\.": "layernorm.",
    r"^blocks\.": "encoder.layer.",
    r"\.attention_norm\.": ".layernorm_before.",
    r"\.mlp_norm\.": ".layernorm_after.",
    r"\.up\.": ".intermediate.dense.",
    r"\.down\.": ".output.dense.",
    r"\.attention\.out_proj\.": ".attention.output.dense.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"^(?!head\.)": "vit.",
    r"^head\.": "classifier.",
}


def read(folder: str | Path) -> ViT:
    """A model from `config.json` and `model.safetensors` (or the several files of an index)."""
    given = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = Config(**{f.name: given[f.name] for f in fields(Config) if f.name in given})
    labels = len(given.get("id2label", "01"))  # two, where it does not say
    # Nothing is drawn or allocated yet.
    model = nnx.eval_shape(lambda: ViT(config, labels, rngs=nnx.Rngs(0)))
    nnx.from_torch(model, folder, rename=OURS)
    return model


def write(folder: str | Path, model: ViT) -> None:
    """Both files, for `read` and for `ViTForImageClassification.from_pretrained`."""
    weights = nnx.to_torch(model, rename=THEIRS, fused=False)
    file = Path(folder) / "model.safetensors"
    nnx.save(file, weights, metadata={"format": "pt"}, overwrite=True)
    labels = [str(label) for label in range(model.head.out_features)]
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "id2label": dict(zip(labels, labels)),
        **asdict(model.config),
    }
    (Path(folder) / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


# -- training ------------------------------------------------------------------------------------


def moved(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Some of the images by a pixel, in one direction or two; with a channel, from 0 to 1."""
    padded = np.pad(images / LARGEST, [(0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
    down, right = random.choice(3, (2, len(images)), p=[0.2, 0.6, 0.2])
    return windows[np.arange(len(images)), down, right][..., None]


@nnx.jit
def train_step(
    model: ViT, optimizer: nnx.Optimizer, loss: nnx.metrics.Average, images: Array, labels: Array
) -> None:
    def loss_of(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    learned = nnx.DiffState(0, optimizer.wrt)
    value, grads = nnx.value_and_grad(loss_of, argnums=learned)(model)
    optimizer.update(model, grads)
    loss.update(values=value)


@nnx.jit
def predict(model: ViT, images: Array) -> jax.Array:
    return model(images)


def accuracy(model: ViT, digits: Digits) -> float:
    logits = predict(model, digits.images[..., None] / LARGEST)
    return float((logits.argmax(axis=-1) == digits.labels).mean())


def train(
    model: ViT, optimizer: nnx.Optimizer, digits: Digits, steps: int, seed: int
) -> list[tuple[float, float]]:
    """The mean loss, now and then."""
    random, loss = np.random.default_rng(seed), nnx.metrics.Average()
    losses: list[tuple[float, float]] = []
    for step, batch in enumerate(digits.steps(steps, 64, random), 1):
        train_step(model, optimizer, loss, moved(batch.images, random), batch.labels)
        if step % max(1, steps // 20) == 0:
            losses.append((step, float(loss.compute())))
            loss.reset()
    return losses


# -- the end -------------------------------------------------------------------------------------

SMALL = Config(
    image_size=SIDE, patch_size=2, num_channels=1, hidden_size=48, num_hidden_layers=4,
    num_attention_heads=4, intermediate_size=96, layer_norm_eps=1e-6,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_number("--steps", count, 1600, "batches of 64 images to learn from")
    parser.add_number("--learning-rate", positive, 3e-3, "at its highest, for AdamW")
    options = parser.parse(arguments)

    digits, held_out = read_digits()
    rate = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, options.steps // 10, options.steps
    )
    not_places = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("places")))
    curves, shares = {}, {}
    for name, wrt in {"ViT without places": not_places, "ViT": nnx.Param}.items():
        model = ViT(SMALL, 10, rngs=nnx.Rngs(options.seed))
        if wrt is not_places:
            model.places[...] = 0.0
        optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=0.05), wrt=wrt)
        curves[name] = train(model, optimizer, digits, options.steps, options.seed)
        shares[name] = accuracy(model, held_out)
    shares["logistic regression"] = logistic_regression(digits, held_out)
    print("                       last loss   held-out accuracy")
    for name, share in shares.items():
        last = f"{curves[name][-1][1]:.4f}" if name in curves else ""
        print(f"{name:<23}{last:>9}{share:>20.2%}")

    write(options.out, model)
    print(f"\nWritten to {options.out}, and read: {accuracy(read(options.out), held_out):.2%}.")

    figure = plots.new_figure(6, 3.6)
    axes = figure.subplots()
    plots.draw_curves(axes, curves, x="step", y="training loss")
    axes.set_yscale("log")
    plots.save(figure, options.out / "loss.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
