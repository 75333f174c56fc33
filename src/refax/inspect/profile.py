"""`profile_table`: what a compiled program costs, by the Modules that made its operations."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from ..layers.stack import Stack
from ..lift.arguments import unbind
from ..lift.errors import argument_names
from ..objects.arguments import Size, checked
from ..objects.representation import as_html, shortened
from ..objects.variable import raw
from ..objects.variable_types import Param
from ..transforms.jit import JitWrapped, jit
from ..verbs.iteration import iter_graph
from ..verbs.pytree import Pytree
from .interpreter import innermost
from .program_costs import Cost, Program

_RUNS = 3  # of the program, that are measured


@dataclasses.dataclass
class ProfileRow:
    """What the operations of one Module cost in one phase, without those of Modules inside it.

    Attributes:
        path: of the Module, `model.blocks.3.attention`, and the method unless it is `__call__`;
            "" for operations that are outside of all Modules.
        phase: "forward", "backward" or "update".
        flops: floating-point operations; the body of a loop is counted once, as XLA does.
        bytes: what the operations read and write.
        parameters: the number of elements of the Module's own Params.
        temporary: bytes of intermediate results, when the program has most of them: an estimate
            from the order of the operations, scaled so that the rows add up to XLA's total.
        seconds: of one run, where the platform tells; None elsewhere.
        runs: how often the operations run in one run, where they are in a loop.
    """

    path: str
    phase: str
    flops: float = 0.0
    bytes: float = 0.0
    parameters: int = 0
    temporary: float = 0.0
    seconds: float | None = None
    runs: int = 1


@dataclasses.dataclass(repr=False)
class ProfileTable:
    """The rows of `nnx.profile_table`, the dearest first; as text, a table of 80 columns.

    Attributes:
        rows: one for each Module and phase.
        total: of the whole program; FLOPs and bytes are those of XLA's own cost analysis.
    """

    rows: list[ProfileRow]
    total: ProfileRow

    def grouped(self, depth: Size) -> ProfileTable:
        """The same with what is more than `depth` names deep in the row of what it is inside of."""
        found: dict[tuple[str, str], list[ProfileRow]] = defaultdict(list)
        for row in self.rows:
            found[".".join(row.path.split(".")[:depth]), row.phase].append(row)
        return ProfileTable(_sorted(_sum(*key, rows) for key, rows in found.items()), self.total)

    def __repr__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        return as_html(self.render())

    def render(self, rows: Size = 30, width: Size = 80) -> str:
        """The table as text.

        Args:
            rows: how many to show; the others are summed up in one.
            width: in columns; long paths lose the ends of their longest keys.
        """
        shown, others, total = self.rows[:rows], self.rows[rows:], self.total
        if others:
            shown = [*shown, _sum(f"… {len(others)} more", "", others)]
        columns: dict[str, Callable[[ProfileRow], str]] = {
            "phase": lambda row: row.phase,
            "FLOPs": lambda row: _short(row.flops),
            "%": lambda row: f"{100 * row.flops / max(total.flops, 1):.1f}",
            "bytes": lambda row: f"{_short(row.bytes)}B",
            "params": lambda row: _short(row.parameters),
            "temp": lambda row: f"{_short(row.temporary)}B",
        }
        if total.seconds is not None:
            columns["time"] = lambda row: f"{1e3 * (row.seconds or 0):.2f} ms"
        cells = [[*columns], *([cell(row) for cell in columns.values()] for row in (*shown, total))]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        room = max(width - sum(widths) - len(widths), 12)
        names = ["module", *(_name(row, room) for row in shown), "total"]
        first = max(map(len, names))
        lines = [
            " ".join([f"{name:{first}}", f"{phase:{widths[0]}}",
                      *(f"{x:>{n}}" for x, n in zip(rest, widths[1:], strict=True))]).rstrip()
            for name, (phase, *rest) in zip(names, cells, strict=True)
        ]  # fmt: skip
        return "\n".join([*lines, _ABOUT_TEMP])

    def plot(
        self, file: str | Path | None = None, *, column: str = "flops", rows: Size = 20
    ) -> Any:
        """A bar chart by matplotlib, a bar for each row; its figure.

        Args:
            file: where to save it.
            column: what the bars show: "flops", "bytes", "parameters", "temporary", "seconds".
            rows: how many bars.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "ProfileTable.plot needs matplotlib.\nCure: pip install matplotlib."
            ) from None
        shown = sorted(self.rows, key=lambda row: -(getattr(row, column) or 0))[:rows][::-1]
        figure = Figure(figsize=(8, 1 + 0.3 * len(shown)), layout="constrained")
        axes = figure.subplots()
        names = [f"{row.path or '(no module)'} {row.phase}" for row in shown]
        axes.barh(names, [getattr(row, column) or 0 for row in shown])
        axes.set_xlabel(column)
        if file is not None:
            figure.savefig(file)
        return figure


_ABOUT_TEMP = "temp: estimated; the rows add up to XLA's total"


