"""What JAX gets as a prefix: that of the arrays, when the objects have become slots without leaves.

A lift type that stands for arrays or a State among the objects gives each of them an entry by its
filters, as it does for the leaves of an object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..graph.state import State
from ..graph.walk import key_name
from ..objects.variable import Variable
from ..verbs.pytree import Pytree
from .arguments import is_slot
from .prefix import FilterPrefix, is_entry, leaf_entry


def by_path(prefix: Any, tree: Any) -> Any:
    """The prefix with a lift type by path for each State, or dict, of entries for an object.

    Args:
        prefix: of one argument.
        tree: the argument; objects may be slots.
    """
    if isinstance(prefix, State) and not isinstance(tree, Variable):
        return FilterPrefix(prefix)
    if isinstance(tree, (Pytree, State)) or is_slot(tree):
        return FilterPrefix(State(prefix)) if isinstance(prefix, dict) else prefix
    if type(prefix) is tuple and type(tree) is tuple and len(prefix) == len(tree):
        return tuple(map(by_path, prefix, tree))
    if type(prefix) is list and type(tree) is list and len(prefix) == len(tree):
        return list(map(by_path, prefix, tree))
    if type(prefix) is dict and type(tree) is dict:
        return {k: by_path(e, tree[k]) if k in tree else e for k, e in prefix.items()}
    return prefix


def without_objects(prefix: Any) -> Any:
    """The prefix for JAX where the tree is not known yet: no lift types, as for slots."""
    return jax.tree.map(
        lambda e: None if isinstance(e, FilterPrefix) else e, prefix, is_leaf=is_entry
    )


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
