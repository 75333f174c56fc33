"""What is going on in a thread: a stack of open things, the innermost last."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


class Stack(threading.local):
    def __init__(self) -> None:
        self.items: list[Any] = []

    @contextlib.contextmanager
    def during(self, item: Any) -> Iterator[None]:
        """`item` is on top for the time of a `with` block.

        What an interrupt may have left above it is taken away with it.
        """
        depth = len(self.items)
        try:
            self.items.append(item)
            yield
        finally:
            del self.items[depth:]
