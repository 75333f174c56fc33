"""From a GraphDef and leaf values back to objects; and new content into existing objects.

Objects with an identity are made empty first and filled last, so cycles need nothing special;
tuples and other immutable pytrees, which must have their children when they are made, come in
between, the deepest first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from .graphdef import DICT, LEAF, LIST, OBJECT, PYTREE, TUPLE, VARIABLE, GraphDef, record_children
from .module import new_pytree, set_object_marks
from .state import State, form_changed, state_over
from .statics import static_value
from .variable import Variable, make_variable


def make_empty(record: tuple) -> Any:
    """An object for a record, without its content; None for one that has no identity."""
    kind = record[0]
    if kind == OBJECT:
        return new_pytree(record[1])
    if kind == LIST:
        return record[1]()
    if kind == DICT:
        cls = record[1]
        if cls is State:
            return state_over({})
        return defaultdict(static_value(record[4])) if record[4] is not None else cls()
    return None


def content(record: tuple, objects: Sequence[Any], leaves: Callable[[], Any]) -> list[Any]:
    """The children of a record as values; `leaves()` gives the record's LEAFs one by one."""
    return [
        objects[child]
        if type(child) is int
        else (leaves() if child is LEAF else static_value(child))
        for child in record_children(record)[1]
    ]


def fill(obj: Any, record: tuple, children: list[Any]) -> None:
    """Give an object with an identity this content, in place of what it had."""
    kind = record[0]
    if kind == OBJECT:
        attributes = obj.__dict__
        attributes.clear()
        attributes.update(zip(record[2], children, strict=True))
        set_object_marks(obj, dict(record[4]) or None)
    elif kind == LIST:
        obj[:] = children
    elif kind == DICT:
        mapping = obj._tree if record[1] is State else obj
        form_changed()
        mapping.clear()
        mapping.update(zip(record[2], children, strict=True))


def build(graphdef: GraphDef, objects: list[Any], arrays: Sequence[Any]) -> list[tuple[int, list]]:
    """Put the immutable objects into `objects`; return what the others are to be filled with.

    Args:
        graphdef: the structure.
        objects: by record: Variables and empty (or existing) objects; None for immutable ones.
        arrays: the values of the LEAFs, in order.
    """
    records = graphdef.records
    starts = []
    number = 0
    for record in records:
        starts.append(number)
        number += sum(child is LEAF for child in record_children(record)[1])
    if graphdef.arrays == 0:
        starts = [0] * len(records)

    def children_of(i: int) -> list[Any]:
        mine = iter(arrays[starts[i] :]) if graphdef.arrays else iter(())
        return content(records[i], objects, lambda: next(mine))

    for i in range(len(records) - 1, -1, -1):
        kind = records[i][0]
        if kind == TUPLE:
            cls = records[i][1]
            items = children_of(i)
            objects[i] = cls(*items) if cls is not tuple else tuple(items)
        elif kind == PYTREE:
            objects[i] = records[i][1].unflatten(children_of(i))
    return [
        (i, children_of(i)) for i, record in enumerate(records) if record[0] in (OBJECT, LIST, DICT)
    ]


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
