"""Matching: which leaf of an object each value of a State, nested dict or mapping of names is for.

A place is found by every path that leads to it, so a shared Variable goes by each of its names; a
key finds its place in its integer or its string form; a key may be a dotted name
(`'blocks.3.attn.kernel'`, `"heads['a.b'].kernel"`) or a path as a tuple.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ..graph.graphdef import LEAF, GraphDef, GraphState, record_children
from ..graph.state import FlatState, State
from ..graph.walk import key_name
from ..objects.errors import path_string, suggest
from ..objects.node import Node
from ..objects.snapshots import UNREAD, taken
from ..objects.variable import Variable, raw
from ..objects.variable_types import Correction
from .errors import Misfits
from .iteration import iter_children_of
from .layouts import full_layout
from .names import PathError, find_key, parse_name
from .popping import SOWN
from .splitting import state

_BOXES = ({"value"}, {"raw_value"})  # the keys of a value in a dict of its own


class Unknown(NamedTuple):
    """A value for which there is no leaf."""

    path: tuple
    value: Any
    above: Any  # the place that the path comes to, and what of the path leads there
    found: tuple


def match(
    graphdef: GraphDef, tree: Any, misfits: Misfits
) -> tuple[list[tuple[int, Any]], list[Unknown]]:
    """The (leaf number, value) of each leaf of a State, nested dict or mapping of names.

    And what has no place in the object and is not passed over; a leaf with two values is a misfit.
    """
    if isinstance(tree, GraphState):
        tree = tree.state
    if UNREAD:
        taken(jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Variable)))
    full = full_layout(graphdef)
    if full.treedef is not None and type(tree) is State:
        try:
            values = full.treedef.flatten_up_to(tree._tree)
        except ValueError:
            pass  # a part of the paths, or other ones: matched one by one
        else:
            if dict not in set(map(type, values)):
                return list(zip(full.leaves, values, strict=True)), []
    unknown: list[Unknown] = []
    named: dict[int, tuple[tuple, Any]] = {}
    stack: list[tuple[tuple, Any, Any]] = [((), tree, places_of(graphdef))]
    while stack:
        path, value, place = stack.pop()
        if type(place) is int:
            value = unboxed(value)
            first, known = named.setdefault(place, (path, value))
            if not same_values(raw(known), raw(value)):
                both = f"`{path_string(first)}` and `{path_string(path)}`"
                misfits.add(_TWICE, f"{both} are one Variable, with two values.")
            continue
        if isinstance(value, Node):
            value = state(value)
        items = value.items() if isinstance(value, FlatState) else iter_children_of(value)
        if not items and value is not None and not isinstance(value, (Mapping, list, tuple)):
            unknown.append(Unknown(path, value, place, path))
        for key, below in items:
            found, at, rest = follow(place, key)
            if rest:
                new = Unknown((*path, *found, *rest), below, at, (*path, *found))
                unknown += [] if passed_over(new) else [new]
            else:
                stack.append(((*path, *found), below, at))
    return [(place, value) for place, (_, value) in named.items()], unknown


def void_corrections(graphdef: GraphDef, given: Iterable[int]) -> list[int]:
    """The leaves that correct what is given beside them, and are not given: they are zero now."""
    found = graphdef.remembered("corrections", lambda: _corrections(graphdef))
    given = set(given) if found else ()
    return [leaf for leaf, beside in found.items() if leaf not in given and beside & given]


def _corrections(graphdef: GraphDef) -> dict[int, set[int]]:
    found = [i for i, record in enumerate(graphdef.variables) if issubclass(record[1], Correction)]
    paths = graphdef.paths.leaves
    return {leaf: {i for i, p in enumerate(paths) if p[:-1] == paths[leaf][:-1]} for leaf in found}


def passed_over(unknown: Unknown) -> bool:
    """Whether a value without a place is one that older programs kept, and none keeps now.

    That is None, as of a bias that was left out, and what belongs to the `Rngs` that all layers of
    a model shared: it stands in the first layer that had it, where there is one stream of the
    layer's own now, or none.
    """
    path, value, above, found = unknown
    rest = path[len(found) :]
    if unboxed(value) is None:
        return True
    if found[-1:] == ("rngs",) and type(above) is dict and above.keys() == {"key", "count"}:
        rest = ("rngs", *rest)
    if rest[0] != "rngs":
        return False
    below = [tuple(map(key_name, keys)) for keys, _ in jax.tree.leaves_with_path(value)]
    tails = [(*rest[1:], *keys) for keys in below]
    return all(len(tail) in (2, 3) and tail[1] in ("key", "count") for tail in tails)


def unboxed(value: Any) -> Any:
    """The value of a Variable that a checkpoint has in a dict of its own, {'value': x}."""
    if isinstance(value, FlatState) and value.paths == ((),):
        return value.leaves[0]
    while isinstance(value, (dict, State)) and value.keys() in _BOXES:
        (value,) = value.values()
    return value


def follow(place: Any, key: Any) -> tuple[tuple, Any, tuple]:
    """(the keys that were found, the place that they lead to, the parts that were not found)."""
    if type(place) is dict and key in place:
        return (key,), place[key], ()
    parts = key if isinstance(key, tuple) else (key,)
    if isinstance(key, str):
        with contextlib.suppress(PathError):
            parts = tuple(parse_name(key, "update"))
    found: tuple = ()
    for i, part in enumerate(parts):
        if type(place) is int:  # a checkpoint's `kernel.value`
            boxed = len(parts) == i + 1 and {part} in _BOXES
            return found, place, () if boxed else _as_keys(parts[i:])
        try:
            step = find_key(place, part)
        except KeyError:
            if (step := f"{SOWN}{part}") not in place:
                return found, place, _as_keys(parts[i:])
        found, place = (*found, step), place[step]
    return found, place, ()


def _as_keys(parts: tuple) -> tuple:
    """Parts of a name that stand for nothing as the keys that they look like, for a message."""
    keys = [p.strip("[]'\"") if isinstance(p, str) else p for p in parts]
    return tuple(int(k) if isinstance(k, str) and k.isdecimal() else k for k in keys)


def places_of(graphdef: GraphDef) -> Any:
    """The place of the root.

    A place is the leaf number of a leaf, or the places below by key: cyclic, as objects may be.
    """
    return graphdef.remembered("places", lambda: _places(graphdef))


def _places(graphdef: GraphDef) -> Any:
    if graphdef.of_leaf:
        return 0
    variables, arrays = graphdef.leaf_numbers()
    places: list[Any] = [variables.get(i, {}) for i in range(len(graphdef.records))]
    for i, record in enumerate(graphdef.records):
        number = arrays[i]
        for key, child in zip(*record_children(record), strict=True):
            if child is LEAF:
                places[i][key] = number
                number += 1
            elif type(child) is int:
                places[i][key] = places[child]
    return places[graphdef.roots[0]]


def same_values(a: Any, b: Any) -> bool:
    """Whether two values of one leaf are the same; what is traced is the same only as itself."""
    if a is b:
        return True
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return False
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jnp.shape(x) == jnp.shape(y) and bool(jnp.all((x == y) | ((x != x) & (y != y))))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def no_place(misfits: Misfits, graphdef: GraphDef, unknown: Iterable[Unknown]) -> None:
    """Note values that have no place in the object, the first with near misses."""
    for i, (path, _, above, found) in enumerate(unknown):
        near = ""
        if i < _SUGGESTED:  # looking for near misses takes time
            part = path[len(found)] if len(path) > len(found) else ""
            near = suggest(part, above if isinstance(above, dict) else ())
            near = near or suggest(path_string(path), map(path_string, graphdef.paths.leaves))
        line = f"`{path_string(path)}`: the object has no Variable or array there.{near}"
        misfits.add(_UNKNOWN, line)


_SUGGESTED = 20
_UNKNOWN = (
    "build the State from an object of the same structure, or drop that path from it "
    "(nnx.filter_state, or `del state[...]`)"
)
_TWICE = "give a shared Variable one value, by any of its paths"
