"""Train the demo's language model as a pipeline: each device has some of the blocks.

The blocks are one `nnx.Stack`, whose layer axis is divided over the mesh axis "stage". A batch goes
through in microbatches (GPipe: Huang et al., 2019): at each tick, every stage runs its blocks on
one of them and hands the result to the next stage by `ppermute`. The way back is the derivative of
that, so it is a pipeline too. The same model is trained on one device, without a pipeline: loss and
gradients of the first step are compared, then the losses of all steps.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import processes
from common.command_line import ExampleParser, count, length
from jax.sharding import AxisType, Mesh, PartitionSpec
from language_model import data, training
from language_model.model import LanguageModel, ModelConfig
from stack_blocks import StackedLanguageModel

from refax import nnx

# -- the pipeline --------------------------------------------------------------------------------


def through_stages(blocks: nnx.Stack, x: jax.Array, mesh: Mesh, microbatches: int) -> jax.Array:
    """`blocks(x)`, by stages: x (batch, …) in so many microbatches, of equal size.

    Of `stages + microbatches - 1` ticks, each stage works in `microbatches`; the rest is the bubble
    at both ends, for which it gets zeros, and what it makes of them is dropped.
    """
    stages = mesh.shape["stage"]
    last = stages - 1

    def on_stage(blocks: nnx.Stack, queue: jax.Array) -> jax.Array:
        """On one device: `blocks` are those of its stage; the queue is known to all."""
        stage = jax.lax.axis_index("stage")

        def tick(received: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            of_queue = queue[jnp.minimum(t, microbatches - 1)]
            y = blocks(jnp.where(stage == 0, of_queue, received))
            onward = [(i, i + 1) for i in range(last)]
            return jax.lax.ppermute(y, "stage", onward), y

        # The first stage has a microbatch at once; what the others hold then is theirs alone.
        nothing = jax.lax.pcast(jnp.zeros_like(queue[0]), "stage", to="varying")
        _, made = jax.lax.scan(tick, nothing, jnp.arange(microbatches + last))
        finished = jnp.where(stage == last, made[last:], 0.0)  # by the last stage, from tick `last`
        return jax.lax.psum(finished, "stage")

    run = nnx.shard_map(
        on_stage,
        mesh=mesh,
        in_specs=(PartitionSpec("stage"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    queue = x.reshape(microbatches, -1, *x.shape[1:])
    return run(blocks, queue).reshape(x.shape)


class PipelinedLanguageModel(StackedLanguageModel):
    """A `LanguageModel` whose blocks lie on the stages; embeddings and head are on every device."""

    def __init__(self, model: LanguageModel, mesh: Mesh, microbatches: int):
        super().__init__(model)
        self.mesh, self.microbatches = mesh, microbatches
        named = {nnx.PARTITION_NAME: "stage"}  # the layer axis, in annotations
        self.blocks = nnx.Stack.from_list(model.blocks, transform_metadata=named)
        nnx.shard(self, mesh, {"blocks.*": PartitionSpec("stage")})

    def __call__(self, tokens: jax.Array | np.ndarray) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])
        x = self.embedding(tokens) + self.position_embedding(positions)
        x = through_stages(self.blocks, x, self.mesh, self.microbatches)
        return self.embedding.attend(self.norm(x))


# -- training ------------------------------------------------------------------------------------


@nnx.jit
def train_step(
    model: LanguageModel, optimizer: nnx.Optimizer, batch: data.Batch
) -> tuple[jax.Array, nnx.State]:
    """One update, in place; the loss and its gradients."""
    (loss, _), grads = nnx.value_and_grad(training.loss_and_logits, has_aux=True)(model, batch)
    optimizer.update(model, grads)
    return loss, grads


def train(model: LanguageModel, batches: data.Batches, steps: int) -> tuple[list[float], nnx.State]:
    """The loss of each step, and the gradients of the first."""
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    losses, first = [], None
    for _ in range(steps):
        loss, grads = train_step(model, optimizer, next(batches))
        # Devices made up on a CPU must not be given the next step before they end this one.
        jax.block_until_ready((nnx.state(model), grads))
        losses.append(float(loss))
        first = first or grads
    assert first is not None
    return losses, first


def farthest(one: nnx.State, other: nnx.State) -> tuple[str, float]:
    """The name of the gradient that differs most, and by how much of the largest gradient."""
    others = {path: np.asarray(g.value) for path, g in nnx.to_flat_state(other)}
    apart = {
        ".".join(map(str, path)): float(np.abs(np.asarray(g.value) - others[path]).max())
        for path, g in nnx.to_flat_state(one)
    }
    name = max(apart, key=lambda name: apart[name])
    return name, apart[name] / max(float(np.abs(g).max()) for g in others.values())


# -- the program ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    processes.add_devices(parser)
    parser.add_number("--steps", length, 20, "training steps")
    parser.add_number("--blocks", count, 8, "blocks, in all stages; a multiple of the devices")
    parser.add_number("--microbatches", count, 8, "parts of a batch; must divide it")
    parser.add_number("--batch-size", count, 16, "texts in a step")
    parser.add_number("--d-model", count, 64, "width of the model; a multiple of 4")
    options = parser.parse(arguments)
    devices = processes.find_devices(parser, options)
    if problem := misfit(options, len(devices)):
        parser.error(problem)

    context, stages = 64, len(devices)
    mesh = Mesh(np.array(devices), ("stage",), axis_types=(AxisType.Auto,))
    config = ModelConfig(
        data.VOCAB_SIZE, context, options.blocks, n_heads=4, d_model=options.d_model, dropout=0.0
    )
    model = LanguageModel(config, rngs=nnx.Rngs(options.seed))
    alone, pipelined = (
        StackedLanguageModel(model),
        PipelinedLanguageModel(model, mesh, options.microbatches),
    )
    corpus = data.read_corpus(None, 300_000)
    batches = partial(data.Batches, corpus.train, options.batch_size, context, options.seed)

    ticks = options.microbatches + stages - 1
    print(f"{stages} stages of {options.blocks // stages} block(s); {ticks} ticks a batch")
    print(f"bubble: each stage waits in {(stages - 1) / ticks:.0%} of them\n")
    print(f"{'':<20}{'first loss':>12}{'last loss':>12}{'MB of blocks per device':>26}")
    losses: list[list[float]] = []
    gradients: list[nnx.State] = []
    for label, kind in {"pipeline": pipelined, "one device": alone}.items():
        of_steps, of_first = train(kind, batches(), options.steps)
        losses.append(of_steps)
        gradients.append(of_first)
        size = nnx.sharding_report(kind.blocks).bytes_per_device / 1e6
        print(f"{label:<20}{of_steps[0]:>12.5f}{of_steps[-1]:>12.5f}{size:>26.3f}")
    name, apart = farthest(*gradients)
    print(f"\nFirst gradients differ by at most {apart:.0e} of the largest one ({name}).")
    apart = float(np.abs(np.subtract(losses[0], losses[1])).max())
    print(f"Losses of {options.steps} steps differ by at most {apart:.0e}.")
    return 0


def misfit(options: argparse.Namespace, stages: int) -> str | None:
    """What of the options does not fit together."""
    if options.blocks % stages:
        return f"--blocks {options.blocks} is no multiple of the {stages} devices"
    if options.batch_size % options.microbatches:
        return f"--batch-size {options.batch_size} is no multiple of --microbatches"
    if options.d_model % 4:
        return f"--d-model {options.d_model} is no multiple of 4"
    return None


if __name__ == "__main__":
    sys.exit(main())
