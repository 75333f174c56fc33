"""The lift types: how each sub-state of an object goes through a transform."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..graph.filters import Filter, to_predicate
from ..lift.prefix import FilterPrefix
from ..objects.variable_types import Param


class StateAxes(FilterPrefix):
    """Axes by filter, for `vmap`, `pmap` and `scan`: `StateAxes({nnx.Param: 0, ...: None})`.

    The first filter that matches a Variable gives its axis. A State of axes stands for its paths.
    """

    __slots__ = ()

    def __init__(self, axes: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]]):
        super().__init__(axes)

    axes = property(lambda self: self.entries)


class StateSharding(FilterPrefix):
    """Shardings by filter, for `jit` and `shard_map`: `StateSharding({nnx.Param: sharding})`."""

    __slots__ = ()

    def __init__(self, shardings: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]]):
        super().__init__(shardings)

    shardings = property(lambda self: self.entries)


class DiffState:
    """Which argument to differentiate, and which of its Variables.

    Args:
        argnum: the position of the argument.
        filter: any filter; only matching Variables are differentiated.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> loss = lambda model, x: model(x).sum()
        >>> only_kernel = nnx.DiffState(0, nnx.PathContains("kernel"))
        >>> list(nnx.grad(loss, argnums=only_kernel)(model, jnp.ones((1, 2))))
        ['kernel']
    """

    __slots__ = ("argnum", "filter")

    def __init__(self, argnum: int, filter: Filter = Param):
        if not isinstance(argnum, int):
            raise TypeError(
                f"DiffState: argnum must be an int, got {argnum!r}.\n"
                "Cure: nnx.DiffState(argnum, filter), with the position of the argument first."
            )
        to_predicate(filter)  # an error here rather than at the first call
        self.argnum = argnum
        self.filter = filter

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DiffState)
            and other.argnum == self.argnum
            and to_predicate(other.filter) == to_predicate(self.filter)
        )

    def __hash__(self) -> int:
        return hash((self.argnum, to_predicate(self.filter)))

    def __repr__(self) -> str:
        return f"DiffState({self.argnum}, {self.filter!r})"
