"""Train a small transformer on text, byte by byte, then let it write.

    python examples/train_language_model.py --help

This file is the program: what is built, the training loop, what happens at the end. The parts that
it names are in `examples/language_model/`; begin with `model.py` and `training.py`.
"""

import contextlib
import dataclasses
import io
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from language_model import data, generation, options, report, runs, training
from language_model.errors import DemoError, UsageError
from language_model.model import LanguageModel, ModelConfig
from language_model.options import Settings
from language_model.report import say

from refax import nnx


class Trainer:
    """All that training changes, and the corpus that it reads."""

    def __init__(self, settings: Settings, corpus: data.Corpus):
        s = self.settings = settings
        self.config = ModelConfig(
            vocab_size=data.VOCAB_SIZE,
            context=s.context,
            n_layers=s.n_layers,
            n_heads=s.n_heads,
            d_model=s.d_model,
            dropout=s.dropout,
        )
        self.model = LanguageModel(self.config, rngs=nnx.Rngs(s.seed))
        self.model.train()  # says so to each layer, as after an evaluation: nothing compiles twice
        self.optimizer = training.make_optimizer(
            self.model,
            steps=s.steps,
            warmup_steps=s.warmup_steps or 0,
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            clip_norm=s.clip_norm,
        )
        self.metrics = training.make_metrics()
        self.batches = data.Batches(corpus.train, s.batch_size, s.context, s.seed)
        self.held_out = data.held_out_batches(
            corpus.held_out, s.batch_size, s.context, s.eval_batches
        )
        self.train_curve: report.Curve = []
        self.held_out_curve: report.Curve = []

    @property
    def step(self) -> int:
        return self.batches.position

    def save(self, checkpoints: nnx.Checkpoints) -> None:
        checkpoints.wait()  # for the one before, which then counts as a step
        if self.step in checkpoints.steps():
            return
        notes = {
            "position": self.batches.position,
            "train_curve": self.train_curve,
            "held_out_curve": self.held_out_curve,
        }
        checkpoints.save(self.step, self.objects(), notes)

    def restore(self, checkpoints: nnx.Checkpoints) -> None:
        notes = checkpoints.restore(self.objects())
        self.batches.position = notes["position"]
        self.train_curve = [tuple(point) for point in notes["train_curve"]]
        self.held_out_curve = [tuple(point) for point in notes["held_out_curve"]]

    def objects(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "metrics": self.metrics}

    def evaluate(self) -> float:
        """The held-out loss now, which also goes into the curve."""
        if not self.held_out_curve or self.held_out_curve[-1][0] != self.step:
            loss = training.evaluate(self.model, self.held_out)["loss"]
            self.held_out_curve.append((self.step, loss))
        return self.held_out_curve[-1][1]

    def train(self, checkpoints: nnx.Checkpoints) -> bool:
        """Train up to `steps` or `stop_at`; whether it got there without an interruption."""
        s = self.settings
        last = s.stop_at or s.steps
        with (
            report.TrainingProgress(self.step, s.steps, s.batch_size * s.context) as progress,
            interruption() as interrupted,
        ):
            if self.step == 0:
                progress.line(f"step {0:>5}/{s.steps}  held-out loss {self.evaluate():.3f}")
            progress.restart_clock(self.step)
            first = self.step
            while self.step < last and not interrupted:
                training.train_step(self.model, self.optimizer, self.metrics, next(self.batches))
                progress.advance(self.step)
                if self.step == first + 1:  # it was compiled in that step
                    progress.restart_clock(self.step)
                if self.step % s.log_every == 0:
                    loss = float(self.metrics.compute()["loss"])
                    self.metrics.reset()
                    self.train_curve.append((self.step, loss))
                    progress.report(self.step, loss)
                if self.step % s.eval_every == 0 or self.step == s.steps:
                    loss = self.evaluate()
                    progress.line(f"step {self.step:>5}/{s.steps}  held-out loss {loss:.3f}")
                    progress.restart_clock(self.step)
                if self.step % s.checkpoint_every == 0 or self.step == last:
                    self.save(checkpoints)
                    progress.restart_clock(self.step)
            self.save(checkpoints)
        return self.step >= last


