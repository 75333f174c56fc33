"""Writes that belong together, done at once: Ctrl-C comes before all of them or after.

Python runs a signal handler between two of its own instructions, never inside a loop of C. So what
belongs together is prepared as a list of calls to functions of C (the setters of slots, methods of
dicts and lists), and one loop of C makes them all.
"""

from __future__ import annotations

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
