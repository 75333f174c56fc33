"""Sharding annotations: from a Variable's `sharding=` to partition specs and named shardings.

An annotation is a tuple of axis names (or None) as long as the value has dimensions. Names may be
logical ones, mapped to the axes of a mesh by rules. Making an annotated Variable needs no mesh.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..graph.state import State, map_state
from ..objects.node import Node
from ..objects.variable import Variable
from ..objects.variable_metadata import with_metadata
from .splitting import state

PARTITION_NAME = "partition_name"
"""The key of `transform_metadata` that says which axis name a transform adds or removes."""

Rules = Sequence[tuple[str, Any]]


class _Rules(threading.local):
    rules: Rules = ()


_RULES = _Rules()


def set_logical_axis_rules(rules: Rules) -> None:
    """Map logical axis names to mesh axes: `[('embed', None), ('mlp', 'model')]`."""
    _RULES.rules = tuple(rules)


def get_logical_axis_rules() -> Rules:
    return _RULES.rules


@contextlib.contextmanager
def logical_axis_rules(rules: Rules) -> Iterator[None]:
    """The rules for the time of a `with` block."""
    before = _RULES.rules
    set_logical_axis_rules(rules)
    try:
        yield
    finally:
        _RULES.rules = before


def with_partitioning(
    initializer: Callable[..., Any], sharding: Sequence[Any], mesh: Any = None, **metadata: Any
) -> Callable[..., Any]:
    """An initializer whose Variable is annotated with these axis names."""
    if mesh is not None:
        metadata["mesh"] = mesh
    return with_metadata(initializer, sharding=tuple(sharding), **metadata)


def _spec_of(leaf: Any) -> PartitionSpec:
    annotation = leaf._metadata.get("sharding") if isinstance(leaf, Variable) else None
    if annotation is None:
        return PartitionSpec()
    if isinstance(annotation, jax.sharding.Sharding):
        return getattr(annotation, "spec", PartitionSpec())
    own = leaf._metadata.get("sharding_rules") or ()
    rules = {**dict(_RULES.rules), **dict(own)}

    def mapped(name: Any) -> Any:
        if isinstance(name, (tuple, list)):
            return tuple(mapped(n) for n in name)
        return rules.get(name, name)

    return PartitionSpec(*map(mapped, annotation))


def _map_variables(tree: Any, f: Callable[[Any], Any]) -> Any:
    """The same tree with each Variable's value replaced by `f(variable)`."""

    def mapped(x: Any) -> Any:
        return x.replace(f(x)) if isinstance(x, Variable) else f(x)

    if isinstance(tree, Node):
        tree = state(tree)
    if isinstance(tree, State):
        return map_state(lambda _, x: mapped(x), tree)
    return jax.tree.map(
        lambda x: _map_variables(x, f) if isinstance(x, (State, Node)) else mapped(x),
        tree,
        is_leaf=lambda x: isinstance(x, (Variable, State, Node)),
    )


def get_partition_spec(tree: Any) -> Any:
    """A State (or tree) with a `PartitionSpec` in the place of each value.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> v = nnx.Param(jnp.ones((2, 3)), sharding=("data", None))
        >>> tuple(nnx.get_partition_spec(v).value)
        ('data', None)
    """
    return _map_variables(tree, _spec_of)


def get_named_sharding(tree: Any, mesh: Any) -> Any:
    """A State (or tree) with a `NamedSharding` on `mesh` in the place of each value."""
    return _map_variables(tree, lambda leaf: named_sharding_of(leaf, mesh))


def named_sharding_of(leaf: Any, mesh: Any) -> NamedSharding:
    """Where a Variable (or an array) belongs on a mesh, by its annotation."""
    return NamedSharding(mesh, _spec_of(leaf))
