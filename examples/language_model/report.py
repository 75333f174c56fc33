"""What the user sees: a progress bar (or plain lines), the table at the end, the loss curve."""

import csv
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Curve = list[tuple[int, float]]  # (step, loss in nats per byte)


def say(text: str = "") -> None:
    print(text, flush=True)


class TrainingProgress:
    """A bar with loss, speed and time left in a terminal; elsewhere a line at each report."""

    def __init__(self, step: int, steps: int, tokens_per_step: int):
        self.steps = steps
        self.tokens_per_step = tokens_per_step
        console = Console()
        self.in_terminal = console.is_terminal
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not self.in_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=step, loss="…", speed="…")
        self.restart_clock(step)

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def restart_clock(self, step: int) -> None:
        """Leave out of the speed what was done since the last report, such as an evaluation."""
        self._since = (step, time.perf_counter())

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def report(self, step: int, loss: float) -> None:
        """Show the training loss; its value must be known, so that the clock has stopped."""
        first, start = self._since
        seconds = time.perf_counter() - start
        speed = (step - first) * self.tokens_per_step / seconds if step > first else 0.0
        shown = f"{speed:,.0f}"
        self._bar.update(self._task, completed=step, loss=f"{loss:.3f}", speed=shown)
        if not self.in_terminal:
            left = (self.steps - step) * self.tokens_per_step / speed if speed else 0.0
            self.line(
                f"step {step:>5}/{self.steps}  loss {loss:.3f}  {shown} tokens/s  "
                f"{_minutes(left)} left"
            )
        self.restart_clock(step)

    def line(self, text: str) -> None:
        """A line above the bar."""
        if self.in_terminal:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def comparison(model_loss: float, unigram_loss: float) -> str:
    """Both losses in nats and in bits per byte."""
    rows = [("this model", model_loss), ("unigram model", unigram_loss)]
    lines = [f"{'held-out loss':<16}{'nats per byte':>14}{'bits per byte':>15}"]
    lines += [f"{name:<16}{loss:>14.3f}{loss / math.log(2):>15.3f}" for name, loss in rows]
    return "\n".join([*lines, f"That is {model_loss / unigram_loss:.0%} of the unigram's loss."])


def write_losses(run: Path, train: Curve, held_out: Curve) -> None:
    """`loss.csv`: step, training loss, held-out loss; empty where there is none."""
    of_train, of_held_out = dict(train), dict(held_out)
    with (run / "loss.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "train_loss", "held_out_loss"])
        for step in sorted({*of_train, *of_held_out}):
            rows.writerow([step, of_train.get(step, ""), of_held_out.get(step, "")])


def plot_losses(path: Path, train: Curve, held_out: Curve, unigram_loss: float) -> None:
    """The loss curves and, as a line, the unigram model's held-out loss."""
    from matplotlib.figure import Figure  # not pyplot: that looks for a display

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*_columns(train), label="training", color="tab:blue", linewidth=1)
    axes.plot(*_columns(held_out), label="held-out", color="tab:orange", marker="o", markersize=4)
    axes.axhline(unigram_loss, label="unigram, held-out", color="tab:gray", linestyle="--")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per byte)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _columns(curve: Curve) -> tuple[Sequence[int], Sequence[float]]:
    return [step for step, _ in curve], [loss for _, loss in curve]


def complain(message: str) -> None:
    """One line on stderr, whatever the message looks like."""
    print(f"train_language_model.py: error: {' '.join(message.split())}", file=sys.stderr)