def _name(row: ProfileRow, width: int) -> str:
    times = f" ×{row.runs}" if row.runs > 1 else ""
    return shortened(row.path or "(no module)", width - len(times)) + times


def _short(n: float) -> str:
    for unit in ("", "K", "M", "G", "T"):
        if n < 1000 or unit == "T":
            return f"{n:.0f}" if unit == "" else f"{n:.1f}{unit}"
        n /= 1000
    return ""


def _sum(path: str, phase: str, rows: Sequence[ProfileRow]) -> ProfileRow:
    timed = [row.seconds for row in rows if row.seconds is not None]
    return ProfileRow(
        path,
        phase,
        sum(row.flops for row in rows),
        sum(row.bytes for row in rows),
        sum({row.path: row.parameters for row in rows}.values()),
        sum(row.temporary for row in rows),
        sum(timed) if timed else None,
        min(row.runs for row in rows),
    )


def _sorted(rows: Iterable[ProfileRow]) -> list[ProfileRow]:
    return sorted(rows, key=lambda row: (-(row.seconds or 0), -row.flops * row.runs, -row.bytes))


@checked
def profile_table(
    f: Callable[..., Any], *args: Any, measure_time: bool = True, **kwargs: Any
) -> ProfileTable:
    """What each Module costs in `f(*args, **kwargs)`: FLOPs, bytes, parameters, memory, time.

    It is read from the compiled program, whose operations are named by the Modules that made them:
    forward, backward and the optimizer's update apart. FLOPs and bytes are counted as XLA's own
    cost analysis does: of a loop, such as an `nnx.Stack`, once (a row says ×12, if the loop's
    length is known). The time is that of a run under JAX's profiler, on copies of the arguments;
    where one operation of the device holds those of several Modules, they share its time as they
    do its FLOPs. The memory of a Module is an estimate; its total is XLA's. The arguments stay as
    they are.

    Args:
        f: a function, method or Module, or what `nnx.jit` or `jax.jit` made of one.
        *args, **kwargs: its arguments.
        measure_time: whether to run it, for the time.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Sequential(
        ...     nnx.Linear(8, 32, rngs=nnx.Rngs(0)), nnx.Linear(32, 2, rngs=nnx.Rngs(1))
        ... )
        >>> table = nnx.profile_table(lambda model, x: model(x), model, jnp.ones((4, 8)))
        >>> [(row.path, int(row.flops)) for row in table.rows if row.parameters > 100]
        [('model.layers.0', 2176)]
    """
    jitted: Any = f if hasattr(f, "lower") else jit(f)
    compiled = jitted.lower(*args, **kwargs).compile()
    program = Program(compiled.as_text())
    names = _Names(f, args, kwargs)
    costs = [(names.place(cost.scope), cost) for cost in program.costs()]
    rows: dict[tuple[str, str], ProfileRow] = {}
    heaviest: dict[tuple[str, str], float] = {}

    def row_of(place: tuple[str, str]) -> ProfileRow:
        return rows.setdefault(
            place, ProfileRow(*place, parameters=names.parameters.get(place[0], 0))
        )

    for place, cost in costs:
        row = row_of(place)
        row.flops, row.bytes = row.flops + cost.flops, row.bytes + cost.bytes
        weight = cost.flops + cost.bytes  # (the most of what it does says how often)
        if weight > heaviest.get(place, 0.0):
            heaviest[place], row.runs = weight, cost.runs
    for path in names.parameters.keys() - {path for path, _ in rows}:
        row_of((path, "forward"))
    memory = compiled.memory_analysis()
    total = ProfileRow("", "", parameters=sum(names.parameters.values()))
    total.temporary = float(getattr(memory, "temp_size_in_bytes", 0))
    peak = program.peak()
    for scope, size in peak.items():
        row_of(names.place(scope)).temporary += size * total.temporary / sum(peak.values())
    _complete(rows, row_of, total, compiled.cost_analysis())
    if measure_time:
        _measure(compiled, program, costs, row_of, total, args, kwargs)
    return ProfileTable(_sorted(rows.values()), total)


def _complete(rows: dict, row_of: Callable, total: ProfileRow, analysis: Any) -> None:
    """The totals are XLA's; what its rules give beyond those of the rows is of no Module."""
    analysis = (analysis[0] if isinstance(analysis, list) else analysis) or {}
    for column, key in (("flops", "flops"), ("bytes", "bytes accessed")):
        counted = sum(getattr(row, column) for row in rows.values())
        whole = max(float(analysis.get(key, counted)), 0.0)
        setattr(total, column, whole)
        if counted < whole:
            rest = row_of(("", "forward"))
            setattr(rest, column, getattr(rest, column) + whole - counted)
        elif counted:
            for row in rows.values():
                setattr(row, column, getattr(row, column) * whole / counted)


