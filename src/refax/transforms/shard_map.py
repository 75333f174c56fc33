"""`shard_map`: each group of leaves is split over the mesh by its partition spec."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ..lift.arguments import unbind
from ..lift.call import enter, group_by_prefix, leave, pure_function
from ..lift.prefix import FilterPrefix
from ..lift.programs import eager_program
from .bound import by_position, decorator_or_function, with_self


@decorator_or_function
def shard_map(
    f: Callable, *, mesh: Any = None, in_specs: Any, out_specs: Any, **options: Any
) -> Callable:
    """`jax.shard_map` for functions of objects.

    Args:
        f: the function, or a method.
        mesh: a `jax.sharding.Mesh`; the one of the context by default.
        in_specs, out_specs: `PartitionSpec`s, pytree prefixes, and `nnx.StateSharding` for objects.
            A Variable that is written keeps its spec: what each device wrote is put together by it.
        **options: `axis_names`, `check_vma`, …, passed on to `jax.shard_map`.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> auto = jax.sharding.AxisType.Auto
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(auto,))
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> forward = nnx.shard_map(
        ...     lambda m, x: m(x), mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
        ... )
        >>> forward(model, jnp.ones((8, 2))).shape
        (8, 3)
    """
    function, bound = unbind(f)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args = by_position(f, args, kwargs)
        prefix = in_specs
        if bound is not None:
            args = (bound, *args)
            prefix = (PartitionSpec(), *prefix) if isinstance(prefix, tuple) else prefix
        prefix = with_self(wrapped, prefix, args, PartitionSpec())
        call = enter(args, {})
        rules = group_by_prefix(call, function, prefix, out_specs, "in_specs", is_entry=_is_spec)
        by_group = list(rules.entries)

        def make(functions: tuple[Callable, ...]) -> Callable:
            pure = pure_function(functions[0], call, rules=rules)
            return jax.shard_map(
                pure,
                mesh=mesh,
                in_specs=(by_group, (_plain(prefix), PartitionSpec())),
                out_specs=(_plain(out_specs), by_group, PartitionSpec()),
                **options,
            )

        assert call.groups is not None
        key = ("shard_map", call.plan.graphdef, call.groups.of_leaf, rules.entries, mesh,
               repr((prefix, out_specs, options)))  # fmt: skip
        return leave(call, eager_program((function,), key, make)(call.grouped, call.tree))

    return wrapped


def _is_spec(value: Any) -> bool:
    return value is None or isinstance(value, (PartitionSpec, FilterPrefix))


def _plain(specs: Any) -> Any:
    """The specs for JAX: objects have left no leaves, so any spec will do in their place."""
    return jax.tree.map(
        lambda s: PartitionSpec() if isinstance(s, FilterPrefix) or s is None else s,
        specs,
        is_leaf=_is_spec,
    )
