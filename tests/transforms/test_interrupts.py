"""Ctrl-C at any moment: what belongs together is written, or none of it.

A timer raises in the middle of steps that write many places; afterwards all are of one step.
"""

import contextlib
import functools
import itertools
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src.core import reset_trace_state

from refax import nnx
from tests.models import Node, Pair

COUNT = 40
# Raised inside a callback of the garbage collector, an exception can only be told.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class InterruptError(BaseException):
    """As KeyboardInterrupt is one."""


def interrupt(step: Callable[[], Any], times: int, longest: float) -> Iterator[None]:
    """Run `step` until a timer raises, `times` times; yields after each."""
    moments = random.Random(0)

    def stop(*_: Any) -> None:
        raise InterruptError

    def run(seconds: float) -> None:  # of its own: Python 3.13 may raise past a `try` in a loop
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            while signal.getitimer(signal.ITIMER_REAL)[0]:
                step()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(0)  # lets a signal through that is waiting

    before = signal.signal(signal.SIGALRM, stop)
    # An exception that leaves a callback of JAX's C++ may cost one level of recursion for good.
    sys.setrecursionlimit(50_000)
    try:
        for _ in range(times):
            try:
                run(moments.uniform(2e-5, longest))
            except BaseException as error:
                assert "InterruptError" in "".join(traceback.format_exception(error))
            reset_trace_state()  # which JAX leaves as it is if it is interrupted itself
            yield
    finally:
        signal.signal(signal.SIGALRM, before)


# -- what is written: each case makes (a step, what must agree afterwards) ------------------------


def make_model() -> Node:
    model = Node(
        cells=[nnx.Param(jnp.zeros(()), seen=0) for _ in range(COUNT)],
        array=jnp.zeros(()),
        arrays=[jnp.zeros(()) for _ in range(3)],
        pair=Pair(jnp.zeros(()), "text"),
        parts=[Node(array=jnp.zeros(()), mode=0) for _ in range(COUNT)],
        entries={},
    )
    model.child = Node(cell=nnx.Variable(jnp.zeros(())), list=nnx.List([jnp.zeros(())]))
    return model


def numbers(model: Node) -> list[list[Any]]:
    arrays = [c.value for c in model.cells]
    arrays += [model.array, *model.arrays, model.pair.first, model.child.cell.value]
    arrays += [model.child.list[0], *(part.array for part in model.parts)]
    return [[int(x) for x in arrays]]


def only_cells(model: Node) -> None:
    for cell in model.cells:
        cell += 1.0


def cells(model: Node) -> list[list[Any]]:
    return [[int(c.value) for c in model.cells]]


def values(model: Node) -> None:
    only_cells(model)
    for part in (model, *model.parts):
        part.array = part.array + 1.0
    model.arrays[:] = [x + 1.0 for x in model.arrays]
    model.pair = Pair(model.pair.first + 1.0, "text")
    model.child.cell += 1.0
    model.child.list[0] = model.child.list[0] + 1.0


def structure(model: Node) -> None:
    values(model)
    mode = 1 - model.parts[0].mode
    for part in model.parts:
        part.mode = mode
    for cell in model.cells:
        cell.set_metadata(seen=mode)
    if mode:
        model.new = nnx.Param(jnp.ones(()))
        model.entries["new"] = model.new
        model.child.list.append(model.new)
    else:
        del model.new, model.child.list[1]
        model.entries.clear()


def numbers_and_modes(model: Node) -> list[list[Any]]:
    modes = [part.mode for part in model.parts] + [cell.seen for cell in model.cells]
    modes += [int(hasattr(model, "new")), len(model.entries), len(model.child.list) - 1]
    if len(model.child.list) > 1:
        assert model.child.list[1] is model.entries["new"] is model.new
    return [*numbers(model), modes]


def scan(model: Node) -> None:
    axes = (nnx.StateAxes({...: nnx.Carry}), 0)
    nnx.scan(add_one, in_axes=axes, out_axes=0)(model, jnp.ones(1))


def add_one(model: Node, x: jax.Array) -> jax.Array:
    only_cells(model)
    return x


def loss(model: Node) -> Any:
    only_cells(model)
    return sum(c.value for c in model.cells)


