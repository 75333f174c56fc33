"""A user's own form of `repr`, told in parts: an `Object`, then its `Attr`s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .representation import Form, Shown


class Object(NamedTuple):
    """What is shown around the attributes: `type(a=1, b=2)`."""

    type: str | type
    start: str = "("
    end: str = ")"
    kv_sep: str = "="


class Attr(NamedTuple):
    """One attribute."""

    key: str | Any
    value: Any


class Representable(Shown):
    """Base of what is shown by the parts that `__nnx_repr__` yields.

    Example:
        >>> from refax import nnx
        >>> class Point(nnx.reprlib.Representable):
        ...     def __nnx_repr__(self):
        ...         yield nnx.reprlib.Object("Point")
        ...         yield nnx.reprlib.Attr("x", 1)
        >>> Point()
        Point(
          x=1
        )
    """

    __slots__ = ()

    def __nnx_repr__(self) -> Iterator[Object | Attr]:
        raise NotImplementedError

    def _refax_form(self) -> Form:
        first, *attributes = self.__nnx_repr__()
        assert isinstance(first, Object), "__nnx_repr__ yields an Object first"
        name = first.type.__name__ if isinstance(first.type, type) else first.type
        items = [(a.key, a.value) for a in attributes if isinstance(a, Attr)]
        return Form(name + first.start, items, first.kv_sep, first.end)
