"""Train the demo's language model with a mixture of experts, which lie on different devices.

In each block, a router sends every token to one of many perceptrons, its expert (Switch
Transformer: Fedus et al. 2021, arXiv:2101.03961). An expert has room for a quarter more than its
fair share of them; what finds none is dropped. At first that is every third token, so a loss on the
side makes the shares even (their equation 4, with ten times their weight: they had 10,000 times as
many steps), and another one keeps the router's logits small (ST-MoE: Zoph et al. 2022,
arXiv:2202.08906, equation 5).

The experts are divided over the devices, as the batch is; how tokens get from one to the other is
left to the compiler, which is told what lies where. The same model is trained on one device. The
losses are the same, until a token stands so evenly between two experts that a rounding decides.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import processes
from common.command_line import ExampleParser, amount, count, length, positive
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from language_model import data
from language_model.model import LanguageModel, ModelConfig

from refax import nnx

CONTEXT = 64

# -- the model -----------------------------------------------------------------------------------


class MixtureOfExperts(nnx.Module):
    """Perceptrons, one of which is chosen for each token: (batch, length, d_model) → the same.

    Each call sows, as `nnx.Intermediate`: `balance`, the loss that is 1 where all experts get the
    same; `logits`, the one that is 0 where the router's exponentials sum to 1; `load`, the share of
    the tokens that each expert is sent; and `dropped`, the share for which there was no room, and
    whose output is 0.
    """

    def __init__(self, d_model: int, experts: int, *, room: float, rngs: nnx.Rngs):
        self.experts, self.room = experts, room
        self.router = nnx.Linear(d_model, experts, use_bias=False, rngs=rngs)
        init = nnx.initializers.lecun_normal(batch_axis=0)
        names = ("expert", None, None)
        up = init(rngs.params(), (experts, d_model, 4 * d_model))
        down = init(rngs.params(), (experts, 4 * d_model, d_model))
        self.up, self.down = nnx.Param(up, sharding=names), nnx.Param(down, sharding=names)

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = x.reshape(-1, x.shape[-1])
        capacity = math.ceil(self.room * len(tokens) / self.experts)
        logits = self.router(tokens)  # (tokens, experts)
        probabilities = nnx.softmax(logits)
        chosen = jax.nn.one_hot(probabilities.argmax(-1), self.experts)
        # The place of each token in the queue of its expert; those beyond its room fall out.
        place = ((jnp.cumsum(chosen, axis=0) - 1) * chosen).sum(-1).astype(jnp.int32)
        sent = chosen[:, :, None] * jax.nn.one_hot(place, capacity)[:, None, :]

        # From here, by experts: each on its own device.
        queues = self.on_experts(jnp.einsum("tec,td->ecd", sent, tokens))
        hidden = nnx.gelu(jnp.einsum("ecd,edh->ech", queues, self.up))
        answers = self.on_experts(jnp.einsum("ech,ehd->ecd", hidden, self.down))
        # And back, by tokens, times the probability: through it, the router learns.
        gate = probabilities.max(-1)
        y = jnp.einsum("tec,ecd->td", sent * gate[:, None, None], answers)

        load = chosen.mean(0)
        self.sow(nnx.Intermediate, "balance", self.experts * (load * probabilities.mean(0)).sum())
        self.sow(nnx.Intermediate, "logits", (nnx.logsumexp(logits, axis=-1) ** 2).mean())
        self.sow(nnx.Intermediate, "load", load)
        self.sow(nnx.Intermediate, "dropped", 1 - sent.sum() / len(tokens))
        return y.reshape(x.shape)

    def on_experts(self, x: jax.Array) -> jax.Array:
        return nnx.with_logical_constraint(x, ("expert", None, None))


def language_model(
    d_model: int, experts: int, room: float, blocks: int, seed: int
) -> LanguageModel:
    """The demo's model, with a mixture in the place of each perceptron."""
    config = ModelConfig(data.VOCAB_SIZE, CONTEXT, blocks, n_heads=4, d_model=d_model, dropout=0.0)
    rngs = nnx.Rngs(seed)
    model = LanguageModel(config, rngs=rngs)
    made: list[Any] = model.blocks  # of which the perceptron is replaced
    for block in made:
        block.mlp = MixtureOfExperts(d_model, experts, room=room, rngs=rngs)
    return model


# -- training ------------------------------------------------------------------------------------


def sown(model: LanguageModel) -> dict[str, jax.Array]:
    """What the mixtures sowed, each the mean over the blocks."""
    state = dict(nnx.to_flat_state(nnx.pop(model, nnx.Intermediate)))
    return {
        name: jnp.stack([v.value[0] for path, v in state.items() if path[-1] == name]).mean(0)
        for name in ("balance", "logits", "load", "dropped")
    }


