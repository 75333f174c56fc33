"""`nnx.List` and `nnx.Dict`: the plain containers under the names that Flax users know.

A plain `list` or `dict` in an attribute is part of the object graph already; these are for code
that spells them out, and `Dict` adds access by attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import jax

from .errors import suggest
from .mappings import register_mapping

T = TypeVar("T")


class List(list[T]):
    """A list of modules, Variables or anything else. Same behaviour as a plain list."""

    __orig_class__ = property()  # `List[int](…)` leaves nothing on the object

    def __init__(self, items: Iterable[T] = ()):
        super().__init__(items)

    def __repr__(self) -> str:
        return f"List({super().__repr__()})"


class Dict(dict[str, T]):
    """A dict with access by attribute: `blocks.first` is `blocks['first']`."""

    def __init__(self, *args: Mapping[str, T] | Iterable[tuple[str, T]], **items: T):
        super().__init__(*args, **items)

    def __getattr__(self, name: str) -> T:
        try:
            return self[name]
        except KeyError:
            raise self._no_entry(name) from None

    def __setattr__(self, name: str, value: T) -> None:
        if name == "__orig_class__":  # of `Dict[int](…)`: typing leaves it if it cannot be set
            raise AttributeError(name)
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise self._no_entry(name) from None

    def _no_entry(self, name: str) -> AttributeError:
        return AttributeError(
            f"Dict has no entry {name!r}; it has {list(self)}.{suggest(name, self)}\n"
            f"Cure: set it first, or ask for it with `get({name!r})`."
        )

    def __repr__(self) -> str:
        return f"Dict({super().__repr__()})"


def _list_keys(items: List) -> tuple[tuple, None]:
    return tuple((jax.tree_util.SequenceKey(i), x) for i, x in enumerate(items)), None


jax.tree_util.register_pytree_with_keys(
    List, _list_keys, lambda _, items: List(items), lambda items: (tuple(items), None)
)
register_mapping(Dict, lambda items: items, Dict)
