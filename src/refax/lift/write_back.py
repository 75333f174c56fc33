"""Write-back: what a call did inside, done to the caller's own objects, all or nothing.

It runs after the JAX call has returned. Everything that can fail (building the new content, finding
the objects, the check that each one belongs to the present trace) comes first; then slots, dicts
and lists are written, which cannot fail, in one loop that cannot be interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from .._jax_compat import TRACE
from ..graph.graphdef import LEAF, LIST, OBJECT, VARIABLE, GraphDef, record_children
from ..graph.plan import Plan
from ..graph.rebuild import (
    build,
    content_writes,
    fill,
    has_content,
    make_empty,
    mapping_of,
    write_leaves,
)
from ..graph.state import State
from ..graph.walk import walk
from ..objects.at_once import Write, at_once, set_each
from ..objects.errors import path_string
from ..objects.snapshots import Rebuilt
from ..objects.trace_errors import mutation_error
from ..objects.variable import (
    Variable,
    check_write,
    make_variable,
    metadata_writes,
    set_raw_value,
    trace_of,
)
from .arguments import Slot, put_back
from .inside import Change, NewGraph

_VALUE = "write the value of"


def write_back(
    plan: Plan,
    roots: Sequence[Any],
    values: Sequence[Any],
    tree: Any,
    grouped: Sequence[Sequence[Any]],
    change: Change,
) -> Any:
    """Apply `change` to the objects of `plan` and return the result with objects in its slots.

    Args:
        plan: over the roots, as they were before the call.
        roots: the objects of the call.
        values: the leaf values that went in.
        tree: the result with slots.
        grouped: the values that came out, by group.
        change: what they are for.
    """
    if change.graph is not None:
        objects = _apply_graph(roots, values, grouped, change.graph)
        return put_back(tree, objects)
    result = tree if not _has_slot(tree) else put_back(tree, _Lookup(plan, roots))
    leaves, outs = change.dirty[0], grouped[0]
    if len(change.dirty) > 1:
        leaves = list(chain.from_iterable(change.dirty))
        outs = list(chain.from_iterable(grouped))
    if leaves:
        if plan.trace is not TRACE.value:
            # JAX hands on what a loop carries unchanged: that is no write.
            written = [i for i, out in zip(leaves, outs, strict=True) if out is not values[i]]
            walked = walk(tuple(roots))
            check_trace(walked.graphdef, walked.objects, _actions(walked.graphdef, written))
        if plan.arrays:
            write_leaves(plan, roots, leaves, outs)
        else:  # the way of nearly every call
            variables = plan.variables
            set_each(set_raw_value, [variables[i] for i in leaves], outs)
    return result


def _actions(graphdef: GraphDef, leaves: Sequence[int]) -> dict[int, str]:
    """The records that hold these leaves, with what is done to them."""
    variables, first = graphdef.leaf_numbers()
    of_leaf = {leaf: (record, _VALUE) for record, leaf in variables.items()}
    for record, number in first.items():
        for key, child in zip(*record_children(graphdef.records[record]), strict=True):
            if child is LEAF:
                of_leaf[number] = (record, f"write the array {key!r} of")
                number += 1
    return dict(of_leaf[leaf] for leaf in leaves)


def check_trace(graphdef: GraphDef, objects: Sequence[Any], actions: Mapping[int, str]) -> None:
    """Raise if an object that is to be written belongs to another trace.

    A plain container belongs where the nearest object above it does.

    Args:
        actions: what is to be done, for messages, to each record that is written.
    """
    holder: dict[int, int | None] = {}
    for i, record in enumerate(graphdef.records):
        own = i if record[0] in (OBJECT, VARIABLE) else holder.get(i)
        holder[i] = own
        for child in record_children(record)[1]:
            if type(child) is int:
                holder.setdefault(child, own)
    for i, action in actions.items():
        at = holder[i]
        if at is None:
            continue
        obj = objects[at]
        cell = isinstance(obj, Variable)
        if (trace_of(obj) if cell else obj._refax_trace) is not TRACE.value:
            roots = [type(objects[root]).__name__ for root in graphdef.roots]
            path: tuple = graphdef.paths.nodes[i]
            root, *below = path if len(roots) > 1 else (0, *path)
            place = path_string(below, roots[root])
            raise mutation_error(objects[i], action, place)
        if cell and isinstance(obj._trace, Rebuilt):
            check_write(obj, action)  # which notes it


def _differing(obj: Any, record: tuple, children: Sequence[Any]) -> str:
    """The attributes or entries that would change."""
    if record[0] == LIST:
        return "the entries"
    nothing = object()
    old, new = mapping_of(obj, record), dict(zip(record[2], children, strict=True))
    names = [k for k in {**old, **new} if old.get(k, nothing) is not new.get(k, nothing)]
    kind = "the attribute" if record[0] == OBJECT else "the entry"
    return ", ".join(f"{kind} `{name}`" for name in names) or "the class, marks or order"


def _has_slot(tree: Any) -> bool:
    cls = type(tree)
    if cls is Slot:
        return True
    if cls is tuple or cls is list:
        return any(map(_has_slot, tree))
    if cls is dict:
        return any(map(_has_slot, tree.values()))
    return cls is not State and not is_array_like(tree)


def is_array_like(value: Any) -> bool:
    return value is None or hasattr(value, "dtype") or isinstance(value, (int, float, complex))


class _Lookup(Sequence[Any]):
    """Input objects by record, looked for only if a result refers to one that is no root."""

    def __init__(self, plan: Plan, roots: Sequence[Any]):
        self._plan = plan
        self._roots = roots
        self._objects: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._plan.graphdef.records)

    def __getitem__(self, record: Any) -> Any:
        for position, root in zip(self._plan.graphdef.roots, self._roots, strict=True):
            if position == record:
                return root
        if self._objects is None:
            self._objects = walk(tuple(self._roots)).objects
        return self._objects[record]


def _apply_graph(
    roots: Sequence[Any], values: Sequence[Any], grouped: Sequence[Sequence[Any]], graph: NewGraph
) -> list[Any]:
    """Give the caller's objects the new structure; returns the objects by (new) record."""
    before = walk(tuple(roots)).objects
    leaves = [values[s] if type(s) is int else grouped[s[0]][s[1]] for s in graph.sources]
    known = [None if origin is None else before[origin] for origin in graph.origins]
    return give_structure(graph.graphdef, known, leaves)


