"""From a GraphDef and leaf values back to objects; and new content into existing objects.

Objects with an identity are made empty first and filled last, so cycles need nothing special;
tuples and other immutable pytrees, which must have their children when they are made, come in
between, the deepest first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter, setitem
from typing import Any, NamedTuple

from ..objects.at_once import Write, at_once, set_each
from ..objects.node import Node, new_pytree, set_object_marks, set_object_watch
from ..objects.statics import compared, static_value
from ..objects.variable import Variable, make_variable, set_raw_value
from ..objects.watch import invalidate, keeps_structure
from .graphdef import (
    DICT,
    LEAF,
    LIST,
    OBJECT,
    PYTREE,
    TUPLE,
    VARIABLE,
    WITH_IDENTITY,
    GraphDef,
    record_children,
)
from .plan import Plan
from .state import State, form_changed
from .walk import walk


def make_empty(record: tuple) -> Any:
    """An object for a record, without its content; None for one that has no identity."""
    kind, cls = record[:2]
    if kind == OBJECT:
        return new_pytree(cls)
    if kind == DICT and record[4] is not None:
        return defaultdict(static_value(record[4]))
    return cls() if kind in (LIST, DICT) else None


def fill(obj: Any, record: tuple, children: Sequence[Any]) -> None:
    """Give an empty object with an identity its content."""
    if record[0] == LIST:
        obj[:] = children
        return
    mapping_of(obj, record).update(zip(record[2], children, strict=True))
    if record[0] == OBJECT and record[4]:
        set_object_marks(obj, dict(record[4]))


def content_writes(obj: Any, record: tuple, children: Sequence[Any]) -> list[Write]:
    """What gives an object with an identity this content, in place of what it had: `at_once`."""
    kind = record[0]
    if kind == LIST:
        return [partial(obj.__setitem__, slice(None), children)]
    mapping = mapping_of(obj, record)
    if kind == DICT:
        form_changed()
    writes = [mapping.clear, partial(mapping.update, dict(zip(record[2], children, strict=True)))]
    if kind == OBJECT:
        writes.append(partial(set_object_marks, obj, dict(record[4]) or None))
        if type(obj) is not record[1]:  # its class was assigned to
            writes.append(partial(object.__setattr__, obj, "__class__", record[1]))
        if obj._refax_watch is not None:
            invalidate(obj._refax_watch)
            writes.append(partial(set_object_watch, obj, None))
    return writes


def mapping_of(obj: Any, record: tuple) -> Any:
    """The attributes or entries of an object or container."""
    if record[0] == OBJECT:
        return obj.__dict__
    return obj._tree if isinstance(obj, State) else obj


class _Recipe(NamedTuple):
    """How to get the children of each record: positions in (objects, arrays, statics)."""

    immutable: list[tuple[int, Callable[[Sequence[Any]], tuple]]]  # the deepest first
    others: list[tuple[int, Callable[[Sequence[Any]], tuple]]]
    statics: list[Any]
    compared: list[tuple[int, tuple]]  # of the statics: those that may change in place, with keys


def _recipe(graphdef: GraphDef) -> _Recipe:
    immutable, others, statics, changing = [], [], [], []
    array = len(graphdef.records)
    static = array + graphdef.arrays
    for i, record in enumerate(graphdef.records):
        positions = []
        for child in record_children(record)[1]:
            if type(child) is int:
                positions.append(child)
            elif child is LEAF:
                positions.append(array)
                array += 1
            else:
                positions.append(static + len(statics))
                if compared(child):
                    changing.append((len(statics), child))
                statics.append(static_value(child))
        if record[0] in (TUPLE, PYTREE):
            immutable.append((i, _getter(positions)))
        elif record[0] != VARIABLE:
            others.append((i, _getter(positions)))
    return _Recipe(immutable[::-1], others, statics, changing)


def _getter(positions: list[int]) -> Callable[[Sequence[Any]], tuple]:
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda pool: tuple([pool[i] for i in positions])


def build(
    graphdef: GraphDef, objects: list[Any], arrays: Sequence[Any]
) -> list[tuple[int, Sequence[Any]]]:
    """Put the immutable objects into `objects`; return what the others are to be filled with.

    Args:
        graphdef: the structure.
        objects: by record: Variables and empty (or existing) objects; None for immutable ones.
        arrays: the values of the LEAFs, in order.
    """
    recipe: _Recipe = graphdef.remembered("recipe", lambda: _recipe(graphdef))
    pool = [*objects, *arrays, *recipe.statics]
    for i, key in recipe.compared:
        pool[len(objects) + len(arrays) + i] = static_value(key)
    for i, children_of in recipe.immutable:
        kind, cls = graphdef.records[i][:2]
        children = children_of(pool)
        if kind == PYTREE:
            made = cls.unflatten(children)
        else:
            made = children if cls is tuple else cls(*children)
        pool[i] = objects[i] = made
    return [(i, children_of(pool)) for i, children_of in recipe.others]


def rebuild(graphdef: GraphDef, values: Sequence[Any]) -> list[Any]:
    """New objects by record, with these leaf values.

    A value that is a Variable of the record's type already is taken as it is.
    """
    number = 0
    objects: list[Any] = []
    for record in graphdef.records:
        if record[0] == VARIABLE:
            value = values[number]
            number += 1
            if not isinstance(value, Variable):
                value = make_variable(record[1], value, record[2])
            objects.append(value)
        else:
            objects.append(make_empty(record))
    for i, children in build(graphdef, objects, values[number:]):
        fill(objects[i], graphdef.records[i], children)
    return objects


def has_content(obj: Any, record: tuple, children: Sequence[Any]) -> bool:
    """Whether an object has this content already, so that plans which know it stay valid."""
    kind = record[0]
    if kind == LIST:
        return len(obj) == len(children) and all(map(_same, obj, children))
    if kind not in (OBJECT, DICT):
        return True
    if kind == OBJECT:
        if type(obj) is not record[1] or dict(record[4]) != (obj._refax_marks or {}):
            return False
    mapping = mapping_of(obj, record)
    return tuple(mapping) == tuple(record[2]) and all(map(_same, mapping.values(), children))


def _same(old: Any, new: Any) -> bool:
    return old is new or (keeps_structure(old, new) and not hasattr(new, "dtype"))


def write_leaves(
    plan: Plan,
    roots: Sequence[Any],
    leaves: Sequence[int],
    values: Sequence[Any],
    also: Sequence[Write] = (),
) -> None:
    """Put values into leaves of a plan, and make the writes `also`, all at once.

    An array inside a tuple means that the tuples around it are made anew.
    """
    count = len(plan.variables)
    if not also and max(leaves, default=0) < count:  # the way of nearly every call
        set_each(set_raw_value, [plan.variables[i] for i in leaves], values)
        return
    writes, touched = list(also), []
    for leaf, value in zip(leaves, values, strict=True):
        if leaf < count:
            writes.append(partial(set_raw_value, plan.variables[leaf], value))
            continue
        container, key, guards = plan.place(leaf - count)
        writes.append(partial(setitem, container, key, value))
        touched.append((guards, container))
    if any(container is plan.constants for _, container in touched):
        arrays = dict(enumerate(plan.bare(), count)) | dict(zip(leaves, values, strict=True))
        writes += _new_tuples(plan, roots, [arrays[count + i] for i in range(len(plan.arrays))])
    at_once(writes)
    for guards, container in touched:
        guards.refresh(container)


def _new_tuples(plan: Plan, roots: Sequence[Any], bare: Sequence[Any]) -> list[Write]:
    """What puts tuples with these arrays into the place of the present ones."""
    walked = walk(tuple(roots))
    records = walked.graphdef.records
    objects = [
        obj if record[0] in WITH_IDENTITY else None
        for record, obj in zip(records, walked.objects, strict=True)
    ]
    writes: list[Write] = []
    for i, children in build(walked.graphdef, objects, bare):
        obj, record = objects[i], records[i]
        if has_content(obj, record, children):
            continue
        for ref in (isinstance(obj, Node) and obj._refax_watch) or ():
            if (other := ref()) is not None and other is not plan:
                other.valid = False  # it has the values of before
        form_changed()
        content = mapping_of(obj, record)
        writes += [partial(setitem, content, *x) for x in zip(record[2], children, strict=True)]
    return writes
