"""Classes of mappings as JAX pytrees, flattened as JAX flattens a dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    cls: type, content: Callable[[Any], dict], make: Callable[[dict], Any]
) -> None:
    """Make a class of mappings known to JAX, flattened as JAX flattens a dict."""

    def flatten(mapping: Any) -> tuple[tuple, tuple]:
        items = content(mapping)
        keys = tuple(sorted_keys(items))
        return tuple([items[k] for k in keys]), keys

    def flatten_with_keys(mapping: Any) -> tuple[tuple, tuple]:
        children, keys = flatten(mapping)
        return tuple(zip(map(jax.tree_util.DictKey, keys), children, strict=True)), keys

    def unflatten(keys: tuple, children: Iterable[Any]) -> Any:
        return make(dict(zip(keys, children, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
