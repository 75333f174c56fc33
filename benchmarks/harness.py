"""The harness: rows with sides, timed in turn, checked against the floor first, shown as one table.

A *row* is a thing to measure; its *sides* are the libraries that do that thing: the floor
(hand-written JAX), refax, Flax, Equinox. A side is a *work*: a function of no arguments that does
the thing once, waits for the result and returns it.

Timings on a shared machine mean little by themselves, so the sides of a row run by turns, a few
milliseconds each, in one process, for many rounds. What counts is the median of (time of the side /
time of the floor in the same round) over the calmest quarter of the rounds.

Before anything is timed, each side runs a few times and what it returned is compared with what the
floor returned: a row in which one side computes something else is an error, not a number.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import jax
import numpy as np

SIDES = ("floor", "refax", "flax", "equinox")
Work = Callable[[], Any]

# Wall time; on a machine that is busy with other things, the process's own time on one core says
# more: it does not count what the others take.
CLOCKS = {"wall": "perf_counter", "cpu": "process_time"}
_SLICE = 0.003  # seconds for which a side runs before the next one has its turn


@dataclass(frozen=True)
class Bound:
    """What refax is allowed: a multiple of the floor, a value by itself, or nothing said."""

    ratio: float | None = None
    value: float | None = None  # in the row's unit

    def holds(self, ratio: float | None, value: float) -> bool | None:
        if self.ratio is not None:
            return None if ratio is None else ratio <= self.ratio
        return None if self.value is None else value <= self.value

    def text(self, unit: str) -> str:
        if self.ratio is not None:
            return f"≤ {self.ratio:g}×"
        return "" if self.value is None else f"≤ {quantity(self.value, unit)}"


class Row:
    """Base of the rows. A subclass gives the works of its sides; None where there is none.

    `nnx` is written once for refax and Flax, which have one API: it gets the namespace.
    """

    name: str
    bound: Bound = Bound()
    slow = False  # `--quick` leaves it out
    calls = 1  # how many times a work does the thing
    checked = 1  # how many results are compared before the timing
    tolerance = 1e-4
    min_rounds = 5
    unit = "s"  # or "B", or "" for a count, where `gives_value`
    gives_value = False  # a work returns the quantity itself, `min_rounds` times, unchecked

    def floor(self) -> Work | None:
        return None

    def nnx(self, nnx: Any) -> Work | None:
        return None

    def equinox(self) -> Work | None:
        return None

    def comparable(self, result: Any) -> Any:
        """What of a work's result must be the same on all sides: a pytree of numbers."""
        return result

    def side(self, name: str) -> Work | None:
        """The work of a side; None where a peer is not installed or has no such thing."""
        if name == "floor":
            return self.floor()
        if importlib.util.find_spec(name) is None:
            return None
        return self.equinox() if name == "equinox" else self.nnx(import_module(f"{name}.nnx"))


@dataclass
class Result:
    """What the sides of a row gave: quantities, and ratios to the floor."""

    row: Row
    values: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    spread: float | None = (
        None  # of refax's ratio: half the distance of its quartiles, over the median
    )
    errors: dict[str, str] = field(default_factory=dict)  # by side

    @property
    def verdict(self) -> str:
        if "refax" in self.errors:
            return "ERROR"
        if "refax" not in self.values:
            return ""
        held = self.row.bound.holds(self.ratios.get("refax"), self.values["refax"])
        return "" if held is None else "ok" if held else "MISSED"


# -- measuring -----------------------------------------------------------------------------------


def measure(row: Row, seconds: float, clock: str = "wall") -> Result:
    """Make the sides of a row, check them, and run them by turns for about `seconds`."""
    result = Result(row)
    works: dict[str, Work] = {}
    expected: list[Any] | None = None
    for name in SIDES:
        try:
            work = row.side(name)
            if work is None:
                continue
            if row.gives_value:
                work()
            else:
                found = [_numbers(row.comparable(work())) for _ in range(row.checked)]
                expected = found if expected is None else expected
                _compare(found, expected, row.tolerance)
            works[name] = work
        except Exception as error:  # one side's failure must not hide the others
            result.errors[name] = f"{type(error).__name__}: {error}"
    if works:
        _summarize(result, _take_turns(row, works, seconds, clock))
    return result


def _take_turns(
    row: Row, works: Mapping[str, Work], seconds: float, clock: str
) -> dict[str, list[float]]:
    """By side, one quantity per round."""
    take = works if row.gives_value else {n: _timer(row, w, clock) for n, w in works.items()}
    samples: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    gc.collect()
    gc.freeze()  # what lives already is not the garbage of the sides: do not walk it again
    end = time.perf_counter() + seconds
    while len(samples[names[0]]) < row.min_rounds or (
        time.perf_counter() < end and not row.gives_value
    ):
        names.append(names.pop(0))  # another side begins each round
        peers_too = len(samples[names[0]]) % 4 == 0  # they are slow, and no bound is theirs
        for name in names:
            taken = peers_too or name in ("floor", "refax")
            samples[name].append(take[name]() if taken else math.nan)
    gc.unfreeze()
    return samples


