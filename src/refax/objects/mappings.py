"""Classes as JAX pytrees that are flattened as JAX flattens a dict."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax


def sorted_keys(keys: Iterable[Any]) -> list[Any]:
    """The order in which JAX flattens a dict of these keys; any order where it refuses."""
    keys = list(keys)
    try:
        return sorted(keys)
    except TypeError:
        return sorted(keys, key=lambda k: (type(k).__name__, str(k)))


def register_mapping(
    cls: type, content: Callable[[Any], tuple[dict, Hashable]], make: Callable[[dict, Any], Any]
) -> None:
    """Make a class known to JAX, flattened as JAX flattens a dict.

    Args:
        cls: the class.
        content: from an object to its entries, and what else it takes to make it again.
        make: from these two to the object.
    """

    def flatten(obj: Any) -> tuple[tuple, tuple]:
        items, static = content(obj)
        keys = tuple(sorted_keys(items))
        return tuple([items[k] for k in keys]), (keys, static)

    def flatten_with_keys(obj: Any) -> tuple[tuple, tuple]:
        children, aux = flatten(obj)
        return tuple(zip(map(jax.tree_util.DictKey, aux[0]), children, strict=True)), aux

    def unflatten(aux: tuple, children: Iterable[Any]) -> Any:
        keys, static = aux
        return make(dict(zip(keys, children, strict=True)), static)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
