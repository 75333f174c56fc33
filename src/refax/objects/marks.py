"""Marks: what is said about an attribute, "data" or "static", by value, annotation or field."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, overload

from typing_extensions import dataclass_transform

T = TypeVar("T")


class Mark:
    """A value on its way into an attribute, with "data" or "static" said about it."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: str, value: Any):
        self.kind = kind
        self.value = value


Data = typing.Annotated[T, "refax: data"]


Static = typing.Annotated[T, "refax: static"]


def _mark(kind: str, value: Any, field: dict[str, Any]) -> Any:
    if value is not ...:
        return Mark(kind, value)
    metadata = {**field.pop("metadata", {}), "refax": kind}
    return dataclasses.field(metadata=metadata, **field)


def data(value: Any = ..., **field: Any) -> Any:
    """Mark an attribute as data: `self.scale = nnx.data(2.0)` makes the number a leaf.

    In a dataclass body, with the keywords of `dataclasses.field`: `scale: float = nnx.data()`.
    """
    return _mark("data", value, field)


def static(value: Any = ..., **field: Any) -> Any:
    """Mark an attribute as static: it is compared between calls, not traced; must be hashable.

    In a dataclass body, with the keywords of `dataclasses.field`: `sizes: tuple = nnx.static()`.
    """
    return _mark("static", value, field)


def class_marks(cls: Any) -> Mapping[str, str]:
    """Which attributes the annotations and fields of a class mark, worked out once a class."""
    marks = cls.__dict__.get("_refax_class_marks")
    if marks is None:
        marks = _find_class_marks(cls)
        cls._refax_class_marks = marks
    return marks


def _find_class_marks(cls: type) -> dict[str, str]:
    marks: dict[str, str] = {}
    for name, hint in _annotations(cls):
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, str) and extra.startswith("refax: "):
                marks[name] = extra.removeprefix("refax: ")
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if "refax" in field.metadata:
                marks[field.name] = field.metadata["refax"]
            elif isinstance(static := field.metadata.get("static"), bool):
                marks[field.name] = "static" if static else "data"
    return marks


def _annotations(cls: type) -> Iterator[tuple[str, Any]]:
    for base in reversed(cls.__mro__):
        if base is not object and base.__module__ != "typing":
            for name, hint in vars(base).get("__annotations__", {}).items():
                yield name, _named(base, hint) if isinstance(hint, str) else hint


def _named(cls: type, hint: str) -> Any:
    """`nnx.Data` of the text "nnx.Data[float]". What is in the brackets is left alone: it may name
    what only a type checker imports.
    """
    value: Any = sys.modules.get(cls.__module__)
    for name in hint.partition("[")[0].strip().split("."):
        value = getattr(value, name, None)
    return value


@overload
@dataclass_transform(eq_default=False, field_specifiers=(data, static, dataclasses.field))
def dataclass(cls: type[T], /) -> type[T]: ...
@overload
def dataclass(**options: Any) -> Callable[[type[T]], type[T]]: ...
def dataclass(cls: Any = None, **options: Any) -> Any:
    """`dataclasses.dataclass` for Pytrees: identity as equality, and refax's `repr`.

    Example:
        >>> from refax import nnx
        >>> @nnx.dataclass
        ... class Scale(nnx.Module):
        ...     factor: float = nnx.data()
        >>> nnx.state(Scale(2.0))["factor"]
        2.0
    """
    return dataclasses.dataclass(cls, **{"eq": False, "repr": False, **options})
