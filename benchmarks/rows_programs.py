"""Rows for programs: what a train step takes to trace, lower and compile, and what comes of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from .harness import Bound, Row, Work
from .models import ADAM, GPT, REAL, REAL_24, REAL_DROPOUT, Flat, equinox_model, inputs, nnx_model
from .rows_calls import SCANNED, adam_of_equinox, train_step_of_equinox, train_step_of_nnx


def rows() -> Iterator[Row]:
    yield Lower(GPT(12))
    yield Lower(GPT(48), slow=True)
    yield Lower(SCANNED)
    for size in (GPT(12), SCANNED, REAL, REAL_DROPOUT, REAL_24):
        yield CompileTime(size)
    for size in (REAL, REAL_DROPOUT, REAL_24):
        yield from (Temporaries(size), Instructions(size))
    yield PeakMemory(GPT(12))


def _fresh(f: Callable) -> Callable:
    """The same function, which no cache of JAX has seen."""
    return lambda *args: f(*args)


class Lower(Row):
    """From the Python function to StableHLO: a train step, traced and lowered anew each time."""

    bound = Bound(1.2)
    min_rounds = 3

    def __init__(self, size: GPT, slow: bool = False):
        self.size, self.slow = size, slow
        self.name = f"trace + lower a train step, {size.name}"
        self.batch = inputs(size)

    def comparable(self, result: Any) -> Any:
        return len(result.as_text()) > 10_000  # rows of rows_calls compare what such programs do

    def floor(self) -> Work:
        flat = Flat(self.size)
        return lambda: jax.jit(_fresh(flat.train_step)).lower(flat.params, flat.state, *self.batch)

    def nnx(self, nnx: Any) -> Work:
        model = nnx_model(nnx, self.size)
        optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
        step = train_step_of_nnx(nnx, self.size)
        return lambda: nnx.jit(_fresh(step)).lower(model, optimizer, *self.batch)

    def equinox(self) -> Work:
        import equinox as eqx

        model = equinox_model(self.size)
        state, step = adam_of_equinox(model), train_step_of_equinox(self.size)
        return lambda: eqx.filter_jit(_fresh(step)).lower(self.batch, model, state)


class Program(NamedTuple):
    """What XLA made of a train step, and the seconds it took, counted on all cores."""

    compiled: Any
    seconds: float


@functools.cache
def _program(size: GPT, side: str) -> Program | None:
    """The program of a side, compiled once for all rows that ask about it."""
    lower = Lower(size).side(side)
    if lower is None:
        return None
    lowered = lower()
    start = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - start
    return Program(compiled.compiled if side == "equinox" else compiled, seconds)


class OfProgram(Row):
    """Base: a number that a compiled train step has; `rows_calls` checks what such steps do."""

    gives_value = slow = True
    min_rounds = 1
    what: str

    def __init__(self, size: GPT):
        self.size = size
        self.name = f"{self.what} a train step, {size.name}"

    def number(self, program: Program) -> float:
        raise NotImplementedError

    def side(self, name: str) -> Work | None:
        program = _program(self.size, name)
        return None if program is None else lambda: self.number(program)


class CompileTime(OfProgram):
    """From StableHLO to machine code: XLA alone, in seconds of all cores, once."""

    what = "compile"
    bound = Bound(1.1)

    def number(self, program: Program) -> float:
        return program.seconds


class Temporaries(OfProgram):
    """The memory for what lives between the operations."""

    what = "temporary memory of"
    bound = Bound(1.05)
    unit = "B"

    def number(self, program: Program) -> float:
        return program.compiled.memory_analysis().temp_size_in_bytes


class Instructions(OfProgram):
    """How many there are after optimization, those inside of fusions counted too."""

    what = "instructions of"
    bound = Bound(1.0)
    unit = ""

    def number(self, program: Program) -> float:
        return program.compiled.as_text().count(" = ")


class PeakMemory(Row):
    """What XLA says that a donating train step needs: arguments, results and temporaries."""

    bound = Bound(1.05)
    unit = "B"
    gives_value = True
    min_rounds = 1

    def __init__(self, size: GPT):
        self.size = size
        self.name = f"peak memory of a donating train step, {size.name}"
        self.batch = inputs(size)

    def floor(self) -> Work:
        flat = Flat(self.size)
        step = jax.jit(flat.train_step, donate_argnums=(0, 1))
        return _bytes_of(step.lower(flat.params, flat.state, *self.batch).compile())

    def nnx(self, nnx: Any) -> Work:
        model = nnx_model(nnx, self.size)
        optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
        step = nnx.jit(train_step_of_nnx(nnx, self.size), donate_argnums=(0, 1))
        return _bytes_of(step.lower(model, optimizer, *self.batch).compile())

    def equinox(self) -> Work:
        import equinox as eqx

        model = equinox_model(self.size)
        step = eqx.filter_jit(train_step_of_equinox(self.size), donate="all-except-first")
        lowered = step.lower(self.batch, model, adam_of_equinox(model))
        return _bytes_of(lowered.compile().compiled)


def _bytes_of(compiled: Any) -> Work:
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return lambda: peak
