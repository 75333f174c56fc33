"""A ResNet, with the names that the checkpoints of torchvision and timm have.

A network of 26 layers learns from 1,437 images of handwritten digits to read the other 360. It is
compared with the same layers without the shortcuts around each two of them, and with logistic
regression on the pixels. At the end it is written to a file that PyTorch reads under the names of
torchvision, and read from it.

Since all attributes have the names that they have there, `nnx.from_torch(resnet18(), path)` is all
that it takes to read a `resnet18`, with the running statistics of its normalizations.
"""

import sys
from collections.abc import Sequence

import jax
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, positive
from common.digits import LARGEST, Digits, logistic_regression, read_digits

from refax import nnx

Array = jax.Array | np.ndarray  # what JAX takes for an array

# -- the model -----------------------------------------------------------------------------------

he = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # for what goes into a ReLU


def conv(inputs: int, outputs: int, size: int, stride: int = 1, *, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs, outputs, (size, size), stride, padding=size // 2, use_bias=False, kernel_init=he,
        rngs=rngs,
    )  # fmt: skip


def norm(features: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)


def shortcut(inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
    """What is added to the output of a block: its input, brought to the same shape."""
    if inputs == outputs and stride == 1:
        return nnx.identity
    return nnx.Sequential(conv(inputs, outputs, 1, stride, rngs=rngs), norm(outputs, rngs=rngs))


class BasicBlock(nnx.Module):
    """Two convolutions, and a shortcut around them: of `resnet18` and `resnet34`."""

    expansion = 1  # how many features come out, for each of those inside

    def __init__(self, inputs: int, features: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(inputs, features, 3, stride, rngs=rngs)
        self.bn1 = norm(features, rngs=rngs)
        self.conv2 = conv(features, features, 3, rngs=rngs)
        self.bn2 = norm(features, rngs=rngs)
        self.downsample = shortcut(inputs, features, stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nnx.Module):
    """Three convolutions, of which only the middle one looks around: of `resnet50` and larger."""

    expansion = 4

    def __init__(self, inputs: int, features: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(inputs, features, 1, rngs=rngs)
        self.bn1 = norm(features, rngs=rngs)
        self.conv2 = conv(features, features, 3, stride, rngs=rngs)
        self.bn2 = norm(features, rngs=rngs)
        self.conv3 = conv(features, 4 * features, 1, rngs=rngs)
        self.bn3 = norm(4 * features, rngs=rngs)
        self.downsample = shortcut(inputs, 4 * features, stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        return nnx.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nnx.Module):
    """Images (batch, height, width, channels) → logits (batch, classes).

    Args:
        block: the class of the blocks.
        sizes: how many blocks there are at each of the four resolutions.
        width: features of the first; each next one has twice as many.
        small: for small images: begin without dividing the resolution by 4.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        sizes: Sequence[int],
        classes: int = 1000,
        *,
        channels: int = 3,
        width: int = 64,
        small: bool = False,
        rngs: nnx.Rngs,
    ):
        self.small = small
        size, stride = (3, 1) if small else (7, 2)
        self.conv1 = conv(channels, width, size, stride, rngs=rngs)
        self.bn1 = norm(width, rngs=rngs)
        features, layers = width, []
        for i, n in enumerate(sizes):
            blocks = []
            for stride in [1 if i == 0 else 2, *[1] * (n - 1)]:
                blocks.append(block(features, width * 2**i, stride, rngs=rngs))
                features = width * 2**i * block.expansion
            layers.append(nnx.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = nnx.Linear(features, classes, rngs=rngs)

    def __call__(self, images: Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(images)))
        if not self.small:
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(axis=(1, 2)))


def resnet18(classes: int = 1000) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, rngs=nnx.Rngs(0))


def resnet50(classes: int = 1000) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, rngs=nnx.Rngs(0))


# -- training ------------------------------------------------------------------------------------


@nnx.jit
def train_step(
    model: ResNet, optimizer: nnx.Optimizer, loss: nnx.metrics.Average, images: Array, labels: Array
) -> None:
    """One update, in place: also of the running statistics, and of the mean loss."""

    def loss_of(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    loss.update(values=value)


@nnx.jit
def predict(model: ResNet, images: Array) -> jax.Array:
    return model(images)


def pixels(digits: Digits) -> np.ndarray:
    return digits.images[..., None] / LARGEST  # one channel


def accuracy(model: ResNet, digits: Digits) -> float:
    """By the running statistics, without changing them."""
    logits = predict(nnx.view(model, use_running_average=True), pixels(digits))
    return float((logits.argmax(axis=-1) == digits.labels).mean())


def train(
    model: ResNet, digits: Digits, steps: int, learning_rate: float, seed: int
) -> list[tuple[float, float]]:
    """The mean loss, now and then."""
    rate = optax.cosine_decay_schedule(learning_rate, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(rate), wrt=nnx.Param)
    random, loss = np.random.default_rng(seed), nnx.metrics.Average()
    losses: list[tuple[float, float]] = []
    for step, batch in enumerate(digits.steps(steps, 64, random), 1):
        train_step(model, optimizer, loss, pixels(batch), batch.labels)
        if step % max(1, steps // 20) == 0:
            losses.append((step, float(loss.compute())))
            loss.reset()
    return losses


# -- the end -------------------------------------------------------------------------------------


class Plain(BasicBlock):
    """Without the shortcut."""

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(y)))


def small(block: type[BasicBlock], seed: int) -> ResNet:
    return ResNet(block, (3, 3, 3, 3), 10, channels=1, width=8, small=True, rngs=nnx.Rngs(seed))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_number("--steps", count, 400, "batches of 64 images to learn from")
    parser.add_number("--learning-rate", positive, 3e-3, "at its highest, for AdamW")
    options = parser.parse(arguments)

    digits, held_out = read_digits()
    curves, shares = {}, {}
    for name, block in {"without shortcuts": Plain, "with shortcuts": BasicBlock}.items():
        model = small(block, options.seed)
        curves[name] = train(model, digits, options.steps, options.learning_rate, options.seed)
        shares[name] = accuracy(model, held_out)
    shares["logistic regression"] = logistic_regression(digits, held_out)
    print("                       last loss   held-out accuracy")
    for name, share in shares.items():
        last = f"{curves[name][-1][1]:.4f}" if name in curves else ""
        print(f"{name:<23}{last:>9}{share:>20.2%}")

    file = options.out / "resnet.safetensors"
    nnx.save(file, nnx.to_torch(model), overwrite=True)
    again = small(BasicBlock, options.seed + 1)
    nnx.from_torch(again, file)
    print(f"\nWritten to {file}, and read: {accuracy(again, held_out):.2%}.")

    figure = plots.new_figure(6, 3.6)
    axes = figure.subplots()
    plots.draw_curves(axes, curves, x="step", y="training loss")
    axes.set_yscale("log")
    plots.save(figure, options.out / "loss.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
