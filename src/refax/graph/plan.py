"""Plans: walk an object graph once, then only move values.

`walk(roots)` visits everything reachable and returns a GraphDef with the objects that it describes.
A `Plan` keeps of that what a later call needs: the GraphDef, the Variables in leaf order, where the
bare arrays stand, and *guards*, shallow snapshots of the plain containers, which have no hook that
could tell of a change. `plan_for(roots)` returns the plan of before if nothing changed.

Who owns what. A plan lives in a slot of its first root, so a dead model takes its plans along and a
plan keeps no model alive; the other roots are held weakly and take the plan along when they die. A
plan refers to Variables and containers, never to the nodes above them, so it makes no cycle.
"""

from __future__ import annotations

import os
import types
import weakref
from collections import OrderedDict, defaultdict
from operator import is_
from typing import Any, NamedTuple

import jax

from .containers import Dict, List
from .graphdef import DICT, LEAF, LIST, OBJECT, PYTREE, TUPLE, VARIABLE, GraphDef, intern
from .module import Pytree, class_marks, hides_writes, set_object_plans, set_object_watch
from .state import State
from .statics import is_plain_static, static_key
from .variable import Variable, set_raw_value, set_watch
from .watch import add_watcher, is_array

_LISTS = frozenset({list, List})
_DICTS = frozenset({dict, Dict, OrderedDict, defaultdict})
_FUNCTION_LIKE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
_MAX_PLANS_PER_ROOT = 8

_checking = os.environ.get("REFAX_CHECK_PLANS", "") not in ("", "0")


def check_plans(enabled: bool = True) -> bool:
    """Debug switch: walk again at every use of a plan and assert that the plan was right.

    Also set by the environment variable REFAX_CHECK_PLANS=1. Returns the setting of before.
    """
    global _checking
    before, _checking = _checking, enabled
    return before


def is_node(value: Any) -> bool:
    """Whether `value` has an identity that refax keeps: a Pytree (Module) or a Variable."""
    return isinstance(value, (Pytree, Variable))


class Walk(NamedTuple):
    graphdef: GraphDef
    objects: list[Any]  # by record
    variables: list[Variable]  # by leaf
    arrays: list[tuple[Any, Any]]  # (container, key) by leaf; container None: inside a tuple
    constants: list[Any]  # the values of the arrays whose container is None
    guards: list[tuple[Any, Any, tuple]]  # (container, keys or LEAF or None, items)


def walk(roots: tuple[Any, ...]) -> Walk:
    """Visit everything reachable from `roots` and describe it."""
    records: list[Any] = []
    objects: list[Any] = []
    positions: dict[int, int] = {}
    variables: list[Variable] = []
    arrays: list[tuple[Any, Any]] = []
    constants: list[Any] = []
    guards: list[tuple[Any, Any, tuple]] = []

    def reference(value: Any) -> int:
        position = positions.get(id(value))
        if position is None:
            position = positions[id(value)] = len(objects)
            objects.append(value)
        return position

    def child(value: Any, container: Any, key: Any) -> Any:
        cls = type(value)
        if is_plain_static(value, cls):
            return (cls, value)
        if isinstance(value, (Variable, Pytree)) or cls in _LISTS or cls in _DICTS or cls is State:
            return reference(value)
        if is_array(value):
            arrays.append((container, key))
            constants.append(value if container is None else None)
            return LEAF
        if isinstance(value, _FUNCTION_LIKE) or cls is float:
            return static_key(value)
        if isinstance(value, tuple) or not jax.tree_util.all_leaves((value,)):
            content = jax.tree.leaves(value, is_leaf=_is_graph_part)
            if content and all(map(is_array, content)):  # arrays only: a value as a whole
                arrays.append((container, key))
                constants.append(value if container is None else None)
                return LEAF
            objects.append(value)  # no identity: a position of its own
            return len(objects) - 1
        return static_key(value)

    root_positions = tuple(reference(root) for root in roots)
    done = 0
    while done < len(objects):
        value = objects[done]
        done += 1
        cls = type(value)
        if isinstance(value, Variable):
            variables.append(value)
            records.append((VARIABLE, cls, value._metadata))
        elif isinstance(value, Pytree):
            attributes = value.__dict__
            marks = class_marks(cls)
            own = value._refax_marks
            if own:
                marks = {**marks, **own} if marks else own
            if marks:
                children = tuple(
                    _marked(x, marks.get(k), child, attributes, k) for k, x in attributes.items()
                )
                used = tuple((k, m) for k, m in (own or {}).items() if k in attributes)
            else:
                children = tuple([child(x, attributes, k) for k, x in attributes.items()])
                used = ()
            if hides_writes(cls):
                guards.append((attributes, tuple(attributes), tuple(attributes.values())))
            records.append((OBJECT, cls, tuple(attributes), children, used))
        elif cls in _LISTS:
            items = tuple(value)
            guards.append((value, None, items))
            records.append((LIST, cls, tuple([child(x, value, i) for i, x in enumerate(items)])))
        elif cls in _DICTS or cls is State:
            mapping = value._tree if cls is State else value
            keys, items = tuple(mapping), tuple(mapping.values())
            guards.append((mapping, keys, items))
            children = tuple([child(x, mapping, k) for k, x in zip(keys, items, strict=True)])
            factory = static_key(value.default_factory) if cls is defaultdict else None
            records.append((DICT, cls, keys, children, factory))
        elif isinstance(value, tuple):
            records.append((TUPLE, cls, tuple([child(x, None, None) for x in value])))
        else:  # a registered pytree
            pairs = one_level_with_keys(value)
            items = tuple(x for _, x in pairs)
            one_level = jax.tree.structure(value, is_leaf=lambda x, top=value: x is not top)
            guards.append((value, LEAF, items))
            names = tuple(key_name(k) for k, _ in pairs)
            children = tuple([child(x, None, None) for x in items])
            records.append((PYTREE, one_level, names, children))
    graphdef = GraphDef(root_positions, tuple(records), len(arrays))
    return Walk(graphdef, objects, variables, arrays, constants, guards)


