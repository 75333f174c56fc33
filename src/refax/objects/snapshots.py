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
from collections.abc import Callable, Iterable
from typing import Any

from .._jax_compat import TRACE, only_asked
from .errors import describe_value
from .trace_errors import traced_function


class SnapshotWarning(UserWarning):
    """A Variable of a State was written, and the State was dropped without being read again."""


class LostWriteWarning(SnapshotWarning):
    """A function under plain JAX wrote a Variable of an argument, and the argument was dropped."""


class Snapshot:
    """One State that was taken of an object; stands in its Variables in the place of the trace."""

    __slots__ = ("settled", "trace")

    def __init__(self, trace: Any):
        self.trace = trace
        self.settled = False  # a verb has taken what was written, or the warning was given

    def name(self, variable: Any) -> str:
        """A Variable that is being written, for the warning."""
        return type(variable).__name__

    def taken(self, variable: Any) -> None:
        """A verb or transform has taken what was written."""
        self.settled = True

    def tell(self, write: Write) -> None:
        """A Variable was dropped, and nothing has read what was written."""
        if self.settled:
            return
        self.settled = True
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


class Rebuilt(Snapshot):
    """An argument that plain JAX rebuilt for a function that it traces; also in place of the trace.

    `jax.jit(step)(model, x)` calls `step` with a copy of the model. What it writes reaches the
    caller only if the function returns the object, or a part of it, or what it reads of it.

    Args:
        place: from a Variable to its place in the object, such as `Linear.kernel`.
    """

    __slots__ = ("function", "place")

    def __init__(self, trace: Any, place: Callable[[Any], str]):
        super().__init__(trace)
        self.place = place
        self.function = ""

    def name(self, variable: Any) -> str:
        self.function = self.function or traced_function()
        return f"{type(variable).__name__} `{self.place(variable)}`"

    def taken(self, variable: Any) -> None:
        variable._trace = self  # the next write is noted again

    def tell(self, write: Write) -> None:
        # The arguments of a function that raised are dropped after its trace has ended.
        # Where JAX wraps the function, as pmap does, the name is JAX's and tells none apart.
        where = (write.path, write.line) if "pmap.py" in self.function else ()
        told = (self.function, *where)
        if told in _TOLD or TRACE.value is not self.trace or only_asked():
            return
        _TOLD.add(told)
        others = [
            w for w in UNREAD.values() if getattr(w.snapshot, "function", "") == self.function
        ]
        texts = {w.text for w in (write, *others)}
        lost = sorted(texts, key=lambda text: (not text.startswith("Param"), text))
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        warnings.warn_explicit(
            f"{self.function}, writes {', '.join(lost[:3])}{more}, and then drops what it wrote. "
            "Plain JAX gives a function copies of its arguments, so nothing of this reaches the "
            "caller's objects.\n"
            "Cure: nnx.jit (nnx.grad, nnx.vmap, …) in the place of JAX's, which brings changes "
            "back; or return the object, and use what comes back.",
            LostWriteWarning,
            write.path,
            write.line,
        )


class Write:
    """The last write to a Variable of a snapshot, as long as nothing has read it."""

    __slots__ = ("line", "path", "reference", "snapshot", "text")

    def __init__(self, variable: Any, snapshot: Snapshot):
        self.reference = weakref.ref(variable, functools.partial(_dropped, id(variable)))
        self.snapshot = snapshot
        self.path, self.line = _users_line()
        self.text = f"{snapshot.name(variable)} ({describe_value(variable._value)})"


# By id of the Variable; nearly always empty, so that asking whether it is costs nothing.
UNREAD: dict[int, Write] = {}
_GIVEN: dict[Any, Any] = {}  # what Python knows of the warnings that it has shown
_TOLD: set[tuple] = set()  # the functions whose lost writes were told


def written(variable: Any, snapshot: Snapshot) -> None:
    """A Variable of a snapshot is being written."""
    if not UNREAD:
        atexit.unregister(_tell_all)
        atexit.register(_tell_all)
    UNREAD[id(variable)] = Write(variable, snapshot)


def taken(variables: Iterable[Any]) -> None:
    """A verb or transform has taken the values of these Variables: their States are made use of."""
    for variable in variables:
        if (write := UNREAD.pop(id(variable), None)) is not None:
            write.snapshot.taken(variable)


def _dropped(key: int, reference: Any) -> None:
    write = UNREAD.get(key)
    if write is not None and write.reference is reference:
        del UNREAD[key]
        write.snapshot.tell(write)


def _tell_all() -> None:
    """At the end of the program, States that are still held are dropped unread."""
    while UNREAD:
        write = UNREAD.popitem()[1]
        write.snapshot.tell(write)


def _users_line() -> tuple[str, int]:
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("refax."):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
