"""Errors of the verbs: each says what, where (the path), and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..objects.errors import StructureError, describe_value, path_string, suggest


def unknown_path(path: Iterable[Any], choices: Iterable[Any], verb: str) -> StructureError:
    path = tuple(path)
    return StructureError(
        f"nnx.{verb}: the State has a value at `{path_string(path)}`, where the object has no "
        f"Variable or array.{suggest(path[-1] if path else '', choices)}\n"
        "Cure: build the State from an object of the same structure, or drop that path from it "
        "(nnx.filter_state, or `del state[...]`)."
    )


def leaf_missing(path: Iterable[Any], more: int) -> StructureError:
    others = f" (and {more} more)" if more else ""
    return StructureError(
        f"nnx.merge: no value for `{path_string(path)}`{others} in the States that were given.\n"
        "Cure: pass every State that nnx.split returned, nnx.merge(graphdef, *states)."
    )


def shape_mismatch(path: Iterable[Any], old: Any, new: Any, verb: str) -> StructureError:
    return StructureError(
        f"nnx.{verb}: `{path_string(path)}` is {describe_value(old)} in the object but "
        f"{describe_value(new)} in the State.\n"
        "Cure: make the object with the same sizes as the State came from; to replace the array by "
        "one of another shape on purpose, assign it: `variable.value = new`."
    )
