"""Runs a traced program operation by operation, and keeps where values stopped being finite.

Beside each value stands its `Cause`: none if it is finite. An operation whose output is not finite
hands on the cause of an input; without one it is a cause itself. An infinity that is no result of
arithmetic (a literal, a fill) is a `fill`: it is there on purpose until a NaN comes of it, and then
what makes the NaN is the cause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .._jax_compat import run_equation, scan_carry


class Range(NamedTuple):
    """What an array holds; `low` and `high` are of its finite elements, None if it has none."""

    dtype: str
    shape: tuple[int, ...]
    low: float | None
    high: float | None
    nan: int
    inf: int

    def __str__(self) -> str:
        words = [f"{self.dtype}[{','.join(map(str, self.shape))}]"]
        if self.low is not None:
            words.append(f"from {self.low:.6g} to {self.high:.6g}")
        words += [f"{n} {name}" for n, name in ((self.nan, "nan"), (self.inf, "inf")) if n]
        return "  ".join(words)

    __repr__ = __str__


@dataclass(eq=False)
class Operation:
    """One run of an operation."""

    name: str
    scopes: str  # as JAX writes them, outermost first
    file: str
    line: int
    loops: tuple[tuple[str, int], ...]  # each loop that it is in, and the step
    inputs: tuple[Range, ...]
    outputs: tuple[Range, ...]


@dataclass(eq=False)
class Cause:
    """Where a value stopped being finite: in an operation, or outside of the program.

    Args:
        kind: `nan` or `inf`, or `fill` for an infinity that was meant.
        order: of two causes the one with the lower number was first.
        place, range: of an input.
        then: the operation that made the first NaN of the infinity.
    """

    kind: str
    order: int
    operation: Operation | None = None
    place: str = ""
    range: Range | None = None
    then: Operation | None = None


Given = tuple[Any, Cause | None]
_BODIES = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_")


def range_of(value: Any) -> Range:
    """The range of an array; of a key or the like, its type alone."""
    kind = str(value.dtype), tuple(value.shape)
    if not jnp.issubdtype(value.dtype, np.number):
        return Range(*kind, None, None, 0, 0)
    x: Any = np.asarray(value)
    x = np.stack([x.real, x.imag] if np.iscomplexobj(x) else [x]).astype(np.float64)
    finite, nan = x[np.isfinite(x)], int(np.isnan(x).sum())
    ends = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Range(*kind, *ends, nan, x.size - finite.size - nan)


def kind_of(value: Any) -> str:
    """`nan` or `inf` for what is in an array; nothing if it is finite."""
    if not jnp.issubdtype(getattr(value, "dtype", np.int32), jnp.inexact):
        return ""
    # On the host nothing has to be compiled for each shape.
    library: Any = np if jax.default_backend() == "cpu" else jnp
    value = library.asarray(value)
    if bool(library.isfinite(value).all()):
        return ""
    return "nan" if bool(library.isnan(value).any()) else "inf"


class Interpreter:
    """One run; `first_nan` is the cause of the first NaN.

    Args:
        constants: by id of an array that a program may have as a constant, what it is called.
    """

    def __init__(self, constants: Mapping[int, str]) -> None:
        self.constants = constants
        self._devices: Devices | None = None  # of the shard_map that we are in
        self.count = 0
        self.first_nan: Cause | None = None
        self._loops: tuple[tuple[str, int], ...] = ()
        self._callers: tuple[Any, ...] = ()  # the tracebacks of what runs, innermost first

    def run(self, program: Any, args: Sequence[Given], scopes: str = "") -> list[Given]:
        """The outputs of a jaxpr, each with its cause."""
        jaxpr = getattr(program, "jaxpr", program)
        consts = [
            self.given(
                self._placed(x), self.constants.get(id(x), "a constant of the program"), meant=True
            )
            for x in getattr(program, "consts", ())
        ]
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        last = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if not _is_literal(v)}
        last |= dict.fromkeys((v for v in jaxpr.outvars if not _is_literal(v)), len(jaxpr.eqns))

        def read(v: Any) -> Given:
            return (
                (self._placed(jnp.asarray(v.val, v.aval.dtype)), None)
                if _is_literal(v)
                else known[v]
            )

        for i, equation in enumerate(jaxpr.eqns):
            outputs = self._equation(equation, list(map(read, equation.invars)), scopes)
            known.update(zip(equation.outvars, outputs, strict=True))
            for v in {v for v in equation.invars if not _is_literal(v) and last[v] == i}:
                del known[v]  # frees the memory
        return list(map(read, jaxpr.outvars))

    def given(self, value: Any, place: str, *, meant: bool = False) -> Given:
        """A value from outside; an infinity in it may be meant."""
        kind = kind_of(value)

        def make() -> Cause:
            meaning = "fill" if meant and kind == "inf" else kind
            return Cause(meaning, self.count, None, place, range_of(value))

        return self._caused(value, kind, [], make)

    def _caused(
        self, value: Any, kind: str, inputs: Sequence[Given], make: Callable[[], Cause]
    ) -> Given:
        if not kind:
            return value, None
        causes = [c for _, c in inputs if c is not None]
        if kind == "nan":
            causes = [c for c in causes if c.kind != "fill"]
        cause = min(causes, key=lambda c: c.order) if causes else make()
        if kind == "nan":
            self.first_nan = self.first_nan or cause
            if cause.kind == "inf" and cause.then is None:
                cause.then = make().operation
        return value, cause

    def _equation(self, equation: Any, inputs: list[Given], scopes: str) -> list[Given]:
        before = self._callers
        self._callers = (equation.source_info.traceback, *before)
        outputs = self._run_equation(equation, inputs, scopes)
        self._callers = before
        return outputs

    def _run_equation(self, equation: Any, inputs: list[Given], scopes: str) -> list[Given]:
        name, params = equation.primitive.name, equation.params
        scopes = f"{scopes}/{equation.source_info.name_stack}"
        if self._devices is not None and name in ("scan", "while", "cond", "shard_map"):
            return self._operation(equation, inputs, scopes)  # one, on each device
        if name == "shard_map":
            return self._shard_map(equation, inputs, scopes)
        if name == "scan":
            return self._scan(equation, inputs, scopes)
        if name == "while":
            return self._while(params, inputs, scopes)
        if name == "cond":
            (index, _), *rest = inputs
            branches = params["branches"]
            return self.run(branches[int(np.clip(index, 0, len(branches) - 1))], rest, scopes)
        bodies = [x for x in params.values() if hasattr(getattr(x, "jaxpr", x), "eqns")]
        if bodies and name.startswith(_BODIES):
            return self.run(bodies[0], inputs, scopes)
        return self._operation(equation, inputs, scopes)

    def _operation(self, equation: Any, inputs: list[Given], scopes: str) -> list[Given]:
        primitive, values = equation.primitive, [x for x, _ in inputs]
        if self._devices is None:
            outputs = run_equation(equation, values)
        else:
            outputs = self._devices.run(equation, values)
        self.count += 1
        kinds = list(map(kind_of, outputs))
        if not any(kinds):
            return [(x, None) for x in outputs]
        made: list[Cause] = []

        def make() -> Cause:  # once, of all the outputs
            if not made:
                ranges = (tuple(map(self._range_of, x)) for x in (values, outputs))
                where = _user_line(self._callers)
                operation = Operation(primitive.name, scopes, *where, self._loops, *ranges)
                meant = "nan" not in kinds and (not values or any(map(kind_of, values)))
                kind = "fill" if meant else "nan" if "nan" in kinds else "inf"
                made.append(Cause(kind, self.count, operation))
            return made[0]

        return [self._caused(x, k, inputs, make) for x, k in zip(outputs, kinds, strict=True)]

    def _range_of(self, value: Any) -> Range:
        found = range_of(value)  # in a shard_map over all devices, whose parts have one shape
        return found if self._devices is None else found._replace(shape=found.shape[1:])

    def _placed(self, value: Any) -> Any:
        return value if self._devices is None else self._devices.on_each(value)

    def _shard_map(self, equation: Any, inputs: list[Given], scopes: str) -> list[Given]:
        """As one operation, and if its outputs are not finite again from inside."""
        whole = self._operation(equation, inputs, scopes)
        if any(cause is not None and cause.order == self.count for _, cause in whole):
            count, first_nan = self.count, self.first_nan
            self._devices = Devices(equation.params)
            try:
                spread = self._devices.enter([x for x, _ in inputs])
                given = [(x, c) for x, (_, c) in zip(spread, inputs, strict=True)]
                self.first_nan = None
                outs = self.run(equation.params["jaxpr"], given, scopes)
                causes = [c for _, c in outs]
            except Exception:  # JAX cannot run a part of it by itself
                self.count, self.first_nan, causes = count, first_nan, []
            finally:
                self._devices = None
            if any(causes):
                return [(x, c and (d or c)) for (x, c), d in zip(whole, causes, strict=True)]
        return whole

    def _scan(self, equation: Any, inputs: list[Given], scopes: str) -> list[Given]:
        params, body = equation.params, equation.params["jaxpr"]
        first, last = scan_carry(equation, getattr(body, "jaxpr", body))
        consts, carry, scanned = inputs[:first], inputs[first:last], inputs[last:]
        steps = range(params["length"])
        stacked: list[list[Given]] = []
        for step in reversed(steps) if params["reverse"] else steps:
            slices = [(x[step], c if kind_of(x[step]) else None) for x, c in scanned]
            outs = self._step("scan", step, body, [*consts, *carry, *slices], scopes)
            carry, ys = outs[: last - first], outs[last - first :]
            stacked.append(ys)
        if params["reverse"]:
            stacked.reverse()
        if not stacked:
            return [*carry, *((jnp.zeros(v.aval.shape, v.aval.dtype), None)
                              for v in equation.outvars[len(carry) :])]  # fmt: skip
        return [*carry, *map(_together, zip(*stacked, strict=True))]

    def _while(self, params: dict[str, Any], inputs: list[Given], scopes: str) -> list[Given]:
        a = params["cond_nconsts"]
        b = a + params["body_nconsts"]
        condition, consts, carry = inputs[:a], inputs[a:b], inputs[b:]
        step = 0
        while bool(self.run(params["cond_jaxpr"], [*condition, *carry], scopes)[0][0]):
            carry = self._step("while", step, params["body_jaxpr"], [*consts, *carry], scopes)
            step += 1
        return carry

    def _step(self, loop: str, step: int, body: Any, args: list[Given], scopes: str) -> list[Given]:
        before = self._loops
        self._loops = (*before, (loop, step))
        outs = self.run(body, args, scopes)
        self._loops = before
        return outs


class Devices:
    """The devices of a shard_map: what is in it has an axis in front, for the devices."""

    def __init__(self, params: dict[str, Any]):
        self._mesh, self._in, self._out = (params[k] for k in ("mesh", "in_specs", "out_specs"))
        self._each = PartitionSpec(tuple(self._mesh.axis_names))

    def enter(self, values: list[Any]) -> list[Any]:
        return self._map(lambda *xs: [x[None] for x in xs], tuple(self._in), values)

    def on_each(self, value: Any) -> Any:
        return jnp.broadcast_to(value, (self._mesh.size, *value.shape))

    def run(self, equation: Any, values: list[Any]) -> list[Any]:
        if equation.primitive.name in ("pvary", "pcast"):  # here all differs between devices
            return values

        def local(*xs: Any) -> Any:
            return [x[None] for x in run_equation(equation, [x[0] for x in xs])]

        return self._map(local, self._each, values)

    def _map(self, function: Callable, specs: Any, values: list[Any]) -> list[Any]:
        mapped = jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=self._each)
        return list(mapped(*values))


def _together(slices: Sequence[Given]) -> Given:
    causes = [cause for _, cause in slices if cause is not None]
    first = min(causes, key=lambda c: c.order) if causes else None
    return jnp.stack([x for x, _ in slices]), first


def _is_literal(v: Any) -> bool:
    return hasattr(v, "val")


_JAX, _REFAX = Path(jax.__file__).parent, Path(__file__).parents[1]


def _user_line(tracebacks: Sequence[Any]) -> tuple[str, int]:
    """The line that made an operation: the innermost outside of JAX and refax.

    JAX keeps the whole traceback of most operations, but of those in a function with a derivative
    of its own the innermost part: then that of the call tells.
    """
    frames = [f for t in tracebacks if t is not None for f in t.frames]
    outside = [f for f in frames if not Path(f.file_name).is_relative_to(_JAX)]
    users = [f for f in outside if not Path(f.file_name).is_relative_to(_REFAX)]
    found = (users or outside or frames)[:1]
    return (found[0].file_name, found[0].line_num) if found else ("", 0)


def innermost(scopes: str, known: Callable[[str], bool]) -> str:
    """The innermost scope that is known, else the innermost; without what transforms put around."""
    names = [re.sub(r"\w+\(|\)", "", part) for part in scopes.split("/")]
    found = last = ""
    for name in filter(None, names):
        last = name
        if name[0] == "." and found:  # of a jitted method: it goes on from there
            found += name
        elif known(name):
            found = name
    return found or last
