"""The lift types: how each sub-state of an object goes through a transform."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax
from jax.sharding import PartitionSpec

from ..graph.filters import Filter, to_predicate
from ..graph.state import State, iter_leaves, map_state
from ..graph.walk import jax_to_nnx_path
from ..lift.arguments import is_object, stops
from ..lift.prefix import FilterPrefix, position
from ..objects.arguments import Fits, checked, is_axis
from ..objects.modes import Switch
from ..objects.type_names import Path
from ..objects.variable_types import Param
from ..verbs.splitting import state
from .carry import is_carry

Entries = Mapping[Filter, Any] | Iterable[tuple[Filter, Any]] | Callable[[Path, Any], Any]


def _all(what: str, test: Callable[[Any], bool]) -> Fits:
    """What fits a prefix, every entry of which passes a test or is a lift type."""

    def are(prefix: Any) -> bool:
        entries = jax.tree.leaves(prefix, is_leaf=lambda x: isinstance(x, FilterPrefix))
        return all(isinstance(x, FilterPrefix) or test(x) for x in entries)

    return Fits(f"{what}, or containers of them", are)


def _is_axis_or_carry(x: Any) -> bool:
    return is_axis(x) or is_carry(x)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _is_sharding(x: Any) -> bool:
    return type(x).__module__.startswith("jax")  # there are many, and marks such as AUTO


_COUNTED = "the position of an argument, 0 for the first; of an object, nnx.DiffState(0, filter)."
Position = Annotated[int, Fits("an int", is_axis, _COUNTED)]
Axes = Annotated[Any, _all("an int, None, nnx.StateAxes", is_axis)]
AxesOrCarry = Annotated[Any, _all("an int, None, nnx.Carry, nnx.StateAxes", _is_axis_or_carry)]
Specs = Annotated[Any, _all("a PartitionSpec, None, nnx.StateSharding", _is_spec)]
Shardings = Annotated[Any, _all("a sharding, None, nnx.StateSharding", _is_sharding)]


class StateAxes(FilterPrefix):
    """Axes by filter, for `vmap`, `pmap` and `scan`: `StateAxes({nnx.Param: 0, ...: None})`.

    The first filter that matches a Variable gives its axis. A State of axes stands for its paths.
    """

    __slots__ = ()

    @checked
    def __init__(self, axes: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]] | State):
        super().__init__(axes)

    axes: property = property(lambda self: self.entries)


class StateSharding(FilterPrefix):
    """Shardings by filter, for `jit` and `shard_map`: `StateSharding({nnx.Param: sharding})`."""

    __slots__ = ()

    @checked
    def __init__(self, shardings: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]] | State):
        super().__init__(shardings)

    shardings: property = property(lambda self: self.entries)


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

    @checked
    def __init__(self, argnum: Position, filter: Filter = Param):
        self.argnum: int = argnum
        self.filter: Filter = filter

    def map_prefix(self, path: tuple[Any, ...], variable: Any) -> bool:
        """Whether a Variable is differentiated."""
        return to_predicate(self.filter)(path, variable)

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


Argnums = Position | DiffState | Sequence[Position | DiffState]


@dataclasses.dataclass(frozen=True)
class _Gives:
    """The filter of the leaves to which a function of (path, leaf) gives an entry."""

    function: Callable[[tuple, Any], Any]
    entry: Any

    def __call__(self, path: tuple, leaf: Any) -> bool:
        return position([self.entry], self.function(path, leaf)) == 0


@checked
def prefix(node: Any, filter_map: Entries, *, graph: Switch = None) -> Any:
    """A prefix for `node`: which axis, sharding or spec each of its leaves takes.

    Args:
        node: an object, a State, or a pytree of them and of arrays.
        filter_map: {filter: entry}, of which the first filter that matches counts; or a function
            (path, leaf) → entry, where the leaf is a Variable or array.

    Returns:
        What stands for `node` in `in_axes`, `out_axes`, `in_shardings`, `in_specs` …; for a State,
        a State of entries, which plain JAX takes too.

    Raises:
        PrefixError: a leaf that no filter matches, named by its path.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from refax import nnx
        >>> make = nnx.vmap(lambda key: nnx.BatchNorm(2, rngs=nnx.Rngs(key)))
        >>> norms = make(jax.random.split(jax.random.key(0), 3))
        >>> axes = nnx.prefix(norms, lambda path, leaf: 0)
        >>> nnx.vmap(lambda norm, x: norm(x), in_axes=(axes, None))(norms, jnp.ones((4, 2))).shape
        (3, 4, 2)
    """
    by_filter = None
    if isinstance(filter_map, Mapping) or not callable(filter_map):
        by_filter = FilterPrefix(filter_map)
    entry: Any = filter_map if by_filter is None else by_filter.map_prefix

    def of(path: tuple, x: Any) -> Any:
        if isinstance(x, State):
            return map_state(entry, x)
        if not is_object(x):
            return entry(jax_to_nnx_path(path), x)
        own = state(x, copy=False)
        pairs = iter_leaves(own) if isinstance(own, State) else [((), own)]
        entries: list[Any] = []
        for at, leaf in pairs:
            position(entries, entry(at, leaf))
        return by_filter or FilterPrefix([(_Gives(entry, e), e) for e in entries])

    return jax.tree_util.tree_map_with_path(of, node, is_leaf=stops)
