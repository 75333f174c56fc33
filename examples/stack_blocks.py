"""Compile one block instead of all of them: the demo's transformer with `nnx.Stack`.

A model that loops over a list of blocks is compiled block by block; with its blocks in a Stack, one
block is compiled, whatever the depth. Both have the same weights here, so they learn the same. For
several depths, it prints the time of the first training step, which is mostly compilation, and of
a later one, and how far the losses of both lie apart; `stack.png` shows the times.
"""

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, length, number
from language_model import data, training
from language_model.model import LanguageModel, ModelConfig

from refax import nnx

BATCH_SIZE, CONTEXT = 8, 64
multiple_of_four = number(int, lambda n: n > 0 and n % 4 == 0, "a positive multiple of 4")

# -- the model -----------------------------------------------------------------------------------


class StackedLanguageModel(LanguageModel):
    """A `LanguageModel`, for training, whose blocks are one `nnx.Stack`.

    It takes over the weights of a model with a list of blocks, and their random streams for
    dropout, as copies. To begin with a Stack there needs no list:
    `nnx.Stack(lambda rngs: Block(config, rngs=rngs), n, rngs=rngs)`.
    """

    blocks: Any

    def __init__(self, model: LanguageModel):
        model = copy.deepcopy(model)  # arrays too: training donates its own
        self.config = model.config
        self.embedding = model.embedding
        self.position_embedding = model.position_embedding
        self.dropout = model.dropout
        self.blocks = nnx.Stack.from_list(model.blocks)
        self.norm = model.norm

    def __call__(self, tokens: jax.Array | np.ndarray) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])
        x = self.dropout(self.embedding(tokens) + self.position_embedding(positions))
        x = self.blocks(x)  # in place of: for block in self.blocks: x = block(x)
        return self.embedding.attend(self.norm(x))


# -- training, as in the demo, with a clock ------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What is known of a model after training: sizes, seconds, and the loss of each step."""

    parameters: int
    first_step: float
    later_step: float
    losses: np.ndarray


def measure(model: LanguageModel, batches: data.Batches, steps: int) -> Figures:
    """Train for some steps; the first includes tracing and compiling."""
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    metrics = training.make_metrics()
    model.train()
    losses, seconds = [], []
    for _ in range(steps):
        metrics.reset()
        batch = next(batches)
        start = time.perf_counter()
        training.train_step(model, optimizer, metrics, batch)
        losses.append(float(metrics.compute()["loss"]))  # waits for the step
        seconds.append(time.perf_counter() - start)
    parameters = sum(variable.value.size for _, variable in model.named_parameters())
    return Figures(parameters, seconds[0], float(np.median(seconds[1:])), np.array(losses))


# -- the program ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_number("--steps", length, 20, "training steps of each model")
    parser.add_argument(
        "--blocks",
        type=count,
        nargs="+",
        default=[2, 8, 24],
        metavar="N",
        help="depths of the models that are compared",
    )
    parser.add_number("--d-model", multiple_of_four, 64, "width of the models")
    options = parser.parse(arguments)

    corpus = data.read_corpus(None, 300_000)
    found: dict[str, list[Figures]] = {"list": [], "Stack": []}
    print(
        f"{'blocks':>6}{'parameters':>12}  {'kept in':<8}{'first step':>11}{'later steps':>14}"
        f"{'last loss':>11}   losses differ by"
    )

    def models(n: int) -> dict[str, LanguageModel]:
        config = ModelConfig(
            data.VOCAB_SIZE, CONTEXT, n, n_heads=4, d_model=options.d_model, dropout=0.1
        )
        model = LanguageModel(config, rngs=nnx.Rngs(options.seed))
        return {"list": model, "Stack": StackedLanguageModel(model)}

    def batches() -> data.Batches:
        return data.Batches(corpus.train, BATCH_SIZE, CONTEXT, options.seed)

    measure(models(1)["list"], batches(), 2)  # so that the first row does not pay for JAX's start
    for n in options.blocks:
        for name, model in models(n).items():
            found[name].append(measure(model, batches(), options.steps))
        apart = float(np.abs(found["Stack"][-1].losses - found["list"][-1].losses).max())
        for name, figures in found.items():
            f, label = figures[-1], f"at most {apart:.0e}" if name == "Stack" else ""
            print(
                f"{n:>6}{f.parameters:>12,}  {name:<8}{f.first_step:>9.2f} s"
                f"{1000 * f.later_step:>11.1f} ms{f.losses[-1]:>11.4f}   {label}".rstrip()
            )
    print()

    figure = plots.new_figure(10, 3.6)
    first, later = figure.subplots(1, 2)
    for axes, y, seconds in [
        (first, "first step, mostly compilation (s)", lambda f: f.first_step),
        (later, "a later step (ms)", lambda f: 1000 * f.later_step),
    ]:
        curves = {
            f"blocks in a {name}": [(n, seconds(f)) for n, f in zip(options.blocks, figures)]
            for name, figures in found.items()
        }
        plots.draw_curves(axes, curves, x="blocks", y=y)
        axes.set_ylim(bottom=0)
    plots.save(figure, options.out / "stack.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
