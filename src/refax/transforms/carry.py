"""`Carry`, and the rule of everything that is carried: a step leaves it as it found it, in form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ..graph.errors import describe_value
from ..graph.variable import Variable
from ..lift.call import Call
from ..lift.errors import PrefixError
from ..lift.inside import Static
from ..lift.places import place_of_leaf, place_of_output
from ..lift.prefix import OutputRules


class Carry:
    """The entry of what a loop carries from step to step. Used as it is: `nnx.Carry`."""


def is_carry(entry: Any) -> bool:
    return entry is Carry


def check_carry(
    call: Call,
    rules: OutputRules,
    loop: str,
    before: tuple[Sequence[Any], Any, Sequence[Any]],
    out: Sequence[Sequence[Any]],
    tree: Any,
    static: Static,
) -> None:
    """Raise if a step changed the form of what it carries; names the place and both forms.

    Args:
        call, rules: of the loop.
        loop: its name.
        before: (values by group, tree with slots, leaves of it) as the step got them.
        out: values by group as the step leaves them.
        tree: the carried result, with slots that name roots.
        static: what the step did to the objects.
    """
    groups_in, tree_in, leaves_in = before
    change, graphdef = static.change, call.plan.graphdef
    for group, entry in enumerate(rules.entries):
        if not is_carry(entry):
            continue
        if len(out[group]) > len(groups_in[group]):
            place = place_of_output(graphdef, rules.arguments, change, group, len(groups_in[group]))
            raise _changed(loop, place, "is new: the step added it to what is carried")
        assert call.groups is not None
        for leaf, old, new in zip(
            call.groups.members[group], groups_in[group], out[group], strict=True
        ):
            if _form(old) != _form(new):
                place = place_of_leaf(graphdef, rules.arguments, leaf)
                raise _changed(loop, place, f"was {_shown(old)} and becomes {_shown(new)}")
    if change.graph is not None and _carried_objects(rules):
        _check_structure(call, rules, loop, static)
    if jax.tree.structure(tree) != jax.tree.structure(tree_in):
        raise _changed(
            loop,
            "the carried result",
            f"had the structure {jax.tree.structure(tree_in)} and becomes "
            f"{jax.tree.structure(tree)}",
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for path, old, new in zip(paths, leaves_in, jax.tree.leaves(tree), strict=True):
        if _form(old) != _form(new):
            place = "carry" + jax.tree_util.keystr(path)
            raise _changed(loop, place, f"was {_shown(old)} and becomes {_shown(new)}")


def _carried_objects(rules: OutputRules) -> list[int]:
    return [o.number for o in rules.arguments if is_carry(o.prefix)]


def _check_structure(call: Call, rules: OutputRules, loop: str, static: Static) -> None:
    """A carried object must keep its attributes, its statics, and which objects they are."""
    graph, before = static.change.graph, call.plan.graphdef
    assert graph is not None
    after = graph.graphdef
    for occurrence in rules.arguments:
        if not is_carry(occurrence.prefix):
            continue
        stack = [(before.roots[occurrence.number], after.roots[occurrence.number])]
        seen: set[int] = set()
        while stack:
            old, new = stack.pop()
            if old in seen:
                continue
            seen.add(old)
            old_record, new_record = before.records[old], after.records[new]
            place = f"{occurrence.place} ({type(old_record[1]).__name__})"
            if graph.origins[new] != old and old_record[0] != 4 and old_record[0] != 5:
                raise _changed(loop, place, "refers to another object after the step")
            difference = _record_difference(old_record, new_record)
            if difference:
                raise _changed(loop, occurrence.place, difference)
            from ..graph.graphdef import record_children

            children = zip(record_children(old_record)[1], record_children(new_record)[1],
                           strict=True)  # fmt: skip
            stack += [(a, b) for a, b in children if type(a) is int]


def _record_difference(old: tuple, new: tuple) -> str:
    from ..graph.graphdef import record_children

    if old[:2] != new[:2]:
        return f"was a {old[1].__name__} and becomes a {new[1].__name__}"
    if old[0] == 0:
        return "" if old == new else f"had metadata {dict(old[2])} and gets {dict(new[2])}"
    old_keys, old_children = record_children(old)
    new_keys, new_children = record_children(new)
    name = old[1].__name__ if isinstance(old[1], type) else "a container"
    if tuple(old_keys) != tuple(new_keys):
        added = [k for k in new_keys if k not in tuple(old_keys)]
        gone = [k for k in old_keys if k not in tuple(new_keys)]
        return f"changes its form: {name} gains {added or 'nothing'} and loses {gone or 'nothing'}"
    for key, a, b in zip(old_keys, old_children, new_children, strict=True):
        if (type(a) is not int or type(b) is not int) and a != b:
            return (
                f"changes its static part: {name}.{key} was {_static(a)} and becomes {_static(b)}"
            )
    return ""


def _static(child: Any) -> str:
    return repr(child[1]) if type(child) is tuple else "an object or array"


def _form(value: Any) -> Any:
    leaves, treedef = jax.tree.flatten(value)
    return treedef, [_type_of(x) for x in leaves]


def _type_of(x: Any) -> Any:
    aval = jax.typeof(x)
    return aval.shape, aval.dtype


def _shown(value: Any) -> str:
    value = value._value if isinstance(value, Variable) else value
    leaves = jax.tree.leaves(value)
    return describe_value(leaves[0]) if len(leaves) == 1 else str(jax.tree.map(_type_of, value))


def _changed(loop: str, place: str, what: str) -> PrefixError:
    return PrefixError(
        f"{loop}: what is carried must keep its form, but `{place}` {what}.\n"
        "Cure: make it so before the loop (with the final shape and dtype), or do not carry it."
    )
