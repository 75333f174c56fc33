"""Nested mappings to flat ones and back, with paths as keys.

The same four verbs as for a State, for plain dicts such as a checkpoint that was read from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def as_path(key: Any) -> tuple:
    """The path that a key of a flat mapping is: a tuple or list, or one key alone, such as a name.

    The one place that says so: a string is a key, never the path of its letters.
    """
    return tuple(key) if isinstance(key, (tuple, list)) else (key,)


class _EmptyNode:
    """Stands for an empty mapping where those are kept."""

    def __repr__(self) -> str:
        return "empty_node"


empty_node = _EmptyNode()


def flatten_to_sequence(
    xs: Mapping, /, *, is_leaf: Callable[[tuple, Any], bool] | None = None
) -> list[tuple[tuple, Any]]:
    """The (path, leaf) pairs of nested mappings, in their own order.

    Raises:
        TypeError: `xs` is not a mapping.
    """
    if not isinstance(xs, Mapping):
        raise TypeError(
            f"Expected a mapping to flatten, got a {type(xs).__name__}.\n"
            "Cure: for an object, flatten its State: nnx.to_flat_state(nnx.state(object))."
        )
    pairs: list[tuple[tuple, Any]] = []
    stack: list[tuple[tuple, Any]] = [((), xs)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, Mapping) and not (is_leaf is not None and is_leaf(path, value)):
            if not value and path:
                pairs.append((path, empty_node))
            stack.extend(((*path, k), v) for k, v in reversed(list(value.items())))
        else:
            pairs.append((path, value))
    return pairs


def flatten_mapping(
    xs: Mapping,
    /,
    *,
    keep_empty_nodes: bool = False,
    is_leaf: Callable[[tuple, Any], bool] | None = None,
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
    xs: Mapping[Any, Any] | Sequence[tuple[Any, Any]], /, *, sep: str | None = None
) -> dict[Any, Any]:
    """Nested dicts of a flat mapping (or pairs) whose keys are paths, or strings joined by `sep`.

    A key that is no tuple or list is a path of itself alone.

    Raises:
        ValueError: a path that goes through another path's leaf.
    """
    nested: dict[Any, Any] = {}
    for path, value in xs.items() if isinstance(xs, Mapping) else xs:
        path = path.split(sep) if sep is not None else as_path(path)
        if value is empty_node:
            value = {}
        target = nested
        for key in path[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ValueError(
                    f"The path {tuple(path)} goes through {key!r}, which holds a value already.\n"
                    "Cure: drop one of the two paths."
                )
        target[path[-1]] = value
    return nested
