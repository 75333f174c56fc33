"""`Carry`, and the rule of everything that is carried: a step leaves it as it found it, in form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ..graph.graphdef import VARIABLE, WITH_IDENTITY, record_children
from ..lift.arguments import is_slot
from ..lift.call import CallForm
from ..lift.errors import PrefixError
from ..lift.inside import Change, NewGraph
from ..lift.places import place_of_leaf, place_of_output, same_form, shown, type_of_record
from ..lift.prefix import OutputRules
from ..objects.errors import path_string
from ..verbs.module import CAPTURES


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
    before: tuple[Sequence[Any], Any],
    out: Sequence[Sequence[Any]],
    tree: Any,
    change: Change,
) -> None:
    """Raise if a step changed the form of what it carries; names the place and both forms.

    Args:
        form, rules: of the loop.
        loop: its name.
        before: (values by group, tree with slots) as the step got them.
        out: values by group as the step leaves them.
        tree: the carried result, with slots that name roots.
        change: what the step did to the objects.
    """
    groups_in, tree_in = before
    graphdef = form.graphdef
    _check_result(form, loop, tree_in, tree)
    for group, entry in enumerate(rules.entries):
        if not is_carry(entry):
            continue
        if len(out[group]) > len(groups_in[group]):
            place, _ = place_of_output(
                graphdef, rules.arguments, change, group, len(groups_in[group])
            )
            leaves = range(graphdef.num_leaves)
            if place in {place_of_leaf(graphdef, rules.arguments, leaf) for leaf in leaves}:
                raise _changed(loop, place, "is another Variable after the step", _SAME_OBJECT)
            raise _changed(loop, place, "is new: the step added it to what is carried")
        for leaf, old, new in zip(
            form.groups.members[group], groups_in[group], out[group], strict=True
        ):
            if not same_form(old, new):
                place = place_of_leaf(graphdef, rules.arguments, leaf)
                cure = _RECORDED if CAPTURES in place else _SAME_FORM
                raise _changed(loop, place, f"was {shown(old)} and becomes {shown(new)}", cure)
    if change.graph is not None:
        _check_structure(form, rules, loop, change.graph)


def _check_result(form: CallForm, loop: str, old: Any, new: Any) -> None:
    """The result has the containers of the carry, and in each place the same object or form."""
    old_leaves, old_containers = jax.tree_util.tree_flatten_with_path(old, is_leaf=is_slot)
    new_leaves, new_containers = jax.tree.flatten(new, is_leaf=is_slot)
    words = f"was {shown(old, form.kinds)} and becomes {shown(new, form.kinds)}"
    if old_containers != new_containers:
        raise _changed(loop, "carry", words)
    for (path, before), after in zip(old_leaves, new_leaves, strict=True):
        place = "carry" + jax.tree_util.keystr(path)
        if is_slot(before) != is_slot(after):
            raise _changed(loop, "carry", words)
        if is_slot(before) and before != after:
            raise _changed(loop, place, "is another object after the step", _SAME_OBJECT)
        if not is_slot(before) and not same_form(before, after):
            raise _changed(loop, place, f"was {shown(before)} and becomes {shown(after)}")


def _check_structure(form: CallForm, rules: OutputRules, loop: str, graph: NewGraph) -> None:
    """A carried object must keep its attributes, its statics, and which objects they are."""
    before, after = form.graphdef, graph.graphdef
    pending = [(before.roots[o.number], after.roots[o.number], o.place)
               for o in rules.arguments if is_carry(o.prefix)]  # fmt: skip
    seen: set[int] = set()
    while pending:
        number, new_number, place = pending.pop()
        if number in seen:
            continue
        seen.add(number)
        old, new = before.records[number], after.records[new_number]
        if old[0] in WITH_IDENTITY and graph.origins[new_number] != number:
            raise _changed(loop, place, "refers to another object after the step", _SAME_OBJECT)
        if old[:2] != new[:2]:
            kinds = type_of_record(old), type_of_record(new)
            raise _changed(loop, place, f"was a {kinds[0]} and becomes a {kinds[1]}")
        if old[0] == VARIABLE and old != new:
            raise _changed(loop, place, f"had metadata {dict(old[2])} and gets {dict(new[2])}")
        (keys, children), (new_keys, new_children) = map(record_children, (old, new))
        if tuple(keys) != tuple(new_keys):
            gone, added = set(keys) - set(new_keys), set(new_keys) - set(keys)
            words = [f"{verb} {sorted(some, key=str)}"
                     for verb, some in (("gains", added), ("loses", gone)) if some]  # fmt: skip
            what = " and ".join(words) or "has its entries in another order"
            raise _changed(loop, place, f"changes its form: it {what}")
        for key, child, new_child in zip(keys, children, new_children, strict=True):
            below = path_string((key,), place)
            if type(child) is int and type(new_child) is int:
                pending.append((child, new_child, below))
            elif child != new_child:
                texts = _told(child), _told(new_child)
                raise _changed(loop, below, f"was {texts[0]} and becomes {texts[1]}")


def _told(child: Any) -> str:
    return repr(child[1]) if type(child) is tuple else "an object or array"


_SAME_FORM = "make it so before the loop (with the final shape and dtype), or do not carry it."
_RECORDED = (
    "nnx.capture records there at each step: use nnx.scan, which stacks the steps; or leave the "
    "Module out with nnx.capture(…, filter=…)."
)
_SAME_OBJECT = "change the object in place (assign to its Variables) instead of making another one."


def _changed(loop: str, place: str, what: str, cure: str = _SAME_FORM) -> PrefixError:
    return PrefixError(
        f"{loop}: what is carried must keep its form, but `{place}` {what}.\nCure: {cure}"
    )
