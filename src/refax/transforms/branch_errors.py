"""What branches leave differently, in the caller's words: attributes, objects, values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from ..graph.graphdef import PYTREE, TUPLE
from ..lift.arguments import is_slot, slot_places
from ..lift.call import CallForm
from ..lift.errors import PrefixError, place_under
from ..lift.inside import Change, values_out
from ..lift.places import outline, references, type_of_record
from .forms import shown


class Look(NamedTuple):
    """What one branch leaves, seen abstractly."""

    result: Any  # with slots
    grouped: Sequence[Sequence[Any]]
    change: Change


def check_structures(
    name: str,
    form: CallForm,
    branches: Sequence[Callable],
    looks: Sequence[Look],
    called: str = "the branches",
) -> frozenset[int]:
    """The leaves that any branch writes; raises if the branches leave different structures."""
    for look, branch in zip(looks[1:], branches[1:], strict=True):
        if look.change.graph != looks[0].change.graph:
            found = _difference(form, (branches[0], branch), (looks[0], look), _structure)
            raise PrefixError(
                f"{name}: {called} leave different structures.\n"
                f"{found or 'They refer to different objects in the same places.'}\n"
                "Cure: make the same attributes, of the same objects, in all of them, or before "
                "the call."
            )
    return frozenset(leaf for look in looks for group in look.change.dirty for leaf in group)


def check_values(
    name: str, form: CallForm, branches: Sequence[Callable], looks: Sequence[Look]
) -> None:
    """Raise if the results of two branches, or the values that they write, differ in form."""
    for look, branch in zip(looks[1:], branches[1:], strict=True):
        found = _difference(form, (branches[0], branch), (looks[0], look), _values)
        if found:
            raise PrefixError(
                f"{name}: the branches leave different values.\n{found}\n"
                "Cure: give them the same containers, shapes and dtypes in every branch."
            ) from None


def _difference(
    form: CallForm,
    branches: Sequence[Callable],
    looks: Sequence[Look],
    describe: Callable[[CallForm, Look], dict[str, str]],
) -> str:
    names = [f"`{getattr(f, '__name__', f)}`" for f in branches]
    if names[0] == names[1]:
        names = ["the first branch", "the other"]
    left, right = (describe(form, look) for look in looks)
    different = [
        p for p in [*left, *right] if left.get(p) != right.get(p) and not p.startswith(_LOST)
    ]
    if not different:
        return ""
    place = min(different, key=lambda p: (len(p), p))
    a, b = (lines.get(place, "nothing") for lines in (left, right))
    return f"`{place}` is {a} after {names[0]}, but {b} after {names[1]}."


def _structure(form: CallForm, look: Look) -> dict[str, str]:
    """{place: type, static value, or the place of the object that stands there}."""
    before, inputs, graph = form.graphdef, list(form.places), look.change.graph
    came_in = [place_under(path, inputs) for path in before.paths.nodes]
    graphdef = before if graph is None else graph.graphdef
    origins = range(len(before.records)) if graph is None else graph.origins
    roots = inputs + _result_places(look, graphdef.roots[len(inputs) :])
    lines = {place: fact.text for place, fact in outline(graphdef, roots).items()}
    for place, number in [*references(graphdef, roots), *_result_slots(look.result)]:
        origin, record = origins[number], graphdef.records[number]
        if origin is not None:
            known = came_in[origin]
            lines[place] = type_of_record(record) if place == known else f"`{known}`"
        elif record[0] not in (TUPLE, PYTREE):
            lines[place] = f"a new {type_of_record(record)}"
    return lines


_LOST = "<lost>"  # the place of input objects that nothing refers to any more


def _result_slots(result: Any) -> Iterator[tuple[str, int]]:
    """(place, record) of every object in a result."""
    for path, x in jax.tree_util.tree_leaves_with_path(result, is_leaf=is_slot):
        if is_slot(x):
            yield "result" + jax.tree_util.keystr(path), x.number


def _result_places(look: Look, records: Sequence[int]) -> list[str]:
    """The places of the objects of a result that are roots."""
    places = slot_places(look.result, lambda path: "result" + jax.tree_util.keystr(path))
    return [places.get(r, _LOST) for r in records]


def _values(form: CallForm, look: Look) -> dict[str, str]:
    """{place: form} of the result, as a whole and each array of it, and of every leaf."""
    graphdef, inputs, graph = form.graphdef, list(form.places), look.change.graph
    containers = jax.tree.map(lambda _: 0, look.result, is_leaf=is_slot)
    lines = {"result": shown(look.result)} if containers != 0 else {}
    for path, x in jax.tree_util.tree_leaves_with_path(look.result, is_leaf=is_slot):
        lines["result" + jax.tree_util.keystr(path)] = shown(x)
    if graph is None:
        after, written = graphdef, values_out(look.change, graphdef, look.grouped)
        values = {i: written.get(i, old) for i, old in enumerate(form.types)}
    else:  # all explicit
        after = graph.graphdef
        values = {i: look.grouped[group][j] for i, (group, j) in enumerate(graph.sources)}
    roots = inputs + _result_places(look, after.roots[len(inputs) :])
    for leaf, path in enumerate(after.paths.leaves):
        lines[place_under(path, roots)] = shown(values[leaf])
    return lines
