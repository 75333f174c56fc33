"""Errors of the verbs: each says what, where (the path), and the cure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from ..objects.errors import StructureError, describe_value, path_string
from ..objects.representation import shortened

# What one error shows of each kind: so many lines, and characters of a name, of a line at least, of
# all kinds.
_SHOWN, _LONG, _LEAST, _ROOM = 200, 60, 150, 20_000


class Misfits:
    """What does not fit an object, gathered, so that one error can tell all of it.

    Args:
        verb: for the message.
        given: what the values stand in.
    """

    def __init__(self, verb: str, given: str = "State"):
        self.verb, self._given = verb, given
        self._lines: dict[tuple[str, str], list[str]] = {}  # by cure and by how they begin
        self._cures: dict[str, None] = {}  # each once, in order

    def add(self, cure: str, *lines: str) -> None:
        """Things that do not fit, one a line, with one cure."""
        if lines:
            self._lines.setdefault((cure, lines[0].partition("`")[0]), []).extend(lines)
            self._cures[cure] = None

    def unlike(self, what: str, old: Any, new: Any, cure: str) -> None:
        given = f"{describe_value(new)} in the {self._given}"
        self.add(cure, f"{what} is {describe_value(old)} in the object but {given}.")

    def raise_if_any(self) -> None:
        count = sum(map(len, self._lines.values()))
        if not count:
            return
        cures = "; or ".join(self._cures)
        room = (_ROOM - len(cures)) // len(self._lines)
        shown = [x for (_, kind), lines in self._lines.items() for x in _some(kind, lines, room)]
        what = shown[0]
        if count > 1:
            what = (
                f"{count:,} values of the {self._given} do not fit the object; nothing was "
                "changed:\n  " + "\n  ".join(shown)
            )
        raise StructureError(f"nnx.{self.verb}: {what}\nCure: {cures}.")


def _some(kind: str, lines: list[str], room: int) -> list[str]:
    """The first lines, in about so many characters, with long names cut."""
    cut = [re.sub("`.*?`", lambda name: shortened(name[0], _LONG), x) for x in lines[:_SHOWN]]
    cut = [shortened(x, max(room, _LEAST)) for x in cut]
    fit = sum(length <= room for length in accumulate(map(len, cut))) or 1
    return cut[:fit] + [f"{kind}… and {len(lines) - fit:,} more"] * (len(lines) > fit)


def number_of_leaves(expected: int, given: int) -> StructureError:
    return StructureError(
        f"nnx.merge: the GraphDef has {expected} leaves, but the list has {given}.\n"
        "Cure: pass all of them, in the order of jax.tree.leaves(state); where a Variable holds "
        "several arrays, pass the State itself."
    )


def leaf_missing(path: Iterable[Any], more: int) -> StructureError:
    others = f" (and {more} more)" if more else ""
    return StructureError(
        f"nnx.merge: no value for `{path_string(path)}`{others} in the States that were given.\n"
        "Cure: pass every State that nnx.split returned, nnx.merge(graphdef, *states)."
    )


def other_shapes(leaves: list[tuple[tuple, tuple, tuple]]) -> StructureError:
    shown = ", ".join(f"`{path_string(p)}` {old} → {new}" for p, old, new in leaves[:3])
    more = f" and {len(leaves) - 3} more" if len(leaves) > 3 else ""
    return StructureError(
        f"nnx.merge: the State has other shapes than the object that was split: {shown}{more}.\n"
        "Cure: merge the State with the GraphDef that it came with; to resize arrays on purpose, "
        "merge first and assign them: `model.kernel.value = new`."
    )
