"""Going through an object graph: `iter_graph`, and the quick loop behind `train()` and `eval()`."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import jax

from .containers import Dict, List
from .graphdef import sorted_keys
from .module import Pytree
from .state import State
from .variable import Variable
from .watch import is_array

_CONTAINERS = frozenset({list, List, tuple, dict, Dict, OrderedDict, defaultdict})


def iter_pytrees(root: Any, with_paths: bool = False) -> Iterator[tuple[tuple, Pytree]]:
    """Every Pytree below `root`, itself included, each once; paths only if asked for."""
    seen: set[int] = set()
    stack: list[tuple[tuple, Any]] = [((), root)]
    while stack:
        path, value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Pytree):
            attributes = list(value.__dict__.items())
            yield path, value
            items = attributes
        else:
            items = iter_children_of(value)
        for key, child in items:
            if isinstance(child, Pytree) or type(child) in _CONTAINERS:
                stack.append(((*path, key) if with_paths else (), child))


def iter_children_of(value: Any) -> list[tuple[Any, Any]]:
    """The (key, child) pairs one level below, in sorted order of names; [] for a leaf."""
    if isinstance(value, Pytree):
        return sorted(value.__dict__.items())
    if isinstance(value, Variable) or is_array(value):
        return []
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", None) or range(len(value))
        return list(zip(names, value, strict=True))
    if isinstance(value, State):
        value = value._tree
    if isinstance(value, dict):
        return [(k, value[k]) for k in sorted_keys(value)]
    if jax.tree_util.all_leaves((value,)):
        return []
    from .walk import key_name, one_level_with_keys

    return [(key_name(k), x) for k, x in one_level_with_keys(value)]


def iter_graph(node: Any, /) -> Iterator[tuple[tuple, Any]]:
    """Every (path, value) below `node`, children before their parent, the root last with path ().

    Nodes and Variables that are reached several ways come once; arrays and static values come too.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
        >>> [p for p, v in nnx.iter_graph(linear) if isinstance(v, (nnx.Variable, nnx.Module))]
        [('kernel',), ()]
    """
    seen: set[int] = set()
    stack: list[tuple[tuple, Any, bool]] = [((), node, False)]
    while stack:
        path, value, expanded = stack.pop()
        if expanded:
            yield path, value
            continue
        if isinstance(value, (Pytree, Variable, State)) or type(value) in _CONTAINERS:
            if id(value) in seen:
                continue
            seen.add(id(value))
        children = iter_children_of(value)
        stack.append((path, value, True))
        stack.extend(((*path, k), child, False) for k, child in reversed(children))


def find_duplicates(node: Any, /, *, only: Any = ...) -> list[list[tuple]]:
    """The paths of every node or Variable that is reached more than one way, grouped by object."""
    from .filters import to_predicate

    matches = to_predicate(only)
    paths: dict[int, list[tuple]] = {}
    entered: set[int] = set()
    keep: list[Any] = []
    stack: list[tuple[tuple, Any]] = [((), node)]
    while stack:
        path, value = stack.pop()
        shared = isinstance(value, (Pytree, Variable)) or type(value) in _CONTAINERS - {tuple}
        if shared and matches(path, value):
            paths.setdefault(id(value), []).append(path)
        if shared and id(value) in entered:
            continue
        entered.add(id(value))
        keep.append(value)
        stack.extend(((*path, k), child) for k, child in reversed(iter_children_of(value)))
    return [found for found in paths.values() if len(found) > 1]
