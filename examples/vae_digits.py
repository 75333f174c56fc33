"""Train a variational autoencoder to describe handwritten digits by eight numbers, and to draw new
ones.

A pixel of these images is a count: how many of 16 points are inked. So the model gives each image
a probability, and can be compared with any other model of the counts: at the end it prints, for
360 held-out images, how many nats an image takes, beside models whose pixels know nothing of each
other. `digits.png` shows reconstructions and drawings.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2013), arXiv:1312.6114.
"""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, positive
from common.digits import LARGEST, SIDE, read_digits
from jax.scipy.special import betaln, gammaln

from refax import nnx

PIXELS = SIDE * SIDE
Array = jax.Array | np.ndarray  # what JAX takes for an array

# -- the model -----------------------------------------------------------------------------------


class Encoder(nnx.Module):
    """Images (batch, 8, 8) → mean and log of the standard deviation of z, (batch, latent) each."""

    def __init__(self, width: int, latent: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(PIXELS, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.mean = nnx.Linear(width, latent, rngs=rngs)
        self.log_std = nnx.Linear(width, latent, rngs=rngs)

    def __call__(self, images: Array) -> tuple[jax.Array, jax.Array]:
        x = images.reshape(len(images), PIXELS) / LARGEST
        x = nnx.silu(self.hidden(self.dropout(x)))
        return self.mean(x), self.log_std(x)


class Decoder(nnx.Module):
    """z (batch, latent) → for each pixel, the two parameters of its distribution, (batch, 8, 8)."""

    def __init__(self, width: int, latent: int, *, rngs: nnx.Rngs):
        self.layers = nnx.Sequential(
            nnx.Linear(latent, width, rngs=rngs),
            nnx.silu,
            nnx.Linear(width, width, rngs=rngs),
            nnx.silu,
            nnx.Linear(width, 2 * PIXELS, rngs=rngs),
        )

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        share, concentration = jnp.split(self.layers(z), 2, axis=-1)
        share = 0.001 + 0.998 * nnx.sigmoid(share)
        concentration = 0.01 + nnx.softplus(concentration)
        shape = (len(z), SIDE, SIDE)
        return (share * concentration).reshape(shape), ((1 - share) * concentration).reshape(shape)


def log_probability(counts: Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Of counts from 0 to 16, each 16 draws with one chance p, where p has the density Beta(a, b).

    The beta-binomial distribution: neighbouring points of a scan are black or white together, so
    counts near 0 and 16 are more frequent than 16 independent draws would make them.
    """
    choices = gammaln(LARGEST + 1) - gammaln(counts + 1) - gammaln(LARGEST - counts + 1)
    return choices + betaln(counts + a, LARGEST - counts + b) - betaln(a, b)


class VAE(nnx.Module):
    """An encoder, a decoder, and the noise between them, which the model draws itself."""

    def __init__(self, width: int, latent: int, *, rngs: nnx.Rngs):
        self.latent = latent
        self.encoder = Encoder(width, latent, rngs=rngs)
        self.decoder = Decoder(width, latent, rngs=rngs)
        self.rngs = rngs.fork()  # random streams of its own

    def bound(self, images: Array) -> tuple[jax.Array, jax.Array]:
        """The two parts of -ELBO in nats, (batch,) each; their sum is at least -log p(image).

        They are what the image costs when z is known, and what z costs.
        """
        mean, log_std = self.encoder(images)
        z = mean + jnp.exp(log_std) * jax.random.normal(self.rngs.noise(), mean.shape)
        image = -log_probability(images, *self.decoder(z)).sum((1, 2))
        # The Kullback-Leibler divergence of N(mean, std²) from N(0, 1).
        code = (0.5 * (mean**2 + jnp.exp(2 * log_std) - 1) - log_std).sum(1)
        return image, code

    def reconstruct(self, images: Array) -> jax.Array:
        """The expected pixels at the mean of z."""
        return expected(*self.decoder(self.encoder(images)[0]))

    def draw(self, n: int) -> jax.Array:
        """The expected pixels at n random z."""
        return expected(*self.decoder(jax.random.normal(self.rngs.noise(), (n, self.latent))))


def expected(a: jax.Array, b: jax.Array) -> jax.Array:
    return LARGEST * a / (a + b)


# -- training ------------------------------------------------------------------------------------


def make_metrics() -> nnx.MultiMetric:
    return nnx.MultiMetric(image=nnx.metrics.Average("image"), code=nnx.metrics.Average("code"))


def loss_and_parts(model: VAE, images: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    image, code = model.bound(images)
    return (image + code).mean(), {"image": image, "code": code}


@nnx.jit
def train_step(
    model: VAE, optimizer: nnx.Optimizer, metrics: nnx.MultiMetric, images: Array
) -> None:
    """One update, in place; the noise goes on in the model's own stream."""
    (_, parts), grads = nnx.value_and_grad(loss_and_parts, has_aux=True)(model, images)
    optimizer.update(model, grads)
    metrics.update(**parts)


@nnx.jit(static_argnames="draws")
def evaluate(model: VAE, images: Array, draws: int = 20) -> dict[str, jax.Array]:
    """Both parts in nats per image, averaged over the images and some draws of z."""
    metrics = make_metrics()

    def one_draw(i: int, carried: tuple[VAE, nnx.MultiMetric]) -> tuple[VAE, nnx.MultiMetric]:
        model, metrics = carried
        metrics.update(**loss_and_parts(model, images)[1])
        return model, metrics

    nnx.fori_loop(0, draws, one_draw, (model, metrics))
    return metrics.compute()


def held_out_parts(model: VAE, images: np.ndarray) -> dict[str, float]:
    model = nnx.clone(model)  # its random streams too: training goes on as if nothing had been
    model.eval()
    return {name: float(value) for name, value in evaluate(model, images).items()}


# -- models to compare with ----------------------------------------------------------------------


def independent_pixels(train: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Nats per held-out image of models that know each pixel's own distribution only."""
    counts, held = train.astype(int).reshape(-1, PIXELS), held_out.astype(int).reshape(-1, PIXELS)
    values = np.arange(LARGEST + 1)
    histogram = 1 + (counts[:, :, None] == values).sum(0)  # (64, 17), each value once more
    histogram = histogram / histogram.sum(1, keepdims=True)
    # Binomial: the mean of a pixel, pulled a little from 0 and 1, as the chance of each point.
    p = ((counts.sum(0) + 1) / (LARGEST * len(counts) + 2))[:, None]
    choices = [np.prod([(LARGEST - j) / (j + 1) for j in range(k)]) for k in values]
    binomial = np.array(choices) * p**values * (1 - p) ** (LARGEST - values)
    return {
        name: float(-np.log(table[np.arange(PIXELS), held]).sum(1).mean())
        for name, table in [
            ("each pixel's mean (binomial)", binomial),
            ("each pixel's histogram", histogram),
        ]
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_number("--epochs", count, 150, "times that each image is learned from")
    parser.add_number("--learning-rate", positive, 3e-3, "at its highest, for Adam")
    parser.add_number("--latent", count, 8, "numbers that describe an image")
    parser.add_number("--width", count, 256, "of the hidden layers")
    options = parser.parse(arguments)

    train, held_out = read_digits()
    baselines = independent_pixels(train.images, held_out.images)
    model = VAE(options.width, options.latent, rngs=nnx.Rngs(options.seed))
    print(f"Parameters: {sum(p.value.size for _, p in model.named_parameters()):,}")

    batch_size = 64
    steps = options.epochs * (len(train) // batch_size)
    rate = optax.cosine_decay_schedule(options.learning_rate, steps)
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    metrics = make_metrics()
    random = np.random.default_rng(options.seed)
    model.train()  # says so to each layer, as after an evaluation: nothing compiles twice
    history: dict[str, list[tuple[float, float]]] = {"training": [], "held-out": []}
    print("nats per image   training   held out   of which z")
    for epoch in range(1, options.epochs + 1):
        metrics.reset()
        for batch in train.batches(batch_size, random):
            train_step(model, optimizer, metrics, batch.images)
        if epoch % 10 == 0 or epoch in (1, options.epochs):
            seen = sum(float(value) for value in metrics.compute().values())
            unseen = held_out_parts(model, held_out.images)
            history["training"].append((epoch, seen))
            history["held-out"].append((epoch, sum(unseen.values())))
            print(
                f"{f'epoch {epoch}':<17}{seen:>8.1f}{sum(unseen.values()):>11.1f}"
                f"{unseen['code']:>13.1f}"
            )

    parts = held_out_parts(model, held_out.images)
    rows = {"this model (at most)": sum(parts.values()), **baselines}
    print(f"\n{'held-out images':<31}{'nats per image':>14}{'bits per pixel':>17}")
    for name, nats in rows.items():
        print(f"{name:<31}{nats:>14.1f}{nats / np.log(2) / PIXELS:>17.3f}")
    print(f"Of this model's, {parts['code']:.1f} nats are for z, {parts['image']:.1f} given z.\n")

    model.eval()
    figure = plots.new_figure(10, 5.6)
    above, below = plots.split(figure, 2, 1)
    left, right = plots.split(above, 1, 2)
    # The first epoch lies far above all others.
    curves = {name: [p for p in points if p[0] > 1] for name, points in history.items()}
    level = {"each pixel's histogram": baselines["each pixel's histogram"]}
    plots.draw_curves(left.subplots(), curves, x="epoch", y="nats per image", levels=level)
    first = [int(np.flatnonzero(held_out.labels == digit)[0]) for digit in range(10)]
    chosen = held_out.images[first]
    pairs = np.concatenate([chosen, model.reconstruct(chosen)])
    title = "Held-out digits, and below each its reconstruction"
    plots.draw_images(right, pairs, columns=10, title=title)
    drawn = np.asarray(model.draw(48))
    plots.draw_images(below, drawn, columns=16, title="Drawings, each from a random z")
    plots.save(figure, options.out / "digits.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
