"""Train the demo's language model on many devices, in any of four layouts.

    python examples/train_sharded.py --devices 8 --layout 2d --compare

`dp` keeps the model whole on every device and divides the batch; `fsdp` divides the model's arrays
as well, over the same devices; `tp` divides attention heads and hidden units, and every device sees
the whole batch; `2d` does both, over a mesh of two axes. The code of the model and of the training
step is that for one device. `--compare` also trains on one device, and shows that the losses are
the same. A run that was stopped goes on with `--resume`, in another layout if you like, on other
devices, in other processes.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import processes
from common.command_line import ExampleParser, count, length, positive
from common.processes import say
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from language_model import data, training
from language_model.model import LanguageModel, ModelConfig

from refax import nnx

# -- layouts -------------------------------------------------------------------------------------

# The axes of each kind of array by logical names. What is not named here (biases of the model's
# width, norms) is small and whole on every device.
ANNOTATIONS = {
    "*embedding.embedding": ("rows", "embed"),
    "*.attention.out.kernel": ("heads", None, "embed"),
    "*.attention.out.bias": (None,),
    "*.attention.*.kernel": ("embed", "heads", None),
    "*.attention.*.bias": ("heads", None),
    "*.mlp.layers.0.kernel": ("embed", "hidden"),
    "*.mlp.layers.0.bias": ("hidden",),
    "*.mlp.layers.2.kernel": ("hidden", "embed"),
}
# A layout says which axis of the mesh a logical name lies on; None: it is not divided.
WHOLE: dict[str, str | None] = {"rows": None, "embed": None, "heads": None, "hidden": None}
FSDP: dict[str, str | None] = {"embed": "data"}
TENSOR: dict[str, str | None] = {"heads": "model", "hidden": "model"}
LAYOUTS: dict[str, dict[str, str | None]] = {
    "dp": WHOLE,
    "fsdp": WHOLE | FSDP,
    "tp": WHOLE | TENSOR,
    "2d": WHOLE | FSDP | TENSOR,
}


def mesh_of(layout: str, devices: Sequence[Any]) -> Mesh:
    """The axes "data", which the batch is divided over, and "model"."""
    n = len(devices)
    model = {"tp": n, "2d": 2 if n % 2 == 0 else 1}.get(layout, 1)
    grid = np.array(devices).reshape(n // model, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


# -- training ------------------------------------------------------------------------------------


@nnx.jit(donate_argnames=("model", "optimizer"))
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, batch: data.Batch) -> jax.Array:
    """One update, in place; the loss."""
    (loss, _), grads = nnx.value_and_grad(training.loss_and_logits, has_aux=True)(model, batch)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def loss_of(model: LanguageModel, batch: data.Batch) -> jax.Array:
    return training.loss_and_logits(model, batch)[0]


class Run:
    """A model and its optimizer in a layout, and the batches that they learn from."""

    def __init__(
        self, options: argparse.Namespace, corpus: data.Corpus, layout: str, devices: Sequence[Any]
    ):
        self.mesh = mesh_of(layout, devices)
        self.rules = list(LAYOUTS[layout].items())
        self.name = f"{layout}, {len(devices)} device{'s' if len(devices) > 1 else ''}"
        config = ModelConfig(
            data.VOCAB_SIZE,
            options.context,
            options.n_layers,
            options.n_heads,
            options.d_model,
            0.1,
        )

        def build() -> tuple[LanguageModel, nnx.Optimizer]:
            model = LanguageModel(config, rngs=nnx.Rngs(options.seed))
            nnx.shard(model, self.mesh, ANNOTATIONS)
            optimizer = training.make_optimizer(
                model,
                steps=options.steps,
                warmup_steps=options.steps // 10,
                learning_rate=options.learning_rate,
                weight_decay=0.1,
                clip_norm=1.0,
            )
            return model, optimizer

        # One compiled program makes both: no array is ever whole on a device that has a part of it.
        self.model, self.optimizer = nnx.make_sharded(build, self.mesh, self.rules)
        self.batches = data.Batches(corpus.train, options.batch_size, options.context, options.seed)
        self.held_out = data.held_out_batches(
            corpus.held_out, options.batch_size, options.context, 4
        )
        self.losses: list[float] = []

    def objects(self) -> dict[str, object]:
        return {"model": self.model, "optimizer": self.optimizer}

    def spread(self, batch: data.Batch) -> Any:
        """A batch, divided over the axis "data"; each process puts its devices' part there."""
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return tuple(
            jax.make_array_from_callback(part.shape, sharding, part.__getitem__) for part in batch
        )

    def train(self, until: int) -> None:
        self.model.train()  # says so to each layer, as after an evaluation: nothing compiles twice
        with jax.set_mesh(self.mesh), nnx.logical_axis_rules(self.rules):
            while len(self.losses) < until:
                batch = self.spread(next(self.batches))
                loss = train_step(self.model, self.optimizer, batch)
                # Devices made up on a CPU must not be given the next step before they end this one.
                jax.block_until_ready(nnx.state(self.model))
                self.losses.append(float(loss))

    def evaluate(self) -> float:
        """The loss on held-out text, without dropout."""
        self.model.eval()
        with jax.set_mesh(self.mesh), nnx.logical_axis_rules(self.rules):
            found = [float(loss_of(self.model, self.spread(batch))) for batch in self.held_out]
        self.model.train()
        return float(np.mean(found))

    def save(self, checkpoints: nnx.Checkpoints) -> None:
        if len(self.losses) not in checkpoints.steps():
            checkpoints.save(len(self.losses), self.objects(), {"losses": self.losses})

    def restore(self, checkpoints: nnx.Checkpoints) -> None:
        """Go on from the latest checkpoint, of whatever layout; arrays go where they belong now."""
        self.losses = checkpoints.restore(self.objects())["losses"]
        self.batches.position = len(self.losses)


