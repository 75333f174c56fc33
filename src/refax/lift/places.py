"""Where a leaf is, in the words of the caller: the argument's name and the path in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from ..graph.graphdef import VARIABLE, GraphDef, record_children
from ..graph.walk import jax_to_nnx_path
from ..objects.errors import describe_value, path_string
from ..objects.representation import short
from ..objects.statics import FunctionKey
from ..objects.variable import raw
from .arguments import is_slot
from .call import Call, root_places
from .errors import argument_names, argument_place, place_under
from .inside import Change, leaves_out
from .prefix import Occurrence, OutputRules, by_path, is_entry, spread, stretched


def place_of_leaf(graphdef: GraphDef, occurring: Sequence[Occurrence], leaf: int) -> str:
    """The place of a leaf, such as `model.blocks[0].kernel`.

    Args:
        graphdef: of the arguments' objects, in the order of their numbers, and of the result's.
        occurring: the places of the former.
        leaf: its number.
    """
    names = {o.number: o.place for o in reversed(occurring)}
    roots = [names.get(number, "result") for number in range(len(graphdef.roots))]
    return place_under(graphdef.paths.leaves[leaf], roots)


def place_of_output(
    graphdef: GraphDef, occurring: Sequence[Occurrence], change: Change, group: int, index: int
) -> tuple[str, str]:
    """The place of the value number `index` among those that leave in a group, and its type."""
    leaf = leaves_out(change, graphdef)[group][index]
    if leaf is None:  # a new one
        assert change.graph is not None
        graphdef, leaf = change.graph.graphdef, change.graph.sources.index((group, index))
    variables = graphdef.variables
    kind = variables[leaf][1].__name__ if leaf < len(variables) else "array"
    return place_of_leaf(graphdef, occurring, leaf), kind


def outputs_of(
    graphdef: GraphDef, occurring: Sequence[Occurrence], out: Any
) -> Iterator[tuple[str, str]]:
    """(place, type of the Variable, nothing for a result) of each leaf of what a program returns.

    Args:
        out: (result, values by group, change), of shapes for instance.
    """
    for (part, *path), _ in tree_leaves_with_path(out):
        if part.idx == 0:
            yield path_string(jax_to_nnx_path(tuple(path)), "result"), ""
        else:
            group, index, *_ = (getattr(key, "idx", 0) for key in path)
            yield place_of_output(graphdef, occurring, out[2], group, index)


def inputs_of(call: Call, function: Callable) -> Iterator[tuple[str, Any]]:
    """(place, value) of every leaf of the objects, then of every array among the arguments."""
    roots, labels = root_places(call.tree, function), argument_names(function, len(call.tree[0]))
    paths = call.plan.graphdef.paths.leaves
    yield from ((place_under(p, roots), v) for p, v in zip(paths, call.values, strict=True))
    for path, value in tree_leaves_with_path(call.tree):
        yield argument_place(path, labels), value


def inputs_by_place(
    call: Call,
    function: Callable,
    prefix: Any,
    is_leaf: Callable[[Any], bool] = is_entry,
    keywords: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Any, Any]]:
    """`inputs_of`, each with its entry by the prefixes of (args, kwargs)."""
    entries = [call.groups.entries[group] for group in call.groups.of_leaf]
    for given, tree in zip((prefix, keywords), call.tree, strict=True):
        entries += spread(given, tree, "args", is_leaf)
    for (place, value), entry in zip(inputs_of(call, function), entries, strict=True):
        yield place, value, entry


def results_by_place(rules: OutputRules, result: Any) -> Iterator[tuple[str, Any, Any]]:
    """(place, value, entry) of every array of a result with slots.

    Raises:
        PrefixError: what the rules have for the result is no prefix of it.
    """
    prefix = by_path(rules.out_prefix, result)
    stretched(prefix, result, rules.name, rules.is_leaf)
    entries = spread(prefix, result, rules.name, rules.is_leaf)
    for (path, value), entry in zip(tree_leaves_with_path(result), entries, strict=True):
        yield f"result{keystr(path)}", value, entry


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

    def returned(result: Any, grouped: Sequence[Sequence[Any]], change: Change) -> Any:
        for group, (entry, values) in enumerate(zip(rules.entries, grouped, strict=True)):
            for index, value in enumerate(values):
                if found := problem(entry, value):
                    place = place_of_output(graphdef, rules.arguments, change, group, index)
                    raise error(*place, entry, found)
        return result, grouped, change

    return returned


class Fact(NamedTuple):
    """What stands in a place of a structure."""

    key: Any  # by which two are compared
    text: str
    value: Any = None  # of a static


def said(text: str) -> Fact:
    """A fact that is its text."""
    return Fact(text, text)


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
        facts[place_under(path, roots)] = said("an array")
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


# -- The form of a value, its containers, shapes and dtypes: compared, and put into words ---------


class _Word(str):
    """Text that stands for itself inside containers."""

    def __repr__(self) -> str:
        return str(self)


def shown(value: Any, kinds: Sequence[str] = ()) -> str:
    """A value as `(float32[2], {'a': Linear})`: arrays by form, objects by type.

    Args:
        value: any pytree, with slots.
        kinds: the types of what the slots stand for; a number beyond is an object that is new.
    """

    def word(x: Any) -> _Word:
        if not is_slot(x):
            return _Word(describe_value(x))
        known = 0 <= x.number < len(kinds)
        return _Word(kinds[x.number] if known else "a new object")

    value = raw(value)
    return str(jax.tree.map(word, value, is_leaf=is_slot))


def same_form(old: Any, new: Any) -> bool:
    """Whether JAX takes `new` for the next `old`; it adapts the dtype of a weakly typed start."""
    old_leaves, old_tree = jax.tree.flatten(old)
    new_leaves, new_tree = jax.tree.flatten(new)
    if old_tree != new_tree:
        return False
    pairs = zip(map(jax.typeof, old_leaves), map(jax.typeof, new_leaves), strict=True)
    return all(
        a.shape == b.shape and (a.dtype == b.dtype or getattr(a, "weak_type", False))
        for a, b in pairs
    )
