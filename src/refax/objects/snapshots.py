"""Snapshots: Variables that are copies of a model's, and writes to them that nobody reads.

`nnx.state(model)` and `nnx.split(model)` copy the cells: "the best weights so far" do not follow
the model. Whoever writes into such a State and means the model loses the write. It shows in one
way: the State is dropped, and nothing has read it since.

A Variable of a snapshot has a `Snapshot` in the place of its trace. So its first write takes the
way of a write from another trace, and only that one pays: the write is noted, and from then on the
Variable is read by the way of Variables with hooks, until something has read it. What the verbs and
transforms take from Variables by the short way they tell with `taken`.
"""

from __future__ import annotations

import atexit
import functools
import sys
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from .errors import describe_value


class SnapshotWarning(UserWarning):
    """A Variable of a State was written, and the State was dropped without being read again."""


class LostWriteWarning(SnapshotWarning):
    """A function under plain JAX wrote a Variable of an argument, and the argument was dropped."""


class Snapshot:
    """One State that was taken of an object; stands in its Variables in the place of the trace.

    Or an object that plain JAX rebuilt in a trace, for `function`, with `places` of its Variables
    by their ids: what is written there is as lost, unless the object leaves the function.
    """

    __slots__ = ("function", "places", "settled", "trace")

    def __init__(self, trace: Any, function: str = "", places: dict[int, str] | None = None):
        self.trace = trace
        self.function = function
        self.places = places or {}
        self.settled = False  # a verb has taken what was written, or the warning was given


class _Write:
    """The last write to a Variable of a snapshot, as long as nothing has read it."""

    __slots__ = ("line", "path", "reference", "snapshot", "text")

    def __init__(self, variable: Any, snapshot: Snapshot):
        self.reference = weakref.ref(variable, functools.partial(_dropped, id(variable)))
        self.snapshot = snapshot
        self.path, self.line = _users_line()
        place = snapshot.places.get(id(variable), "")
        named = f"{type(variable).__name__} `{place}`" if place else type(variable).__name__
        self.text = f"{named} ({describe_value(variable._value)})"


# By id of the Variable; nearly always empty, so that asking whether it is costs nothing.
UNREAD: dict[int, _Write] = {}
_GIVEN: dict[Any, Any] = {}  # what Python knows of the warnings that it has shown
_FUNCTIONS: set[str] = set()  # those that a LostWriteWarning was given for


def written(variable: Any, snapshot: Snapshot) -> None:
    """A Variable of a snapshot is being written."""
    if not UNREAD:
        atexit.unregister(_tell_all)
        atexit.register(_tell_all)
    UNREAD[id(variable)] = _Write(variable, snapshot)


def taken(variables: Iterable[Any]) -> None:
    """A verb or transform has taken the values of these Variables: their States are made use of."""
    for variable in variables:
        if (write := UNREAD.pop(id(variable), None)) is not None:
            write.snapshot.settled = True


def _dropped(key: int, reference: Any) -> None:
    write = UNREAD.get(key)
    if write is not None and write.reference is reference:
        del UNREAD[key]
        _tell(write)


def _tell(write: _Write) -> None:
    snapshot = write.snapshot
    if snapshot.settled:
        return
    snapshot.settled = True
    if snapshot.function:
        if snapshot.function not in _FUNCTIONS:
            _FUNCTIONS.add(snapshot.function)
            function = snapshot.function
            texts = {w.text for w in UNREAD.values() if w.snapshot.function == function}
            lost = sorted({write.text, *texts}, key=lambda t: (not t.startswith("Param"), t))
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            warnings.warn_explicit(
                f"{function}, writes {', '.join(lost[:3])}{more} in its arguments, and drops "
                "it. Plain JAX gives a function copies of its arguments, so nothing reaches the "
                "caller's objects.\n"
                "Cure: nnx.jit (nnx.grad, nnx.vmap, …) in the place of JAX's, which brings changes "
                "back; or return the object.",
                LostWriteWarning,
                write.path,
                write.line,
            )
    else:
        warnings.warn_explicit(
            f"A {write.text} of a State was written, and the State was dropped without being read "
            "again. What nnx.state and nnx.split give is a snapshot, with copies of the Variables, "
            "so the write did not reach the object that it was taken of.\n"
            "Cure: write it back, nnx.update(model, state); or take a State that shares the "
            "model's own Variables, nnx.state(model, copy=False).",
            SnapshotWarning,
            write.path,
            write.line,
            registry=_GIVEN,
        )


def _tell_all() -> None:
    """At the end of the program, States that are still held are dropped unread."""
    while UNREAD:
        _tell(UNREAD.popitem()[1])


def _users_line() -> tuple[str, int]:
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("refax."):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
