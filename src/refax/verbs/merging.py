"""From a GraphDef and States back to objects: `merge`, `unflatten`, `call`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..graph.graphdef import GraphDef
from ..graph.rebuild import rebuild
from ..graph.state import State
from ..objects.entering import ARRAYS, entered
from ..objects.errors import describe_value
from ..objects.variable import Variable, copies, make_variable, set_raw_value
from . import errors
from .layouts import shapes_of
from .matching import MISSING, Misfits, match
from .splitting import split


def unflatten(graphdef: GraphDef, leaves: Any, /) -> Any:
    """The object of a GraphDef and the leaves of `flatten`, or a State."""
    if isinstance(leaves, Mapping):
        return merge(graphdef, leaves)
    return rebuild(graphdef, _own_cells(graphdef, list(leaves)))[0]


def _own_cells(graphdef: GraphDef, leaves: list[Any]) -> list[Any]:
    """New cells for the leaves of Variables: an object never shares one with a State."""
    records = graphdef.variables
    given = leaves[: len(records)]
    if all(isinstance(x, Variable) for x in given):
        cells = copies(given)
    else:
        cells = [
            copies([x])[0] if isinstance(x, Variable) else make_variable(record[1], x, record[2])
            for x, record in zip(given, records, strict=True)
        ]
    for cell in cells:
        if type(cell._value) not in ARRAYS:
            set_raw_value(cell, entered(cell._value))
    known = graphdef._cache.get("shapes")
    if known and (shapes := shapes_of(cells)) is not None and shapes not in known:
        _check_shapes(graphdef, next(reversed(known)), shapes)
    return cells + leaves[len(records) :]


def _check_shapes(graphdef: GraphDef, old: tuple, new: tuple) -> None:
    """Tell a State of other sizes from one that was batched, unbatched, sliced or stacked."""
    pairs = list(zip(old, new, strict=True))
    if any(len(a) != len(b) for a, b in pairs):
        return
    changes = [{(i, m, n) for i, (m, n) in enumerate(zip(a, b)) if m != n} for a, b in pairs]
    if len(changes[0]) == 1 and all(change == changes[0] for change in changes):
        return  # one axis of all: a slice of a stack
    paths = graphdef.paths.leaves
    places = [i for i in graphdef.paths.order if i < len(changes) and changes[i]]
    other = [(paths[i], *pairs[i]) for i in places]
    raise errors.other_shapes(other)


def merge(graphdef: GraphDef, state: Mapping, /, *states: Mapping) -> Any:
    """The object that a GraphDef and its States describe: new objects and new Variables.

    The Variables belong to the trace in which `merge` is called, so they may be mutated there.

    Raises:
        ValueError: a path without a value, or a value without a place, named by its path.
    """
    if not isinstance(graphdef, GraphDef):
        raise TypeError(
            f"nnx.merge takes a GraphDef first, got {describe_value(graphdef)}.\n"
            "Cure: nnx.merge(graphdef, state, ...), in the order in which nnx.split returned them."
        )
    paths = graphdef.paths.leaves
    found: list[Any] = [MISSING] * len(paths)
    for tree in (state, *states):
        matched = match(graphdef, tree)
        if matched.unknown or matched.twice:
            misfits = Misfits("merge")
            misfits.add(graphdef, matched.unknown, matched.twice)
            raise misfits.error()
        for i, value in matched.values:
            found[i] = value
    missing = [paths[i] for i in graphdef.paths.order if found[i] is MISSING]
    if missing:
        raise errors.leaf_missing(missing[0], len(missing) - 1)
    return rebuild(graphdef, _own_cells(graphdef, found))[0]


def call(graphdef_state: tuple[GraphDef, Any], /) -> Any:
    """Call a method of a split object: `y, (graphdef, state) = nnx.call((graphdef, state)).f(x)`.

    The accessor takes attributes and items on the way: `nnx.call(pair).encoder.layers[0](x)`.
    """
    graphdef_, state_ = graphdef_state
    root = merge(graphdef_, state_)
    return _Caller(root, root)


class _Caller:
    __slots__ = ("_root", "_target")

    def __init__(self, root: Any, target: Any):
        self._root = root
        self._target = target

    def __getattr__(self, name: str) -> _Caller:
        return _Caller(self._root, getattr(self._target, name))

    def __getitem__(self, key: Any) -> _Caller:
        return _Caller(self._root, self._target[key])

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[GraphDef, State]]:
        out = self._target(*args, **kwargs)
        return out, split(self._root)