@contextlib.contextmanager
def interruption() -> Iterator[list[int]]:
    """A list that Ctrl-C (or SIGTERM) fills, so that a step is never cut in two.

    The second Ctrl-C ends the program at once.
    """
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def profile(trainer: Trainer) -> None:
    """Print what each module costs in a training step, of which nothing is kept."""
    step = trainer.model, trainer.optimizer, trainer.metrics, trainer.held_out[0]
    say(f"\n{nnx.profile_table(training.train_step, *step).grouped(4)}\n")


def finish(trainer: Trainer, run: Path, unigram_loss: float) -> None:
    """Compare, plot and write a sample."""
    s = trainer.settings
    say()
    say(report.comparison(trainer.evaluate(), unigram_loss))
    curves = trainer.train_curve, trainer.held_out_curve
    report.write_losses(run, *curves)
    report.plot_losses(run / "loss.png", *curves, unigram_loss)
    say(f"Loss curve: {run / 'loss.png'}")
    if s.sample_bytes:
        prompt = data.encode(s.prompt)
        tokens = generation.generate(
            trainer.model,
            prompt,
            s.sample_bytes,
            temperature=s.temperature,
            top_k=s.top_k,
            seed=s.seed,
        )
        text = data.decode(np.concatenate([prompt, tokens]))
        (run / "sample.txt").write_text(text, encoding="utf-8")
        say(f"\nSample from {s.prompt!r} on, at temperature {s.temperature:g}:\n")
        say(text)


def run_demo(command: options.Options) -> int:
    """Do what a command line asks for; the exit status."""
    if command.resume:
        run = runs.find_run(command.out)
        description = runs.read_description(run)
        settings = options.resumed_settings(description["settings"], command.given, run)
    else:
        runs.check_free(command.out, command.overwrite)
        run, description = None, None
        settings = options.new_settings(command.given)

    corpus = data.read_corpus(settings.corpus, settings.max_bytes)
    data.check_size(corpus, settings.batch_size, settings.context)
    say(f"Corpus: {corpus}")
    if description is not None and description["corpus"] != corpus.fingerprint:
        raise DemoError(f"{corpus.name} is not the text that the run in {run} began with")

    trainer = Trainer(settings, corpus)
    parameters = sum(p.size for _, p in nnx.to_flat_state(nnx.state(trainer.model, nnx.Param)))
    say(f"Model: {parameters:,} parameters; {trainer.config}")
    unigram_loss = data.unigram_loss(corpus.train, trainer.held_out)
    run = run or runs.make_folder(command.out)
    with runs.checkpoints_of(run) as checkpoints:
        if command.resume:
            trainer.restore(checkpoints)
            say(f"Resumed from step {trainer.step}.")
        runs.write_description(run, dataclasses.asdict(settings), corpus.fingerprint)
        say(f"Run: {run} (Ctrl-C stops it and saves a checkpoint)")
        completed = trainer.train(checkpoints)
    if trainer.step < settings.steps:
        stopped = "Stopped" if completed else "Interrupted"
        say(f"{stopped} at step {trainer.step}; to go on from there: --resume --out {run}")
        return 0 if completed else 128 + signal.SIGINT
    finish(trainer, run, unigram_loss)
    if command.profile:
        profile(trainer)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; the exit status: 0, 1 (cannot), 2 (usage) or 130 (interrupted)."""
    for library in ("absl", "jax", "orbax"):  # they warn of what the user cannot change
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        return run_demo(options.parse(arguments))
    except UsageError as error:
        report.complain(f"{error} (--help lists the options)")
        return 2
    except DemoError as error:
        report.complain(str(error))
        return 1
    except KeyboardInterrupt:
        report.complain("interrupted")
        return 128 + signal.SIGINT


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold any character
    sys.exit(main())
