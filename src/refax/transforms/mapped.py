"""What transforms that map share: a call by prefixes, and what goes wrong in the caller's words.

JAX's messages about axes and specs name places in refax's flat lists. So where JAX has refused, the
inputs are looked at again, by their places; what leaves is looked at at the end of the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .._jax_compat import is_mapped_here, varying_axes
from ..graph.graphdef import GraphDef
from ..lift.array_prefix import hashable, spread
from ..lift.call import Call, enter, group_by_prefix, leave
from ..lift.errors import PrefixError
from ..lift.faults import execute
from ..lift.places import check_outputs, inputs_by_place, results_by_place
from ..lift.prefix import OutputRules, is_entry
from ..lift.programs import eager_program
from ..lift.records import recorded_apart, records_of, with_axis
from ..objects.errors import clipped, describe_value
from ..objects.placing import mesh_set, misfit, spec_axes


def mapped_call(
    function: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    prefixes: tuple[Any, Any],
    name: str,
    make: Callable[[Call, OutputRules, Callable], Callable],
    key: tuple | None,
    explain: Callable[[Iterable[tuple[str, Any, Any]]], None],
    keywords: dict[str, Any] | None = None,
    is_leaf: Callable[[Any], bool] = is_entry,
    compile: Callable[[Callable], Callable] = jax.jit,
    placed: bool = False,
) -> Any:
    """The result of a call whose arguments and results have prefixes.

    Args:
        function: the user's, of `args` and `kwargs`.
        prefixes: of `args` and of the result.
        name: what the user calls the first.
        make: from (call, rules of what leaves, function) to that of (values by group, tree).
        key: what the program depends on beside structure and prefixes; None to keep none.
        explain: raises for (place, value, entry) of inputs that do not fit, if JAX has refused.
        keywords: the entries of `kwargs` by name.
        is_leaf: what is one entry.
        compile: what to do with a program that is kept.
        placed: whether new Variables are to be placed by their annotations.
    """
    call, (prefix, out_prefix) = enter(args, kwargs), prefixes
    rules = group_by_prefix(
        call, function, prefix, out_prefix, name, keywords=keywords, is_leaf=is_leaf
    )
    records = records_of(call.plan.leaves()) if name == "in_axes" else {}
    with recorded_apart(records):
        if records:
            call.values, call.groups = call.plan.gather(), with_axis(call.groups, records)
            rules = rules._replace(entries=call.groups.entries)
        try:
            if key is None:
                program = make(call, rules, function)
            else:
                key = (call.graphdef, call.groups.of_leaf, rules.entries,
                       hashable((prefixes, keywords), is_leaf), *key)  # fmt: skip
                program = eager_program((function,), key, lambda f: make(call, rules, *f), compile)
            out = execute(call, function, program, call.grouped, call.tree)
        except PrefixError:
            raise
        except (ValueError, IndexError):
            explain(inputs_by_place(call, function, prefix, is_leaf, keywords))
            raise
        return leave(call, out, placed)


def leaf_entries(
    rules: OutputRules, prefix: Any, grouped: Any, args: tuple, is_leaf: Callable[[Any], bool]
) -> list[Any]:
    """The entry of each JAX leaf of (values by group, arguments with slots)."""
    pairs = zip(grouped, rules.entries, strict=True)
    of_groups = [entry for group, entry in pairs for _ in jax.tree.leaves(group)]
    return of_groups + spread(prefix, args, "args", is_leaf)


# -- inputs --------------------------------------------------------------------------------------


def check_sizes(transform: str, inputs: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise if the mapped axes have different sizes, or one is out of bounds; name the places."""
    sizes: dict[int, list[str]] = {}
    for place, value, axis in inputs:
        for leaf in jax.tree.leaves(value) if isinstance(axis, int) else ():
            shape = getattr(leaf, "shape", ())
            if not -len(shape) <= axis < len(shape):
                raise PrefixError(
                    f"{transform}: `{place}` is {describe_value(leaf)}, which has no axis {axis} "
                    "to map.\nCure: map it with None, or give it that axis (nnx.split_rngs for "
                    "random streams, nnx.vmap over the constructor for a stack of models)."
                )
            known = sizes.setdefault(shape[axis], [])
            known.append(f"{place} ({describe_value(leaf)}, axis {axis})")
    if len(sizes) > 1:
        listed = "\n".join(
            f"  size {size}: {', '.join(places[:3])}" + (" …" if len(places) > 3 else "")
            for size, places in sorted(sizes.items())
        )
        raise PrefixError(
            f"{transform}: the mapped axes have different sizes:\n{listed}\n"
            "Cure: map each with the axis that has the common size, or with None, as a model that "
            "is no stack of models."
        )


