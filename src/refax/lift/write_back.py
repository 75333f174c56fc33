"""Write-back: what a call did inside, done to the caller's own objects, all or nothing.

It runs after the JAX call has returned. Everything that can fail (building the new content, finding
the objects) comes first; then only slots and dicts are written, which cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..graph.graphdef import VARIABLE, GraphDef
from ..graph.plan import Plan
from ..graph.rebuild import build, fill, has_content, make_empty, renew_tuples
from ..graph.walk import walk
from ..objects.node import set_object_watch
from ..objects.variable import make_variable, replace_metadata, set_raw_value
from ..objects.watch import invalidate
from ..verbs.pytree import Pytree
from .arguments import Slot, put_back
from .inside import Change, NewGraph


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
    variables = plan.variables
    count = len(variables)
    inside_tuples = False  # whether an array in one changed
    for leaves, outs in zip(change.dirty, grouped, strict=True):
        if not leaves:
            continue
        if leaves[-1] < count:
            for leaf, value in zip(leaves, outs, strict=True):
                set_raw_value(variables[leaf], value)
            continue
        for leaf, value in zip(leaves, outs, strict=True):
            inside_tuples |= not plan.place(leaf, value)
    if inside_tuples:
        renew_tuples(plan, roots)
    return result


def _has_slot(tree: Any) -> bool:
    cls = type(tree)
    if cls is Slot:
        return True
    if cls is tuple or cls is list:
        return any(map(_has_slot, tree))
    if cls is dict:
        return any(map(_has_slot, tree.values()))
    return not is_array_like(tree)


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
    cells: list[tuple[Any, Any, tuple]] = []  # (existing Variable, value, record)
    number = 0
    for record, existing in zip(records, known, strict=True):
        if record[0] == VARIABLE:
            value = leaves[number]
            number += 1
            if existing is not None:
                cells.append((existing, value, record))
            objects.append(
                make_variable(record[1], value, record[2]) if existing is None else existing
            )
        else:
            objects.append(make_empty(record) if existing is None else existing)
    contents = build(graphdef, objects, leaves[number:])
    # Nothing from here on can fail.
    for variable, value, record in cells:
        set_raw_value(variable, value)
        if variable._metadata != record[2]:
            replace_metadata(variable, record[2])
    for i, children in contents:
        obj, record = objects[i], records[i]
        if known[i] is None or not has_content(obj, record, children):
            fill(obj, record, children)
            if isinstance(obj, Pytree) and obj._refax_watch is not None:
                invalidate(obj._refax_watch)
                set_object_watch(obj, None)
    return objects
