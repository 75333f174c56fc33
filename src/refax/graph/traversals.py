"""Nested mappings to flat ones and back, with paths as keys.

The same four verbs as for a State, for plain dicts such as a checkpoint that was read from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..objects.type_names import Path


def as_path(key: Any) -> Path:
    """The path that a key of a flat mapping is: a tuple or list, or one key alone, such as a name.

    The one place that says so: a string is a key, never the path of its letters.
    """
    return tuple(key) if isinstance(key, (tuple, list)) else (key,)


class _EmptyNode:
    """Stands for an empty mapping where those are kept."""

    def __repr__(self) -> str:
        return "empty_node"


empty_node: Any = _EmptyNode()


IsLeaf = Callable[[Path, Any], bool] | None


def iter_pairs(
    xs: Any, order: Callable[[Mapping], list] = list, is_leaf: IsLeaf = None
) -> Iterator[tuple[tuple, Any]]:
    """The (path, leaf) pairs of nested mappings, and of those in it that are empty.

    Args:
        xs: the nested mappings.
        order: of a mapping, its keys in order.
        is_leaf: (path, value) → whether not to go into a mapping.
    """
    stack: list[tuple[tuple, Any]] = [((), xs)]
    while stack:
        path, value = stack.pop()
        if not isinstance(value, Mapping) or (is_leaf is not None and is_leaf(path, value)):
            yield path, value
        elif value or not path:
            stack.extend(((*path, k), value[k]) for k in reversed(order(value)))
        else:
            yield path, empty_node


def flatten_to_sequence(xs: Any, /, *, is_leaf: IsLeaf = None) -> list[tuple[Path, Any]]:
    """The (path, leaf) pairs of nested mappings, in their own order.

    Raises:
        TypeError: `xs` is not a mapping.
    """
    if not isinstance(xs, Mapping):
        raise TypeError(
            f"Expected a mapping to flatten, got a {type(xs).__name__}.\n"
            "Cure: for an object, flatten its State: nnx.to_flat_state(nnx.state(object))."
        )
    return list(iter_pairs(xs, is_leaf=is_leaf))


def flatten_mapping(
    xs: Mapping[Any, Any],
    /,
    *,
    keep_empty_nodes: bool = False,
    is_leaf: IsLeaf = None,
    sep: str | None = None,
) -> dict[Any, Any]:
    """A flat dict {path: leaf} of nested mappings.

    Args:
        xs: the nested mappings.
        keep_empty_nodes: keep empty mappings, as `empty_node`.
        is_leaf: (path, value) → whether not to go into a mapping.
        sep: join the keys of a path by this string instead of a tuple.

    Example:
        >>> from refax import nnx
        >>> nnx.traversals.flatten_mapping({"a": {"b": 1}, "c": 2}, sep="/")
        {'a/b': 1, 'c': 2}
    """
    pairs = flatten_to_sequence(xs, is_leaf=is_leaf)
    return {
        (path if sep is None else sep.join(map(str, path))): value
        for path, value in pairs
        if keep_empty_nodes or value is not empty_node
    }


def unflatten_mapping(
    xs: Mapping[Any, Any] | Iterable[tuple[Any, Any]], /, *, sep: str | None = None
) -> dict[Any, Any]:
    """Nested dicts of a flat mapping (or pairs) whose keys are paths, or strings joined by `sep`.

    A key that is no tuple or list is a path of itself alone.

    Raises:
        ValueError: a path that goes through another path's leaf.
    """
    pairs: Any = xs.items() if isinstance(xs, Mapping) else xs
    nested: dict[Any, Any] = {}
    for path, value in pairs:
        path = path.split(sep) if sep is not None else as_path(path)
        target = nested
        for key in path[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ValueError(
                    f"The path {tuple(path)} goes through {key!r}, which holds a value already.\n"
                    "Cure: drop one of the two paths."
                )
        target[path[-1]] = {} if value is empty_node else value
    return nested
