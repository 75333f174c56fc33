"""Plans: walk an object graph once, then only move values.

A `Plan` keeps of a walk (`graph/walk.py`) what a later call needs: the GraphDef, the Variables in
leaf order, where the bare arrays stand, and *guards*, shallow snapshots of the plain containers,
which have no hook that could tell of a change. `plan_for(roots)` returns the plan of before if
nothing changed.

Who owns what. A plan lives in a slot of its first root, so a dead model takes its plans along and a
plan keeps no model alive; the other roots are held weakly and take the plan along when they die. A
plan refers to Variables and containers, never to the nodes above them, so it makes no cycle.
"""

from __future__ import annotations

import os
import weakref
from functools import partial
from typing import Any

import jax
from jax.core import Tracer

from .._jax_compat import hides_a_trace, is_outside_of_traces
from ..objects.arguments import checked
from ..objects.errors import left_behind, path_string
from ..objects.node import Node, set_object_plans, set_object_watch
from ..objects.snapshots import UNREAD, taken
from ..objects.variable import Variable, set_watch
from ..objects.watch import add_watcher
from .graphdef import intern
from .guards import Guards
from .walk import Walk, walk

_MAX_PLANS_PER_ROOT = 8

_checking = os.environ.get("REFAX_CHECK_PLANS", "") not in ("", "0")


@checked
def check_plans(enabled: bool = True) -> bool:
    """Debug switch: walk again at every use of a plan and assert that the plan was right.

    Also set by the environment variable REFAX_CHECK_PLANS=1. Returns the setting of before.
    """
    global _checking
    before, _checking = _checking, enabled
    return before


def _is_tracer(value: Any) -> bool:
    return isinstance(value, Tracer)


class Plan:
    """What a call needs to know of its roots: see the top of the file."""

    def __init__(self, walked: Walk):
        self.graphdef = intern(walked.graphdef)
        self.variables = walked.variables
        self.arrays = walked.arrays
        self.constants = walked.constants
        self.trace = walked.trace()
        self.guards = Guards(walked.guards.get(0, ()))
        self.valid = True
        self.others: tuple = ()
        self.held: tuple = ()
        self.nested: Any = None  # the Variables by path, for Modules as JAX pytrees
        self.over = (  # whether there is a tracer although nothing is traced
            is_outside_of_traces()
            and any(map(_is_tracer, jax.tree.leaves(self.gather())))
            and not hides_a_trace()
        )

    def checked(self, root: Any) -> Plan:
        """The plan itself.

        Raises:
            TraceContextError: a leaf holds a tracer of a trace that has ended.
        """
        if self.over:
            leaves = zip(self.graphdef.paths.leaves, self.gather(), strict=True)
            path, value = next(x for x in leaves if any(map(_is_tracer, jax.tree.leaves(x[1]))))
            raise left_behind(path_string(path, type(root).__name__), value)
        return self

    def watch(self, walked: Walk) -> None:
        """Ask every object of the walk to tell this plan of a change."""
        ref = weakref.ref(self)
        for value in walked.objects:
            if isinstance(value, Variable):
                set_watch(value, add_watcher(value._watch, ref))
            elif isinstance(value, Node):
                set_object_watch(value, add_watcher(value._refax_watch, ref))

    def holds(self) -> bool:
        """Whether the structure is still what it was."""
        if not self.valid:
            return False
        if not self.guards.hold():
            self.valid = False
        for ref in self.held:
            holding = ref()
            if holding is None or not holding.guards.hold():
                self.valid = False
        return self.valid

    def hand_over(self, walked: Walk, roots: tuple[Any, ...]) -> None:
        """Let every other root own the containers that were reached through it.

        A container leads to the objects in it, and with a cycle back to its root: held here, it
        would keep that root alive as long as the first one lives.
        """
        held = []
        for number in {*walked.guards, *walked.array_roots} - {0}:
            holding = _Holding(Guards(walked.guards.get(number, ())))
            for i, (container, key) in enumerate(self.arrays):
                if walked.array_roots[i] == number and container is not self.constants:
                    holding.containers[i] = container
                    self.arrays[i] = (weakref.proxy(holding), (i, key))
            _plans_of(roots[number])["held", id(self)] = holding
            held.append(weakref.ref(holding))
        self.held = tuple(held)

    bare, gather, leaves = Walk.bare, Walk.gather, Walk.leaves

    def place(self, number: int) -> tuple[Any, Any, Guards]:
        """(container, key, guards of the container) of an array."""
        container, key = self.arrays[number]
        if type(container) is not weakref.ProxyType:
            return container, key, self.guards
        return container.containers[number], key[1], container.guards


class _Holding:
    """What a plan needs of a root that is not its owner; kept alive by that root."""

    def __init__(self, guards: Guards):
        self.guards = guards
        self.containers: dict[int, Any] = {}  # by the number of the array

    def __getitem__(self, place: tuple[int, Any]) -> Any:
        number, key = place
        return self.containers[number][key]


def plan_for(roots: tuple[Any, ...]) -> Plan:
    """The plan of `roots`, from before if their structure is as it was."""
    plan = _known_or_new(roots)
    if UNREAD:
        taken(plan.variables)
    return plan


def _known_or_new(roots: tuple[Any, ...]) -> Plan:
    owner = roots[0] if roots else None
    if not isinstance(owner, Node):
        # Bare Variables and containers own no plan: a Variable would be in a cycle with it.
        return Plan(walk(roots))
    plans = owner._refax_plans
    key = tuple(map(id, roots)) if len(roots) > 1 else 0
    if plans is not None:
        plan = plans.get(key)
        if plan is not None and plan.holds():
            if _checking:
                _assert_right(plan, roots)
            return plan
    walked = walk(roots)
    plan = Plan(walked)
    plan.watch(walked)
    plans = _plans_of(owner)
    if len(plans) >= _MAX_PLANS_PER_ROOT:
        plans.pop(next(iter(plans)), None)
    if len(roots) > 1:
        forget = partial(_forget, weakref.ref(owner), key)
        plan.others = tuple(weakref.ref(root, forget) for root in roots[1:] if root is not owner)
        plan.hand_over(walked, roots)
    plans[key] = plan
    return plan


def _plans_of(owner: Any) -> dict[Any, Any]:
    plans = owner._refax_plans
    if plans is None:
        set_object_plans(owner, plans := {})
    return plans


def _forget(owner: weakref.ref[Node], key: Any, _: Any) -> None:
    """Drop a plan from its owner, since another of its roots died."""
    node: Any = owner()
    if node is not None and node._refax_plans is not None:
        node._refax_plans.pop(key, None)


def _assert_right(plan: Plan, roots: tuple[Any, ...]) -> None:
    walked = walk(roots)
    same = (
        walked.graphdef.records == plan.graphdef.records
        and walked.graphdef.roots == plan.graphdef.roots
        and list(map(id, walked.variables)) == list(map(id, plan.variables))
        and all(
            (a is b and i == j) or b is plan.constants or type(b) is weakref.ProxyType
            for (a, i), (b, j) in zip(walked.arrays, plan.arrays, strict=True)
        )
    )
    if not same:
        raise AssertionError(
            "refax: a cached plan does not describe its objects any more; a change of structure "
            f"went unseen.\nplan: {plan.graphdef!r}\nnow: {walked.graphdef!r}"
        )
