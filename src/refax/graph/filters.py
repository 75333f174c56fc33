"""Filters: predicates over (path, value), and the short forms that stand for them.

A type means "a Variable of that type", a string means "a Variable with that tag", `...` and `True`
everything, `None` and `False` nothing, a callable is itself, a tuple or list means any of its
entries. The value that a filter sees is the Variable (or the bare array) itself.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import cast

from ..objects.arguments import Fits, taken_by, unfit
from ..objects.arguments import checked as checked
from ..objects.node import Node
from ..objects.variable import Variable

_FILTERS = (
    "give a Variable type, a tag (a string), `...`, True, False, None, a callable (path, value) → "
    "bool, or a tuple or list of filters."
)
Filter = typing.Annotated[
    typing.Any, Fits("a filter", taken_by(lambda x: to_predicate(x)), _FILTERS)
]
FilterLiteral = type | str | bool | None
Predicate = Callable[[tuple[typing.Any, ...], typing.Any], bool]


@typing.runtime_checkable
class HasTag(typing.Protocol):
    """What `WithTag` asks: anything with a `tag`, such as `nnx.Param(value, tag="frozen")`."""

    tag: str


class _Frozen:
    """Filters are compared and hashed by content, so that they can key a cache."""

    __slots__ = ("content",)

    def __init__(self, *content: typing.Any):
        self.content: tuple[typing.Any, ...] = content

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.content == self.content

    def __hash__(self) -> int:
        return hash((type(self), self.content))

    def __repr__(self) -> str:
        name = type(self).__name__.rstrip("_")
        return f"{name}({', '.join(map(_show, self.content))})"

    def __call__(self, path: tuple[typing.Any, ...], x: typing.Any) -> bool:
        raise NotImplementedError


def _show(part: typing.Any) -> str:
    return part.__name__ if isinstance(part, type) else repr(part)


class OfType(_Frozen):
    """Matches Variables of a type, other values of it, and what has that type as its `type`."""

    def __init__(self, type: type):
        super().__init__(type)

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        if isinstance(x, (self.content[0], Variable, Node)):
            return isinstance(x, self.content[0])
        kind = getattr(x, "type", None)
        return isinstance(kind, type) and issubclass(kind, self.content[0])


class WithTag(_Frozen):
    """Matches Variables whose metadata `tag` is this string."""

    def __init__(self, tag: str):
        super().__init__(tag)

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        return isinstance(x, Variable) and x._metadata.get("tag") == self.content[0]


class PathContains(_Frozen):
    """Matches values with this key in their path (`exact=False`: within a key's text)."""

    @checked
    def __init__(self, key: typing.Any, exact: bool = True):
        super().__init__(key, exact)

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        key, exact = self.content
        return key in path if exact else any(str(key) in str(part) for part in path)


class PathIn(_Frozen):
    """Matches values at exactly one of these paths."""

    @checked
    def __init__(self, *paths: tuple[typing.Any, ...]):
        super().__init__(frozenset(tuple(p) for p in paths))

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        return path in self.content[0]


class Any(_Frozen):
    """Matches what one of the filters matches."""

    def __init__(self, *filters: Filter):
        super().__init__(*map(to_predicate, filters))

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        return any(p(path, x) for p in self.content)


class All(_Frozen):
    """Matches what all of the filters match."""

    def __init__(self, *filters: Filter):
        super().__init__(*map(to_predicate, filters))

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        return all(p(path, x) for p in self.content)


class Not(_Frozen):
    """Matches what the filter does not match."""

    def __init__(self, filter: Filter, /):
        super().__init__(to_predicate(filter))

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        return not self.content[0](path, x)


class Everything(_Frozen):
    """Matches everything: `...` and `True`."""

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        return True


class Nothing(_Frozen):
    """Matches nothing: `None` and `False`."""

    def __call__(self, path: tuple[Any, ...], x: typing.Any) -> bool:
        return False


def to_predicate(filter: Filter) -> Predicate:
    """The predicate that a filter in any of its forms stands for.

    Raises:
        TypeError: something that is no filter.
    """
    if isinstance(filter, _Frozen):
        return filter
    if filter is ... or filter is True:
        return Everything()
    if filter is None or filter is False:
        return Nothing()
    if isinstance(filter, str):
        return WithTag(filter)
    if isinstance(filter, type):
        return OfType(filter)
    if isinstance(filter, (tuple, list)):
        return Any(*filter)
    if callable(filter):
        return cast(Predicate, filter)
    raise unfit(filter, "a filter", _FILTERS)


def filters_to_predicates(filters: Iterable[Filter]) -> tuple[Predicate, ...]:
    """The predicates of filters that a leaf is tried with in order.

    Raises:
        ValueError: `...` (or True) before another filter, which would get nothing.
    """
    filters = tuple(filters)
    check_ellipsis_last(filters, "filterlib.filters_to_predicates")
    return tuple(map(to_predicate, filters))


def is_structural(predicate: Predicate) -> bool:
    """Whether the answer depends on path, type and metadata only, not on a value or a closure."""
    if isinstance(predicate, (Any, All, Not)):
        return all(map(is_structural, predicate.content))
    if isinstance(predicate, OfType):  # a bare array may become one of another type
        kind = predicate.content[0]
        return isinstance(kind, type) and issubclass(kind, Variable)
    return isinstance(predicate, _Frozen)


def matches_any(filters: Iterable[Filter]) -> Predicate | None:
    """One predicate for several filters; None where there are none (everything matches)."""
    filters = tuple(filters)
    return Any(*filters) if filters else None


def first_match(predicates: Iterable[Predicate], path: tuple, value: typing.Any) -> int | None:
    """The position of the first predicate that matches."""
    return next((i for i, matches in enumerate(predicates) if matches(path, value)), None)


def check_ellipsis_last(filters: tuple[Filter, ...], verb: str) -> None:
    """`...` takes all that is left, so whatever follows it could never match."""
    for i, filter in enumerate(filters[:-1]):
        if (filter is ... or filter is True) and any(
            f is not ... and f is not True for f in filters[i + 1 :]
        ):
            raise ValueError(
                f"nnx.{verb}: `...` (or True) matches everything, so the filters after it get "
                f"nothing: {', '.join(map(_show, filters))}.\nCure: put `...` last."
            )