def check_specs(mesh: Any, entries: Iterable[Any], inputs: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise if an array cannot be split by its spec, or a spec is none of the mesh."""
    for place, value, spec in [*inputs, *(("out_specs", None, entry) for entry in entries)]:
        for leaf in jax.tree.leaves(value) if value is not None else [None]:
            shape = None if leaf is None else jnp.shape(leaf)
            if fault := _unfit(place, leaf, shape, spec, mesh):
                raise fault


def _unfit(place: str, value: Any, shape: Any, spec: Any, mesh: Any) -> PrefixError | None:
    """The error for an array of a shape, or of any for None, that cannot have a spec."""
    mesh = mesh_set() if mesh is None else mesh
    if not isinstance(spec, PartitionSpec) or not (why := misfit(spec, shape, mesh)):
        return None
    what = "" if value is None else f" ({describe_value(value)})"
    return PrefixError(
        f"shard_map: `{place}`{what} has {spec} on the mesh {clipped(str(dict(mesh.shape)))}, "
        f"which does not fit: {why}.\n"
        "Cure: axes of that mesh, each once; no more entries than the array has axes; sizes "
        "that they divide (pad it to a multiple), or P() for what every device has whole."
    )


# -- outputs -------------------------------------------------------------------------------------


def check_broadcast(graphdef: GraphDef, rules: OutputRules, transform: str) -> Callable[..., Any]:
    """A check, at the end of the trace, that nothing mapped leaves through axis None."""

    def mapped(entry: Any, value: Any) -> bool:
        return entry is None and any(map(is_mapped_here, jax.tree.leaves(value)))

    def error(place: str, kind: str, *_: Any) -> PrefixError:
        return PrefixError(
            f"`{place}` is written inside {transform} with axis None, but what is written differs "
            f"along the mapped axis.\nCure: map it, with an axis for its type as in "
            f"nnx.StateAxes({{{kind}: 0, ...: None}}); or write the same for every index, such as "
            "a mean over them (axis_name='batch' and jax.lax.pmean(x, 'batch'))."
        )

    return check_outputs(graphdef, rules, mapped, error)


def check_lengths(graphdef: GraphDef, rules: OutputRules, mesh: Any) -> Callable[..., Any]:
    """A check, at the end of the trace, that no spec has more entries than what leaves has axes."""

    def too_long(spec: Any, value: Any) -> Any:  # the value is a part: only its rank says something
        return [x for x in jax.tree.leaves(value) if spec and len(spec) > jnp.ndim(x)]

    def error(place: str, kind: str, spec: Any, found: list[Any]) -> Exception:
        of_part = found[0], jnp.shape(found[0])
        return _unfit(place, *of_part, spec, mesh) or AssertionError(kind)

    checked = check_outputs(graphdef, rules, too_long, error)

    def returned(result: Any, grouped: Any, change: Any) -> Any:
        for place, value, spec in results_by_place(rules, result):
            if found := too_long(spec, value):
                raise error(place, "", spec, found)
        return checked(result, grouped, change)

    return returned


def check_replicated(graphdef: GraphDef, rules: OutputRules) -> Callable[..., Any]:
    """A check, at the end of the trace, that what differs between devices leaves by its axes."""

    def varying(spec: Any, value: Any) -> list[Any]:
        axes = set().union(*map(varying_axes, jax.tree.leaves(value)))
        return sorted(axes.difference(spec_axes(spec or ())), key=str)

    def error(place: str, kind: str, spec: Any, axes: list[Any]) -> PrefixError:
        names = ", ".join(map(repr, axes))
        return PrefixError(
            f"`{place}` is written inside shard_map with {spec!r}, but what is written differs "
            f"along the mesh axis {names}.\nCure: give it a spec with that axis, "
            f"nnx.StateSharding({{{kind}: P({names}), ...: P()}}); or write the same on every "
            f"device, such as a mean over them (jax.lax.pmean(x, {names}))."
        )

    return check_outputs(graphdef, rules, varying, error)
