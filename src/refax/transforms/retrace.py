"""Why a function was traced again: what differed from the nearest earlier trace, by path.

Each trace of an `nnx.jit` function leaves a record: the structure of its objects, its static
arguments, and shape and dtype of every array. Comparing two records says what changed
(`model.layers[3].dropout.deterministic: False → True`, `x: float32[32,8] → float32[31,8]`). Nothing
here runs in a call that does not trace.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ..graph.graphdef import GraphDef
from ..lift.errors import argument_place
from ..lift.places import outline, place_under
from ..objects.errors import describe_value
from ..objects.stack import Stack
from ..objects.trace_errors import known_name, where

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


_NOTHING = "nothing"


class Difference(NamedTuple):
    """One thing that differs between two traces."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}: {self.old} → {self.new}"

    @property
    def adds_or_removes(self) -> bool:
        return _NOTHING in (self.old, self.new)

    @property
    def subject(self) -> str:
        """What keeps changing: the path, or the container in which entries come and go."""
        if self.adds_or_removes and self.path.endswith("]"):
            return self.path.rpartition("[")[0]
        return self.path


class TraceRecord:
    """What one trace was made for. Noted in full, put into words only when somebody compares.

    Args:
        graphdef: of the objects.
        roots: the place of each root.
        values: the leaves' values.
        tree: (args, kwargs) with slots.
        labels: the names of the positional arguments.
        statics: static arguments by name.
    """

    def __init__(
        self,
        graphdef: GraphDef,
        roots: Sequence[str],
        values: Sequence[Any],
        tree: Any,
        labels: Sequence[str],
        statics: Mapping[str, Any],
    ):
        self._graphdef = graphdef
        self._roots = roots
        self._labels = labels
        self._values = [jax.tree.map(jax.typeof, value) for value in values]
        self._tree = [
            (path, jax.typeof(value)) for path, value in jax.tree_util.tree_leaves_with_path(tree)
        ]
        self._statics = {name: repr(value) for name, value in statics.items()}

    @functools.cached_property
    def parts(self) -> tuple[dict[str, str], ...]:
        """{place: text} of the structure, of static arguments, and of every array."""
        paths = self._graphdef.paths.leaves
        arrays = {
            place_under(path, self._roots): _form(value)
            for path, value in zip(paths, self._values, strict=True)
        }
        for path, aval in self._tree:
            arrays[argument_place(path, self._labels)] = _form(aval)
        return outline(self._graphdef, self._roots), self._statics, arrays

    def differences(self, earlier: TraceRecord) -> list[Difference]:
        found: dict[str, Difference] = {}
        for old, new in zip(earlier.parts, self.parts, strict=True):
            for place in [*new, *(p for p in old if p not in new)]:
                difference = Difference(place, old.get(place, _NOTHING), new.get(place, _NOTHING))
                if difference.old == difference.new:
                    continue
                known = found.get(place)  # that there is an array; now also its form
                if known is None or (known.adds_or_removes and difference.adds_or_removes):
                    found[place] = difference
        return list(found.values())


def _form(avals: Any) -> str:
    leaves, structure = jax.tree.flatten(avals)
    shown = []
    for aval in leaves:
        weak = " (a Python scalar)" if getattr(aval, "weak_type", False) else ""
        shown.append(f"{aval.dtype}[{','.join(map(str, aval.shape))}]{weak}")
    return shown[0] if len(shown) == 1 else f"{structure.unflatten(shown)}"


class Traces:
    """The traces of one jitted function."""

    def __init__(self, function: Callable):
        self.name = getattr(function, "__qualname__", type(function).__name__)
        self._where = where(function)
        self.count = 0
        self.records: list[TraceRecord] = []
        self.reasons: list[list[Difference]] = []
        self._warned = False

    def note(self, new: TraceRecord) -> None:
        self.count += 1
        for counters in _ACTIVE.items:
            counters[self] = counters.get(self, 0) + 1
        if self.records:
            reasons = min((new.differences(old) for old in reversed(self.records)), key=len)
            self.reasons.append(reasons)
            _LOGGER.info("%s traced again (%d times now): %s", self.name, self.count,
                         "; ".join(map(str, reasons[:5])) or "no visible difference")  # fmt: skip
        self.records.append(new)
        del self.records[:-_MAX_RECORDS], self.reasons[:-_MAX_RECORDS]
        if self.count > _MANY + 1 and not self._warned:
            self._warned = True
            warnings.warn(self._warning(), RetraceWarning, stacklevel=users_level())

    def _warning(self) -> str:
        text = f"{self._where} was traced {self.count} times; each trace compiles anew. "
        commonest = Counter(d.subject for reasons in self.reasons for d in reasons).most_common(1)
        if commonest:
            subject, times = commonest[0]
            reasons = [d for reasons in self.reasons for d in reasons if d.subject == subject]
            text += f"The commonest reason ({times} times): {reasons[-1]}.\n{_cure(reasons[-1])}\n"
        return text + "All of them: print(f.explain())."

    def explain(self) -> str:
        """What differed, for every trace after the first."""
        if self.count <= 1:
            return f"{self.name}: traced {self.count} time{'s' if self.count != 1 else ''}."
        lines = [f"{self.name}: traced {self.count} times."]
        first = self.count - len(self.reasons) + 1
        for number, reasons in enumerate(self.reasons, first):
            lines.append(f"trace {number}, compared with the nearest earlier one:")
            lines += [f"  {d}" for d in reasons[:20]]
            if len(reasons) > 20:
                lines.append(f"  … and {len(reasons) - 20} more differences")
            if not reasons:
                lines.append(
                    "  no difference in objects or arguments: a JAX setting or context (a mesh, "
                    "x64 …) changed, or the cache was cleared"
                )
        return "\n".join(lines)


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


@contextlib.contextmanager
def assert_max_traces(n: int, function: Callable | None = None) -> Iterator[None]:
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
