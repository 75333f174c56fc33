"""`shard_map`: each group of leaves is split over the mesh by its partition spec."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Unpack, cast

import jax
from jax.sharding import PartitionSpec

from ..graph.state import map_state
from ..lift.arguments import is_object, named_like, unbind
from ..lift.call import Call, pure_function
from ..lift.prefix import FilterPrefix, OutputRules, all_entries, for_arrays, for_result, sorting
from ..objects import arguments as fit
from ..objects.placing import mesh_set, spec_axes
from ..objects.statics import static_key
from ..objects.trace_errors import where
from ..objects.variable import Variable, raw
from ..verbs.splitting import state
from .bound import by_position, decorator_or_function, lifted, with_self, with_static
from .mapped import (
    BroadcastCounts,
    check_lengths,
    check_replicated,
    check_specs,
    leaf_entries,
    mapped_call,
)
from .prefixes import Specs
from .retrace import users_level
from .signatures import ShardMapOptions

_INFER = object()


@decorator_or_function
def shard_map(
    f: Callable,
    *,
    mesh: fit.AnyMesh | None = None,
    in_specs: Specs = _INFER,
    out_specs: Specs,
    **options: Unpack[ShardMapOptions],
) -> Callable[..., Any]:
    """`jax.shard_map` for functions of objects.

    Args:
        f: the function, or a method.
        mesh: a `jax.sharding.Mesh`; the one of the context by default.
        in_specs, out_specs: `PartitionSpec`s, pytree prefixes, and `nnx.StateSharding` for objects.
            A Variable that is written keeps its spec: what each device wrote is put together by it.
            Without in_specs, what is sharded over Explicit axes goes in as it is.
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

    out_prefix = _whole_for_none(out_specs)

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        function, bound = unbind(f)
        args = by_position(f, args, kwargs, in_specs)
        specs = _inferred(args) if in_specs is _INFER else in_specs
        args, prefix, _ = with_self(wrapped, bound, args, {}, specs, _WHOLE)
        args, statics = _separate(args, prefix)
        prefix = _whole_for_none(prefix)

        def make(call: Call, rules: OutputRules, function: Callable) -> Callable:
            by_group, given = list(rules.entries), dict(cast(Any, options))
            check_specs(mesh, all_entries(out_prefix, _is_spec), ())
            fits = check_lengths(call.graphdef, rules, mesh)
            checked = sorting(rules, check_replicated(call.graphdef, rules))
            inner = with_static(function, statics)
            pure = pure_function(
                inner, call, rules=rules, returned=lambda *out: checked(*fits(*out))
            )
            if in_specs is not _INFER:  # JAX infers the same, and says why where it cannot
                arrays = for_arrays(prefix, call.tree[0], "args", _is_spec)
                given["in_specs"] = (by_group, (arrays, _WHOLE))
            return jax.shard_map(
                _with_counts(pure, call, rules, prefix, mesh, where(inspect.unwrap(function))),
                mesh=mesh,
                out_specs=(_whole_for_none(for_result(rules)), by_group, _WHOLE),
                **given,
            )

        key = ("shard_map", mesh, static_key(tuple(statics.items())), *options.items())
        prefixes, explain = (prefix, out_prefix), functools.partial(check_specs, mesh, ())
        return mapped_call(
            function, args, {}, prefixes, "in_specs", make, key, explain, is_leaf=_is_spec
        )

    wrapped = lifted(f, run)
    return wrapped


_WHOLE = PartitionSpec()


class SameRandomnessWarning(UserWarning):
    """All devices of a shard_map draw the same random numbers, for different parts of the data."""


def _with_counts(
    pure: Callable, call: Call, rules: OutputRules, prefix: Any, mesh: Any, function: str
) -> Callable:
    """`pure`, which leaves the counts of replicated streams the same on every device."""
    cure = "@nnx.split_rngs(splits='the mesh axis') on the function"
    graphdef, groups = call.plan.graphdef, call.groups
    counts = BroadcastCounts(graphdef, groups, rules, "shard_map", "device", cure)

    def counted(grouped: Sequence[Sequence[Any]], tree: Any) -> Any:
        entries = leaf_entries(rules, prefix, grouped, tree[0], _is_spec)
        sizes = (mesh_set() if mesh is None else mesh).shape
        axes = sorted({a for spec in entries for a in spec_axes(spec or ()) if sizes.get(a, 1) > 1})

        def alike(streams: list[str]) -> None:
            if streams and axes:
                text = _same_randomness(function, streams, axes)
                warnings.warn(text, SameRandomnessWarning, users_level())

        return counts.run(pure, (grouped, tree), entries, alike)

    return named_like(pure, counted)


def _same_randomness(function: str, streams: list[str], axes: list[str]) -> str:
    named = ", ".join(f"`{name}`" for name in streams[:4]) + (" …" if len(streams) > 4 else "")
    along, splits = ", ".join(map(repr, axes)), axes[0] if len(axes) == 1 else tuple(axes)
    return (
        f"{function} draws from {named} inside shard_map. Every device has the same key there, so "
        f"all draw the same numbers, whatever part of the data they have along {along}: one "
        "dropout mask for all.\n"
        f"Cure: @nnx.split_rngs(splits={splits!r}) on the function, below nnx.shard_map: keys of "
        "its own for each device. Where all are to draw the same, filter the category "
        "nnx.SameRandomnessWarning."
    )


def _is_spec(value: Any) -> bool:
    return value is None or isinstance(value, (PartitionSpec, FilterPrefix))


def _separate(args: tuple, specs: Any) -> tuple[tuple, dict[int, Any]]:
    """(the arguments, those that are static): the spec None keeps one as it is, as in JAX."""
    if not isinstance(specs, tuple) or len(specs) != len(args):
        return args, {}
    static = {
        i: arg
        for i, (arg, spec) in enumerate(zip(args, specs, strict=True))
        if spec is None and not any(map(is_object, jax.tree.leaves(arg, is_leaf=is_object)))
    }
    return tuple(None if i in static else a for i, a in enumerate(args)), static


def _inferred(args: tuple) -> Any:
    """The specs of arrays as their types have them, on Explicit axes."""

    def of_array(x: Any) -> Any:
        return jax.typeof(x).sharding.spec

    def of_leaf(x: Any) -> Any:
        if isinstance(x, Variable):
            return of_array(x.value)
        return map_state(lambda _, v: of_array(raw(v)), state(x)) if is_object(x) else of_array(x)

    return jax.tree.map(of_leaf, args, is_leaf=is_object)


def _whole_for_none(specs: Any) -> Any:
    """The specs with P() for None."""
    return jax.tree.map(lambda s: _WHOLE if s is None else s, specs, is_leaf=_is_spec)
