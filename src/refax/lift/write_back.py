"""Write-back: what a call did inside, done to the caller's own objects, all or nothing.

It runs after the JAX call has returned. Everything that can fail (building the new content, finding
the objects, the check that each one belongs to the present trace) comes first; then slots, dicts
and lists are written, which cannot fail, in one loop that cannot be interrupted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from .._jax_compat import TRACE
from ..graph.graphdef import LIST, OBJECT, VARIABLE, GraphDef, homes
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
from ..graph.walk import walk
from ..objects.at_once import Write, at_once, set_each
from ..objects.errors import path_string
from ..objects.placing import placed_by_annotation
from ..objects.snapshots import Rebuilt
from ..objects.trace_errors import mutation_error
from ..objects.variable import Variable, check_write, make_variable, metadata_writes, set_raw_value
from .arguments import LEAF_TYPES, put_back
from .borders import is_of_another_trace
from .errors import place_under
from .inside import Change

_VALUE = "write the value of"


def write_back(
    plan: Plan,
    roots: Sequence[Any],
    values: Sequence[Any],
    tree: Any,
    grouped: Sequence[Sequence[Any]],
    change: Change,
    placed: bool = False,
) -> Any:
    """Apply `change` to the objects of `plan` and return the result with objects in its slots.

    Args:
        plan: over the roots, as they were before the call.
        roots: the objects of the call.
        values: the leaf values that went in.
        tree: the result with slots.
        grouped: the values that came out, by group.
        change: what they are for.
        placed: whether new Variables are to be placed by their annotations.
    """
    if (graph := change.graph) is not None:
        before = walk(tuple(roots)).objects
        known = [None if origin is None else before[origin] for origin in graph.origins]
        new = [values[s] if type(s) is int else grouped[s[0]][s[1]] for s in graph.sources]
        return put_back(tree, give_structure(graph.graphdef, known, new, placed))
    result = tree if type(tree) in LEAF_TYPES else put_back(tree, _Lookup(plan, roots))
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
            whole = len(change.dirty) == 1 and len(leaves) == len(variables)
            set_each(set_raw_value, variables if whole else [variables[i] for i in leaves], outs)
    return result


def _actions(graphdef: GraphDef, leaves: Sequence[int]) -> dict[int, str]:
    """The records that hold these leaves, with what is done to them."""
    _, of_leaf = homes(graphdef)
    written = [of_leaf[leaf] for leaf in leaves]
    return {
        home.record: f"write the array {home.keys[0]!r} of" if home.keys else _VALUE
        for home in written
    }


def check_trace(graphdef: GraphDef, objects: Sequence[Any], actions: Mapping[int, str]) -> None:
    """Raise if an object that is to be written belongs to another trace.

    A plain container belongs where the nearest object above it does.

    Args:
        actions: what is to be done, for messages, to each record that is written.
    """
    holders = homes(graphdef, (OBJECT, VARIABLE))[0]
    for i, action in actions.items():
        obj = objects[holders[i].record]
        if is_of_another_trace(obj):
            roots = [type(objects[root]).__name__ for root in graphdef.roots]
            raise mutation_error(objects[i], action, place_under(graphdef.paths.nodes[i], roots))
        if isinstance(obj, Variable) and isinstance(obj._trace, Rebuilt):
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


def is_array_like(value: Any) -> bool:
    return value is None or hasattr(value, "dtype") or isinstance(value, (int, float, complex))


class _Lookup:
    """Input objects by record, looked for only if a result refers to one that is no root."""

    def __init__(self, plan: Plan, roots: Sequence[Any]):
        self.records, self.roots = plan.graphdef.roots, roots

    @functools.cached_property
    def objects(self) -> list[Any]:
        return walk(tuple(self.roots)).objects

    def __getitem__(self, record: int) -> Any:
        known = record in self.records
        return self.roots[self.records.index(record)] if known else self.objects[record]


def give_structure(
    graphdef: GraphDef, known: Sequence[Any | None], leaves: Sequence[Any], placed: bool = False
) -> list[Any]:
    """The objects of a GraphDef with these leaves, by record: existing ones changed, others made.

    Args:
        known: by record, the existing object that it describes, or None.
        placed: whether new Variables are to be placed by their annotations.
    """
    records = graphdef.records
    objects: list[Any] = []
    writes: list[Write] = []
    actions: dict[int, str] = {}
    number = 0
    for i, (record, existing) in enumerate(zip(records, known, strict=True)):
        if record[0] == VARIABLE:
            value = leaves[number]
            if placed and existing is None and "sharding" in record[2]:
                name = path_string(graphdef.paths.leaves[number], "result")
                value = placed_by_annotation(value, record[2], name)
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
