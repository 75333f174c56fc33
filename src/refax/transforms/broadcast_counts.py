"""Counts of random streams that are broadcast: every instance of a function draws the same keys.

So a recurrent dropout has one mask at all steps of a scan. As every instance sees the count from
before and adds the same to it, the transform as a whole adds that once. What an instance leaves in
such a count must therefore depend on what is broadcast only. In a vmap JAX tells what does not; for
scan and shard_map (where JAX takes what a cond leaves for the same on every device)
`BroadcastCounts.run` traces the function to a jaxpr, once, and follows there what depends on what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from .._jax_compat import depends, jaxpr_as_fun
from ..graph.graphdef import GraphDef
from ..lift.errors import PrefixError
from ..lift.inside import Change, leaves_out, values_out
from ..lift.places import place_of_leaf, place_of_output
from ..lift.prefix import Groups, OutputRules
from ..objects.variable_types import RngCount


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
                    arguments, change = self._rules.arguments, change
                    place, kind = place_of_output(self._graphdef, arguments, change, group, index)
                    raise PrefixError(
                        f"`{place}` is written inside scan, where it is broadcast (None): every "
                        "step would see the value from before the loop.\n"
                        "Cure: carry it from step to step, "
                        f"nnx.StateAxes({{{kind}: nnx.Carry, ...: None}}); or scan it, "
                        f"{{{kind}: 0, ...: None}}, so that each step has its own."
                    )
        return result, out, change
