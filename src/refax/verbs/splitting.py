"""From objects to a GraphDef and States: `split`, `state`, `variables`, `graphdef`, `flatten`.

The State that these give holds *copies* of the Variables, with the same (immutable) arrays: it does
not follow the object, and what is written into it stays there. With `copy=False` it holds the
object's own Variables.
"""

from __future__ import annotations

from typing import Any, overload

from ..graph import errors
from ..graph.filters import Filter, checked
from ..graph.graphdef import GraphDef, GraphState
from ..graph.plan import Plan
from ..graph.state import FlatState, State, States, one_or_all
from ..objects.modes import Switch
from ..objects.type_names import M
from .layouts import full_layout, layouts, note_shapes, plan_of, snapshot


@overload
def split(
    node: M, a: Filter = ..., /, *, copy: bool = True, graph: Switch = None
) -> tuple[GraphDef[M], State]: ...
@overload
def split(
    node: M, a: Filter, b: Filter, /, *, copy: bool = True, graph: Switch = None
) -> tuple[GraphDef[M], State, State]: ...
@overload
def split(
    node: M, a: Filter, b: Filter, c: Filter, /, *, copy: bool = True, graph: Switch = None
) -> tuple[GraphDef[M], State, State, State]: ...
@overload
def split(
    node: M, a: Filter, b: Filter, c: Filter, d: Filter, /, *, copy: bool = True, graph: Any = None
) -> tuple[GraphDef[M], State, State, State, State]: ...
@overload
def split(node: Any, *filters: Filter, copy: bool = True, graph: Switch = None) -> Any: ...
def split(node: Any, *filters: Filter, copy: bool = True, graph: Switch = None) -> Any:
    """Split an object graph into its GraphDef and one State per filter (one in all without).

    The State of a lone Variable, array or number is that leaf itself.

    Args:
        node: a Module, a Variable, or a container of them; or a leaf.
        *filters: each leaf goes to the first that matches; together they must match every leaf.
        copy: hold copies of the Variables (default), or the object's own.

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
    plan = plan_of(node)
    found, rest = layouts(plan, filters, "split")
    if rest:
        paths = [plan.graphdef.paths.leaves[i] for i in rest]
        raise errors.not_exhaustive(paths, "split", "add `...` as the last filter.")
    note_shapes(plan)
    leaves = _leaves(plan, copy)
    return (plan.graphdef, *[layout.build(leaves) for layout in found])


def unpack(node: Any, *filters: Filter, graph: Switch = None) -> Any:
    """As `nnx.split`, but each State knows its GraphDef: one `GraphState` per filter.

    Example:
        >>> from refax import nnx
        >>> params, rest = nnx.unpack(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param, ...)
        >>> sorted(params)
        ['bias', 'scale']
        >>> type(params.merge(rest)).__name__, type(nnx.merge(params, rest)).__name__
        ('BatchNorm', 'BatchNorm')
    """
    graphdef, *states = split(node, *filters)
    return one_or_all([GraphState(graphdef, x) for x in states])


@overload
def state(
    node: Any, first: Filter = ..., /, *, copy: bool = True, graph: Switch = None
) -> State: ...
@overload
def state(
    node: Any, _1: Filter, _2: Filter, /, *filters: Filter, copy: bool = True, graph: Switch = None
) -> States: ...
def state(node: Any, *filters: Filter, copy: bool = True, graph: Switch = None) -> Any:
    """The State of an object graph, or one State per filter, leaving out what none matches.

    Args:
        node, *filters: as for `nnx.split`.
        copy: hold copies of the Variables (default), a snapshot; or the object's own.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> params = nnx.state(model, nnx.Param)
        >>> {name: param.shape for name, param in params.items()}
        {'bias': (3,), 'kernel': (2, 3)}
        >>> nnx.state(model, copy=False).bias is model.bias
        True
    """
    plan = plan_of(node)
    found, _ = layouts(plan, filters, "state")
    leaves = _leaves(plan, copy)
    return one_or_all([layout.build(leaves) for layout in found])


@overload
def variables(node: Any, first: Filter = ..., /, *, graph: Switch = None) -> State: ...
@overload
def variables(
    node: Any, a: Filter, b: Filter, /, *more: Filter, graph: Switch = None
) -> States: ...
def variables(node: Any, *filters: Filter, graph: Switch = None) -> Any:
    """Like `nnx.state`, but with the Variables of the object themselves, not copies."""
    return state(node, *filters, copy=False)


def _leaves(plan: Plan, copy: bool) -> list[Any]:
    return snapshot(plan) if copy else plan.leaves()


def graphdef(node: M, *, graph: Switch = None) -> GraphDef[M]:
    """The GraphDef of an object graph: its structure without the arrays."""
    return plan_of(node).graphdef


@checked
def flatten(node: M, *, with_paths: bool = True, graph: Switch = None) -> tuple[GraphDef[M], Any]:
    """(graphdef, leaves): the Variables (copies) and bare arrays, sorted by path.

    Args:
        node: as for `nnx.split`.
        with_paths: give the leaves as a `FlatState`, with their paths; or as a list.

    Example:
        >>> from refax import nnx
        >>> graphdef, leaves = nnx.flatten(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> leaves.paths
        (('bias',), ('kernel',))
        >>> type(nnx.unflatten(graphdef, leaves)).__name__
        'Linear'
    """
    plan = plan_of(node)
    note_shapes(plan)
    layout, leaves = full_layout(plan.graphdef), snapshot(plan)
    ordered = [leaves[i] for i in layout.leaves]
    if not with_paths:
        return plan.graphdef, ordered
    return plan.graphdef, FlatState(zip(layout.paths, ordered, strict=True))
