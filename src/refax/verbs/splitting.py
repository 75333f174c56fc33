"""From objects to a GraphDef and States: `split`, `state`, `variables`, `graphdef`, `flatten`."""

from __future__ import annotations

from typing import Any

from ..graph import errors
from ..graph.filters import Filter
from ..graph.graphdef import GraphDef
from ..graph.state import one_or_all
from .layouts import copies_of, layouts, plan_of, split_copies


def split(node: Any, /, *filters: Filter) -> Any:
    """Split an object graph into its GraphDef and one State per filter (one in all without).

    Args:
        node: a Module, a Variable, or a container of them.
        *filters: each leaf goes to the first that matches; together they must match every leaf.

    Returns:
        (graphdef, state, …).

    Raises:
        ValueError: a leaf that no filter matches, named by its path.

    Example:
        >>> from refax import nnx
        >>> graphdef, params, rest = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param, ...)
        >>> sorted(params), sorted(rest)
        (['bias', 'scale'], ['mean', 'var'])
    """
    plan = plan_of(node, "split")
    found, rest = layouts(plan, filters, "split")
    if rest:
        paths = [plan.graphdef.paths.leaves[i] for i in rest]
        raise errors.not_exhaustive(paths, "split", "add `...` as the last filter.")
    copies = split_copies(plan)
    return (plan.graphdef, *[layout.build(copies) for layout in found])


def state(node: Any, /, *filters: Filter) -> Any:
    """The State of an object graph, or one State per filter, leaving out what none matches.

    Example:
        >>> from refax import nnx
        >>> params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
        >>> {name: param.shape for name, param in params.items()}
        {'bias': (3,), 'kernel': (2, 3)}
    """
    plan = plan_of(node, "state")
    found, _ = layouts(plan, filters, "state")
    copies = copies_of(plan)
    return one_or_all([layout.build(copies) for layout in found])


def variables(node: Any, /, *filters: Filter) -> Any:
    """Like `nnx.state`, but with the Variables of the object themselves, not copies."""
    plan = plan_of(node, "variables")
    found, _ = layouts(plan, filters, "variables")
    leaves = plan.leaves()
    return one_or_all([layout.build(leaves) for layout in found])


def graphdef(node: Any, /) -> GraphDef:
    """The GraphDef of an object graph: its structure without the arrays."""
    return plan_of(node, "graphdef").graphdef


def flatten(node: Any, /) -> tuple[GraphDef, list[Any]]:
    """(graphdef, leaves): the Variables (copies) and bare arrays in the GraphDef's own order."""
    plan = plan_of(node, "flatten")
    return plan.graphdef, split_copies(plan)