def _timer(row: Row, work: Work, clock: str) -> Callable[[], float]:
    """A function that runs a work for one slice and returns the seconds per call."""

    now = getattr(time, CLOCKS[clock])

    def run(count: int) -> float:
        start = now()
        for _ in range(count):
            work()
        return (now() - start) / count

    once = run(1)
    count = 1 if once > _SLICE / 2 else max(1, round(_SLICE / max(run(3), 1e-6)))
    return lambda: run(count) / row.calls


def _summarize(result: Result, samples: Mapping[str, Sequence[float]]) -> None:
    """Medians over the calmest quarter of the rounds, by the time of floor and refax together."""
    pair = [samples[name] for name in ("floor", "refax") if name in samples] or [*samples.values()]
    totals = [sum(times) for times in zip(*pair)]
    for name, taken in samples.items():
        rounds = [i for i, time_taken in enumerate(taken) if not math.isnan(time_taken)]
        calm = sorted(rounds, key=totals.__getitem__)[: max(2, len(rounds) // 4)]
        result.values[name] = statistics.median(taken[i] for i in calm)
        if "floor" not in samples:
            continue
        floor = samples["floor"]  # 0 bytes are as many as 0 bytes
        ratios = [
            taken[i] / floor[i] if floor[i] else 1.0 if not taken[i] else math.inf for i in calm
        ]
        result.ratios[name] = statistics.median(ratios)
        if name == "refax" and len(ratios) > 2:
            low, _, high = statistics.quantiles(ratios, n=4)
            result.spread = (high - low) / 2 / result.ratios[name]


def _numbers(result: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, dtype=np.float64) for leaf in jax.tree.leaves(result)]


def _compare(found: list[Any], expected: list[Any], tolerance: float) -> None:
    for call, (mine, other) in enumerate(zip(found, expected, strict=True)):
        if len(mine) != len(other):
            raise AssertionError(f"call {call}: {len(mine)} numbers, the floor has {len(other)}")
        for a, b in zip(mine, other):
            np.testing.assert_allclose(
                a, b, rtol=tolerance, atol=tolerance, err_msg=f"call {call} differs from the floor"
            )


def fresh_interpreter(prepare: str, timed: str) -> float:
    """The seconds that `timed` takes in a new interpreter after `prepare`."""
    return told_by_fresh_interpreter(
        f"import time\n{prepare}\nstart = time.perf_counter()\n{timed}\n"
        "print(time.perf_counter() - start)"
    )


def told_by_fresh_interpreter(code: str) -> float:
    """The number that `code` prints at its end, in a new interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[-1])


# -- showing -------------------------------------------------------------------------------------


def quantity(value: float, unit: str) -> str:
    """`value` with three digits and the prefix that suits it."""
    if not unit:
        return f"{value:.0f}"
    if unit == "B":
        return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 2**10:.3g} KiB"
    for factor, shown in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= factor:
            return f"{_digits(value / factor)} {shown}"
    return f"{_digits(value / 1e-9)} ns"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_HEADER = ("row", "floor", "refax", "refax/floor", "flax", "equinox", "bound", "")


def cells(result: Result) -> tuple[str, ...]:
    """One line of the table. Peers stand as ratios to the floor, or alone if there is none."""
    row = result.row

    def absolute(name: str) -> str:
        if name in result.errors:
            return "error"
        return quantity(result.values[name], row.unit) if name in result.values else "—"

    def relative(name: str) -> str:
        return f"×{_digits(result.ratios[name])}" if name in result.ratios else absolute(name)

    ratio = result.ratios.get("refax")
    spread = "" if result.spread is None else f" ±{result.spread:.0%}"
    return (
        row.name,
        absolute("floor"),
        absolute("refax"),
        "—" if ratio is None else f"{ratio:.2f}{spread}",
        relative("flax"),
        relative("equinox"),
        row.bound.text(row.unit),
        result.verdict,
    )


def table(results: Sequence[Result]) -> str:
    """The table of all results."""
    return aligned([_HEADER, *map(cells, results)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Markdown of a table whose first line is the header; numbers from the second column on."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    marks = ["-" * (w + 1) + (":" if i > 0 else "-") for i, w in enumerate(widths)]
    shown = [
        f"| {' | '.join([c[0].ljust(widths[0]), *map(str.rjust, c[1:], widths[1:])])} |"
        for c in lines
    ]
    return "\n".join([shown[0], f"|{'|'.join(marks)}|", *shown[1:]])
