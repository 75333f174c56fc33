"""Counts of random streams that a loop broadcasts: every step draws the same keys.

So a recurrent dropout has one mask at all steps. As every step sees the count from before the loop
and adds the same to it, the loop as a whole adds that once. What a step leaves in such a count must
therefore depend on what is broadcast only; `run_with_counts` finds out by tracing the step once and
looking at the result under a vmap over everything that differs from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun

from .._jax_compat import is_mapped_here
from ..lift.call import CallForm
from ..lift.errors import PrefixError
from ..lift.inside import Static, leaves_out
from ..lift.places import place_of_leaf, place_of_output
from ..lift.prefix import OutputRules
from ..objects.variable_types import RngCount


class BroadcastCount(NamedTuple):
    """A count in a broadcast group: leaf number `leaf` is number `index` of group `group`."""

    group: int
    index: int
    leaf: int


def broadcast_counts(form: CallForm, entries: Sequence[Any]) -> list[BroadcastCount]:
    """The counts among the leaves whose entry is None."""
    variables = form.graphdef.variables
    return [
        BroadcastCount(group, index, leaf)
        for group, entry in enumerate(entries)
        for index, leaf in enumerate(form.groups.members[group] if entry is None else ())
        if leaf < len(variables) and issubclass(variables[leaf][1], RngCount)
    ]


def only_counts_written(
    form: CallForm, rules: OutputRules, counts: Sequence[BroadcastCount]
) -> Callable[..., Any]:
    """A check, at the end of the trace of a step, that it wrote nothing else that is broadcast."""
    allowed = {count.leaf for count in counts}

    def returned(result: Any, out: Sequence[Sequence[Any]], static: Static) -> Any:
        for group, leaves in enumerate(leaves_out(static.change, form.graphdef)):
            for index, leaf in enumerate(leaves if rules.entries[group] is None else ()):
                if leaf not in allowed:
                    arguments = rules.arguments
                    raise _written(
                        *place_of_output(form.graphdef, arguments, static.change, group, index)
                    )
        return result, out, static

    return returned


def counts_left(
    counts: Sequence[BroadcastCount],
    form: CallForm,
    before: Sequence[Any],
    out: Any,
    static: Static,
) -> list[Any]:
    """The values of the counts after a step, in their order: what it wrote, or those of before."""
    written = {
        leaf: out[group][i]
        for group, leaves in enumerate(leaves_out(static.change, form.graphdef))
        for i, leaf in enumerate(leaves)
    }
    return [written.get(c.leaf, value) for c, value in zip(counts, before, strict=True)]


def run_with_counts(
    pure: Callable[..., Any],
    arguments: tuple[Any, Any],
    varies: Sequence[bool],
    counts: Sequence[BroadcastCount],
    form: CallForm,
    rules: OutputRules,
) -> Any:
    """`pure(*arguments)`, traced once.

    Args:
        pure: a step, (values by group, tree) → (result, values by group, static).
        arguments: of it.
        varies: by leaf of the arguments, whether it differs from step to step.
        counts, form, rules: of the loop.

    Raises:
        PrefixError: what is left in a count differs from step to step.
    """
    jaxpr, shapes = jax.make_jaxpr(pure, return_shape=True)(*arguments)
    run, leaves = jaxpr_as_fun(jaxpr), jax.tree.leaves(arguments)
    structure = jax.tree.structure(shapes)
    differs: list[bool] = []

    def look(*xs: Any) -> None:
        _, out, static = structure.unflatten(run(*xs))
        differs.extend(
            map(is_mapped_here, counts_left(counts, form, [0] * len(counts), out, static))
        )

    def stacked(*xs: Any) -> None:
        at = [0 if v else None for v in varies]
        jax.vmap(look, at)(*[x[None] if v else x for x, v in zip(xs, varies, strict=True)])

    if any(varies):
        try:
            jax.eval_shape(stacked, *leaves)
        except (NotImplementedError, ValueError):  # a step that vmap does not know: it is believed
            pass
    for count, wrong in zip(counts, differs, strict=False):
        if wrong:
            raise _differs(place_of_leaf(form.graphdef, rules.arguments, count.leaf))
    return structure.unflatten(run(*leaves))


def _written(place: str, kind: str) -> PrefixError:
    return PrefixError(
        f"`{place}` is written inside scan, where it is broadcast (None): every step would see the "
        "value from before the loop.\n"
        f"Cure: carry it from step to step, nnx.StateAxes({{{kind}: nnx.Carry, ...: None}}); or "
        f"scan it, {{{kind}: 0, ...: None}}, so that each step has its own."
    )


def _differs(place: str) -> PrefixError:
    return PrefixError(
        f"`{place}` counts the keys of a random stream that scan broadcasts (None), but how many "
        "are drawn differs from step to step.\n"
        "Cure: draw the same keys in every step (in both branches of a condition), or carry the "
        "stream, nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None}): each step has its own then."
    )
