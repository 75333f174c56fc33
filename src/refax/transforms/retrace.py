"""Why a function was traced or compiled again, by path.

Each trace of an `nnx.jit` function leaves a record (`differences.py`), and so does each
compilation: JAX compiles one trace again when its inputs come with other placements. Nothing here
runs in a call that does neither: JAX tells of a compilation, and only then is its call looked for.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..lift.places import Fact, said
from ..objects.arguments import Count, checked
from ..objects.errors import describe_value
from ..objects.representation import Text
from ..objects.stack import Stack
from ..objects.trace_errors import known_name, where
from .differences import Difference, TraceRecord, differences_between, placement

_LOGGER = logging.getLogger("refax.retrace")
_MAX_RECORDS = 64
_MANY = 8


class RetraceWarning(UserWarning):
    """A function keeps being traced (and compiled) again."""


class StaleConstantWarning(UserWarning):
    """A compiled function reads a Variable as a constant, and the Variable was written since."""


def stale_constant(function: Callable, variable: Any) -> str:
    name = known_name(variable)
    kind = f"{type(variable).__name__} ({describe_value(variable._value)})"
    return (
        f"{where(function)} reads `{name}`, a {kind}, from the surrounding code, so its program "
        "has the value of then as a constant. The Variable was written since, which this call "
        "does not see.\n"
        "Cure: pass the object that holds it as an argument: def f(model, x), not def f(x)."
    )


class Traces:
    """The traces of one jitted function."""

    def __init__(self, function: Callable):
        self.name: str = getattr(function, "__qualname__", type(function).__name__)
        self._where = where(function)
        self.count: int = 0
        self.records: list[TraceRecord] = []
        self.reasons: list[list[Difference]] = []
        # Of each compilation: the number of the trace, where the inputs were, what was different.
        self.compilations: list[tuple[int, dict[str, Fact], list[Difference] | None]] = []
        self._warned = False

    def note(self, new: TraceRecord) -> None:
        self.count += 1
        for counters in _ACTIVE.items:
            counters[self] = counters.get(self, 0) + 1
        found = [new.differences(old) for old in reversed(self.records)]
        if found:
            self.reasons.append(self._nearest(f"traced again ({self.count} times now)", found))
        self.records.append(new)
        del self.records[:-_MAX_RECORDS], self.reasons[:-_MAX_RECORDS]
        if self.count > _MANY + 1 and not self._warned:
            self._warned = True
            warnings.warn(self._warning(), RetraceWarning, stacklevel=users_level())

    def note_compilation(self, inputs: Iterable[tuple[str, Any]]) -> None:
        """The latest trace was compiled for these (place, value) inputs."""
        new = {place: said(placement(value)) for place, value in inputs}
        earlier = [old for trace, old, _ in reversed(self.compilations) if trace == self.count]
        found = [differences_between(old, new) for old in earlier]
        reasons = self._nearest("compiled again", found) if found else None
        self.compilations.append((self.count, new, reasons))
        del self.compilations[:-_MAX_RECORDS]

    def _nearest(self, what: str, found: list[list[Difference]]) -> list[Difference]:
        """The differences from the earlier one that is most like the new one."""
        reasons = min(found, key=len)
        told = "; ".join(map(str, reasons[:5])) or "no visible difference"
        _LOGGER.info("%s %s: %s", self.name, what, told)
        return reasons

    def _warning(self) -> str:
        text = f"{self._where} was traced {self.count} times; each trace compiles anew. "
        commonest = Counter(d.subject for reasons in self.reasons for d in reasons).most_common(1)
        if commonest:
            subject, times = commonest[0]
            reasons = [d for reasons in self.reasons for d in reasons if d.subject == subject]
            text += f"The commonest reason ({times} times): {reasons[-1]}.\n{_cure(reasons[-1])}\n"
        return text + "All of them: print(f.explain())."

    def explain(self) -> str:
        """What differed, for every trace and every compilation of a trace after the first."""
        again = [(trace, reasons) for trace, _, reasons in self.compilations if reasons is not None]
        head = f"{self.name}: traced {_times(self.count)}"
        if again:
            head += f", compiled {_times(self.count + len(again))}"
        first = self.count - len(self.reasons) + 1
        told = [(f"trace {number}", reasons, _SAME_TRACE)
                for number, reasons in enumerate(self.reasons, first)]  # fmt: skip
        of = " of trace {}" if self.count > 1 else ""
        told += [(f"another compilation{of.format(trace)}", reasons, _SAME_PLACES)
                 for trace, reasons in again]  # fmt: skip
        lines = [f"{head}."]
        for what, reasons, none in told:
            lines.append(f"{what}, compared with the nearest earlier one:")
            lines += [f"  {d}" for d in reasons[:20]] or [f"  {none}"]
            if len(reasons) > 20:
                lines.append(f"  … and {len(reasons) - 20} more differences")
        return Text("\n".join(lines))


_SAME_TRACE = (
    "no difference in objects, arguments or settings of JAX: the cache was cleared, or a context "
    "that refax does not know was another"
)
_SAME_PLACES = "no difference in where the inputs are"


def _times(n: int) -> str:
    return f"{n} time{'s' if n != 1 else ''}"


def users_level() -> int:
    """The `stacklevel` of the nearest frame that is neither refax's nor JAX's."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("refax.", "jax")):
        level, frame = level + 1, frame.f_back
    return level


def _cure(difference: Difference) -> str:
    path = difference.path
    if difference.adds_or_removes:
        return (
            f"Cure: keep `{difference.subject}` as it is between calls: a fixed number of entries, "
            "such as an array that is written at an index; or collect outside of the objects."
        )
    if ".tx." in path or path.endswith(".tx"):
        return (
            "Cure: make the optimizer once. For a learning rate that changes, give optax a "
            "schedule, or wrap the factory in optax.inject_hyperparams."
        )
    if "[" in difference.old and "[" in difference.new:
        return "Cure: keep shapes and dtypes the same, for instance by padding the last batch."
    return (
        f"Cure: keep `{path}` the same between calls, or make it an array (an nnx.Variable, or a "
        "traced argument) if its value may change."
    )


_ACTIVE = Stack()  # of {traces: count}, one for each `assert_max_traces`


@checked
@contextlib.contextmanager
def assert_max_traces(n: Count, function: Callable[..., Any] | None = None) -> Iterator[None]:
    """Raise AssertionError if an `nnx.jit` function is traced more than `n` times in the block.

    Args:
        n: the most traces that any one function may have in the block.
        function: count this one only.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> double = nnx.jit(lambda x: 2 * x)
        >>> with nnx.assert_max_traces(1):
        ...     for i in range(5):
        ...         _ = double(jnp.ones(3) * i)
    """
    counters: dict[Traces, int] = {}
    with _ACTIVE.during(counters):
        yield
    wanted = getattr(function, "traces", None)
    for traces, count in counters.items():
        if count > n and (wanted is None or traces is wanted):
            raise AssertionError(
                f"{traces.name} was traced {count} times, more than {n}.\n{traces.explain()}\n"
                "Cure: keep what differs the same between calls, or allow for more traces."
            )
