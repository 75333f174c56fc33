"""`vmap` and `pmap`: each group of leaves is mapped over its axis; axis names in step with that."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack, cast

import jax
import jax.numpy as jnp

from .._jax_compat import is_mapped_here
from ..graph.graphdef import VARIABLE
from ..lift.arguments import named_like, unbind
from ..lift.axis_names import AxisName
from ..lift.call import Call, pure_function
from ..lift.prefix import OutputRules, for_arrays, for_result, sorting
from ..objects.arguments import Count
from ..objects.errors import path_string
from ..objects.modes import Modes, Switch
from ..objects.placing import placed_by_annotation
from ..objects.statics import static_key
from ..verbs.spmd import PARTITION_NAME
from .bound import decorator_or_function, lifted, with_self, with_static, without_static
from .jit_options import as_tuple, resolved
from .mapped import check_broadcast, check_sizes, mapped_call
from .prefixes import Axes, AxesOrCarry


@decorator_or_function
def vmap(
    f: Callable[..., Any],
    in_axes: Axes = 0,
    out_axes: Axes = 0,
    axis_name: Any = None,
    axis_size: Count | None = None,
    spmd_axis_name: Any = None,
    *,
    transform_metadata: Mapping[str, Any] | None = None,
    **options: Unpack[Modes],
) -> Callable[..., Any]:
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
    given = dict(axis_name=axis_name, axis_size=axis_size, spmd_axis_name=spmd_axis_name)
    transform = functools.partial(jax.vmap, **given, **cast(Any, options))
    return _mapped(f, in_axes, out_axes, AxisName.of(transform_metadata), transform, "vmap")


@decorator_or_function
def pmap(
    f: Callable[..., Any],
    axis_name: Any = None,
    *,
    in_axes: Axes = 0,
    out_axes: Axes = 0,
    static_broadcasted_argnums: int | Sequence[int] = (),
    devices: Any = None,
    backend: str | None = None,
    axis_size: Count | None = None,
    donate_argnums: Any = (),
    transform_metadata: Mapping[str, Any] | None = None,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> Callable[..., Any]:
    """`jax.pmap` for functions of objects: a stacked model, one slice per device.

    Takes the keywords of `jax.pmap`; axes as in `nnx.vmap`. `donate_argnums` is taken as the hint
    that it is: the buffers are kept. For donation, and for shardings, see `nnx.jit`.
    """
    del donate_argnums
    devices = None if devices is None else tuple(devices)
    options = dict(axis_name=axis_name, devices=devices, backend=backend, axis_size=axis_size)
    transform, named = functools.partial(jax.pmap, **options), AxisName.of(transform_metadata)
    static, _ = resolved(f, as_tuple(static_broadcasted_argnums), None)
    return _mapped(f, in_axes, out_axes, named, transform, "pmap", static, options)


@decorator_or_function
def transform_metadata(
    f: Callable[..., Any],
    *,
    in_axes: AxesOrCarry = 0,
    out_axes: AxesOrCarry = 0,
    partition: str | None,
) -> Callable[..., Any]:
    """A function that sees objects without a mapped axis, for a transform that takes it away.

    While it runs, `partition` is taken out of the annotations of what comes in, at the positions
    of `in_axes`; afterwards it is put back, and into those of what is new at the positions of
    `out_axes`. It maps nothing: `jax.vmap` around it does, and what is new is placed along the
    mapped axis too, if a mesh is set; under `jax.lax.scan` that axis is left to the compiler.
    (`nnx.vmap(transform_metadata=…)` and `nnx.scan(transform_metadata=…)` do all of it.)

    Args:
        f: the function, or a method.
        in_axes, out_axes: those of the transform around it; `nnx.Carry` for what a scan carries.
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
    return _mapped(f, in_axes, out_axes, AxisName.of({PARTITION_NAME: partition}))


