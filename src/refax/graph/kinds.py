"""What kind of thing a value is in an object graph."""

from __future__ import annotations

from typing import Any, TypeGuard

import jax

from ..objects.node import Node
from ..objects.variable import Variable
from ..objects.watch import is_array
from .graphdef import GraphDef
from .walk import key_name

NodeDef = GraphDef  # a name of it in older programs


def is_graph_node(x: Any) -> TypeGuard[Node | Variable]:
    """Whether `x` has an identity that is kept: a Pytree (such as a Module) or a Variable.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> [nnx.graph.is_graph_node(x) for x in (linear, linear.kernel, [linear], 1)]
        [True, True, False, False]
    """
    return isinstance(x, (Node, Variable))


def is_pytree_node(x: Any, *, check_graph_registry: bool = True) -> bool:
    """Whether `x` is a container that JAX knows, such as a list or a State, and no graph node.

    Args:
        x: any value.
        check_graph_registry: False to count Pytrees and Variables too, which JAX also knows.
    """
    return not (check_graph_registry and is_graph_node(x)) and not jax.tree_util.all_leaves((x,))


def is_node(x: Any) -> bool:
    """Whether there may be something inside `x`: a Pytree, or a container that JAX knows.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> [nnx.graph.is_node(x) for x in (linear, linear.kernel, [linear], 1)]
        [True, False, True, False]
    """
    return isinstance(x, Node) or is_pytree_node(x)


def is_node_leaf(x: Any) -> bool:
    """Whether `x` is a leaf of an object graph: a Variable, or a bare array."""
    return isinstance(x, Variable) or is_array(x)


def jax_to_nnx_path(jax_path: tuple[Any, ...], /) -> tuple[Any, ...]:
    """A key path of `jax.tree_util` as a path of names, indices and keys.

    Example:
        >>> from refax import nnx
        >>> import jax
        >>> [(path, _)], _ = jax.tree_util.tree_flatten_with_path({"a": [1]})
        >>> nnx.graph.jax_to_nnx_path(path)
        ('a', 0)
    """
    return tuple(map(key_name, jax_path))
