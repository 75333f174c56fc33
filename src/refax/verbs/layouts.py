"""Layouts: which leaves go into which State, remembered on the GraphDef.

Users of plain JAX call the verbs at every step, so nothing that depends on structure only is worked
out twice; nested dicts of leaves are built and taken apart by JAX in C++.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, TypeVar

import jax
from jax.core import Tracer

from .._jax_compat import TRACE
from ..graph.filters import Filter, check_ellipsis_last, first_match, is_structural, to_predicate
from ..graph.graphdef import GraphDef
from ..graph.plan import Plan, plan_for
from ..graph.state import nest, state_over
from ..objects.errors import describe_value
from ..objects.snapshots import Snapshot
from ..objects.variable import copies

N = TypeVar("N")


_DEEP = 64  # JAX flattens nested dicts recursively; deeper ones are walked here


class Layout:
    """Which leaves make up one State, in the State's order, and the dicts that hold them.

    The State of a Variable, an array or another leaf is that leaf itself.
    """

    __slots__ = ("itself", "leaves", "paths", "treedef")

    def __init__(self, graphdef: GraphDef, leaves: list[int]):
        self.leaves = leaves
        self.paths = [graphdef.paths.leaves[i] for i in leaves]
        self.itself = self.paths == [()]
        self.treedef = None
        if not self.itself and max(map(len, self.paths), default=0) <= _DEEP:
            try:
                self.treedef = jax.tree.structure(nest((p, 0) for p in self.paths))
            except ValueError:  # keys of several types in one dict, which JAX refuses to sort
                pass

    def build(self, values: list[Any]) -> Any:
        mine = [values[i] for i in self.leaves]
        if self.itself:
            return mine[0]
        if self.treedef is None:
            return state_over(nest(zip(self.paths, mine, strict=True)))
        return state_over(self.treedef.unflatten(mine))


def layouts(plan: Plan, filters: tuple[Filter, ...], verb: str) -> tuple[list[Layout], list[int]]:
    """One layout per filter, and the leaves that no filter matches."""
    graphdef = plan.graphdef
    if not filters:
        return [full_layout(graphdef)], []

    def make() -> tuple[list[Layout], list[int]]:
        groups: list[list[int]] = [[] for _ in filters]
        rest: list[int] = []
        leaves = plan.leaves()
        for i in graphdef.paths.order:
            match = first_match(predicates, graphdef.paths.leaves[i], leaves[i])
            (rest if match is None else groups[match]).append(i)
        return [Layout(graphdef, g) for g in groups], rest

    predicates = [to_predicate(f) for f in filters]
    check_ellipsis_last(filters, verb)
    if all(map(is_structural, predicates)):
        return graphdef.remembered(("layouts", *predicates), make)
    return make()


def full_layout(graphdef: GraphDef) -> Layout:
    return graphdef.remembered("layout", lambda: Layout(graphdef, list(graphdef.paths.order)))


def layout_of(plan: Plan, filter: Filter) -> Layout:
    """The layout of the State of what one filter matches."""
    return layouts(plan, (filter,), "state")[0][0]


def plan_of(node: Any) -> Plan:
    return plan_for((node,)).checked(node)


def object_plan(node: Any, verb: str) -> Plan:
    """The plan of an object that a verb writes into, or names the parts of: no bare leaf."""
    plan = plan_of(node)
    if plan.graphdef.of_leaf:
        raise TypeError(
            f"nnx.{verb} takes an object, got {describe_value(node)}.\n"
            "Cure: give a Module or other Pytree, a Variable, or a container of them."
        )
    return plan


def copies_of(plan: Plan, snapshot: Snapshot | None = None) -> list[Any]:
    """The leaves for new objects, or for a State: Variables as new cells, arrays as they are."""
    leaves = copies(plan.variables, snapshot)
    if plan.arrays:
        leaves += plan.bare()
    return leaves


def snapshot(plan: Plan) -> list[Any]:
    """The leaves for a State: its Variables tell if they are written to no purpose."""
    return copies_of(plan, Snapshot(TRACE.value))


def leaves_of(node: Any) -> tuple[GraphDef, list[Any]]:
    """The GraphDef of an object, and the leaves for a new one, in the order of the GraphDef."""
    plan = plan_of(node)
    return plan.graphdef, copies_of(plan)


def note_shapes(plan: Plan) -> None:
    """The GraphDef remembers the shapes of what is split, so that `merge` can tell a mix-up."""
    shapes = shapes_of(plan.variables)
    if shapes is not None:
        known = plan.graphdef.remembered("shapes", dict)
        if shapes not in known and len(known) < _MAX_SHAPES:
            known[shapes] = None


_MAX_SHAPES = 64
_shape = attrgetter("_value.shape")


def shapes_of(variables: list[Any]) -> tuple | None:
    """The shapes of the values; None in a trace, or where one has none."""
    if not variables or isinstance(variables[0]._value, Tracer):
        return None
    try:
        return tuple(map(_shape, variables))
    except AttributeError:
        return None
