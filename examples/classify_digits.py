"""Train a small convolutional network to read handwritten digits.

It learns from 1,437 images of 8×8 pixels, which it sees a little shifted and turned, differently
each time, and is tested on 360 others by the same writers. At the end it prints its accuracy beside
those of two classical methods, and a table of what it takes for what; `digits.png` shows its
mistakes.
"""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, positive
from common.digits import LARGEST, SIDE, Digits, read_digits

from refax import nnx

Array = jax.Array | np.ndarray  # what JAX takes for an array

# -- the model -----------------------------------------------------------------------------------


class RandomShiftAndTurn(nnx.Module):
    """Moves each image by up to a pixel and turns it by up to 12°; in evaluation, does nothing.

    `model.train()` and `model.eval()` set `deterministic`, here as in `nnx.Dropout`.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.rngs = rngs.fork()  # random numbers of its own
        self.deterministic = False

    def __call__(self, images: Array) -> Array:
        if self.deterministic:
            return images
        n = len(images)
        shifts = jax.random.uniform(self.rngs.augmentation(), (n, 2), minval=-1, maxval=1)
        angles = jax.random.uniform(self.rngs.augmentation(), (n,), minval=-0.2, maxval=0.2)
        return jax.vmap(shift_and_turn)(images, shifts, angles)


def shift_and_turn(image: Array, shift: jax.Array, angle: jax.Array) -> jax.Array:
    """One image (height, width), read at moved places, between pixels by bilinear interpolation."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cos, -sin], [sin, cos]])
    center = (SIDE - 1) / 2
    places = jnp.indices(image.shape).reshape(2, -1) - center
    places = turn @ places + center + shift[:, None]
    return jax.scipy.ndimage.map_coordinates(image, list(places), order=1).reshape(image.shape)


class ConvBlock(nnx.Module):
    """Convolution, normalization over the batch, ReLU."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(in_features, out_features, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(out_features, momentum=0.9, rngs=rngs)

    def __call__(self, x: Array) -> jax.Array:
        return nnx.relu(self.norm(self.conv(x)))


class Classifier(nnx.Module):
    """Images (batch, 8, 8) of values from 0 to 16 → logits (batch, 10)."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.augmentation = RandomShiftAndTurn(rngs=rngs)
        self.blocks = [
            ConvBlock(1, 32, rngs=rngs),
            ConvBlock(32, 64, rngs=rngs),
            ConvBlock(64, 64, rngs=rngs),
        ]
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.linear = nnx.Linear(2 * 2 * 64, 10, rngs=rngs)

    def __call__(self, images: Array) -> jax.Array:
        x = self.augmentation(images / LARGEST)[..., None]  # one channel
        x = self.blocks[0](x)
        x = nnx.max_pool(self.blocks[1](x), (2, 2), strides=(2, 2))  # 8×8 → 4×4
        x = nnx.max_pool(self.blocks[2](x), (2, 2), strides=(2, 2))  # 4×4 → 2×2
        return self.linear(self.dropout(x.reshape(len(x), -1)))


# -- training ------------------------------------------------------------------------------------


def loss_and_logits(model: Classifier, images: Array, labels: Array) -> tuple[jax.Array, jax.Array]:
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits


@nnx.jit
def train_step(
    model: Classifier,
    optimizer: nnx.Optimizer,
    metrics: nnx.MultiMetric,
    images: Array,
    labels: Array,
) -> None:
    """One update, in place: also of the running statistics, the random streams and the metrics."""
    compute = nnx.value_and_grad(loss_and_logits, has_aux=True)
    (loss, logits), grads = compute(model, images, labels)
    optimizer.update(model, grads)
    metrics.update(loss=loss, logits=logits, labels=labels)


@nnx.jit
def predict(model: Classifier, images: Array) -> jax.Array:
    return model(images)


def evaluate(model: Classifier, digits: Digits) -> tuple[dict[str, float], np.ndarray]:
    """Loss and accuracy, and the logits; without dropout, shifts, and batch statistics."""
    model.eval()
    logits = predict(model, digits.images)
    model.train()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, digits.labels)
    metrics = make_metrics()
    metrics.update(loss=losses, logits=logits, labels=digits.labels)
    return read(metrics), np.asarray(logits)


def make_metrics() -> nnx.MultiMetric:
    return nnx.MultiMetric(loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy())


def read(metrics: nnx.MultiMetric) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}


