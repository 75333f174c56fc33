"""Going through an object graph: `iter_graph`; and the quick loop behind `train()`, `eval()`."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from operator import setitem
from typing import Any

import jax
import numpy as np

from ..graph.filters import checked, to_predicate
from ..graph.state import State
from ..graph.walk import key_name, one_level_with_keys
from ..objects.mappings import sorted_keys
from ..objects.modes import Switch
from ..objects.node import Node
from ..objects.variable import Variable
from ..objects.variable_types import BatchStat, Param, RngCount, RngKey
from ..objects.watch import is_array

_MUTABLE = frozenset({list, dict, OrderedDict, defaultdict})

# Attributes of these types are passed over at once: most of what a module has is of them.
_ATOMS = frozenset(
    {int, float, bool, str, type(None), Variable, Param, BatchStat, RngKey, RngCount, np.dtype}
)


def pytrees_below(root: Any) -> list[Node]:
    """Every Node below `root`, itself included, each once, in no order to rely on."""
    found: list[Node] = []
    seen = {id(root)}
    queue = [root]
    for value in queue:  # which grows
        if isinstance(value, Node):
            found.append(value)
            children = value.__dict__.values()
        elif type(value) in _MUTABLE or type(value) is tuple:
            children = value.values() if isinstance(value, dict) else value
        else:
            continue
        for child in children:
            if type(child) not in _ATOMS and id(child) not in seen:
                seen.add(id(child))
                queue.append(child)
    return found


def iter_children_of(value: Any) -> list[tuple[Any, Any]]:
    """The (key, child) pairs one level below, in sorted order of names; [] for a leaf."""
    if isinstance(value, Node):
        value = value.__dict__
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
    return [(key_name(k), x) for k, x in one_level_with_keys(value)]


def children_as_made(value: Any) -> list[tuple[Any, Any]]:
    """As `iter_children_of`, with attributes and keys in the order in which they were assigned."""
    if isinstance(value, Node):
        value = value.__dict__
    return list(value.items()) if isinstance(value, dict) else iter_children_of(value)


def is_mutable(value: Any) -> bool:
    """Whether `set_child` can put something into it."""
    return isinstance(value, (Node, list, dict, State))


def is_attribute(holder: Any, key: Any) -> bool:
    """Whether a key is an attribute's name, not an item's (`nnx.List` has both)."""
    return isinstance(holder, Node) and isinstance(key, str)


def set_child(holder: Any, key: Any, value: Any) -> None:
    """Put `value` one level below."""
    put: Callable[..., None] = setattr if is_attribute(holder, key) else setitem
    put(holder, key, value)


def iter_graph(node: Any, *, graph: Switch = None) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every (path, value) below `node`, children before their parent, the root last with path ().

    Nodes and Variables that are reached several ways come once; arrays and static values come too.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
        >>> [p for p, v in nnx.iter_graph(linear) if isinstance(v, (nnx.Variable, nnx.Module))]
        [('kernel',), ()]
    """
    return ((path, value) for path, value, when in visit(node) if when == AFTER)


BEFORE, AFTER, AGAIN = range(3)


def visit(
    node: Any, children_of: Callable[[Any], list[tuple[Any, Any]]] = iter_children_of
) -> Iterator[tuple[tuple, Any, int]]:
    """Every (path, value, when) below `node`: BEFORE what is inside it, AFTER, AGAIN if shared."""
    seen: dict[int, Any] = {}  # keeps what it has alive, so ids stay unique
    stack: list[tuple[tuple, Any, int]] = [((), node, BEFORE)]
    while stack:
        path, value, when = stack.pop()
        if when == BEFORE and id(value) in seen:
            when = AGAIN
        elif when == BEFORE:
            if _has_identity(value):
                seen[id(value)] = value
            stack.append((path, value, AFTER))
            stack.extend(((*path, k), x, BEFORE) for k, x in reversed(children_of(value)))
        yield path, value, when


def _has_identity(value: Any) -> bool:
    return isinstance(value, (Node, Variable, State)) or type(value) in _MUTABLE


@checked
def find_duplicates(node: Any, /, *, only: Any = ...) -> list[list[tuple[Any, ...]]]:
    """The paths of every node or Variable that is reached more than one way, grouped by object."""
    matches = to_predicate(only)
    paths: dict[int, list[tuple]] = {}
    for path, value, when in visit(node):
        if when != AFTER and _has_identity(value) and matches(path, value):
            paths.setdefault(id(value), []).append(path)
    return [found for found in paths.values() if len(found) > 1]
