"""Errors of loading: everything that does not fit, told at once, by name and with a cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..objects.errors import StructureError, describe_value, suggest

_SHOWN = 12


def no_mapping(verb: str, value: Any) -> TypeError:
    return TypeError(
        f"nnx.{verb} takes a mapping from dotted names to arrays, got {describe_value(value)}.\n"
        "Cure: the result of nnx.state_dict(object), or what another library gives, "
        "`dict(torch_model.state_dict())`."
    )


class Problems:
    """What does not fit, collected until everything has been looked at."""

    def __init__(self, verb: str, obj: Any):
        self.verb = verb
        self._object = type(obj).__name__
        self._lines: list[str] = []
        self._cures: dict[str, None] = {}

    def _add(self, lines: Sequence[str], cure: str) -> None:
        self._lines += lines[:_SHOWN]
        if len(lines) > _SHOWN:
            self._lines.append(f"… and {len(lines) - _SHOWN} more")
        self._cures[cure] = None

    def missing(self, names: Sequence[str], unexpected: Sequence[str]) -> None:
        if names:
            lines = [f"missing: `{name}`.{suggest(name, unexpected)}" for name in names]
            self._add(lines, "rename={…} for other names; strict=False to keep what is missing")

    def unexpected(self, names: Sequence[str], known: Sequence[str]) -> None:
        if names:
            lines = [f"unexpected: `{name}`.{suggest(name, known)}" for name in names]
            self._add(lines, "rename={…} for other names; strict=False to leave out the unexpected")

    def misshapen(self, name: str, given: str, old: Any, new: Any) -> None:
        self._form(name, given, old, new, "transform=… for another layout, such as a transpose")

    def other_kind(self, name: str, given: str, old: Any, new: Any) -> None:
        self._form(name, given, old, new, "transform=… to convert the values on purpose")

    def _form(self, name: str, given: str, old: Any, new: Any, cure: str) -> None:
        also = "" if given == name else f" (given as `{given}`)"
        what = f"{describe_value(old)} in the object but {describe_value(new)} in the mapping"
        self._add([f"`{name}`{also} is {what}"], cure)

    def two_values(self, one: str, other: str) -> None:
        self._add(
            [f"`{one}` and `{other}` are one tied array, but have two values"],
            "drop one of the two names, or untie them in the object",
        )

    def renamed_to_one(self, one: str, other: str, new: str) -> None:
        self._add([f"`{one}` and `{other}` are both renamed to `{new}`"], "another rename={…}")

    def blocks(self, stack: str, rest: str, given: Sequence[int], n: int) -> None:
        self._add(
            [f"`{stack}` stacks {n} blocks, but `{rest}` is there for the blocks {list(given)}"],
            "as many blocks as the Stack has",
        )

    def uneven(self, name: str, shapes: Sequence[tuple]) -> None:
        self._add(
            [f"`{name}` is stacked from arrays of several shapes: {sorted(set(shapes))}"],
            "blocks of one size",
        )

    def raise_if_any(self) -> None:
        if self._lines:
            raise StructureError(
                f"nnx.{self.verb}: what is given does not fit the {self._object}; nothing was "
                "written.\n  " + "\n  ".join(self._lines) + f"\nCure: {'; '.join(self._cures)}."
            )
