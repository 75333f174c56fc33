"""`vmap` and `pmap`: each group of leaves is mapped over its axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..lift.arguments import unbind
from ..lift.array_prefix import for_arrays, hashable, without_objects
from ..lift.axis_names import AxisName
from ..lift.call import Call, enter, group_by_prefix, leave, pure_function
from ..lift.errors import PrefixError
from ..lift.faults import execute
from ..lift.programs import eager_program
from ..objects.statics import static_key
from .axis_errors import check_broadcast, check_sizes
from .bound import decorator_or_function, lifted, with_self, with_static, without_static


@decorator_or_function
def vmap(
    f: Callable,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Any = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    *,
    transform_metadata: Mapping[str, Any] | None = None,
    **options: Any,
) -> Callable:
    """`jax.vmap` for functions of objects.

    A mapped Variable (axis i) is seen without that axis, and what is written into it is stacked
    there; one with axis None is seen whole, and what is written must be the same for every index.
    Objects made inside come out stacked by `out_axes`.

    Args:
        f: the function, or a method.
        in_axes, out_axes: ints, None, pytree prefixes, `nnx.StateAxes`. A tuple with one entry
            fewer than the arguments of a method leaves `self` out, which is mapped over axis 0.
        axis_name, axis_size, spmd_axis_name: as in `jax.vmap`.
        transform_metadata: `{nnx.PARTITION_NAME: name}` keeps annotations in step; so any other
            key does the metadata of that name, such as `nickname=('a', 'b')`.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> make = nnx.vmap(lambda key: nnx.Linear(2, 3, rngs=nnx.Rngs(key)))
        >>> stack = make(jax.random.split(jax.random.key(0), 5))
        >>> stack.kernel.shape
        (5, 2, 3)
        >>> nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(stack, jnp.ones((1, 2))).shape
        (5, 1, 3)
    """
    named = AxisName.of(transform_metadata)
    keywords = dict(options, axis_name=axis_name, axis_size=axis_size)

    def transform(pure: Callable, axes: list, prefix: Any, out: Any) -> Callable:
        return jax.vmap(
            pure,
            in_axes=(axes, prefix),
            out_axes=(out, axes, None),
            spmd_axis_name=spmd_axis_name,
            **keywords,
        )

    return _mapped(f, in_axes, out_axes, named, transform, "vmap")


@decorator_or_function
def pmap(
    f: Callable,
    axis_name: Any = None,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: Any = (),
    devices: Any = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: Any = (),
    transform_metadata: Mapping[str, Any] | None = None,
) -> Callable:
    """`jax.pmap` for functions of objects: a stacked model, one slice per device.

    Takes the keywords of `jax.pmap`; axes as in `nnx.vmap`. `donate_argnums` is taken as the hint
    that it is: the buffers are kept. For donation, and for shardings, see `nnx.jit`.
    """
    del donate_argnums
    named = AxisName.of(transform_metadata)
    options: dict[str, Any] = {
        "axis_name": axis_name,
        "devices": None if devices is None else tuple(devices),
        "backend": backend,
        "axis_size": axis_size,
    }

    def transform(pure: Callable, axes: list, prefix: Any, out: Any) -> Callable:
        return jax.pmap(pure, in_axes=(axes, prefix), out_axes=(out, axes, None), **options)

    return _mapped(
        f, in_axes, out_axes, named, transform, "pmap", static_broadcasted_argnums, options
    )


def _mapped(
    f: Callable,
    in_axes: Any,
    out_axes: Any,
    named: AxisName | None,
    transform: Callable,
    name: str,
    static: int | Sequence[int] = (),
    compiled_for: dict[str, Any] | None = None,
) -> Callable:
    """The wrapper that vmap and pmap share; `compiled_for`: what a compiled program depends on."""

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        function, bound = unbind(f)
        args, prefix, named_axes = with_self(wrapped, bound, args, kwargs, in_axes, 0)
        keywords = {k: named_axes.get(k, 0) for k in kwargs}  # 0 is what JAX gives them
        args, statics = without_static(args, static, 0 if bound is None else 1)
        if statics and isinstance(prefix, tuple):
            prefix = tuple(None if i in statics else e for i, e in enumerate(prefix))
        call = enter(args, kwargs)
        rules = group_by_prefix(call, function, prefix, out_axes, "in_axes", keywords=keywords)
        axes, (positional, named_trees) = list(rules.entries), call.tree
        jax_prefix = (for_arrays(prefix, positional, "args"), for_arrays(keywords, named_trees, ""))

        def make(functions: tuple[Callable, ...]) -> Callable:
            inner = with_static(functions[0], statics)
            checked = check_broadcast(call.plan.graphdef, rules, name)
            pure = pure_function(inner, call, rules=rules, axis_name=named, returned=checked)
            out = without_objects(out_axes)
            if compiled_for is not None and None in axes:
                _look(call, pure, axes, jax_prefix, out, compiled_for)
            return transform(pure, axes, jax_prefix, out)

        try:
            if compiled_for is None:
                program = make((function,))
            else:
                assert call.groups is not None
                key = (call.plan.graphdef, call.groups.of_leaf, rules.entries,
                       hashable((jax_prefix, out_axes)), named and named.names,
                       static_key(tuple(statics.items())), *compiled_for.items())  # fmt: skip
                program = eager_program((function,), key, make, compile=lambda program: program)
            result = execute(call, function, program, call.grouped, call.tree)
        except PrefixError:
            raise
        except (ValueError, IndexError):
            check_sizes(call, rules, function, prefix, name, keywords)
            raise
        return leave(call, result)

    wrapped = lifted(f, run)
    return wrapped


def _look(call: Call, pure: Callable, axes: list, prefix: Any, out: Any, options: Any) -> None:
    """Trace under vmap, which tells what differs along the axis; pmap would keep the first."""
    given = {k: options[k] for k in ("axis_name", "axis_size") if options[k] is not None}
    mapped = jax.vmap(pure, in_axes=(axes, prefix), out_axes=(out, axes, None), **given)
    try:
        jax.eval_shape(mapped, call.grouped, call.tree)
    except NotImplementedError:  # a collective that vmap does not know
        pass
