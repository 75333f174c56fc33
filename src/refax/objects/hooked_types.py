"""Variable types as JAX flattens them: the stored value, also where a hook makes another of it.

JAX flattens in C++ what `.value` gives. A Variable whose reads go through a hook would be rebuilt
with what the hook made, and the hook applied once more. So it is of a subclass of its type, which
is flattened past the hook, in Python, and which passes for the type itself.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import jax

from .metadata import EMPTY, GET_HOOK, SET_HOOK, SHARED, Metadata


def register_variable_type(cls: Any) -> None:
    """Make a Variable type known to JAX."""
    if not cls._own_get and not hasattr(cls, GET_HOOK) and cls._plain is None:
        jax.tree_util.register_dataclass(cls, data_fields=["value"], meta_fields=["raw_metadata"])
        return
    key = jax.tree_util.GetAttrKey("value")
    jax.tree_util.register_pytree_with_keys(
        cls,
        lambda cell: (((key, cell.raw_value),), cell._metadata),
        lambda metadata, values: cls(value=[*values][0], raw_metadata=metadata),
        lambda cell: ((cell.raw_value,), cell._metadata),
    )


def has_hooks(cls: Any, metadata: Metadata) -> bool:
    return cls._class_hooked or any(name in metadata for name in (GET_HOOK, SET_HOOK, SHARED))


def plain_type(cls: Any) -> Any:
    """The type that people know."""
    return cls._plain or cls


def type_with(cls: Any, metadata: Metadata) -> Any:
    """The type of a Variable with this metadata, given the one that people know."""
    plain = plain_type(cls)
    return _past_hooks(plain) if metadata is not EMPTY and GET_HOOK in metadata else plain


@functools.cache
def _past_hooks(cls: Any) -> Any:
    body = {"__slots__": (), "_plain": cls}
    body |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(cls.__name__, (cls,), exec_body=lambda space: space.update(body))