def calls(f: Callable, agree: Callable) -> Callable:
    def make() -> tuple[Callable, Callable]:
        model = make_model()
        return lambda: f(model), lambda: agree(model)

    return make


def optimizer(jitted: bool) -> Callable:
    """Adam with constant gradients: each parameter is moved by one in each step."""

    def make() -> tuple[Callable, Callable]:
        model = Node(cells=[nnx.Param(jnp.zeros(())) for _ in range(8)])
        optimizer = nnx.Optimizer(model, optax.scale_by_adam(), wrt=nnx.Param)
        grads = jax.tree.map(jnp.ones_like, nnx.state(model))
        step = nnx.jit(nnx.Optimizer.update) if jitted else nnx.Optimizer.update

        def agree() -> list[list[Any]]:
            count = int(optimizer.step.value)
            moments = jax.tree.leaves(optimizer.opt_state.mu)
            np.testing.assert_allclose(moments, 1 - 0.9**count, rtol=1e-4)
            moved = [round(float(c.value)) for c in model.cells]
            return [[count, int(optimizer.opt_state.count.value), *moved]]

        return lambda: step(optimizer, model, grads), agree

    return make


def in_turn(write: Callable, states: list[Any]) -> Callable:
    turn = itertools.cycle(states)
    return lambda: write(next(turn))


def update() -> tuple[Callable, Callable]:
    model = make_model()
    states = [jax.tree.map(lambda x, i=i: jnp.full_like(x, i), nnx.state(model)) for i in range(2)]
    return in_turn(lambda s: nnx.update(model, s), states), lambda: numbers(model)


def load() -> tuple[Callable, Callable]:
    model = make_model()
    loaded = [{k: np.full_like(x, i) for k, x in nnx.state_dict(model).items()} for i in range(2)]
    return in_turn(lambda s: nnx.load_state_dict(model, s), loaded), lambda: numbers(model)


def train_and_eval() -> tuple[Callable, Callable]:
    model = Node(parts=[Node(deterministic=True, use_running_average=True) for _ in range(COUNT)])
    step = in_turn(lambda verb: verb(model), [nnx.Module.train, nnx.Module.eval])
    return step, lambda: [[x for part in model.parts for x in vars(part).values()]]


def average() -> tuple[Callable, Callable]:
    model = Node(cells=[nnx.Param(jnp.zeros(())) for _ in range(8)])
    ema = nnx.EMA(model, 0.5, only=nnx.Param, zero_debias=False)

    def step() -> None:
        nnx.update(model, jax.tree.map(lambda x: x + 1.0, nnx.state(model)))
        ema.update(model)

    return step, lambda: [[float(x) for x in jax.tree.leaves(ema.params)]]


def metrics() -> tuple[Callable, Callable]:
    metrics = nnx.MultiMetric(**{f"m{i}": nnx.metrics.Average("x") for i in range(8)})
    turn = itertools.cycle([metrics.reset, *5 * [lambda: metrics.update(x=1.0)]])
    counts = lambda: [(int(metric.count.value), int(metric.total.value))  # noqa: E731
                      for metric in vars(metrics).values()]  # fmt: skip
    return lambda: next(turn)(), lambda: [counts(), [c for pair in counts() for c in pair]]


def welford() -> tuple[Callable, Callable]:
    """After n values 1, 3, 1, 3, … the mean is 2 (n even), m2 is n."""
    stats = nnx.metrics.Welford()
    values = jnp.array([1.0, 3.0])

    def agree() -> list[list[Any]]:
        count = float(stats.count.value)
        return [[count, float(stats.m2.value), count and count * float(stats.mean.value) / 2.0]]

    return lambda: stats.update(values=values), agree


def streams_of() -> tuple[Node, list[nnx.RngStream]]:
    model = Node(parts=[nnx.Dropout(0.5, rngs=nnx.Rngs(i)) for i in range(8)])
    return model, [part.rngs for part in model.parts]


def split_streams() -> tuple[Callable, Callable]:
    model, streams = streams_of()
    first = nnx.backup_keys(model)

    def step() -> None:
        if streams[0].key.shape:  # interrupted in between
            nnx.restore_rngs(first)
        with nnx.split_rngs(model, splits=3):
            pass

    def agree() -> list[list[Any]]:
        return [[(s.key.shape, *np.ravel(s.count.value).tolist()) for s in streams]]

    return step, agree


