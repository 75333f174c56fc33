"""Errors of the verbs: each says what, where (the path), and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..objects.errors import StructureError, describe_value, path_string

_SHOWN = 12


class Misfits:
    """What does not fit an object, gathered, so that one error can tell all of it.

    Args:
        verb: for the message.
        given: what the values stand in.
    """

    def __init__(self, verb: str, given: str = "State"):
        self.verb, self._given = verb, given
        self._lines: list[str] = []
        self._count = 0
        self._cures: dict[str, None] = {}  # each once, in order

    def add(self, cure: str, *lines: str) -> None:
        """Things that do not fit, one a line, with one cure."""
        if lines:
            more = len(lines) - _SHOWN
            self._lines += [*lines[:_SHOWN], f"… and {more} more"] if more > 0 else lines
            self._count += len(lines)
            self._cures[cure] = None

    def unlike(self, what: str, old: Any, new: Any, cure: str) -> None:
        given = f"{describe_value(new)} in the {self._given}"
        self.add(cure, f"{what} is {describe_value(old)} in the object but {given}.")

    def raise_if_any(self) -> None:
        if not self._lines:
            return
        what = self._lines[0]
        if len(self._lines) > 1:
            what = (
                f"{self._count} values of the {self._given} do not fit the object; nothing was "
                "changed:\n  " + "\n  ".join(self._lines)
            )
        raise StructureError(f"nnx.{self.verb}: {what}\nCure: {'; or '.join(self._cures)}.")


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
