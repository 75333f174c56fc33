"""What a call costs: compilations and runs of a Python body, counted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax


class Count:
    def __init__(self) -> None:
        self.number = 0


_OPEN: list[Count] = []


def _on_event(name: str, seconds: float, **details: Any) -> None:
    if name == "/jax/core/compile/backend_compile_duration":
        for count in _OPEN:
            count.number += 1


jax.monitoring.register_event_duration_secs_listener(_on_event)


@contextlib.contextmanager
def compilations() -> Iterator[Count]:
    """Counts what XLA compiles in the block."""
    count = Count()
    _OPEN.append(count)
    try:
        yield count
    finally:
        _OPEN.remove(count)


class Counted:
    """A function that counts how often Python runs it (when JAX traces it, or calls it)."""

    def __init__(self, function: Callable):
        self.runs = 0

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            return function(*args, **kwargs)

        self.function = counting


def assert_warm(call: Callable[[], Any], *functions: Counted) -> None:
    """Call twice to warm up, then assert that a third call neither compiles nor traces."""
    call(), call()
    before = [f.runs for f in functions]
    with compilations() as count:
        call()
    assert count.number == 0
    assert [f.runs for f in functions] == before
