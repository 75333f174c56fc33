"""`update`: States and nested dicts matched with the leaves of an object, and written into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from .._jax_compat import TRACE
from ..graph.graphdef import GraphDef
from ..graph.rebuild import renew_tuples
from ..graph.state import State, nest
from ..objects.errors import describe_value
from ..objects.node import Node
from ..objects.trace_errors import mutation_error
from ..objects.variable import Variable, raw, replace_metadata
from . import errors
from .layouts import full_layout, plan_of
from .splitting import split

MISSING = object()


_BOXES = ({"value"}, {"raw_value"})  # the keys of a value in a dict of its own


def match_leaves(
    graphdef: GraphDef, tree: Mapping, verb: str, assign: Callable[[int, Any], None]
) -> None:
    """Call `assign(leaf number, value)` for each leaf of a State or nested dict.

    A key finds its place in its integer or its string form; a dict {'value': x} where a Variable
    stands, as some checkpoints have it, is x.
    """
    full = full_layout(graphdef)
    root = tree._tree if isinstance(tree, State) else tree
    if full.treedef is not None and isinstance(tree, State):
        try:
            values = full.treedef.flatten_up_to(root)
        except ValueError:
            pass  # a part of the paths, or other ones: matched one by one
        else:
            if not any(type(v) is dict for v in values):
                for i, value in zip(full.leaves, values, strict=True):
                    assign(i, value)
                return
    places = graphdef.remembered("places", lambda: _places(graphdef))
    if type(places) is int:  # the root is a Variable itself
        value = root
        if isinstance(root, Mapping) and len(root) == 1:
            value = next(iter(root.values()))
        assign(places, value)
        return
    stack: list[tuple[tuple, Any, Any]] = [((), root, places)]
    while stack:
        path, values, here = stack.pop()
        for key, value in values.items():
            place = here.get(key, MISSING)
            if place is MISSING:
                place = here.get(_other_form(key), MISSING)
            if place is MISSING:
                raise errors.unknown_path((*path, key), here, verb)
            if isinstance(value, State):
                value = value._tree
            if type(place) is int:
                while type(value) is dict and value.keys() in _BOXES:
                    (value,) = value.values()
                assign(place, value)
            elif isinstance(value, Mapping) and not isinstance(value, Variable):
                stack.append(((*path, key), value, place))
            elif isinstance(value, (list, tuple)):
                stack.append(((*path, key), dict(enumerate(value)), place))
            elif value is not None:  # None: an empty part, as checkpoints write it
                raise errors.unknown_path((*path, key), here, verb)


def _places(graphdef: GraphDef) -> Any:
    """Nested dicts of leaf numbers by path."""
    paths = graphdef.paths.leaves
    if len(paths) == 1 and paths[0] == ():
        return 0
    return nest((path, i) for i, path in enumerate(paths))


def _other_form(key: Any) -> Any:
    if isinstance(key, int):
        return str(key)
    if isinstance(key, str) and key.removeprefix("-").isdecimal():
        return int(key)
    return key


def update(node: Any, state: Any, /, *states: Any) -> None:
    """Write States into an object, in place: all of them or, on an error, nothing.

    Args:
        node: a Module, a Variable, or a container of them.
        state, *states: a `State`, a nested pure dict (as orbax restores one), partial or whole.

    Raises:
        ValueError: a path that the object does not have, or another shape; both named.
        TraceContextError: the object belongs to an outer trace.
    """
    plan = plan_of(node, "update")
    graphdef, variables = plan.graphdef, plan.variables
    trace = TRACE.value
    pending: list[tuple[int, Any]] = []
    for tree in (state, *states):
        if isinstance(tree, Variable):
            tree = {"value": tree}
        elif isinstance(tree, Node):
            tree = split(tree)[1]
        if not isinstance(tree, Mapping):
            raise TypeError(
                f"nnx.update takes States or nested dicts, got {describe_value(tree)}.\n"
                "Cure: nnx.update(object, state), with a State as nnx.state(object) returns it."
            )
        match_leaves(graphdef, tree, "update", lambda i, value: pending.append((i, value)))
    old = plan.gather()
    foreign = isinstance(node, Node) and node._refax_trace is not trace
    for i, value in pending:
        if variables[i]._trace is not trace if i < len(variables) else foreign:
            raise mutation_error(variables[i] if i < len(variables) else node, "update")
        was, new = old[i], raw(value)
        if was is not new and _shape(was) != _shape(new) and _shape(was) is not None:
            raise errors.shape_mismatch(graphdef.paths.leaves[i], was, new, "update")
    changed_inside = False  # of tuples: those must be made anew
    for i, value in pending:
        if isinstance(value, Variable):
            if i < len(variables) and value._metadata is not variables[i]._metadata:
                if value._metadata != variables[i]._metadata:
                    replace_metadata(variables[i], value._metadata)
            value = value._value
        elif type(value) in (dict, list) and i < len(variables) or i >= len(variables):
            value = _like(old[i], value)
        changed_inside |= not plan.place(i, value)
    if changed_inside:
        renew_tuples(plan, (node,))


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _like(old: Any, new: Any) -> Any:
    """`new` in the containers of `old`, where a checkpoint turned tuples into lists or dicts."""
    if jax.tree_util.all_leaves((old,)) or jax.tree.structure(old) == jax.tree.structure(new):
        return new
    leaves = jax.tree.leaves(new)
    treedef = jax.tree.structure(old)
    return treedef.unflatten(leaves) if len(leaves) == treedef.num_leaves else new
