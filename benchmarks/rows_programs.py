"""Rows for programs: how long a train step takes to trace and lower, and what memory it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from .harness import Bound, Row, Work
from .models import ADAM, GPT, Flat, equinox_model, inputs, nnx_model
from .rows_calls import adam_of_equinox, train_step_of_equinox, train_step_of_nnx


def rows() -> Iterator[Row]:
    yield Lower(GPT(12))
    yield Lower(GPT(48), slow=True)
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
