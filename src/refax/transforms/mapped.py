"""What transforms that map share: a call by prefixes, and what goes wrong in the caller's words.

JAX's messages about axes and specs name places in refax's flat lists. So where JAX has refused, the
inputs are looked at again, by their places; what leaves is looked at at the end of the trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from .._jax_compat import depends, is_mapped_here, jaxpr_as_fun, varying_axes
from ..graph.graphdef import GraphDef
from ..lift.arguments import is_captured
from ..lift.call import Call, enter, group_by_prefix, leave
from ..lift.errors import PrefixError
from ..lift.faults import execute
from ..lift.inside import Change, leaves_out, values_out
from ..lift.places import (
    check_outputs,
    inputs_by_place,
    place_of_leaf,
    place_of_output,
    results_by_place,
)
from ..lift.prefix import Groups, OutputRules, hashable, is_entry, is_record, position, spread
from ..lift.programs import eager_program
from ..objects.errors import clipped, describe_value
from ..objects.placing import mesh_set, misfit, more_places, spec_axes
from ..objects.variable import Variable
from ..objects.variable_types import RngCount


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
    parts = [(p, leaf, np.shape(leaf), s) for p, v, s in inputs for leaf in jax.tree.leaves(v)]
    parts += [("out_specs", None, None, entry) for entry in entries]
    if fault := _unfit(parts, mesh):
        raise fault


def _unfit(parts: Iterable[tuple[str, Any, Any, Any]], mesh: Any) -> PrefixError | None:
    """The error for the specs, of (place, value, its shape or None, spec), that do not fit."""
    mesh, wrong = mesh_set() if mesh is None else mesh, list[tuple[str, Any, str]]()
    for place, value, shape, spec in parts:
        if isinstance(spec, PartitionSpec) and (why := misfit(spec, shape, mesh)):
            what = "" if value is None else f" ({describe_value(value)})"
            wrong.append((f"`{clipped(place, 150)}`{what}", spec, why))
    if not wrong:
        return None
    place, spec, why = wrong[0]
    more = more_places([f"{place}, {spec}: {why}" for place, spec, why in wrong[1:]], 800)
    return PrefixError(
        f"shard_map: {place} has {spec} on the mesh {clipped(str(dict(mesh.shape)))}, which does "
        f"not fit: {why}.{more}\n"
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
        return [x for x in jax.tree.leaves(value) if spec and len(spec) > np.ndim(x)]

    def error(place: str, kind: str, spec: Any, found: list[Any]) -> Exception:
        part = place, found[0], np.shape(found[0]), spec
        return _unfit([part], mesh) or AssertionError(kind)

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


# -- Counts of random streams that are broadcast: every instance of a function draws the same keys
#
# So a recurrent dropout has one mask at all steps of a scan. As every instance sees the count
# from before and adds the same to it, the transform as a whole adds that once. What an instance
# leaves in such a count must therefore depend on what is broadcast only. In a vmap JAX tells what
# does not; for scan and shard_map (where JAX takes what a cond leaves for the same on every
# device) `BroadcastCounts.run` traces the function to a jaxpr, once, and follows there what
# depends on what.


def varying(entry: Any) -> bool:
    """Whether what has this entry differs between the instances."""
    return any(entry) if isinstance(entry, PartitionSpec) else entry is not None


class BroadcastCounts:
    """The counts among the leaves whose entry is None, or a PartitionSpec without axes.

    Args:
        graphdef, groups, rules: of the call.
        transform, instance: for messages, such as "scan" and "step".
        lift_type: the one with which each instance has a count of its own.
    """

    def __init__(
        self,
        graphdef: GraphDef,
        groups: Groups,
        rules: OutputRules,
        transform: str,
        instance: str,
        lift_type: str,
    ):
        self._graphdef, self._rules = graphdef, rules
        self._words = transform, instance, lift_type
        variables = graphdef.variables
        self._places = {  # leaf → (group, index in it)
            leaf: (group, index)
            for group, entry in enumerate(groups.entries)
            for index, leaf in enumerate(() if varying(entry) else groups.members[group])
            if leaf < len(variables) and issubclass(variables[leaf][1], RngCount)
        }

    def values(self, grouped: Sequence[Sequence[Any]]) -> dict[int, Any]:
        """The counts among the values that go in, by leaf."""
        return {leaf: grouped[group][index] for leaf, (group, index) in self._places.items()}

    def left(self, before: dict[int, Any], out: Any, change: Change) -> dict[int, Any]:
        """The counts after an instance: what it wrote, or those of before."""
        written = values_out(change, self._graphdef, out)
        return {leaf: written.get(leaf, old) for leaf, old in before.items()}

    def run(
        self,
        pure: Callable,
        arguments: tuple[Any, Any],
        entries: Iterable[Any],
        alike: Callable[[list[str]], None] | None = None,
    ) -> Any:
        """`pure(*arguments)`, an instance, traced once.

        Args:
            pure: (values by group, tree) → (result, values by group, change).
            arguments: of it.
            entries: of each leaf of the arguments.
            alike: told the streams, if there are any, of which every instance draws the same.
        """
        if not self._places:
            return pure(*arguments)
        jaxpr, shapes = jax.make_jaxpr(pure, return_shape=True)(*arguments)
        structure = jax.tree.structure(shapes)
        drawn: list[str] = []
        _, out, change = structure.unflatten(depends(jaxpr.jaxpr, [*map(varying, entries)], drawn))
        for leaf, differs in self.left(dict.fromkeys(self._places, False), out, change).items():
            if differs:
                place = place_of_leaf(self._graphdef, self._rules.arguments, leaf)
                transform, instance, lift_type = self._words
                raise PrefixError(
                    f"`{place}` counts the keys of a random stream that {transform} broadcasts, "
                    f"but how many are drawn differs from {instance} to {instance}.\n"
                    f"Cure: let each {instance} draw the same keys, before a condition and not in "
                    f"it; or have its own: {lift_type}."
                )
        if drawn and alike is not None:
            written = self._places.keys() & values_out(change, self._graphdef, out).keys()
            names = (place_of_leaf(self._graphdef, self._rules.arguments, leaf) for leaf in written)
            alike(sorted(name.removesuffix(".count") for name in names))
        return structure.unflatten(jaxpr_as_fun(jaxpr)(*jax.tree.leaves(arguments)))

    def check(self, result: Any, out: Sequence[Sequence[Any]], change: Change) -> Any:
        """At the end of the trace of a step: it wrote nothing else that is broadcast."""
        for group, leaves in enumerate(leaves_out(change, self._graphdef)):
            for index, leaf in enumerate(leaves if self._rules.entries[group] is None else ()):
                if leaf not in self._places:
                    known, of = self._graphdef, self._rules.arguments
                    place, kind = place_of_output(known, of, change, group, index)
                    raise PrefixError(
                        f"`{place}` is written inside scan, where it is broadcast (None): every "
                        "step would see the value from before the loop.\n"
                        "Cure: carry it from step to step, "
                        f"nnx.StateAxes({{{kind}: nnx.Carry, ...: None}}); or scan it, "
                        f"{{{kind}: 0, ...: None}}, so that each step has its own."
                    )
        return result, out, change


# -- What `nnx.capture` records in, where a transform maps or scans: a place for each index or step
#
# A Module that a transform broadcasts or carries keeps its values, but each index records its
# own. So the Variables that are recorded in are mapped over axis 0, unless a lift type says
# another one. What was recorded before the call has no such axis: it waits outside, and comes
# back before the new.


def records_of(leaves: Sequence[Any]) -> dict[int, Variable]:
    """The Variables that are recorded in, by leaf."""
    if not is_captured():
        return {}
    return {i: x for i, x in enumerate(leaves) if is_record(x)}


def with_axis(groups: Groups, records: dict[int, Variable]) -> Groups:
    """The groups, with an axis for each record that has none."""
    entries, of_leaf = list(groups.entries), list(groups.of_leaf)
    for leaf in records:
        if not isinstance(entries[of_leaf[leaf]], int):
            of_leaf[leaf] = position(entries, 0)
    return Groups(entries, of_leaf)


@contextlib.contextmanager
def recorded_apart(records: dict[int, Variable]) -> Iterator[None]:
    """Lists of what was recorded are empty in the block, and are continued after it."""
    before = {i: dict(record.value) for i, record in records.items()}
    for i, record in records.items():
        record.value = {k: x for k, x in before[i].items() if not isinstance(x, tuple)}
    try:
        yield
    finally:
        for i, record in records.items():
            new, lists = record.value, {k: x for k, x in before[i].items() if isinstance(x, tuple)}
            record.value = {**lists, **new, **{k: x + new.get(k, ()) for k, x in lists.items()}}