def give_structure(
    graphdef: GraphDef, known: Sequence[Any | None], leaves: Sequence[Any]
) -> list[Any]:
    """The objects of a GraphDef with these leaves, by record: existing ones changed, others made.

    Args:
        known: by record, the existing object that it describes, or None.
    """
    records = graphdef.records
    objects: list[Any] = []
    writes: list[Write] = []
    actions: dict[int, str] = {}
    number = 0
    for i, (record, existing) in enumerate(zip(records, known, strict=True)):
        if record[0] == VARIABLE:
            value = leaves[number]
            number += 1
            if existing is not None and existing._value is not value:
                actions[i] = _VALUE
                writes.append(partial(set_raw_value, existing, value))
            if existing is not None and existing._metadata != record[2]:
                actions[i] = "write the metadata of"
                writes += metadata_writes(existing, record[2])
            objects.append(
                make_variable(record[1], value, record[2]) if existing is None else existing
            )
        else:
            objects.append(make_empty(record) if existing is None else existing)
    contents = build(graphdef, objects, leaves[number:])
    for i, children in contents:
        obj, record = objects[i], records[i]
        if known[i] is None:
            fill(obj, record, children)
        elif not has_content(obj, record, children):
            actions[i] = f"change {_differing(obj, record, children)} of"
            writes += content_writes(obj, record, children)
    check_trace(graphdef, objects, actions)
    at_once(writes)
    return objects