def _mapped(
    f: Callable,
    in_axes: Any,
    out_axes: Any,
    named: AxisName | None,
    transform: Callable | None = None,
    name: str = "",
    static: int | Sequence[int] = (),
    compiled_for: dict[str, Any] | None = None,
) -> Callable:
    """The wrapper of all three.

    Args:
        transform: that of JAX; None if it is around the wrapper.
        name: of the transform.
        static: positions of static arguments.
        compiled_for: what a compiled program depends on; None if there is none.
    """

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        function, bound = unbind(f)
        args, prefix, named_axes = with_self(wrapped, bound, args, kwargs, in_axes, 0)
        keywords = {k: named_axes.get(k, 0) for k in kwargs}  # 0 is what JAX gives them
        args, statics = without_static(args, static, 0 if bound is None else 1)
        if statics and isinstance(prefix, tuple):
            prefix = tuple(None if i in statics else e for i, e in enumerate(prefix))

        def make(call: Call, rules: OutputRules, function: Callable) -> Callable:
            inner = with_static(function, statics)
            if transform is None:
                pure = pure_function(inner, call, rules=rules, axis_name=named)
                return _placed_when_mapped(pure, rules) if named and named.places else pure
            checked = check_broadcast(call.graphdef, rules, name)
            checked = sorting(rules, checked)
            pure = pure_function(inner, call, rules=rules, axis_name=named, returned=checked)
            axes, (positional, named_trees) = list(rules.entries), call.tree
            arrays = for_arrays(prefix, positional, "args"), for_arrays(keywords, named_trees, "")
            prefixes = {"in_axes": (axes, arrays),
                        "out_axes": (for_result(rules), axes, None)}  # fmt: skip
            if compiled_for is not None and None in axes:
                _look(call, pure, prefixes, compiled_for)
            return transform(pure, **prefixes)

        key = None
        if compiled_for is not None:
            names = named and named.names
            key = (name, names, static_key(tuple(statics.items())), *compiled_for.items())
        given = function, args, kwargs, (prefix, out_axes)
        placed = named is not None and named.places and transform is not None
        return mapped_call(
            *given, "in_axes", make, key, explain, keywords, compile=lambda p: p, placed=placed
        )

    def explain(inputs: Iterable[tuple[str, Any, Any]]) -> None:
        if transform is not None:
            check_sizes(name, inputs)

    wrapped = lifted(f, run)
    return wrapped


def _placed_when_mapped(pure: Callable, rules: OutputRules) -> Callable:
    """`pure`, for a `jax.vmap` around it, which places what is new: it sees the mapped axis."""

    def placed(grouped: Sequence[Sequence[Any]], tree: Any) -> Any:
        mapped = [x for x in jax.tree.leaves((grouped, tree)) if is_mapped_here(x)][:1]
        result, out, change = pure(grouped, tree)
        if not mapped or (graph := change.graph) is None:
            return result, out, change
        places, records = iter(graph.graphdef.paths.leaves), graph.graphdef.records
        sources = iter(graph.sources)
        for record, origin in zip(records, graph.origins, strict=True):
            if record[0] != VARIABLE:
                continue
            path, source = next(places), next(sources)
            if origin is None and type(source) is tuple and "sharding" in record[2]:
                group, at = source
                if isinstance(axis := rules.entries[group], int):
                    name = path_string(path, "result")
                    out[group][at] = _place(out[group][at], mapped[0], axis, record[2], name)
        return result, out, change

    return named_like(pure, placed)


def _place(value: Any, mapped: Any, axis: int, metadata: Any, name: str) -> Any:
    """A value in a vmap, which places it by an annotation that has an entry for the mapped axis.

    `mapped` is something mapped, without which JAX would not ask for the rule.
    """

    @jax.custom_batching.custom_vmap
    def place(value: Any, mapped: Any) -> Any:
        return value

    @place.def_vmap
    def _(size: int, batched: Sequence[Any], value: Any, mapped: Any) -> tuple[Any, Any]:
        def of_array(x: Any, batched: bool) -> Any:
            x = x if batched else jnp.broadcast_to(x, (size, *x.shape))
            x = placed_by_annotation(jnp.moveaxis(x, 0, axis), metadata, name)
            return jnp.moveaxis(x, axis, 0)

        whole = jax.tree.map(of_array, value, batched[0])
        return whole, jax.tree.map(lambda _: True, whole)

    return place(value, mapped)


def _look(call: Call, pure: Callable, prefixes: dict[str, Any], options: dict[str, Any]) -> None:
    """Trace under vmap, which tells what differs along the axis; pmap would keep the first."""
    given = {k: options[k] for k in ("axis_name", "axis_size") if options[k] is not None}
    try:
        jax.eval_shape(jax.vmap(pure, **prefixes, **given), call.grouped, call.tree)
    except NotImplementedError:  # a collective that vmap does not know
        pass
