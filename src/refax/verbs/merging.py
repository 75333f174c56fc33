"""From a GraphDef and States back to objects: `merge`, `unflatten`, `call`."""

from __future__ import annotations

from typing import Any, overload

import jax

from ..graph.graphdef import VERBS, GraphDef, GraphState
from ..graph.rebuild import rebuild
from ..graph.state import State
from ..objects.arguments import checked, unfit
from ..objects.entering import ARRAYS, entered
from ..objects.type_names import M
from ..objects.variable import Variable, copies, make_variable, own_cell, set_raw_value
from . import errors
from .layouts import shapes_of
from .matching import match, no_place
from .splitting import split

_MISSING = object()
PureState = tuple[GraphDef, State]  # what `nnx.split` gives without filters


@checked
def unflatten(
    graphdef: GraphDef[M],
    state: Any,
    /,
    *,
    copy_variables: bool = True,
    recreate_variables: bool = True,
) -> M:
    """The object of a GraphDef and the leaves of `flatten` (a FlatState or list), or a State.

    Args:
        copy_variables, recreate_variables: if one is False, the Variables of the leaves become
            those of the object; else it gets new ones.
    """
    return merge(graphdef, state, copy=copy_variables and recreate_variables)


@overload
def merge(
    graphdef: GraphDef[M], /, *states: Any, copy: bool = True, recreate_variables: bool = True
) -> M: ...
@overload
def merge(
    graphdef: GraphState, /, *states: Any, copy: bool = True, recreate_variables: bool = True
) -> Any: ...
def merge(
    graphdef: Any, /, *states: Any, copy: bool = True, recreate_variables: bool = True
) -> Any:
    """The object that a GraphDef and its States describe: new objects and new Variables.

    The Variables belong to the trace in which `merge` is called, so they may be mutated there.

    Args:
        graphdef: what `nnx.split` or `nnx.graphdef` gave; or a `GraphState` of `nnx.unpack`.
        *states: States, nested dicts or mappings of names; or one list of all leaves in the order
            of a State, such as `jax.tree.leaves(state)`.
        copy, recreate_variables: if one is False, the Variables of the States become those of the
            object, so that a State of `nnx.split(model, copy=False)` gives an object that shares
            them with `model`; else the object gets new ones.

    Raises:
        ValueError: a path without a value, or a value without a place, named by its path.
    """
    if isinstance(graphdef, GraphState):
        graphdef, states = graphdef.graphdef, (graphdef, *states)
    if not isinstance(graphdef, GraphDef):
        cure = "nnx.merge(graphdef, state, ...), in the order in which nnx.split returned them."
        raise unfit(graphdef, "a GraphDef", cure)
    paths = graphdef.paths.leaves
    found: list[Any] = [_MISSING] * len(paths)
    misfits = errors.Misfits("merge")
    for tree in states:
        if isinstance(tree, (list, tuple)) and tree and all(map(_is_leaf, tree)):
            values = zip(graphdef.paths.order, tree, strict=False)
            if len(tree) != len(paths):
                raise errors.number_of_leaves(len(paths), len(tree))
        else:
            values, unknown = match(graphdef, tree, misfits)
            no_place(misfits, graphdef, unknown)
            misfits.raise_if_any()
        for i, value in values:
            found[i] = value
    missing = [paths[i] for i in graphdef.paths.order if found[i] is _MISSING]
    if missing:
        raise errors.leaf_missing(missing[0], len(missing) - 1)
    return rebuild(graphdef, _cells(graphdef, found, copy and recreate_variables))[0]


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Variable) or jax.tree_util.all_leaves((value,))


def _cells(graphdef: GraphDef, leaves: list[Any], copy: bool) -> list[Any]:
    """New cells for the leaves of Variables, so that nothing is shared with a State; or its own."""
    records = graphdef.variables
    cells = [
        x if isinstance(x, Variable) else make_variable(record[1], x, record[2])
        for x, record in zip(leaves, records, strict=False)
    ]
    cells = copies(cells) if copy else list(map(own_cell, cells))
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
    paths = graphdef.paths
    changed = [i for i in paths.order if i < len(changes) and changes[i]]
    raise errors.other_shapes([(paths.leaves[i], *pairs[i]) for i in changed])


def call(graphdef_state: tuple[GraphDef, Any], /) -> Any:
    """Call a method of a split object: `y, (graphdef, state) = nnx.call((graphdef, state)).f(x)`.

    The accessor takes attributes and items on the way: `nnx.call(pair).encoder.layers[0](x)`.
    """
    graphdef, *states = graphdef_state
    root = merge(graphdef, *states)
    return ApplyCaller(root, root)


VERBS.update(merge=merge, call=call)


class ApplyCaller:
    __slots__ = ("_root", "_target")

    def __init__(self, root: Any, target: Any):
        self._root = root
        self._target = target

    def __getattr__(self, name: str) -> ApplyCaller:
        return ApplyCaller(self._root, getattr(self._target, name))

    def __getitem__(self, key: Any) -> ApplyCaller:
        return ApplyCaller(self._root, self._target[key])

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[GraphDef, State]]:
        out = self._target(*args, **kwargs)
        return out, split(self._root)
