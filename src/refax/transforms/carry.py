"""`Carry`, and the rule of everything that is carried: a step leaves it as it found it, in form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ..graph.graphdef import PYTREE, TUPLE, VARIABLE, record_children
from ..lift.arguments import is_slot
from ..lift.call import CallForm
from ..lift.errors import PrefixError
from ..lift.inside import NewGraph, Static
from ..lift.places import place_of_leaf, place_of_output
from ..lift.prefix import OutputRules
from ..objects.errors import path_string
from .forms import same_form, shown


class _Entry(type):
    def __repr__(cls) -> str:
        return "nnx.Carry"


class Carry(metaclass=_Entry):
    """The entry of what a loop carries from step to step. Used as it is: `nnx.Carry`."""


def is_carry(entry: Any) -> bool:
    return entry is Carry


def check_carry(
    form: CallForm,
    rules: OutputRules,
    loop: str,
    before: tuple[Sequence[Any], Any, Sequence[Any]],
    out: Sequence[Sequence[Any]],
    tree: Any,
    static: Static,
) -> None:
    """Raise if a step changed the form of what it carries; names the place and both forms.

    Args:
        form, rules: of the loop.
        loop: its name.
        before: (values by group, tree with slots, leaves of it) as the step got them.
        out: values by group as the step leaves them.
        tree: the carried result, with slots that name roots.
        static: what the step did to the objects.
    """
    groups_in, tree_in, leaves_in = before
    change, graphdef = static.change, form.graphdef
    _check_result(form, loop, tree_in, tree)
    for group, entry in enumerate(rules.entries):
        if not is_carry(entry):
            continue
        if len(out[group]) > len(groups_in[group]):
            place, _ = place_of_output(
                graphdef, rules.arguments, change, group, len(groups_in[group])
            )
            if place in _places(form, rules):
                raise _changed(loop, place, "is another Variable after the step", _SAME_OBJECT)
            raise _changed(loop, place, "is new: the step added it to what is carried")
        for leaf, old, new in zip(
            form.groups.members[group], groups_in[group], out[group], strict=True
        ):
            if not same_form(old, new):
                place = place_of_leaf(graphdef, rules.arguments, leaf)
                raise _changed(loop, place, f"was {shown(old)} and becomes {shown(new)}")
    if change.graph is not None:
        _check_structure(form, rules, loop, change.graph)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for path, old, new in zip(paths, leaves_in, jax.tree.leaves(tree), strict=True):
        if not same_form(old, new):
            place = "carry" + jax.tree_util.keystr(path)
            raise _changed(loop, place, f"was {shown(old)} and becomes {shown(new)}")


def _places(form: CallForm, rules: OutputRules) -> set[str]:
    """Every place of a leaf before the step."""
    graphdef = form.graphdef
    return {
        path_string(path, occurrence.place)
        for occurrence in rules.arguments
        for path, _ in graphdef.all_paths(graphdef.roots[occurrence.number])
    }


def _check_result(form: CallForm, loop: str, old: Any, new: Any) -> None:
    """The result has the containers of the carry, and the same objects in the same places."""
    old_leaves, old_containers = jax.tree_util.tree_flatten_with_path(old, is_leaf=is_slot)
    new_leaves, new_containers = jax.tree.flatten(new, is_leaf=is_slot)
    words = f"was {shown(old, form.kinds)} and becomes {shown(new, form.kinds)}"
    if old_containers != new_containers:
        raise _changed(loop, "carry", words)
    for (path, before), after in zip(old_leaves, new_leaves, strict=True):
        if is_slot(before) and is_slot(after) and before != after:
            place = "carry" + jax.tree_util.keystr(path)
            raise _changed(loop, place, "is another object after the step", _SAME_OBJECT)
        if is_slot(before) != is_slot(after):
            raise _changed(loop, "carry", words)


def _check_structure(form: CallForm, rules: OutputRules, loop: str, graph: NewGraph) -> None:
    """A carried object must keep its attributes, its statics, and which objects they are."""
    before, after = form.graphdef, graph.graphdef
    for occurrence in rules.arguments:
        if not is_carry(occurrence.prefix):
            continue
        stack: list[tuple[int, int, tuple]] = [
            (before.roots[occurrence.number], after.roots[occurrence.number], ())
        ]
        seen: set[int] = set()
        while stack:
            old, new, path = stack.pop()
            if old in seen:
                continue
            seen.add(old)
            place = path_string(path, occurrence.place)
            if graph.origins[new] != old and before.records[old][0] not in (TUPLE, PYTREE):
                raise _changed(loop, place, "refers to another object after the step", _SAME_OBJECT)
            stack += _compare_records(loop, place, path, before.records[old], after.records[new])


def _compare_records(
    loop: str, place: str, path: tuple, old: tuple, new: tuple
) -> list[tuple[int, int, tuple]]:
    """The (old record, new record, path) of the children; raises if the records differ."""
    if old[:2] != new[:2]:
        raise _changed(loop, place, f"was a {_type_name(old)} and becomes a {_type_name(new)}")
    if old[0] == VARIABLE:
        if old != new:
            raise _changed(loop, place, f"had metadata {dict(old[2])} and gets {dict(new[2])}")
        return []
    old_keys, old_children = record_children(old)
    new_keys, new_children = record_children(new)
    if tuple(old_keys) != tuple(new_keys):
        gone, added = set(old_keys) - set(new_keys), set(new_keys) - set(old_keys)
        words = [f"{verb} {sorted(keys, key=str)}"
                 for verb, keys in (("gains", added), ("loses", gone)) if keys]  # fmt: skip
        what = " and ".join(words) or "has its entries in another order"
        raise _changed(loop, place, f"changes its form: it {what}")
    pairs = []
    for key, a, b in zip(old_keys, old_children, new_children, strict=True):
        if type(a) is int and type(b) is int:
            pairs.append((a, b, (*path, key)))
        elif a != b:
            where = path_string((key,), place)
            raise _changed(loop, where, f"was {_static(a)} and becomes {_static(b)}")
    return pairs


def _type_name(record: tuple) -> str:
    return record[1].__name__ if isinstance(record[1], type) else "container"


def _static(child: Any) -> str:
    return repr(child[1]) if type(child) is tuple else "an object or array"


_SAME_FORM = "make it so before the loop (with the final shape and dtype), or do not carry it."
_SAME_OBJECT = "change the object in place (assign to its Variables) instead of making another one."


def _changed(loop: str, place: str, what: str, cure: str = _SAME_FORM) -> PrefixError:
    return PrefixError(
        f"{loop}: what is carried must keep its form, but `{place}` {what}.\nCure: {cure}"
    )
