"""The command line: what can be set, what fits together, what a resumed run keeps."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command_line import (
    Formatter,
    OneLineParser,
    amount,
    byte_count,
    count,
    length,
    positive,
    share,
    whole,
)

from .errors import DemoError, UsageError

DESCRIPTION = """\
Train a small transformer to write text, byte by byte, then let it write.

By default it reads the source of Python's own standard library, which every machine has, and takes
about three minutes on two CPU cores. At the end it prints the loss on held-out text beside that of
a unigram model, saves a plot of the losses, and prints a sample.
"""

EPILOG = """\
examples:
  python examples/train_language_model.py
  python examples/train_language_model.py --corpus ~/notes --d-model 192 --steps 4000
  python examples/train_language_model.py --resume
  python examples/train_language_model.py --resume --out out/language_model/001 --steps 4000

A run can be stopped at any time with Ctrl-C and goes on with --resume, bit for bit as if it had
not been stopped.
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run does."""

    # A resumed run keeps these.
    corpus: str | None = None
    max_bytes: int = 6_000_000
    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    context: int = 64
    dropout: float = 0.05
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int | None = None
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    eval_batches: int = 40
    seed: int = 0

    # These may change when it is resumed.
    steps: int = 2000
    stop_at: int | None = None
    log_every: int = 50
    eval_every: int = 200
    checkpoint_every: int = 200
    prompt: str = "def "
    sample_bytes: int = 400
    temperature: float = 0.8
    top_k: int | None = 40


FREE = {"steps", "stop_at", "log_every", "eval_every", "checkpoint_every"} | {
    "prompt",
    "sample_bytes",
    "temperature",
    "top_k",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """A command line: the settings that it gives, and where the run lies."""

    given: Mapping[str, Any]
    out: Path | None
    resume: bool
    overwrite: bool
    profile: bool


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read a command line; `--help` and mistakes end the program (status 0 and 2)."""
    parser = _parser()
    # Whatever stands in the namespace beforehand keeps argparse from filling in the default.
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(Settings))
    found = vars(parser.parse_args(arguments, argparse.Namespace(**nothing)))
    given = {name: found[name] for name in nothing if found[name] is not None}
    out, resume, overwrite = found["out"], found["resume"], found["overwrite"]
    if resume and overwrite:
        parser.error("--resume goes on with a run, --overwrite deletes it: give one of them")
    if overwrite and out is None:
        parser.error("--overwrite needs --out: without it, every run gets a folder of its own")
    return Options(given, out, resume, overwrite, found["profile"])


def new_settings(given: Mapping[str, Any]) -> Settings:
    """The settings of a new run.

    Raises:
        UsageError: they do not fit together.
    """
    settings = Settings(**given)
    if settings.warmup_steps is None:
        warmup_steps = min(100, settings.steps // 10)
        settings = dataclasses.replace(settings, warmup_steps=warmup_steps)
    return checked(settings)


def resumed_settings(saved: Mapping[str, Any], given: Mapping[str, Any], run: Path) -> Settings:
    """The settings of a run that goes on: those that it has, and new values of the `FREE` ones.

    Raises:
        UsageError: they do not fit together, or to the run.
    """
    if saved.keys() != {field.name for field in dataclasses.fields(Settings)}:
        raise DemoError(f"{run / 'run.json'} has not the settings of this program")
    for name, value in given.items():
        if name not in FREE and value != saved[name]:
            raise UsageError(
                f"the run in {run} has {flag(name)} {saved[name]}, not {value}: leave the option "
                "out to go on with it, or begin another run with another --out"
            )
    # A stop is meant for the command that asks for it.
    return checked(Settings(**{**saved, "stop_at": None, **given}))


def checked(settings: Settings) -> Settings:
    s = settings
    problems = {
        f"--d-model {s.d_model} is not a multiple of --n-heads {s.n_heads}": s.d_model % s.n_heads,
        f"--warmup-steps {s.warmup_steps} leaves nothing of --steps {s.steps}": (
            s.warmup_steps is not None and s.warmup_steps >= s.steps
        ),
        f"--stop-at {s.stop_at} is beyond --steps {s.steps}": (
            s.stop_at is not None and s.stop_at > s.steps
        ),
    }
    for problem, there_is in problems.items():
        if there_is:
            raise UsageError(problem)
    return settings


def flag(name: str) -> str:
    """`d_model` → `--d-model`."""
    return "--" + name.replace("_", "-")


# -- argparse ------------------------------------------------------------------------------------


def _path(text: str) -> str:
    return str(Path(text).expanduser().absolute())


def _prompt(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a prompt needs at least one character")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="train_language_model.py",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
        allow_abbrev=False,
    )

    def add(group: Any, name: str, kind: Callable, metavar: str, help: str) -> None:
        default = getattr(Settings, name)
        group.add_argument(flag(name), type=kind, metavar=metavar, default=default, help=help)

    run = parser.add_argument_group("run")
    run.add_argument(
        "--out",
        type=lambda text: Path(text).expanduser(),
        metavar="DIR",
        help="folder of this run (default: the next of out/language_model/001, 002, …; with "
        "--resume, the latest of them)",
    )
    run.add_argument("--resume", action="store_true", help="go on from the latest checkpoint")
    run.add_argument("--overwrite", action="store_true", help="delete the run in --out first")
    run.add_argument(
        "--profile", action="store_true", help="at the end, print what each module costs in a step"
    )
    add(run, "steps", count, "N", "training steps; may be raised when resuming")
    add(run, "stop_at", count, "N", "stop at this step, to go on later with --resume")
    add(run, "checkpoint_every", count, "N", "steps between checkpoints; the last 3 are kept")
    add(run, "eval_every", count, "N", "steps between evaluations on held-out text")
    add(run, "log_every", count, "N", "steps between reports of the loss")
    add(run, "seed", whole, "N", "of the parameters, batches, dropout and the sample")

    corpus = parser.add_argument_group("corpus")
    add(
        corpus,
        "corpus",
        _path,
        "PATH",
        "a text file, or a folder of them (default: Python's standard library)",
    )
    add(corpus, "max_bytes", count, "N", "read at most so much of it")
    add(corpus, "eval_batches", count, "N", "batches of held-out text to evaluate on")

    model = parser.add_argument_group("model")
    add(model, "n_layers", count, "N", "blocks of attention and perceptron")
    add(model, "n_heads", count, "N", "attention heads; must divide --d-model")
    add(model, "d_model", count, "N", "width of the model")
    add(model, "context", length, "N", "bytes that the model looks back at")
    add(model, "dropout", share, "P", "share of activations dropped in training")

    training = parser.add_argument_group("training")
    add(training, "batch_size", count, "N", "texts, each of --context bytes, in a step")
    add(training, "learning_rate", positive, "X", "at its highest, for AdamW")
    add(
        training,
        "warmup_steps",
        whole,
        "N",
        "steps in which the rate rises, before it falls by a cosine (default: a tenth of --steps, "
        "at most 100)",
    )
    add(training, "weight_decay", amount, "X", "of matrices, not of biases and norms")
    add(training, "clip_norm", positive, "X", "largest norm of the gradients")

    sample = parser.add_argument_group("sample")
    add(sample, "prompt", _prompt, "TEXT", "the text to go on from")
    add(sample, "sample_bytes", whole, "N", "bytes to write")
    add(sample, "temperature", amount, "X", "0 takes the likeliest byte always")
    add(sample, "top_k", byte_count, "N", "draw from the N likeliest bytes only")
    return parser