# -- the end -------------------------------------------------------------------------------------


def classical_accuracies(train: Digits, held_out: Digits) -> dict[str, float]:
    """Two methods of scikit-learn on the pixels, without any tuning."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    methods = {
        "logistic regression": LogisticRegression(max_iter=5_000),
        "nearest neighbour": KNeighborsClassifier(n_neighbors=1),
    }
    flat, flat_held_out = (d.images.reshape(len(d), -1) / LARGEST for d in (train, held_out))
    return {
        name: float(method.fit(flat, train.labels).score(flat_held_out, held_out.labels))
        for name, method in methods.items()
    }


def confusion_table(labels: np.ndarray, predicted: np.ndarray) -> str:
    """How often each digit (a row) was taken for each (a column)."""
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, predicted), 1)
    lines = ["digit   taken for " + "".join(f"{d:>4}" for d in range(10)) + "   right"]
    for digit, row in enumerate(counts):
        cells = "".join(f"{n or '·':>4}" for n in row)
        lines.append(f"{digit:>5}{'':13}{cells}{row[digit] / max(1, row.sum()):>8.1%}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_number("--epochs", count, 40, "times that each image is learned from")
    parser.add_number("--learning-rate", positive, 3e-3, "at its highest, for AdamW")
    options = parser.parse(arguments)

    train, held_out = read_digits()
    model = Classifier(rngs=nnx.Rngs(options.seed))
    columns = ("path", "type", "outputs", "Param")
    print(nnx.tabulate(model, train.images[:64], depth=1, columns=columns))

    batch_size = 64
    steps = options.epochs * (len(train) // batch_size)
    rate = optax.cosine_decay_schedule(options.learning_rate, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=1e-2), wrt=nnx.Param)
    metrics = make_metrics()
    random = np.random.default_rng(options.seed)
    model.train()  # says so to each layer, as after an evaluation: nothing compiles twice
    history: dict[str, list[tuple[float, float]]] = {}
    print("epoch   training: loss  accuracy   held out: loss  accuracy")
    for epoch in range(1, options.epochs + 1):
        metrics.reset()
        for batch in train.batches(batch_size, random):
            train_step(model, optimizer, metrics, batch.images, batch.labels)
        seen, unseen = read(metrics), evaluate(model, held_out)[0]
        for name, value in seen.items():
            history.setdefault(f"training {name}", []).append((epoch, value))
            history.setdefault(f"held-out {name}", []).append((epoch, unseen[name]))
        if epoch % 5 == 0 or epoch in (1, options.epochs):
            print(
                f"{epoch:>5}{seen['loss']:>16.3f}{seen['accuracy']:>10.1%}"
                f"{unseen['loss']:>17.3f}{unseen['accuracy']:>10.1%}"
            )

    scores, logits = evaluate(model, held_out)
    predicted = logits.argmax(-1)
    print(f"\n{confusion_table(held_out.labels, predicted)}\n")
    print(f"{'held-out accuracy':<24}{'':>8}   errors")
    rows = {"this network": scores["accuracy"], **classical_accuracies(train, held_out)}
    for name, accuracy in rows.items():
        errors = round((1 - accuracy) * len(held_out))
        print(f"{name:<24}{accuracy:>8.2%}   {errors:>2} of {len(held_out)}")
    print()

    curves = plots.new_figure(10, 3.6)
    for axes, name in zip(curves.subplots(1, 2), ("loss", "accuracy")):
        both = {k: v for k, v in history.items() if k.endswith(name)}
        plots.draw_curves(axes, both, x="epoch", y=name)
        axes.set_yscale("log" if name == "loss" else "linear")
    plots.save(curves, options.out / "curves.png")

    # The mistakes first, then what was least certain; the certainty is that of the answer.
    certainty = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True)).max(-1)
    wrong = predicted != held_out.labels
    order = np.lexsort([certainty, ~wrong])[:16]
    titles = [
        f"{held_out.labels[i]}, taken for {predicted[i]}" if wrong[i] else f"{predicted[i]}, right"
        for i in order
    ]
    titles = [f"{title}\n({certainty[i]:.0%})" for i, title in zip(order, titles)]
    title = f"Mistakes: {wrong.sum()}; then the least certain of the others"
    images = plots.new_figure(9.5, 3.6)
    plots.draw_images(images, held_out.images[order], titles, columns=8, title=title)
    plots.save(images, options.out / "digits.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
