"""JAX's warning about donated buffers that no result can have, told in the caller's names.

JAX gives it when it lowers a program, from inside the first call, and names shapes only. So the
warnings of a call that traces are kept until it is over: that one is given again with the paths of
the arguments, and the others as they came. A warm call asks one question.
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
_CALLS = Stack()  # of donating calls: what keeps the warnings, when there is a trace
_ONE_AT_A_TIME = threading.Lock()  # `catch_warnings` is of the whole process


def tracing_starts() -> None:
    """Keep the warnings of the call that is traced, until it is over."""
    if _CALLS.items and not _CALLS.items[-1] and _ONE_AT_A_TIME.acquire(blocking=False):
        keeper = warnings.catch_warnings(record=True)
        _CALLS.items[-1].append((keeper, keeper.__enter__()))


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
    kept: list[Any] = []
    _CALLS.items.append(kept)
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
        for keeper, messages in kept:
            keeper.__exit__()
            _ONE_AT_A_TIME.release()
            for m in messages:
                if str(m.message).startswith(_START):
                    text = _text(str(m.message), function, inputs())
                    warnings.warn(text, m.category, users_level())
                else:
                    warnings.showwarning(
                        m.message, m.category, m.filename, m.lineno, m.file, m.line
                    )


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
