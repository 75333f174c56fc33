"""The verbs: split, merge, update, state and their kin. Thin uses of plans and `rebuild`.

Users of plain JAX call these at every step, so nothing that depends on structure only is worked
out twice: which leaf goes into which State is remembered on the GraphDef, and nested dicts of
leaves are built and taken apart by JAX in C++.
"""

from __future__ import annotations

import copy as python_copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax

from .._jax_compat import TRACE
from . import errors
from .filters import Filter, check_ellipsis_last, first_match, is_structural, to_predicate
from .graphdef import VARIABLE, GraphDef, record_children
from .iteration import is_mutable, iter_children_of, iter_graph, set_child
from .module import Pytree, sown_path
from .plan import Plan, plan_for
from .rebuild import rebuild, renew_tuples
from .state import State, map_state, nest, one_or_all, state_over
from .trace_errors import mutation_error
from .variable import Variable, copy_leaf, make_variable, raw, replace_metadata
from .walk import walk

N = TypeVar("N")
_DEEP = 64  # JAX flattens nested dicts recursively; deeper ones are walked here


class _Layout:
    """Which leaves make up one State, in the State's order, and the dicts that hold them."""

    __slots__ = ("leaves", "paths", "treedef")

    def __init__(self, graphdef: GraphDef, leaves: list[int]):
        self.leaves = leaves
        # A Variable that is the root itself stands in its State under "value".
        self.paths = [graphdef.paths.leaves[i] or ("value",) for i in leaves]
        self.treedef = None
        if max(map(len, self.paths), default=0) <= _DEEP:
            try:
                self.treedef = jax.tree.structure(nest((p, 0) for p in self.paths))
            except ValueError:  # keys of several types in one dict, which JAX refuses to sort
                pass

    def build(self, values: list[Any]) -> State:
        mine = [values[i] for i in self.leaves]
        if self.treedef is None:
            return state_over(nest(zip(self.paths, mine, strict=True)))
        return state_over(self.treedef.unflatten(mine))


def _layouts(plan: Plan, filters: tuple[Filter, ...], verb: str) -> tuple[list[_Layout], list[int]]:
    """One layout per filter, and the leaves that no filter matches."""
    graphdef = plan.graphdef
    if not filters:
        return [_full_layout(graphdef)], []

    def make() -> tuple[list[_Layout], list[int]]:
        groups: list[list[int]] = [[] for _ in filters]
        rest: list[int] = []
        leaves = plan.leaves()
        for i in graphdef.paths.order:
            match = first_match(predicates, graphdef.paths.leaves[i], leaves[i])
            (rest if match is None else groups[match]).append(i)
        return [_Layout(graphdef, g) for g in groups], rest

    predicates = [to_predicate(f) for f in filters]
    check_ellipsis_last(filters, verb)
    if all(map(is_structural, predicates)):
        return graphdef.remembered(("layouts", *predicates), make)
    return make()


def _full_layout(graphdef: GraphDef) -> _Layout:
    return graphdef.remembered("layout", lambda: _Layout(graphdef, list(graphdef.paths.order)))


def layout_of(plan: Plan, filter: Filter) -> _Layout:
    """The layout of the State of what one filter matches."""
    return _layouts(plan, (filter,), "state")[0][0]


def _plan_of(node: Any, verb: str) -> Plan:
    if not isinstance(node, (Pytree, Variable, State, list, tuple, dict)):
        if node is None or jax.tree_util.all_leaves((node,)):
            raise TypeError(
                f"nnx.{verb} takes an object graph, got {errors.describe_value(node)}.\n"
                "Cure: give a Module or other Pytree, a Variable, or a container of them."
            )
    return plan_for((node,))


def _copies(plan: Plan) -> list[Any]:
    """The leaves as a State holds them: Variables as new cells, arrays as they are."""
    copies = [make_variable(type(v), v._value, v._metadata) for v in plan.variables]
    if plan.arrays:
        copies += plan.bare()
    return copies


def split(node: Any, /, *filters: Filter) -> Any:
    """Split an object graph into its GraphDef and one State per filter (one in all without).

    Args:
        node: a Module, a Variable, or a container of them.
        *filters: each leaf goes to the first that matches; together they must match every leaf.

    Returns:
        (graphdef, state, …).

    Raises:
        ValueError: a leaf that no filter matches, named by its path.

    Example:
        >>> from refax import nnx
        >>> graphdef, params, rest = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param, ...)
        >>> sorted(params), sorted(rest)
        (['bias', 'scale'], ['mean', 'var'])
    """
    plan = _plan_of(node, "split")
    layouts, rest = _layouts(plan, filters, "split")
    if rest:
        paths = [plan.graphdef.paths.leaves[i] for i in rest]
        raise errors.not_exhaustive(paths, "split", "add `...` as the last filter.")
    copies = _copies(plan)
    return (plan.graphdef, *[layout.build(copies) for layout in layouts])