def _measure(
    compiled: Any, program: Program, costs: list, row_of: Callable, total: ProfileRow,
    args: tuple, kwargs: dict[str, Any],
) -> None:  # fmt: skip
    """The time of each row, from a trace of JAX's profiler."""
    run = getattr(compiled, "rehearse", None) or (
        lambda *args, **kwargs: compiled(*_copied(args), **_copied(kwargs))
    )
    jax.block_until_ready(run(*args, **kwargs))
    with tempfile.TemporaryDirectory() as folder:
        try:
            with jax.profiler.trace(folder):
                for _ in range(_RUNS):
                    jax.block_until_ready(run(*args, **kwargs))
        except RuntimeError:  # somebody else's trace is going on
            return
        files = [*Path(folder).rglob("*.xplane.pb")]
        reader = getattr(jax.profiler, "ProfileData", None)
        if not files or reader is None:
            return
        seconds = dict(_seconds(reader.from_file(str(files[0])), program))
    if not seconds:
        return
    shares: dict[str, list[tuple[tuple[str, str], Cost]]] = defaultdict(list)
    for place, cost in costs:
        shares[cost.instruction].append((place, cost))
    total.seconds = sum(seconds.values())
    for instruction, time in seconds.items():
        found = shares.get(instruction, [])
        weigh = _flops if any(cost.flops for _, cost in found) else _bytes
        whole = sum(weigh(cost) for _, cost in found)
        if not whole:
            found, whole = [(("", "forward"), Cost("", "", 1, 1, 1))], 1
        for place, cost in found:
            row = row_of(place)
            row.seconds = (row.seconds or 0.0) + time * weigh(cost) / whole


def _flops(cost: Cost) -> float:
    return cost.flops


def _bytes(cost: Cost) -> float:
    return cost.bytes


def _seconds(data: Any, program: Program) -> Iterator[tuple[str, float]]:
    """By instruction, the time that it took in one run."""
    found: dict[str, float] = defaultdict(float)
    with warnings.catch_warnings():
        # Of a type that JAX's extension makes here; an error instead would end the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        events = [
            (e, dict(e.stats)) for plane in data.planes for x in plane.lines for e in x.events
        ]
    for event, stats in events:
        name = str(stats.get("hlo_op", ""))
        if stats.get("hlo_module") == program.name and not program.is_container(name):
            found[name] += event.duration_ns * 1e-9 / _RUNS
    return iter(found.items())


def _copied(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, tree)


class _Names:
    """What the scopes of a program mean: the paths of a call's objects, and their parameters."""

    def __init__(self, f: Callable, args: tuple, kwargs: dict[str, Any]):
        function, bound = unbind(f)
        given = args if bound is None else (bound, *args)
        labels = argument_names(function, len(given))
        if bound is not None:
            labels[0] = type(bound).__name__
        self.parameters: dict[str, int] = defaultdict(int)
        self._phases = {cls.__name__: cls._refax_phase for cls in _subclasses(Pytree)}
        # (Plain `jax.jit` rebuilds a Module, which then is called by its class.)
        plain = hasattr(f, "lower") and not isinstance(f, JitWrapped)
        for label, value in (*zip(labels, given, strict=True), *kwargs.items()):
            by_class = plain and isinstance(value, Pytree)
            self._look(type(value).__name__ if by_class else label, value)

    def _look(self, label: str, value: Any) -> None:
        visited = list(iter_graph(value))
        stacks = {path for path, x in visited if isinstance(x, Stack)}
        objects = {path for path, x in visited if isinstance(x, Pytree)}

        if objects:
            self._phases.setdefault(label, "")

        def name(path: tuple) -> str:
            keys = (f"{k}[*]" if path[:i] in stacks and k == "blocks" else str(k)
                    for i, k in enumerate(path))  # fmt: skip
            return ".".join((label, *keys))

        for path, x in visited:
            if isinstance(x, Pytree):
                self._phases[name(path)] = x._refax_phase
            elif isinstance(x, Param):
                owner = next(
                    (path[:i] for i in range(len(path), -1, -1) if path[:i] in objects), ()
                )
                self.parameters[name(owner)] += sum(leaf.size for leaf in jax.tree.leaves(raw(x)))

    def place(self, scope: str) -> tuple[str, str]:
        """(path, phase) of what has a scope: `jit(f)/transpose(jvp(model.head))/dot_general`."""
        first = scope.split(";")[0]
        if "/" not in first:  # a copy of an argument, which has its path: of whose it is
            name = re.sub(r"\['?(\w+)'?\]", r".\1", first)
            while name and name not in self._phases:
                name = name.rpartition(".")[0]
            return name, self._phase(name)
        name = innermost(first, self._is_known)
        known = name if self._is_known(name) else ""
        return known, "backward" if "transpose(" in first else self._phase(known)

    def _is_known(self, name: str) -> bool:
        return name.split(".")[0] in self._phases

    def _phase(self, name: str) -> str:
        while name:
            if found := self._phases.get(name):
                return found
            name = name.rpartition(".")[0]
        return "forward"


def _subclasses(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)
