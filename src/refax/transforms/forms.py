"""The form of a value, its containers, shapes and dtypes: compared, and put into words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ..lift.arguments import is_slot
from ..objects.errors import describe_value
from ..objects.variable import raw


class _Word(str):
    """Text that stands for itself inside containers."""

    def __repr__(self) -> str:
        return str(self)


def shown(value: Any, kinds: Sequence[str] = ()) -> str:
    """A value as `(float32[2], {'a': Linear})`: arrays by form, objects by type.

    Args:
        value: any pytree, with slots.
        kinds: the types of what the slots stand for; a number beyond is an object that is new.
    """

    def word(x: Any) -> _Word:
        if not is_slot(x):
            return _Word(describe_value(x))
        known = 0 <= x.number < len(kinds)
        return _Word(kinds[x.number] if known else "a new object")

    value = raw(value)
    return str(jax.tree.map(word, value, is_leaf=is_slot))


def same_form(old: Any, new: Any) -> bool:
    """Whether JAX takes `new` for the next `old`; it adapts the dtype of a weakly typed start."""
    old_leaves, old_tree = jax.tree.flatten(old)
    new_leaves, new_tree = jax.tree.flatten(new)
    if old_tree != new_tree:
        return False
    pairs = zip(map(jax.typeof, old_leaves), map(jax.typeof, new_leaves), strict=True)
    return all(
        a.shape == b.shape and (a.dtype == b.dtype or getattr(a, "weak_type", False))
        for a, b in pairs
    )
