"""Errors of the verbs: each says what, where (the path), and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..objects.errors import StructureError, path_string


def leaf_missing(path: Iterable[Any], more: int) -> StructureError:
    others = f" (and {more} more)" if more else ""
    return StructureError(
        f"nnx.merge: no value for `{path_string(path)}`{others} in the States that were given.\n"
        "Cure: pass every State that nnx.split returned, nnx.merge(graphdef, *states)."
    )
