"""Metadata: the immutable, hashable mapping that a Variable keeps beside its value.

It is immutable so that it can stand in a GraphDef and in a JAX treedef as it is, and so that
"nothing changed" is one `is`. Writing `variable.name = x` replaces the whole mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jax.core import Tracer

from .modes import without_modes
from .statics import frozen

# One annotation under three names: Flax 0.11's, and the two of 0.12. It is kept under the one that
# it was given by, and found by all.
_ANNOTATION = ("sharding", "sharding_names", "out_sharding")


def _stored(items: Mapping[str, Any], name: Any) -> Any:
    """The name under which an entry is, or would be, kept."""
    if name in _ANNOTATION and name not in items:
        return next((known for known in _ANNOTATION if known in items), name)
    return name


class Metadata(Mapping[str, Any]):
    __slots__ = ("_hash", "_keys", "items_")

    def __init__(self, items: Mapping[str, Any]):
        self.items_: dict[str, Any] = {}
        for name, value in without_modes(items).items():
            self.items_[_stored(self.items_, name)] = value
        for name, value in self.items_.items():
            if any(isinstance(x, Tracer) for x in _parts(value)):
                raise TypeError(
                    f"The metadata {name!r} of a Variable is a traced array. Metadata is static: "
                    "it stays when the trace is gone.\nCure: keep arrays in a Variable's value."
                )
        self._hash: int | None = None
        self._keys: dict[str, Any] | None = None

    @property
    def keys_(self) -> dict[str, Any]:
        """The entries by type and content: `1` and `True` are two, equal functions are one."""
        if self._keys is None:
            self._keys = {k: frozen(v) for k, v in self.items_.items()}
        return self._keys

    def __getitem__(self, name: str) -> Any:
        return self.items_[_stored(self.items_, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def __contains__(self, name: object) -> bool:
        return _stored(self.items_, name) in self.items_

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Metadata) and self.keys_ == other.keys_

    def __hash__(self) -> int:
        if self._hash is None:
            try:
                self._hash = hash(frozenset(self.keys_.items()))
            except TypeError:
                self._hash = hash(frozenset(self.items_))
        return self._hash

    def __repr__(self) -> str:
        return f"Metadata({self.items_!r})"

    def __reduce__(self) -> Any:
        return (Metadata, (self.items_,))

    def with_items(self, **items: Any) -> Metadata:
        return Metadata({**self.items_, **{_stored(self.items_, k): v for k, v in items.items()}})

    def without(self, name: str) -> Metadata:
        name = _stored(self.items_, name)
        return Metadata({k: v for k, v in self.items_.items() if k != name})


def _parts(value: Any) -> Any:
    cls = type(value)
    return value if cls is tuple or cls is list else value.values() if cls is dict else (value,)


EMPTY = Metadata({})