def state(node: Any, /, *filters: Filter) -> Any:
    """The State of an object graph, or one State per filter, leaving out what none matches.

    Example:
        >>> from refax import nnx
        >>> params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
        >>> {name: param.shape for name, param in params.items()}
        {'bias': (3,), 'kernel': (2, 3)}
    """
    plan = _plan_of(node, "state")
    layouts, _ = _layouts(plan, filters, "state")
    copies = _copies(plan)
    return one_or_all([layout.build(copies) for layout in layouts])


def variables(node: Any, /, *filters: Filter) -> Any:
    """Like `nnx.state`, but with the Variables of the object themselves, not copies."""
    plan = _plan_of(node, "variables")
    layouts, _ = _layouts(plan, filters, "variables")
    leaves = plan.leaves()
    return one_or_all([layout.build(leaves) for layout in layouts])


def graphdef(node: Any, /) -> GraphDef:
    """The GraphDef of an object graph: its structure without the arrays."""
    return _plan_of(node, "graphdef").graphdef


def flatten(node: Any, /) -> tuple[GraphDef, list[Any]]:
    """(graphdef, leaves): the Variables (copies) and bare arrays in the GraphDef's own order."""
    plan = _plan_of(node, "flatten")
    return plan.graphdef, _copies(plan)


def unflatten(graphdef: GraphDef, leaves: Any, /) -> Any:
    """The object of a GraphDef and the leaves of `flatten`, or a State."""
    if isinstance(leaves, Mapping):
        return merge(graphdef, leaves)
    return rebuild(graphdef, _own_cells(leaves))[0]


def _own_cells(leaves: Iterable[Any]) -> list[Any]:
    """New cells for the leaves that come as Variables: an object never shares one with a State."""
    return [
        make_variable(type(x), x._value, x._metadata) if isinstance(x, Variable) else x
        for x in leaves
    ]


def merge(graphdef: GraphDef, state: Mapping, /, *states: Mapping) -> Any:
    """The object that a GraphDef and its States describe: new objects and new Variables.

    The Variables belong to the trace in which `merge` is called, so they may be mutated there.

    Raises:
        ValueError: a path without a value, or a value without a place, named by its path.
    """
    if not isinstance(graphdef, GraphDef):
        raise TypeError(
            f"nnx.merge takes a GraphDef first, got {errors.describe_value(graphdef)}.\n"
            "Cure: nnx.merge(graphdef, state, ...), in the order in which nnx.split returned them."
        )
    paths = graphdef.paths.leaves
    found: list[Any] = [_MISSING] * len(paths)
    for tree in (state, *states):
        _match(graphdef, tree, "merge", lambda i, value: found.__setitem__(i, value))
    missing = [paths[i] for i in graphdef.paths.order if found[i] is _MISSING]
    if missing:
        raise errors.leaf_missing(missing[0], len(missing) - 1)
    return rebuild(graphdef, _own_cells(found))[0]


_MISSING = object()
_BOXES = ({"value"}, {"raw_value"})  # the keys of a value in a dict of its own


def _match(
    graphdef: GraphDef, tree: Mapping, verb: str, assign: Callable[[int, Any], None]
) -> None:
    """Call `assign(leaf number, value)` for each leaf of a State or nested dict.

    A key finds its place in its integer or its string form; a dict {'value': x} where a Variable
    stands, as some checkpoints have it, is x.
    """
    full = _full_layout(graphdef)
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
            place = here.get(key, _MISSING)
            if place is _MISSING:
                place = here.get(_other_form(key), _MISSING)
            if place is _MISSING:
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
    plan = _plan_of(node, "update")
    graphdef, variables = plan.graphdef, plan.variables
    trace = TRACE.value
    pending: list[tuple[int, Any]] = []
    for tree in (state, *states):
        if isinstance(tree, Variable):
            tree = {"value": tree}
        elif isinstance(tree, Pytree):
            tree = split(tree)[1]
        if not isinstance(tree, Mapping):
            raise TypeError(
                f"nnx.update takes States or nested dicts, got {errors.describe_value(tree)}.\n"
                "Cure: nnx.update(object, state), with a State as nnx.state(object) returns it."
            )
        _match(graphdef, tree, "update", lambda i, value: pending.append((i, value)))
    old = plan.gather()
    foreign = isinstance(node, Pytree) and node._refax_trace is not trace
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