def _is_graph_part(value: Any) -> bool:
    cls = type(value)
    return isinstance(value, (Pytree, Variable, State)) or cls in _LISTS or cls in _DICTS


def _marked(value: Any, mark: str | None, child: Any, container: Any, key: Any) -> Any:
    if mark == "static":
        return static_key(value)
    encoded = child(value, container, key)
    if mark == "data" and type(encoded) is tuple:  # a number as data: a leaf
        return child(_AS_LEAF, container, key)
    return encoded


# Stands for "whatever is in that place, as an array": `child` then records a LEAF.
_AS_LEAF = jax.ShapeDtypeStruct((), "float32")


def one_level_with_keys(value: Any) -> list[tuple[Any, Any]]:
    """The (JAX key, child) pairs of a registered pytree."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
    return [(path[0], leaf) for path, leaf in pairs]


def key_name(key: Any) -> Any:
    """A JAX path key as refax writes it in a path."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


class Plan:
    """What a call needs to know of its roots: see the top of the file."""

    __slots__ = (
        "__weakref__",
        "arrays",
        "constants",
        "graphdef",
        "guards",
        "nested",
        "others",
        "valid",
        "variables",
    )

    def __init__(self, walked: Walk):
        self.graphdef = intern(walked.graphdef)
        self.variables = walked.variables
        self.arrays = walked.arrays
        self.constants = walked.constants
        self.guards = walked.guards
        self.valid = True
        self.others: tuple = ()
        self.nested: Any = None  # the Variables by path, for Modules as JAX pytrees

    def watch(self, walked: Walk) -> None:
        """Ask every object of the walk to tell this plan of a change."""
        ref = weakref.ref(self)
        for value in walked.objects:
            if isinstance(value, Variable):
                set_watch(value, add_watcher(value._watch, ref))
            elif isinstance(value, Pytree):
                set_object_watch(value, add_watcher(value._refax_watch, ref))

    def holds(self) -> bool:
        """Whether the structure is still what it was."""
        if not self.valid:
            return False
        for container, keys, items in self.guards:
            if keys is None:  # a list
                if len(container) != len(items) or not all(map(is_, container, items)):
                    break
            elif keys is LEAF:  # a registered pytree, which may be mutable
                now = jax.tree.leaves(container, is_leaf=lambda x, top=container: x is not top)
                if len(now) != len(items) or not all(map(is_, now, items)):
                    break
            elif (
                len(container) != len(keys)
                or not all(map(is_, container.values(), items))
                or tuple(container) != keys
            ):
                break
        else:
            return all(ref() is not None for ref in self.others)
        self.valid = False
        return False

    def gather(self) -> list[Any]:
        """The values of the leaves, in order."""
        values = [v._value for v in self.variables]
        if self.arrays:
            for (container, key), constant in zip(self.arrays, self.constants, strict=True):
                values.append(constant if container is None else container[key])
        return values

    def place(self, leaf: int, value: Any) -> bool:
        """Put `value` into a leaf; False for one inside a tuple, which must be built anew."""
        number = leaf - len(self.variables)
        if number < 0:
            set_raw_value(self.variables[leaf], value)
            return True
        container, key = self.arrays[number]
        if container is None:
            return False
        container[key] = value
        self._refresh_guard(container)
        return True

    def _refresh_guard(self, container: Any) -> None:
        """A bare array in a list or dict was replaced by us: the structure is the same."""
        for i, (guarded, keys, _) in enumerate(self.guards):
            if guarded is container:
                items = container if keys is None else container.values()
                self.guards[i] = (guarded, keys, tuple(items))


def plan_for(roots: tuple[Any, ...]) -> Plan:
    """The plan of `roots`, from before if their structure is as it was."""
    owner = roots[0] if roots else None
    if not isinstance(owner, Pytree):
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
    if plans is None:
        plans = {}
        set_object_plans(owner, plans)
    elif len(plans) >= _MAX_PLANS_PER_ROOT:
        plans.pop(next(iter(plans)), None)
    if len(roots) > 1:
        plan.others = tuple(
            weakref.ref(root, _Forget(owner, key)) for root in roots[1:] if root is not owner
        )
    plans[key] = plan
    return plan


class _Forget:
    """Drops a plan from its owner when another of its roots dies; refers to the owner weakly."""

    __slots__ = ("key", "owner")

    def __init__(self, owner: Pytree, key: Any):
        self.owner = weakref.ref(owner)
        self.key = key

    def __call__(self, _: Any) -> None:
        owner = self.owner()
        if owner is not None and owner._refax_plans is not None:
            owner._refax_plans.pop(self.key, None)


def _assert_right(plan: Plan, roots: tuple[Any, ...]) -> None:
    walked = walk(roots)
    same = (
        walked.graphdef.records == plan.graphdef.records
        and walked.graphdef.roots == plan.graphdef.roots
        and len(walked.variables) == len(plan.variables)
        and all(map(is_, walked.variables, plan.variables))
        and all(
            a is b and i == j for (a, i), (b, j) in zip(walked.arrays, plan.arrays, strict=True)
        )
    )
    if not same:
        raise AssertionError(
            "refax: a cached plan does not describe its objects any more; a change of structure "
            f"went unseen.\nplan: {plan.graphdef!r}\nnow: {walked.graphdef!r}"
        )
