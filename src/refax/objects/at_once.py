"""Writes that belong together, done at once: Ctrl-C comes before all of them or after.

Python runs a signal handler between two of its own instructions, never inside a loop of C. So what
belongs together is prepared as a list of calls to functions of C (the setters of slots, methods of
dicts and lists), and one loop of C makes them all.
"""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports]
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from operator import call
from typing import Any

Write = Callable[[], Any]  # `functools.partial` of a function of C


def at_once(writes: Sequence[Write]) -> None:
    deque(map(call, writes), maxlen=0)


def set_each(setter: Callable[[Any, Any], None], cells: Sequence[Any], values: Any) -> None:
    """`setter(cell, value)` for each, at once; the quick way for whole models."""
    deque(map(setter, cells, values), maxlen=0)


# What Python functions usually handle: Ctrl-C, the end of a job, timers.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


def uninterrupted(function: Callable, *args: Any) -> Any:
    """`function(*args)`; a signal is handled when it is done. A second one is not kept waiting.

    The functions of `signal` would make enums of what they give: 8 µs a call.
    """
    if threading.current_thread() is not threading.main_thread():  # which handles all signals
        return function(*args)
    handlers: dict[int, Any] = {s: _signal.getsignal(s) for s in _SIGNALS}
    handlers = {s: handler for s, handler in handlers.items() if callable(handler)}
    waiting: list[tuple[int, Any]] = []

    def wait(number: int, frame: Any) -> None:
        if waiting:
            handlers[number](number, frame)
        waiting.append((number, frame))

    try:
        for number in handlers:
            _signal.signal(number, wait)
        return function(*args)
    finally:
        for number, handler in handlers.items():
            _signal.signal(number, handler)
        for number, frame in waiting[:1]:
            handlers[number](number, frame)