# -- the program ---------------------------------------------------------------------------------


def table(runs: Sequence[Run]) -> str:
    """What each run came to, and what it takes of a device."""
    lines = [f"{'':<20}{'last loss':>12}{'held-out loss':>16}{'MB per device':>16}"]
    for run in runs:
        size = nnx.sharding_report(run.objects()).bytes_per_device / 1e6
        lines.append(f"{run.name:<20}{run.losses[-1]:>12.5f}{run.evaluate():>16.5f}{size:>16.2f}")
    if len(runs) > 1:
        apart = np.abs(np.subtract(runs[0].losses, runs[1].losses)).max()
        lines.append(f"Losses of {len(runs[0].losses)} steps differ by at most {apart:.0e}.")
    return "\n".join(lines)


def checkpoints_in(folder: Path, resume: bool) -> nnx.Checkpoints:
    """The steps of this run; unless it is resumed, those of an earlier one are deleted."""
    with nnx.fail_together("clearing the folder"):  # also: nobody writes before it is clear
        if not resume and jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return nnx.Checkpoints(folder, keep=2)


def main(arguments: Sequence[str] | None = None) -> int:
    for library in ("absl", "jax", "orbax"):  # they warn of what the user cannot change
        logging.getLogger(library).setLevel(logging.ERROR)
    parser = ExampleParser(__file__, __doc__)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="fsdp")
    processes.add_devices(parser)
    processes.add_processes(parser)
    parser.add_number(
        "--steps", length, 60, "training steps in all; the learning rate falls by them"
    )
    parser.add_argument("--stop-at", type=count, metavar="N", help="stop at this step")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint")
    parser.add_argument("--compare", action="store_true", help="train on one device, too")
    parser.add_number("--n-layers", count, 2, "blocks")
    parser.add_number("--n-heads", count, 8, "attention heads")
    parser.add_number("--d-model", count, 64, "width of the model")
    parser.add_number("--context", length, 64, "bytes that the model looks back at")
    parser.add_number("--batch-size", count, 16, "texts in a step, all devices together")
    parser.add_number("--learning-rate", positive, 3e-3, "at its highest, for AdamW")
    options = parser.parse(arguments)
    if options.processes > 1 and options.process is None:
        command = processes.command_of(__file__, arguments)
        return processes.run_together(command, options.processes)

    devices = processes.find_devices(parser, options, options.processes)
    corpus = data.read_corpus(None, 300_000)
    try:
        run = Run(options, corpus, options.layout, devices)
    except ValueError as error:  # the model cannot be divided so
        parser.error(str(error))
    shape = " × ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    say(f"Mesh: {shape}; {jax.process_count()} process(es)")
    say(nnx.sharding_report(run.model.blocks[0]))
    say()

    with checkpoints_in(options.out / "checkpoints", options.resume) as checkpoints:
        if options.resume:
            run.restore(checkpoints)
            say(f"Resumed from step {len(run.losses)}.")
        nnx.assert_equal_on_hosts(run.objects())
        run.train(options.stop_at or options.steps)
        run.save(checkpoints)
    runs = [run]
    if options.compare:
        # Every process trains it by itself, on a device of its own.
        runs.append(Run(options, corpus, "dp", jax.local_devices()[:1]))
        runs[1].train(len(run.losses))
    text = table(runs)  # on every process: the arrays belong to all
    say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
