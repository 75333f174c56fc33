"""Errors of the object graph: each says what, where (the path), why, and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..objects.errors import (
    GraphError,
    StructureError,
    UnhashableStaticError,
    describe_value,
    path_string,
)


def unhashable_static(path: Iterable[Any], value: Any) -> UnhashableStaticError:
    where = path_string(path)
    return UnhashableStaticError(
        f"The static attribute `{where}` is a {type(value).__name__}, which has no hash and cannot "
        f"be compared: its `==` fails, or is no bool: {describe_value(value)}.\n"
        "A transform compares static attributes between calls to find what it compiled.\n"
        "Cure: give it an `__eq__` that returns a bool; or, if it holds arrays, keep them in "
        f"attributes of their own, or mark it as data: `self.{where.rpartition('.')[2]} = "
        "nnx.data(...)`."
    )


def hidden_objects(path: Iterable[Any], value: Any) -> StructureError:
    return StructureError(
        f"`{path_string(path)}` is a {type(value).__name__}, which is no part of the object graph "
        "(plain lists, tuples and dicts are), but it holds objects or arrays, which would not be "
        "found.\n"
        "Cure: keep them in a plain container or in a Pytree of your own; register the type with "
        "JAX; or mark it nnx.static(...) to leave it out on purpose."
    )


def not_exhaustive(paths: list[tuple], verb: str, cure: str) -> GraphError:
    shown = ", ".join(f"`{path_string(p)}`" for p in paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return GraphError(
        f"nnx.{verb}: the filters are not exhaustive: none matches {shown}{more}.\nCure: {cure}"
    )