def pop(node: Any, /, *filters: Filter) -> Any:
    """Take the Variables that the filters match out of an object; one State per filter.

    Raises:
        ValueError: no filter was given.

    Example:
        >>> from refax import nnx
        >>> class Model(nnx.Module):
        ...     def __call__(self, x):
        ...         self.sow(nnx.Intermediate, "x", x)
        >>> model = Model()
        >>> model(1.0)
        >>> nnx.pop(model, nnx.Intermediate)["x"].value
        (1.0,)
    """
    if not filters:
        raise ValueError(
            "nnx.pop needs at least one filter.\nCure: say what to pop, such as nnx.Intermediate."
        )
    predicates = [to_predicate(f) for f in filters]
    groups: list[list[tuple[tuple, Any]]] = [[] for _ in filters]
    holders: list[tuple[Any, Any]] = []
    taken: set[int] = set()
    visited = list(iter_graph(node))
    paths = {id(v): path for path, v in visited if isinstance(v, Variable)}
    for path, holder in visited:
        if not isinstance(holder, (Pytree, State, dict, list, tuple)):
            continue
        for key, value in iter_children_of(holder):
            if not isinstance(value, Variable):
                continue
            match = first_match(predicates, paths[id(value)], value)
            if match is None:
                continue
            if isinstance(holder, (list, tuple)):
                raise ValueError(
                    f"nnx.pop: `{errors.path_string((*path, key))}` stands in a "
                    f"{type(holder).__name__}, where taking it out would move its neighbours.\n"
                    "Cure: keep what is popped in attributes or dicts."
                )
            holders.append((holder, key))
            if id(value) not in taken:
                taken.add(id(value))
                groups[match].append((sown_path(paths[id(value)]), value))
    for holder, key in holders:
        if isinstance(holder, Pytree):
            delattr(holder, key)
        else:
            del holder[key]
    return one_or_all(state_over(nest(g)) for g in groups)


def clone(node: N, /, *, variables: bool = True) -> N:
    """A copy of an object graph with its sharing and cycles; the arrays themselves are shared.

    Args:
        node: what to copy.
        variables: make new Variables (default), or keep the same ones in new objects.

    Note:
        Arrays are immutable, so sharing them is safe, except under donation: to train one of the
        two with `donate_argnums`, use `copy.deepcopy`.
    """
    plan = _plan_of(node, "clone")
    return rebuild(plan.graphdef, _copies(plan) if variables else plan.leaves())[0]


def deep_copy(node: N, memo: dict) -> N:
    """`copy.deepcopy` of a Pytree: new objects, new Variables, new buffers; sharing kept.

    Not recursive, so a deep model is no problem. Hashable static values are shared, so that what
    was compiled for the one serves the other; unhashable ones, such as sets, are copied.
    """
    walked = walk((node,))
    records = walked.graphdef.records
    values: list[Any] = []
    for variable in walked.variables:
        known = memo.get(id(variable))
        values.append(known if known is not None else python_copy.deepcopy(variable, memo))
    values += map(copy_leaf, walked.bare())
    objects = rebuild(walked.graphdef, values)
    for record, old, new in zip(records, walked.objects, objects, strict=True):
        if record[0] == VARIABLE:
            continue
        memo[id(old)] = new
        for key, child in zip(*record_children(record), strict=True):
            if type(child) is tuple and child[0].__hash__ is None:
                if (holder := _items_of(new)) is not None:
                    holder[key] = python_copy.deepcopy(child[1], memo)
    return objects[0]


def _items_of(holder: Any) -> Any:
    """What to assign an item of a mutable node to, past all checks; None for an immutable one."""
    if isinstance(holder, Pytree):
        return holder.__dict__
    if isinstance(holder, State):
        return holder._tree
    return holder if isinstance(holder, (list, dict)) else None


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


def pure(tree: Any) -> Any:
    """The same tree with plain values in the place of Variables.

    Example:
        >>> from refax import nnx
        >>> type(nnx.pure(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))["bias"]).__name__
        'ArrayImpl'
    """
    if isinstance(tree, State):
        return map_state(lambda _, leaf: raw(leaf), tree)
    if isinstance(tree, Pytree):
        return pure(state(tree))
    return jax.tree.map(raw, tree, is_leaf=lambda x: isinstance(x, Variable))


def recursive_map(f: Callable[[tuple, Any], Any], node: Any, /) -> Any:
    """A copy of an object graph with `f(path, value)` in the place of every node and leaf.

    Children come before their parents, so `f` sees a node whose children are mapped already.
    Shared nodes are mapped once.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.relu)
        >>> swapped = nnx.recursive_map(
        ...     lambda path, v: nnx.gelu if isinstance(v, nnx.Linear) else v, model
        ... )
        >>> swapped.layers[0].__name__
        'gelu'
    """
    copied = clone(node)
    mapped: dict[Any, Any] = {}  # by id or path
    visited = list(iter_graph(copied))  # also keeps every object alive, so ids stay unique
    nodes = {id(v) for _, v in visited
             if is_mutable(v) or isinstance(v, Variable) or type(v) is tuple}  # fmt: skip

    def place(path: tuple, value: Any) -> Any:
        return id(value) if id(value) in nodes else path

    for path, value in visited:
        at, items = place(path, value), iter_children_of(value)
        new_items = [mapped.get(place((*path, key), child), child) for key, child in items]
        changed = [
            (key, new)
            for (key, child), new in zip(items, new_items, strict=True)
            if new is not child
        ]
        if changed and is_mutable(value):
            for key, new in changed:
                set_child(value, key, new)
        elif changed:
            one_level = jax.tree.structure(value, is_leaf=lambda x, top=value: x is not top)
            value = one_level.unflatten(new_items)
        mapped[at] = f(path, value)
    return mapped.get(id(copied), copied)
