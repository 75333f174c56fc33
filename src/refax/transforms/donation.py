"""JAX's warning about donated buffers that no result can have, told in the caller's names.

JAX gives it when it lowers a program, from inside the first call, and names shapes only. So while
a call that donates is traced, what shows warnings is another function, which gives this one again
with the paths of the arguments. Other warnings, and those of other threads, it passes on: filters,
recorders and registries are left alone. A warm call asks one question.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ..objects.errors import describe_value
from ..objects.stack import Stack
from ..objects.trace_errors import where
from .retrace import users_level

_START = "Some donated buffers were not usable: "
_CALLS = Stack()  # of donating calls: what shows their warnings, when there is a trace


class _Shows:
    """Shows warnings while a call is traced, but keeps those of JAX about its buffers."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, type[Warning]]] = []
        self.thread: int | None = threading.get_ident()  # None: it is over
        self.before: Any = warnings.showwarning
        warnings.showwarning = self

    def __call__(self, message: Any, category: Any, *rest: Any) -> None:
        if self.thread == threading.get_ident() and str(message).startswith(_START):
            self.kept.append((str(message), category))
        else:
            self.before(message, category, *rest)

    def end(self) -> None:
        self.thread = None
        while type(shown := warnings.showwarning) is _Shows and shown.thread is None:
            warnings.showwarning = shown.before


def tracing_starts() -> None:
    """Tell JAX's warning in the names of the call that is traced, until it is over."""
    if _CALLS.items and not _CALLS.items[-1]:
        _CALLS.items[-1].append(_Shows())


def told(
    function: Callable,
    inputs: Callable[[], Iterable[tuple[str, Any]]],
    run: Callable,
    *args: Any,
    fresh: bool,
) -> Any:
    """`run(*args)`, a call that donates.

    Args:
        function: the user's.
        inputs: gives (place, array) of each array that is donated.
        fresh: whether it was not called before.
    """
    shows: list[_Shows] = []
    _CALLS.items.append(shows)
    try:
        if fresh:
            tracing_starts()
        return run(*args)
    except UserWarning as warning:  # where warnings are errors
        if str(warning).startswith(_START):
            warning.args = (_text(str(warning), function, inputs()),)
        raise
    finally:
        _CALLS.items.pop()
        for each in shows:
            each.end()
            for text, category in each.kept:
                warnings.warn(_text(text, function, inputs()), category, users_level())


def _text(text: str, function: Callable, inputs: Iterable[tuple[str, Any]]) -> str:
    """The warning with paths; of several arrays of one shape, with those that it may be."""
    places: dict[str, list[str]] = {}
    for place, value in inputs:
        places.setdefault(describe_value(value), []).append(f"`{place}`")
    listed = []
    line = text.removeprefix(_START).split("\n")[0]
    for kind, count in Counter(re.findall(r"\w+\[[^\]]*\]", re.sub(r"@\w+", "", line))).items():
        known = places.get(kind, [])
        which = "" if count >= len(known) else f"{count} of "
        more = f" and {len(known) - 8} more" if len(known) > 8 else ""
        listed.append(f"{which}{', '.join(known[:8])}{more} ({kind})".strip())
    return (
        f"{_START}{'; '.join(listed)}.\nA donated buffer is given to a result of its shape and "
        f"dtype; {where(function)} has too few such results.\nCure: donate only arguments that "
        "come back changed."
    )
