"""State: the dynamic half of an object graph, as a nested mapping from keys to Variables.

A State is a thin face over nested plain dicts: `state['a']` and `state.a` are a State over the
inner dict (so writing into it writes into the whole), or the Variable or array that stands there.
As a JAX pytree it is those dicts, flattened in C++, so `jax.tree.map` over it sees the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import reduce
from operator import getitem
from typing import Annotated, Any, overload

import jax

from ..objects.arguments import Fits
from ..objects.entering import entered
from ..objects.errors import GraphError, path_string, suggest
from ..objects.mappings import register_mapping, sorted_keys
from ..objects.representation import Form, Shown
from ..objects.snapshots import UNREAD, taken
from ..objects.type_names import K, Path, V
from ..objects.variable import Variable, raw
from .errors import not_exhaustive
from .filters import Filter, PathIn, checked, first_match, to_predicate
from .traversals import as_path, empty_node, iter_pairs, unflatten_mapping

_IS_STATE = Fits("a State, or another mapping", lambda x: isinstance(x, Mapping))
AnyState = Annotated[Any, _IS_STATE]  # as `nnx.state` gives it, which may be a leaf, for checkers


class Epoch:
    """Counts every change to the form of any State, so that plans need not compare their dicts.

    Once a State's own dicts were handed out, they may change unseen: then plans do compare.
    """

    now = 0
    handed_out = False


def form_changed() -> None:
    Epoch.now += 1


@checked
def to_flat_state(state: Mapping[Any, Any]) -> FlatState:
    """The (path, leaf) pairs of a State, keys sorted at every level."""
    return FlatState(iter_leaves(state))


def iter_leaves(state: Mapping) -> Iterator[tuple[Path, Any]]:
    """Every (path, leaf) of nested mappings, in sorted order; of a FlatState in its own."""
    if isinstance(state, FlatState):
        return iter(state.items())
    if UNREAD:
        taken(jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Variable)))
    tree = state._tree if isinstance(state, State) else state
    return (pair for pair in iter_pairs(tree, sorted_keys) if pair[1] is not empty_node)


@checked
def from_flat_state(
    flat_state: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, cls: type | None = None
) -> Any:
    """The State (or other mapping `cls`) of these (path, leaf) pairs."""
    pairs = flat_state.items() if isinstance(flat_state, Mapping) else flat_state
    state = state_over(nest((as_path(path), leaf) for path, leaf in pairs))
    return state if cls in (None, State) else cls(state)


def nest(pairs: Iterable[tuple[Path, Any]]) -> dict:
    """Nested dicts of (path, leaf) pairs."""
    top: dict = {}
    for path, value in pairs:
        target = top
        for key in path[:-1]:
            target = target.setdefault(key, {})
        target[path[-1]] = value
    return top


def diff(state: Mapping[Any, Any], other: Mapping[Any, Any]) -> State:
    """The State of the leaves of `state` at whose paths `other` has nothing: `state - other`."""
    drop = {path for path, _ in iter_leaves(other)}
    return from_flat_state([(p, v) for p, v in iter_leaves(state) if p not in drop])


def one_or_all(states: Iterable[Any]) -> Any:
    """The only one of several States, or the tuple of them."""
    states = tuple(states)
    return states[0] if len(states) == 1 else states


@checked
def to_pure_dict(state: AnyState, extract_fn: Callable[[Any], Any] | None = None) -> dict[Any, Any]:
    """Nested dicts of plain values, with no Variables: what checkpoint libraries like best."""
    return nest((path, (extract_fn or raw)(leaf)) for path, leaf in iter_leaves(state))


@checked
def replace_by_pure_dict(
    state: State, pure_dict: Mapping[Any, Any], replace_fn: Callable[[Any, Any], Any] | None = None
) -> None:
    """Put the values of a (nested or flat) pure dict into a State, in place.

    Raises:
        GraphError: a path that the State does not have.
    """
    replace = replace_fn or _replaced
    flat = dict(to_flat_state(state))
    pairs = [
        (path if path in flat or path[-1] != "value" else path[:-1], value)
        for path, value in iter_leaves(restore_int_paths(pure_dict))
    ]
    for path, _ in pairs:
        if path not in flat:
            raise GraphError(
                f"replace_by_pure_dict: the State has no leaf at `{path_string(path)}`."
                f"{suggest(path_string(path), map(path_string, flat))}\n"
                "Cure: build the dict from a State of the same structure (nnx.to_pure_dict), or "
                "drop that path from it."
            )
    form_changed()
    for path, value in pairs:
        target = reduce(getitem, path[:-1], state._tree)
        target[path[-1]] = replace(target[path[-1]], value)


def _replaced(old: Any, new: Any) -> Any:
    if not isinstance(old, Variable):
        return new
    return old.replace(new if isinstance(new, Variable) else entered(new, old._value, old))


@checked
def restore_int_paths(pure_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    """Keys like '3' back to 3 at every level: what a checkpoint on disk makes of list indices."""
    restored: dict = {}
    for key, value in pure_dict.items():
        if isinstance(key, str) and key.removeprefix("-").isdecimal():
            key = int(key)
        restored[key] = restore_int_paths(value) if isinstance(value, Mapping) else value
    return restored


def create_path_filters(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """{filter of the paths: value} for a State of equal values, such as one of axes."""
    paths_of: dict[Any, list[Path]] = {}
    for path, leaf in iter_leaves(state):
        paths_of.setdefault(raw(leaf), []).append(path)
    return {PathIn(*paths): value for value, paths in paths_of.items()}


def _partition(state: Mapping, filters: tuple[Filter, ...]) -> list[list[tuple[Path, Any]]]:
    """The (path, leaf) pairs by the first filter that matches, and at the end those of none."""
    predicates = [to_predicate(f) for f in (*filters, ...)]
    groups: list[list[tuple[Path, Any]]] = [[] for _ in predicates]
    for path, leaf in iter_leaves(state):
        match: Any = first_match(predicates, path, leaf)
        groups[match].append((path, leaf))
    return groups


@overload
def split_state(state: Mapping[Any, Any], first: Filter = ..., /) -> State: ...
@overload
def split_state(state: Mapping[Any, Any], a: Filter, b: Filter, /, *more: Filter) -> States: ...
@checked
def split_state(state: Mapping[Any, Any], first: Filter = ..., /, *filters: Filter) -> Any:
    """One State per filter, each leaf in the first that matches; they must match every leaf."""
    *groups, rest = _partition(state, (first, *filters))
    if rest:
        raise not_exhaustive([p for p, _ in rest], "split_state", "add `...` as the last filter.")
    return one_or_all(map(from_flat_state, groups))


@overload
def filter_state(state: Mapping[Any, Any], first: Filter, /) -> State: ...
@overload
def filter_state(state: Mapping[Any, Any], a: Filter, b: Filter, /, *more: Filter) -> States: ...
@checked
def filter_state(state: Mapping[Any, Any], first: Filter, /, *filters: Filter) -> Any:
    """One State per filter, each leaf in the first that matches; other leaves are left out."""
    return one_or_all(map(from_flat_state, _partition(state, (first, *filters))[:-1]))


@checked
def merge_state(state: AnyState, /, *states: Mapping[Any, Any], cls: type | None = None) -> Any:
    """One State of several; where two have the same path, the later one counts."""
    if not states and type(state) is State and cls in (None, State):
        return state
    return from_flat_state([pair for s in (state, *states) for pair in iter_leaves(s)], cls=cls)


@checked
def map_state(f: Callable[[Path, Any], Any], state: Mapping[Any, Any]) -> State:
    """A State of `f(path, leaf)`."""
    return from_flat_state([(path, f(path, leaf)) for path, leaf in iter_leaves(state)])


class State(MutableMapping[K, V], Shown):
    """A nested mapping path → Variable (or array). Made by `nnx.state`, `nnx.split`, `nnx.grad`.

    Args:
        mapping: nested mappings, or pairs (path, leaf), or a `FlatState`. A path is a tuple of
            keys; a key alone, such as a name, is the path of that key.

    Example:
        >>> from refax import nnx
        >>> state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
        >>> state.kernel.shape, state["kernel"] is state.kernel
        ((2, 3), True)
    """

    __slots__ = ("_tree",)
    _tree: dict

    @checked
    def __init__(self, mapping: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /):
        nested = isinstance(mapping, Mapping) and not isinstance(mapping, FlatState)
        pairs = iter_pairs(mapping) if nested else mapping
        object.__setattr__(self, "_tree", unflatten_mapping(pairs))

    def __getitem__(self, key: Any) -> Any:
        try:
            value = self._tree[key]
        except KeyError:
            raise KeyError(
                f"the State has no entry {key!r}; it has {list(self._tree)}."
                f"{suggest(key, self._tree)} Cure: ask for one of these, or use `get`."
            ) from None
        return state_over(value) if type(value) is dict else value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_tree":
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as e:
            raise AttributeError(e.args[0]) from None

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, Mapping):
            value = (value if isinstance(value, State) else State(value))._tree
        form_changed()
        self._tree[key] = value

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):  # such as the `__orig_class__` of typing
            raise AttributeError(name)
        self[name] = value

    def __delitem__(self, key: Any) -> None:
        form_changed()
        del self._tree[key]

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __or__(self, other: State) -> State:
        return merge_state(self, other) if other else self

    def __reduce__(self) -> Any:
        return (state_over, (self._tree,))

    def __copy__(self) -> State:
        return State(self)

    def _refax_form(self) -> Form:
        return Form("State({", self._tree.items(), ": ", "})")

    @property
    def raw_mapping(self) -> dict[Any, Any]:
        """The nested dicts themselves."""
        Epoch.handed_out = True
        return self._tree

    # The verbs as methods, as Flax users know them.
    flat_state = to_flat_state

    @staticmethod
    def from_flat_path(flat_state: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> State:
        return from_flat_state(flat_state)

    to_pure_dict = to_pure_dict
    replace_by_pure_dict = replace_by_pure_dict
    filter = filter_state
    split = split_state
    merge = merge_state
    __sub__ = diff

    def map(self, f: Callable[[Path, Any], Any]) -> State:
        return map_state(f, self)


def state_over(tree: dict) -> State:
    """A State over these very dicts, not a copy."""
    self = object.__new__(State)
    object.__setattr__(self, "_tree", tree)
    return self


States = tuple[State, ...]
register_mapping(State, lambda state: (state._tree, None), lambda tree, _: state_over(tree))


class Entry(tuple):
    """A (path, leaf) of a FlatState: a pair that a set, or a comparison with a path, takes by path.

    So `set(state.flat_state())` is a set of paths, whatever the leaves are (arrays have no hash).
    """

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(self[0])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Entry):
            return self[0] == other[0]
        return self[0] == other or _is_pair(other, *self)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _is_pair(value: Any, path: Path, leaf: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or value[0] != path:
        return False
    return value[1] is leaf or (not hasattr(leaf, "shape") and value[1] == leaf)


class FlatState(Mapping[Path, V]):
    """A State as a flat mapping from paths to leaves, in the order of the State as a pytree.

    Iterating gives (path, leaf) pairs, as a list of pairs would; `dict(flat)`, `path in flat` and
    indexing by path work as well, and a set of the pairs is a set of the paths.

    Args:
        items: pairs (path, leaf), or a mapping; a key alone is the path of that key.
        sort: put them into the order of a State, rather than leave them in theirs.

    Example:
        >>> from refax import nnx
        >>> flat = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).flat_state()
        >>> [(path, leaf.shape) for path, leaf in flat]
        [(('bias',), (3,)), (('kernel',), (2, 3))]
        >>> ("bias",) in flat, set(flat) == {("bias",), ("kernel",)}
        (True, True)
    """

    __slots__ = ("_leaf_of",)

    @checked
    def __init__(self, items: Iterable[tuple[Any, V]] | Mapping[Any, V], /, *, sort: bool = False):
        pairs: Any = items.items() if type(items) is dict else items
        leaf_of = {as_path(path): leaf for path, leaf in pairs}
        self._leaf_of = dict(iter_leaves(nest(leaf_of.items()))) if sort else leaf_of

    @classmethod
    def from_sorted_keys_values(cls, keys: tuple[Path, ...], values: list[V], /) -> FlatState[V]:
        return cls(zip(keys, values, strict=True))

    def keys(self) -> Any:
        return tuple(self._leaf_of)

    def values(self) -> Any:
        return list(self._leaf_of.values())

    def items(self) -> Any:
        return list(self._leaf_of.items())

    paths: property = property(keys, doc="The paths, in order.")
    leaves: property = property(values, doc="The leaves, in the order of the paths.")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return list(self)[key]
        try:
            return self._leaf_of[as_path(key)]
        except KeyError:
            near = suggest(path_string(as_path(key)), map(path_string, self._leaf_of))
            raise KeyError(
                f"the State has no leaf at `{path_string(as_path(key))}`.{near} Cure: give the "
                "whole path as a tuple."
            ) from None

    def __contains__(self, item: object) -> bool:
        return self.count(item) > 0

    def __iter__(self) -> Iterator[Any]:
        return map(Entry, self.items())

    def __len__(self) -> int:
        return len(self._leaf_of)

    def index(self, item: Any) -> int:
        """The position of a path, or of a (path, leaf) pair."""
        path = as_path(item)
        return [path == p or _is_pair(item, p, leaf) for p, leaf in self.items()].index(True)

    def count(self, item: Any) -> int:
        """1 for a path, or a (path, leaf) pair, that is there; else 0."""
        try:
            return int(self.index(item) >= 0)
        except ValueError:
            return 0

    def split(self, first: Filter, /, *filters: Filter) -> Any:
        """As `nnx.split_state`, in FlatStates."""
        return _flat(split_state(self, first, *filters))

    def filter(self, first: Filter, /, *filters: Filter) -> Any:
        """As `nnx.filter_state`, in FlatStates."""
        return _flat(filter_state(self, first, *filters))

    def merge(self, /, *flat_states: Iterable[tuple[Path, Any]]) -> FlatState:
        """One FlatState of several, sorted; where two have the same path, the later one counts."""
        return FlatState([pair for flat in (self, *flat_states) for pair in flat], sort=True)

    def to_nested_state(self) -> State:
        return from_flat_state(self)

    def __repr__(self) -> str:
        return f"FlatState({self.items()!r})"


def _flat(states: Any) -> Any:
    return tuple(map(to_flat_state, states)) if type(states) is tuple else to_flat_state(states)


jax.tree_util.register_pytree_node(
    FlatState, lambda flat: (flat.values(), flat.keys()), FlatState.from_sorted_keys_values
)
