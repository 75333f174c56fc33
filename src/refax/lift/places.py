"""Where a leaf is, in the words of the caller: the argument's name and the path in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.tree_util import keystr, tree_leaves_with_path

from ..graph.graphdef import VARIABLE, GraphDef, record_children
from ..objects.errors import path_string
from ..objects.representation import short
from ..objects.statics import FunctionKey
from .array_prefix import spread
from .call import Call
from .errors import argument_names
from .inside import Change, Static
from .prefix import Occurrence, OutputRules, is_entry


def place_under(path: tuple, roots: Sequence[str]) -> str:
    """The place of a path of a GraphDef, which starts with a root's number if there are several."""
    if len(roots) > 1:
        return path_string(path[1:], str(roots[path[0]]))
    return path_string(path, str(roots[0]) if roots else "")


def place_of_leaf(graphdef: GraphDef, occurring: Sequence[Occurrence], leaf: int) -> str:
    """The first place at which an argument reaches a leaf, such as `model.blocks[0].kernel`."""
    for occurrence in occurring:
        found = [
            path
            for path, number in graphdef.all_paths(graphdef.roots[occurrence.number])
            if number == leaf
        ]
        if found:
            return path_string(min(found, key=lambda p: (len(p), str(p))), occurrence.place)
    return path_string(graphdef.paths.leaves[leaf])


def place_of_output(
    graphdef: GraphDef, occurring: Sequence[Occurrence], change: Change, group: int, index: int
) -> tuple[str, str]:
    """The place of the value number `index` among those that leave in a group, and its type."""
    if change.graph is None:
        after, leaf, known = graphdef, change.dirty[group][index], occurring
    else:
        after = change.graph.graphdef
        leaf = change.graph.sources.index((group, index))
        known = [o for o in occurring if o.number < len(after.roots)]
    variables = after.variables
    kind = variables[leaf][1].__name__ if leaf < len(variables) else "array"
    return place_of_leaf(after, known, leaf), kind


def inputs_by_place(
    call: Call,
    rules: OutputRules,
    function: Callable,
    prefix: Any,
    is_leaf: Callable[[Any], bool] = is_entry,
    keywords: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Any, Any]]:
    """(place, value, entry) of every leaf of the objects, then of every array in the arguments."""
    groups, args = call.groups, call.tree[0]
    assert groups is not None
    for leaf, value in enumerate(call.values):
        place = place_of_leaf(call.plan.graphdef, rules.arguments, leaf)
        yield place, value, groups.entries[groups.of_leaf[leaf]]
    labels = argument_names(function, len(args))
    entries = spread(prefix, args, "args", is_leaf)
    for (path, value), entry in zip(tree_leaves_with_path(args), entries, strict=True):
        yield labels[path[0].idx] + keystr(path[1:]), value, entry
    for name, entry in (keywords or {}).items():
        entries = spread(entry, call.tree[1][name], name, is_leaf)
        leaves = tree_leaves_with_path(call.tree[1][name])
        for (path, value), axis in zip(leaves, entries, strict=True):
            yield name + keystr(path), value, axis


def check_outputs(
    graphdef: GraphDef,
    rules: OutputRules,
    problem: Callable[[Any, Any], Any],
    error: Callable[[str, str, Any, Any], Exception],
) -> Callable[..., Any]:
    """A check, at the end of the trace, of the values that leave: for `pure_function(returned=…)`.

    Args:
        graphdef, rules: of the call.
        problem: (entry, value) → what is wrong, or something false.
        error: (place, type of the Variable, entry, what is wrong) → what is raised.
    """

    def returned(result: Any, grouped: Sequence[Sequence[Any]], static: Static) -> Any:
        for group, (entry, values) in enumerate(zip(rules.entries, grouped, strict=True)):
            for index, value in enumerate(values):
                if found := problem(entry, value):
                    place = place_of_output(graphdef, rules.arguments, static.change, group, index)
                    raise error(*place, entry, found)
        return result, grouped, static

    return returned


class Fact(NamedTuple):
    """What stands in a place of a structure."""

    key: Any  # by which two are compared
    text: str
    value: Any = None  # of a static


def outline(graphdef: GraphDef, roots: Sequence[str]) -> dict[str, Fact]:
    """What stands where in a structure, for comparing two of them.

    Args:
        graphdef: the structure.
        roots: the places of its roots.

    Returns:
        {place: type, static value, or the place of an object that stands elsewhere too}.
    """
    names = [place_under(path, roots) for path in graphdef.paths.nodes]
    facts: dict[str, Fact] = {}
    for name, record in zip(names, graphdef.records, strict=True):
        facts[name] = Fact(record[1], type_of_record(record))
    for path in graphdef.paths.leaves[sum(r[0] == VARIABLE for r in graphdef.records) :]:
        facts[place_under(path, roots)] = Fact("an array", "an array")
    for path, key, value in graphdef.statics():
        text = short(key[1] if isinstance(key[1], FunctionKey) else value)
        facts[place_under(path, roots)] = Fact(key, text, value)
    for place, record in references(graphdef, roots):
        if place != names[record]:
            facts[place] = Fact(names[record], f"`{names[record]}`")
    return facts


def type_of_record(record: tuple) -> str:
    return (record[1] if isinstance(record[1], type) else type(record[1])).__name__


def references(graphdef: GraphDef, roots: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(place, record) of every reference to an object."""
    yield from zip(roots, graphdef.roots, strict=False)
    for path, record in zip(graphdef.paths.nodes, graphdef.records, strict=True):
        for key, child in zip(*record_children(record), strict=True):
            if type(child) is int:
                yield path_string((key,), place_under(path, roots)), child
