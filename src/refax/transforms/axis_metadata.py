"""`transform_metadata`: axis names in step around a function that a transform of JAX maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..lift.arguments import unbind
from ..lift.axis_names import AxisName
from ..lift.call import enter, group_by_prefix, leave, pure_function
from ..verbs.spmd import PARTITION_NAME
from .bound import decorator_or_function, lifted, with_self


@decorator_or_function
def transform_metadata(
    f: Callable, *, in_axes: Any = 0, out_axes: Any = 0, partition: str | None
) -> Callable:
    """A function that sees objects without a mapped axis, for a transform that takes it away.

    While it runs, `partition` is taken out of the annotations of what comes in, at the positions
    of `in_axes`; afterwards it is put back, and into those of what is new at the positions of
    `out_axes`. It maps nothing: `jax.vmap` around it does. (`nnx.vmap(transform_metadata=…)` does
    both.)

    Args:
        f: the function, or a method.
        in_axes, out_axes: those of the transform around it.
        partition: the name of the mapped axis.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> @jax.vmap
        ... @nnx.transform_metadata(partition="layers")
        ... def make(seed):
        ...     return nnx.Param(jnp.ones((2, 3)), sharding=("in", "out"))
        >>> make(jnp.arange(4)).sharding
        ('layers', 'in', 'out')
    """
    named = AxisName.of({PARTITION_NAME: partition})

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        function, bound = unbind(f)
        args, prefix, entries = with_self(wrapped, bound, args, kwargs, in_axes, 0)
        keywords = {k: entries.get(k, 0) for k in kwargs}
        call = enter(args, kwargs)
        rules = group_by_prefix(call, function, prefix, out_axes, "in_axes", keywords=keywords)
        pure = pure_function(function, call, rules=rules, axis_name=named)
        return leave(call, pure(call.grouped, call.tree))

    wrapped = lifted(f, run)
    return wrapped