def reseed() -> tuple[Callable, Callable]:
    model, streams = streams_of()
    names = {s.tag for s in streams}
    words = lambda: [jax.random.key_data(s.key.value).tolist() for s in streams]  # noqa: E731

    def to(seed: int) -> None:
        nnx.reseed(model, **dict.fromkeys(names, seed))

    to(1)
    ones = words()
    to(0)
    agree = lambda: [[a == b for a, b in zip(words(), ones, strict=True)]]  # noqa: E731
    return in_turn(to, [1, 0]), agree


def pop_and_add() -> tuple[Callable, Callable]:
    model = Node(parts=[Node(entries={}) for _ in range(COUNT)])
    for part in model.parts:
        part.seen, part.entries["seen"] = nnx.Intermediate(X), nnx.Intermediate(X)
    popped = [nnx.pop(model, nnx.Intermediate)]

    def step() -> None:
        if hasattr(model.parts[0], "seen"):
            popped[0] = nnx.pop(model, nnx.Intermediate)
        else:
            nnx.update(model, popped[0])

    def agree() -> list[list[Any]]:
        return [[x for p in model.parts for x in (hasattr(p, "seen"), "seen" in p.entries)]]

    return step, agree


X = jnp.ones(())

# How long a step is interrupted after at the latest, in seconds: about three steps.
CASES: dict[str, tuple[Callable, float]] = {
    "jit": (calls(nnx.jit(values), numbers), 3e-3),
    "jit, structure": (calls(nnx.jit(structure), numbers_and_modes), 1e-2),
    "jit, donated": (calls(nnx.jit(values, donate_argnums=0), numbers), 3e-3),
    "jit, donated, structure": (
        calls(nnx.jit(structure, donate_argnums=0), numbers_and_modes),
        1e-2,
    ),
    "update": (update, 2e-3),
    "load_state_dict": (load, 2e-2),
    "train and eval": (train_and_eval, 5e-4),
    "grad": (calls(nnx.grad(loss), cells), 1e-1),
    "remat": (calls(nnx.remat(only_cells), cells), 1e-1),
    "scan": (calls(scan, cells), 1e-2),
    "jit, optimizer": (optimizer(True), 3e-3),
    "optimizer": (optimizer(False), 2e-2),
    "EMA": (average, 2e-2),
    "metrics": (metrics, 1e-2),
    "Welford": (welford, 1e-2),
    "split_rngs": (split_streams, 2e-2),
    "reseed": (reseed, 2e-2),
    "pop and update": (pop_and_add, 2e-2),
}


def check(name: str, times: int) -> None:
    make, longest = CASES[name]
    step, agree = make()
    for _ in range(3):
        step()
    for _ in interrupt(step, times, longest):
        for found in agree():
            assert len(set(found)) == 1, found


@pytest.mark.parametrize("name", CASES)
def test_some_interrupts(name):
    check(name, max(5, min(200, int(0.5 / CASES[name][1]))))


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_signal_waits_until_what_was_donated_is_written(times):
    model, handled = make_model(), []

    def stop(number: int, frame: Any) -> None:
        handled.append(number)
        raise InterruptError

    @functools.partial(nnx.jit, donate_argnums=0)
    def step(model):
        for _ in range(times):
            signal.raise_signal(signal.SIGALRM)
        values(model)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with contextlib.nullcontext() if times == 0 else pytest.raises(InterruptError):
            step(model)
        assert signal.getsignal(signal.SIGALRM) is stop
    finally:
        signal.signal(signal.SIGALRM, before)
    # The second is not kept waiting: a trace that never ends can be stopped.
    assert set(numbers(model)[0]) == {0 if times == 2 else 1}
    assert len(handled) == times and signal.getsignal(signal.SIGALRM) is before


def test_a_donated_call_of_another_thread():
    model = make_model()
    thread = threading.Thread(target=nnx.jit(values, donate_argnums=0), args=(model,))
    thread.start()
    thread.join()
    assert set(numbers(model)[0]) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_interrupts(name):
    longest = CASES[name][1]
    check(name, 5000 if longest < 5e-3 else 1000 if longest < 5e-2 else 300)