def loss_of(
    model: LanguageModel, batch: data.Batch, weights: tuple[float, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    inputs, targets = batch
    loss = optax.softmax_cross_entropy_with_integer_labels(model(inputs), targets).mean()
    figures = sown(model)
    on_the_side = weights[0] * figures["balance"] + weights[1] * figures["logits"]
    return loss + on_the_side, {"loss": loss, **figures}


@partial(nnx.jit, static_argnames="weights")
def train_step(
    model: LanguageModel, optimizer: nnx.Optimizer, batch: data.Batch, weights: tuple[float, float]
) -> dict[str, jax.Array]:
    """One update, in place; the loss, and what was sown."""
    (_, figures), grads = nnx.value_and_grad(loss_of, has_aux=True)(model, batch, weights)
    optimizer.update(model, grads)
    return figures


def mean(steps: list[dict[str, np.ndarray]], name: str) -> Any:
    """A figure, averaged over steps."""
    return np.mean([step[name] for step in steps], axis=0)


# -- the program ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    processes.add_devices(parser)
    parser.add_number("--steps", length, 200, "training steps")
    parser.add_number("--experts", length, 8, "experts in a block; a multiple of the devices")
    parser.add_number("--room", positive, 1.25, "places with an expert, in fair shares")
    parser.add_number("--balance", amount, 0.1, "weight of the loss that makes shares even")
    parser.add_number("--logits", amount, 0.001, "weight of the loss that keeps logits small")
    parser.add_number("--blocks", count, 2, "blocks")
    parser.add_number("--batch-size", count, 16, "texts in a step; a multiple of the devices")
    parser.add_number("--d-model", count, 64, "width of the model; a multiple of 4")
    options = parser.parse(arguments)
    devices = processes.find_devices(parser, options)
    if options.experts % len(devices) or options.batch_size % len(devices):
        parser.error(
            f"--experts {options.experts} or --batch-size {options.batch_size} is no multiple of "
            f"the {len(devices)} devices"
        )
    if options.d_model % 4:
        parser.error(f"--d-model {options.d_model} is no multiple of 4")

    corpus = data.read_corpus(None, 300_000)

    def build() -> tuple[LanguageModel, nnx.Optimizer]:
        model = language_model(
            options.d_model, options.experts, options.room, options.blocks, options.seed
        )
        rate = optax.linear_schedule(3e-3, 0.0, options.steps)
        return model, nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)

    def train(mesh: Mesh) -> tuple[list[dict[str, np.ndarray]], float]:
        """What each step gave, and the megabytes of model and optimizer on a device."""
        model, optimizer = nnx.make_sharded(build, mesh)
        batches = data.Batches(corpus.train, options.batch_size, CONTEXT, options.seed)
        found = []
        with jax.set_mesh(mesh):
            for _ in range(options.steps):
                spread = NamedSharding(mesh, PartitionSpec("expert"))
                batch = jax.device_put(next(batches), spread)
                figures = train_step(model, optimizer, batch, (options.balance, options.logits))
                # Devices made up on a CPU must not be given the next step before they end this one.
                jax.block_until_ready(nnx.state(model))
                found.append({name: np.asarray(value) for name, value in figures.items()})
        return found, nnx.sharding_report([model, optimizer]).bytes_per_device / 1e6

    few = max(options.steps // 10, 1)
    runs: list[list[dict[str, np.ndarray]]] = []
    print(f"{'':<10}{'loss':>20}{'tokens dropped':>20}")
    print(
        f"{'devices':<10}"
        + f"{f'first {few}':>10}{f'last {few}':>10}" * 2
        + f"{'MB per device':>16}"
    )
    for some in (devices, devices[:1]):
        steps, size = train(Mesh(np.array(some), ("expert",), axis_types=(AxisType.Auto,)))
        runs.append(steps)
        losses, dropped = ([mean(part, name) for part in (steps[:few], steps[-few:])]
                           for name in ("loss", "dropped"))  # fmt: skip
        print(
            f"{len(some):<10}"
            + "".join(f"{loss:>10.4f}" for loss in losses)
            + "".join(f"{share:>10.1%}" for share in dropped)
            + f"{size:>16.2f}"
        )

    print("\nshare of the tokens by expert")
    for label, part in {"first": runs[0][:few], "last": runs[0][-few:]}.items():
        print(f"{f'{label} {few}':<12}" + "".join(f"{share:>7.1%}" for share in mean(part, "load")))

    # A choice between experts is no continuous function: where a rounding changes one, runs part.
    alike = [np.array_equal(a["load"], b["load"]) for a, b in zip(*runs, strict=True)]
    same = alike.index(False) if False in alike else len(alike)
    apart = [abs(float(a["loss"]) - float(b["loss"])) for a, b in zip(*runs, strict=True)]
    if same < options.steps:
        print(f"\nFrom step {same + 1} on, tokens go to other experts for a rounding.")
        print(f"All losses differ by at most {max(apart):.0e},")
    print(f"Losses of {same} steps differ by at most {max(apart[:same], default=0):.0e}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
