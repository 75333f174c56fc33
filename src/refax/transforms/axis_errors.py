"""What goes wrong with axes, in the caller's words: sizes that differ, broadcast state written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from .._jax_compat import is_mapped_here
from ..graph.graphdef import GraphDef
from ..lift.call import Call
from ..lift.errors import PrefixError
from ..lift.places import check_outputs, inputs_by_place
from ..lift.prefix import OutputRules
from ..objects.errors import describe_value


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


def check_sizes(
    call: Call,
    rules: OutputRules,
    function: Callable,
    prefix: Any,
    transform: str,
    keywords: Mapping[str, Any] | None = None,
) -> None:
    """Raise if the mapped axes have different sizes, or one is out of bounds; name the places.

    Called when JAX has refused, whose message names places in refax's flat lists.
    """
    sizes: dict[int, list[str]] = {}
    for place, value, axis in inputs_by_place(call, rules, function, prefix, keywords=keywords):
        for leaf in jax.tree.leaves(value) if isinstance(axis, int) else ():
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
