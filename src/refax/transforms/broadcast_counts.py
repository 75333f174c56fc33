"""Counts of random streams that are broadcast: every instance of a function draws the same keys.

So a recurrent dropout has one mask at all steps of a scan. As every instance sees the count from
before and adds the same to it, the transform as a whole adds that once. What an instance leaves in
such a count must therefore depend on what is broadcast only. In a vmap JAX tells what does not; for
scan and shard_map (where JAX takes what a cond leaves for the same on every device)
`run_with_counts` traces the function to a jaxpr, once, and follows there what depends on what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from .._jax_compat import depends, jaxpr_as_fun
from ..graph.graphdef import GraphDef
from ..lift.errors import PrefixError
from ..lift.inside import Change, leaves_out
from ..lift.places import place_of_output
from ..lift.prefix import Groups, OutputRules
from ..objects.variable_types import RngCount


class BroadcastCount(NamedTuple):
    """A count in a broadcast group: leaf number `leaf` is number `index` of group `group`."""

    group: int
    index: int
    leaf: int


def broadcast_counts(graphdef: GraphDef, groups: Groups) -> list[BroadcastCount]:
    """The counts among the leaves whose entry is None, or a PartitionSpec without axes."""
    variables = graphdef.variables
    return [
        BroadcastCount(group, index, leaf)
        for group, entry in enumerate(groups.entries)
        for index, leaf in enumerate(() if varying(entry) else groups.members[group])
        if leaf < len(variables) and issubclass(variables[leaf][1], RngCount)
    ]


def varying(entry: Any) -> bool:
    """Whether what has this entry differs between the instances."""
    return any(entry) if isinstance(entry, PartitionSpec) else entry is not None


def only_counts_written(
    graphdef: GraphDef, rules: OutputRules, counts: Sequence[BroadcastCount]
) -> Callable[..., Any]:
    """A check, at the end of the trace of a step, that it wrote nothing else that is broadcast."""
    allowed = {count.leaf for count in counts}

    def returned(result: Any, out: Sequence[Sequence[Any]], change: Change) -> Any:
        for group, leaves in enumerate(leaves_out(change, graphdef)):
            for index, leaf in enumerate(leaves if rules.entries[group] is None else ()):
                if leaf not in allowed:
                    arguments = rules.arguments
                    raise _written(*place_of_output(graphdef, arguments, change, group, index))
        return result, out, change

    return returned


def counts_left(
    counts: Sequence[BroadcastCount],
    graphdef: GraphDef,
    before: Sequence[Any],
    out: Any,
    change: Change,
) -> list[Any]:
    """The values of the counts after a step, in their order: what it wrote, or those of before."""
    written = {
        leaf: out[group][i]
        for group, leaves in enumerate(leaves_out(change, graphdef))
        for i, leaf in enumerate(leaves)
    }
    return [written.get(c.leaf, value) for c, value in zip(counts, before, strict=True)]


def run_with_counts(
    pure: Callable[..., Any],
    arguments: tuple[Any, Any],
    varies: Sequence[bool],
    counts: Sequence[BroadcastCount],
    graphdef: GraphDef,
    problem: Callable[[int], Exception],
) -> Any:
    """`pure(*arguments)`, traced once.

    Args:
        pure: an instance, (values by group, tree) → (result, values by group, change).
        arguments: of it.
        varies: by leaf of the arguments, whether it differs between the instances.
        counts, graphdef: of the call.
        problem: a leaf → what is raised where its count is left differently by the instances.
    """
    jaxpr, shapes = jax.make_jaxpr(pure, return_shape=True)(*arguments)
    structure = jax.tree.structure(shapes)
    _, out, change = structure.unflatten(depends(jaxpr.jaxpr, varies))
    differs = counts_left(counts, graphdef, [False] * len(counts), out, change)
    for count, wrong in zip(counts, differs, strict=True):
        if wrong:
            raise problem(count.leaf)
    return structure.unflatten(jaxpr_as_fun(jaxpr)(*jax.tree.leaves(arguments)))


def _written(place: str, kind: str) -> PrefixError:
    return PrefixError(
        f"`{place}` is written inside scan, where it is broadcast (None): every step would see the "
        "value from before the loop.\n"
        f"Cure: carry it from step to step, nnx.StateAxes({{{kind}: nnx.Carry, ...: None}}); or "
        f"scan it, {{{kind}: 0, ...: None}}, so that each step has its own."
    )


def drawn_differently(place: str, transform: str, instance: str, lift_type: str) -> PrefixError:
    return PrefixError(
        f"`{place}` counts the keys of a random stream that {transform} broadcasts, but how many "
        f"are drawn differs from {instance} to {instance}.\n"
        f"Cure: let each {instance} draw the same keys, before a condition and not in it; or "
        f"have its own: {lift_type}."
    )
