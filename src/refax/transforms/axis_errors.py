"""What goes wrong with axes, in the caller's words: sizes that differ, broadcast state written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._jax_compat import is_mapped_here
from ..graph.errors import describe_value
from ..graph.graphdef import GraphDef
from ..lift.array_prefix import spread
from ..lift.call import Call
from ..lift.errors import PrefixError, argument_names
from ..lift.inside import Static
from ..lift.places import place_of_leaf, place_of_output
from ..lift.prefix import OutputRules


def check_broadcast(graphdef: GraphDef, rules: OutputRules, transform: str) -> Callable[..., Any]:
    """A check, at the end of the trace, that nothing mapped leaves through axis None."""

    def returned(result: Any, grouped: Sequence[Sequence[Any]], static: Static) -> Any:
        for group, entry in enumerate(rules.entries):
            if entry is not None:
                continue
            for index, value in enumerate(grouped[group]):
                if any(map(is_mapped_here, jax.tree.leaves(value))):
                    place, kind = place_of_output(
                        graphdef, rules.arguments, static.change, group, index
                    )
                    raise _broadcast_written(place, kind, transform)
        return result, grouped, static

    return returned


def _broadcast_written(place: str, kind: str, transform: str) -> PrefixError:
    return PrefixError(
        f"`{place}` is written inside {transform} with axis None, but what is written differs "
        f"along the mapped axis.\nCure: map it, with an axis for its type as in "
        f"nnx.StateAxes({{{kind}: 0, ...: None}}); or write the same for every index, such as a "
        "mean over them (axis_name='batch' and jax.lax.pmean(x, 'batch'))."
    )


def check_sizes(
    call: Call, rules: OutputRules, function: Callable, prefix: Any, transform: str
) -> None:
    """Raise if the mapped axes have different sizes, or one is out of bounds; name the places.

    Called when JAX has refused, whose message names places in refax's flat lists.
    """
    sizes: dict[int, list[str]] = {}
    groups = call.groups
    assert groups is not None

    def note(place: str, value: Any, axis: Any) -> None:
        if not isinstance(axis, int):
            return
        for leaf in jax.tree.leaves(value):
            shape = getattr(leaf, "shape", ())
            if not -len(shape) <= axis < len(shape):
                raise PrefixError(
                    f"{transform}: `{place}` is {describe_value(leaf)}, which has no axis {axis} "
                    "to map.\nCure: map it with None, or give it that axis (nnx.split_rngs for "
                    "random streams, nnx.vmap over the constructor for a stack of models)."
                )
            sizes.setdefault(shape[axis], []).append(
                f"{place} ({describe_value(leaf)}, axis {axis})"
            )

    for leaf, value in enumerate(call.values):
        place = place_of_leaf(call.plan.graphdef, rules.arguments, leaf)
        note(place, value, groups.entries[groups.of_leaf[leaf]])
    args = call.tree[0]
    labels = argument_names(function, len(args))
    pairs = jax.tree_util.tree_leaves_with_path(args)
    for (path, value), axis in zip(pairs, spread(prefix, args, "in_axes"), strict=True):
        note(labels[path[0].idx] + jax.tree_util.keystr(path[1:]), value, axis)
    if len(sizes) > 1:
        listed = "\n".join(
            f"  size {size}: {', '.join(places[:3])}" + (" …" if len(places) > 3 else "")
            for size, places in sorted(sizes.items())
        )
        raise PrefixError(
            f"{transform}: the mapped axes have different sizes:\n{listed}\n"
            "Cure: map each with the axis that has the common size, or with None."
        )
