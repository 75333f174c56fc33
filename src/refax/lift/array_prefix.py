"""What JAX gets as a prefix: that of the arrays, when the objects have become slots without leaves.

A lift type that stands for arrays or a State among the objects gives each of them an entry by its
filters, as it does for the leaves of an object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ..graph.state import State
from ..graph.walk import key_name
from ..objects.variable import Variable
from ..verbs.pytree import Pytree
from .prefix import FilterPrefix, OutputRules, by_path, is_entry, leaf_entry, position, stretched


class Sorted(NamedTuple):
    """A result whose arrays leave in one list per entry, as the leaves of objects do."""

    groups: Sequence[Sequence[Any]]
    order: Any  # (treedef, the group of each leaf), static

    def whole(self) -> Any:
        structure, numbers = self.order.value
        groups = [iter(group) for group in self.groups]
        return structure.unflatten([next(groups[number]) for number in numbers])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Order:
    value: tuple[Any, tuple[int, ...]]


def sorting(rules: OutputRules, returned: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """For `pure_function(returned=…)`: checks the prefix of the result, and sorts by it if need be.

    A lift type, or an object or State of entries, is no prefix that JAX knows.
    """

    def returning(result: Any, grouped: Any, change: Any) -> Any:
        prefix = by_path(rules.out_prefix, result)
        stretched(prefix, result, rules.name, rules.is_leaf)
        if _is_by_filter(rules.out_prefix):
            entries = list(rules.entries)
            leaves, structure = jax.tree.flatten(result)
            of = [position(entries, e) for e in spread(prefix, result, rules.name, rules.is_leaf)]
            groups = [[x for x, at in zip(leaves, of) if at == n] for n in range(len(entries))]
            result = Sorted(groups, _Order((structure, tuple(of))))
        return (result, grouped, change) if returned is None else returned(result, grouped, change)

    return returning


def for_result(rules: OutputRules) -> Any:
    """The prefix for JAX of a result that was `sorting`."""
    by_filter = _is_by_filter(rules.out_prefix)
    return Sorted(list(rules.entries), None) if by_filter else rules.out_prefix


def _is_by_filter(prefix: Any) -> bool:
    kinds = (FilterPrefix, State, Pytree, dict)
    parts = jax.tree.leaves(prefix, is_leaf=lambda x: isinstance(x, kinds))
    return any(isinstance(part, kinds) for part in parts)


def for_arrays(prefix: Any, tree: Any, name: str, is_leaf: Callable[[Any], bool] = is_entry) -> Any:
    """The prefix for JAX of a tree with slots, which have no leaves.

    A lift type that stands for arrays or a State among the objects gives each by its filters.
    The prefix fits: `group_by_prefix` has checked it.
    """
    if not any(isinstance(e, FilterPrefix) for e in jax.tree.leaves(prefix, is_leaf=is_leaf)):
        return prefix

    def under(path: Any, entry: Any, subtree: Any) -> Any:
        if not isinstance(entry, FilterPrefix):
            return entry

        def resolve(below: Any, value: Any) -> Any:
            place = name + jax.tree_util.keystr((*path, *below))
            return leaf_entry(entry, tuple(map(key_name, below)), value, place)

        return jax.tree_util.tree_map_with_path(
            resolve, subtree, is_leaf=lambda x: isinstance(x, Variable)
        )

    return jax.tree_util.tree_map_with_path(under, prefix, tree, is_leaf=is_leaf)


def hashable(prefix: Any, is_leaf: Callable[[Any], bool] = is_entry) -> Any:
    """What tells a prefix from another one, as a key for programs."""
    leaves, treedef = jax.tree.flatten(prefix, is_leaf=is_leaf)
    return tuple(leaves), treedef


def spread(
    prefix: Any, tree: Any, name: str, is_leaf: Callable[[Any], bool] = is_entry
) -> list[Any]:
    """The entry of every JAX leaf of a tree with slots, in order."""
    entries: list[Any] = []
    jax.tree.map(
        lambda entry, subtree: entries.extend([entry] * len(jax.tree.leaves(subtree))),
        for_arrays(prefix, tree, name, is_leaf),
        tree,
        is_leaf=is_leaf,
    )
    return entries
