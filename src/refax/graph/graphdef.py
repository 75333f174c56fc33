"""GraphDef: the static half of an object graph, as one flat table.

The table has one *record* per node in breadth-first order; a record names its children by their
position in the table, so sharing and cycles need nothing special and no depth is too deep. Records
are plain nested tuples: Python hashes and compares them in C.

    (VARIABLE, class, metadata)
    (OBJECT,   class, attribute names, children, marks)
    (LIST,     class, indices, children)
    (DICT,     class, keys, children, default factory)      also State
    (TUPLE,    class, indices or names, children)           also NamedTuple
    (PYTREE,   one-level treedef, keys, children)           any other registered pytree; and a root
                                                            that is a leaf, under the key ITSELF

A child is an `int` (the position of a record), `LEAF` (an array that stands in an attribute without
a Variable) or a static `(type, value)` (`objects/statics.py`).

*Leaves* are what a GraphDef leaves out: first the Variables in table order, then the LEAFs. Paths
are worked out only when somebody asks. The path of a node that is reached several ways is the first
one in depth-first order with sorted names; it does not depend on the order of assignments.

Invariant: equal GraphDefs are the same program for the same leaves. Live GraphDefs are interned, so
comparing equal ones is nearly always an `is`.
"""

from __future__ import annotations

import weakref
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cached_property
from typing import Any, Generic, NamedTuple

import jax

from ..objects import pickling
from ..objects.errors import UnhashableStaticError, path_string
from ..objects.mappings import sorted_keys
from ..objects.modes import Switch
from ..objects.representation import MAX_LINES, Form, Shown, as_html, wrapped
from ..objects.statics import static_key, static_value
from ..objects.type_names import M
from . import errors
from .state import K, State, V

VARIABLE, OBJECT, LIST, DICT, TUPLE, PYTREE = range(6)
WITH_IDENTITY = (VARIABLE, OBJECT, LIST, DICT)


class _Name(Enum):
    LEAF = "leaf"  # among children
    ITSELF = "itself"  # among keys: adds nothing to a path

    def __repr__(self) -> str:
        return self.name


LEAF, ITSELF = _Name.LEAF, _Name.ITSELF


def record_children(record: tuple) -> tuple[Iterable[Any], tuple]:
    """The keys and the children of a record, in order."""
    return ((), ()) if record[0] == VARIABLE else record[2:4]


class Paths(NamedTuple):
    nodes: tuple[tuple, ...]  # of each record
    leaves: tuple[tuple, ...]  # of each leaf
    order: tuple[int, ...]  # the leaves in depth-first order of sorted names: a State's order


# `merge` and `call`, from `verbs/merging.py`: making objects takes more than is known here.
VERBS: dict[str, Callable[..., Any]] = {}


@jax.tree_util.register_static
class GraphDef(Generic[M]):
    """The structure of an object graph without its arrays: immutable, hashable, comparable.

    A pytree with no leaves, so it goes through any JAX transform as it is. Made by `nnx.split`,
    `nnx.graphdef`; turned back into an object by `nnx.merge`.
    """

    def __init__(self, roots: tuple[int, ...], records: tuple[tuple[Any, ...], ...], arrays: int):
        self.roots = roots
        self.records = records
        self.arrays = arrays  # how many LEAFs
        self._cache: dict[Any, Any] = {}

    @cached_property
    def _hash(self) -> int:
        try:
            return hash((self.roots, self.records))
        except TypeError:
            raise self._unhashable() from None

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, GraphDef):
            return NotImplemented
        content, others = (self.roots, self.records), (other.roots, other.records)
        return hash(self) == hash(other) and content == others

    def __reduce__(self) -> Any:
        for path, _, value in self.statics():
            pickling.check(path_string(path), value)
        # The type of a static (`function`, say) need not be picklable where the static itself is.
        packed = tuple(_map_statics(lambda key: (static_value(key),), r) for r in self.records)
        return (_unpickle, (self.roots, packed, self.arrays))

    def _unhashable(self) -> Exception:
        for path, key, value in self.statics():
            try:
                hash(key)
            except TypeError:
                return errors.unhashable_static(path, value)
        return UnhashableStaticError(
            "The static part of a registered pytree, or a mapping's key, cannot be hashed.\n"
            "Cure: make it hashable, or keep the pytree in a Variable's value."
        )

    def statics(self) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], Any]]:
        """Every static of the graph as (path, key, value)."""
        for path, record in zip(self.paths.nodes, self.records, strict=True):
            if record[0] == VARIABLE:
                for name, value in record[2].items():
                    yield (*path, name), record[2].keys_[name], value
            for key, child in zip(*record_children(record), strict=True):
                if type(child) is tuple:
                    yield (*path, key), child, static_value(child)

    @cached_property
    def paths(self) -> Paths:
        nodes: dict[int, tuple] = {}
        leaves: dict[int, tuple] = {}  # in the order in which they are met
        several = len(self.roots) > 1
        starts = [(root, (i,) if several else ()) for i, root in enumerate(self.roots)]
        for path, record, leaf in self._visit(starts):
            if record is not None:
                nodes.setdefault(record, path)
            if leaf is not None:
                leaves.setdefault(leaf, path)
        by_record = tuple(nodes[i] for i in range(len(nodes)))
        return Paths(by_record, tuple(leaves[i] for i in range(len(leaves))), tuple(leaves))

    @property
    def variables(self) -> list[tuple[Any, ...]]:
        """The records of the Variables, in leaf order."""
        return [r for r in self.records if r[0] == VARIABLE]

    @property
    def num_leaves(self) -> int:
        """How many leaves its State has: Variables and bare arrays."""
        return len(self.variables) + self.arrays

    @property
    def nodes(self) -> list[tuple[tuple[Any, ...], Any]]:
        """The (path, class) of each object, container and Variable."""
        kinds = (r[1] if isinstance(r[1], type) else type(r[1]) for r in self.records)
        return list(zip(self.paths.nodes, kinds, strict=True))

    @property
    def attributes(self) -> list[tuple[tuple[Any, ...], Any]]:
        """The (path, value) of each static attribute, and each Variable's metadata."""
        return [(path, value) for path, _, value in self.statics()]

    def merge(self, /, *states: Any) -> Any:
        """The object: `nnx.merge(graphdef, *states)`."""
        return VERBS["merge"](self, *states)

    def apply(self, /, *states: Any, graph: Switch = None) -> Any:
        """Call the object, or a method of it: `y, (graphdef, state) = graphdef.apply(state)(x)`.

        As `nnx.call((graphdef, state))`, which says more.
        """
        return VERBS["call"]((self, *states))

    @property
    def of_leaf(self) -> bool:
        """Whether the root is itself an array or another leaf."""
        return self.records[self.roots[0]][2:3] == ((ITSELF,),)

    def leaf_numbers(self) -> tuple[dict[int, int], dict[int, int]]:
        """Record position → leaf number of Variables; → first leaf number of a record's LEAFs."""
        cells = [i for i, record in enumerate(self.records) if record[0] == VARIABLE]
        variables = {record: leaf for leaf, record in enumerate(cells)}
        number, arrays = len(variables), {}
        for i, record in enumerate(self.records):
            arrays[i] = number
            number += sum(child is LEAF for child in record_children(record)[1])
        return variables, arrays

    def all_paths(self, start: int) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Every (path, leaf number) from the record `start`, each node entered once per call.

        A node is entered by the same path as in `paths`: the first with sorted names.
        """
        visited = self._visit([(start, ())])
        return ((path, leaf) for path, _, leaf in visited if leaf is not None)

    def _visit(
        self, starts: list[tuple[Any, tuple]]
    ) -> Iterator[tuple[tuple, int | None, int | None]]:
        """(path, record, leaf number) depth first, of each node once, of a Variable every time."""
        variable_leaf, array_leaf = self.leaf_numbers()
        seen: set[int] = set()
        stack = starts[::-1]
        while stack:
            index, path = stack.pop()
            if type(index) is not int:  # a LEAF, as (leaf number,)
                yield path, None, index[0]
            elif index in variable_leaf:
                yield path, index, variable_leaf[index]
            elif index not in seen:
                seen.add(index)
                yield path, index, None
                keys, children = record_children(self.records[index])
                number, entries = array_leaf[index], {}
                for key, child in zip(keys, children, strict=True):
                    if child is LEAF:
                        entries[key] = (number,)
                        number += 1
                    elif type(child) is int:
                        entries[key] = child
                stack += [
                    (entries[key], path if key is ITSELF else (*path, key))
                    for key in reversed(sorted_keys(entries))
                ]

    def remembered(self, key: Any, make: Any) -> Any:
        """`make()`, once per GraphDef and key: what verbs and lift derive from structure."""
        try:
            return self._cache[key]
        except KeyError:
            if len(self._cache) >= 64:
                self._cache.clear()
            value = self._cache[key] = make()
            return value
        except TypeError:  # an unhashable key, such as a filter made of a list
            return make()

    def __repr__(self) -> str:
        lines = [f"GraphDef({len(self.records)} nodes, {len(self.paths.leaves)} leaves"]
        for (path, cls), record in zip(self.nodes, self.records, strict=True):
            pairs = zip(*record_children(record), strict=True)
            shown = [f"{key}={child[1]!r}" for key, child in pairs if type(child) is tuple]
            if record[0] == VARIABLE:
                shown = [f"{name}={value!r}" for name, value in record[2].items()]
            line = f"  {path_string(path)}: {cls.__name__}({', '.join(shown)})"
            lines.append(wrapped(line, indent="      "))
            if len(lines) > MAX_LINES:
                lines.append("  …")
                break
        return "\n".join([*lines, ")"])

    def _repr_html_(self) -> str:
        return as_html(repr(self))


def _map_statics(f: Callable[[tuple], tuple], record: tuple) -> tuple:
    """A record with `f(static)` in the place of each static."""
    if record[0] == VARIABLE:
        return record

    def mapped(child: Any) -> Any:
        return f(child) if isinstance(child, tuple) else child

    rest = tuple(map(mapped, record[4:])) if record[0] == DICT else record[4:]
    return (*record[:3], tuple(map(mapped, record[3])), *rest)


def _unpickle(roots: tuple, packed: tuple, arrays: int) -> GraphDef:
    records = tuple(_map_statics(lambda x: static_key(*x), record) for record in packed)
    return GraphDef(roots, records, arrays)


# Weak on both sides: a GraphDef lives as long as a plan, a State or a compiled program uses it.
_INTERNED: weakref.WeakKeyDictionary[GraphDef, weakref.ref[GraphDef]] = weakref.WeakKeyDictionary()


def intern(graphdef: GraphDef) -> GraphDef:
    """The live GraphDef equal to this one, or this one; itself if it cannot be hashed."""
    try:
        known = _INTERNED.get(graphdef)
        found = known() if known is not None else None
        if found is None:
            _INTERNED[graphdef] = weakref.ref(graphdef)
            return graphdef
        return found
    except TypeError:
        return graphdef


# -- Homes: in which object, and under which keys in it, each leaf of a structure stands ----------


class Home(NamedTuple):
    record: int  # of the object
    keys: tuple = ()  # from there; through tuples, which are no objects


def homes(
    graphdef: GraphDef, kinds: tuple[int, ...] = WITH_IDENTITY
) -> tuple[list[Home], list[Home]]:
    """(by record, by leaf): the nearest record of these kinds, at it or above it.

    What has none above it is its own home.
    """
    records = graphdef.records
    of_leaf = [Home(i) for i, record in enumerate(records) if record[0] == VARIABLE]
    found: dict[int, Home] = {}
    for i, record in enumerate(records):
        home = found[i] = Home(i) if record[0] in kinds else found.get(i, Home(i))
        for key, child in zip(*record_children(record), strict=True):
            inside = Home(home.record, (*home.keys, key))
            if child is LEAF:
                of_leaf.append(inside)
            elif type(child) is int:
                found.setdefault(child, inside)
    return [found[i] for i in range(len(records))], of_leaf


# -- GraphState: a State that knows its GraphDef --------------------------------------------------


class GraphState(Shown, UserDict[K, V]):
    """A State with the GraphDef of the object that it is of: a pytree, and a mapping as its State.

    Made by `nnx.unpack`; `graph_state.merge(*others)` gives the object.
    """

    def __init__(self, graphdef: GraphDef, state: Any):
        self.graphdef = graphdef
        self.data = state  # where UserDict looks

    state: property = property(lambda self: self.data, doc="The State.")

    def __copy__(self) -> GraphState:
        return GraphState(self.graphdef, self.state)

    def merge(self, /, *others: Any) -> Any:
        """The object that this and other GraphStates, or States, make up.

        `GraphState.merge(params, rest)` of States is their union, as `State.merge`.
        """
        if not isinstance(self, GraphState):
            return State.merge(self, *others)
        return VERBS["merge"](self, *others)

    def _refax_form(self) -> Form:
        return Form("GraphState(", [("graphdef", self.graphdef), ("state", self.state)])


jax.tree_util.register_pytree_with_keys(
    GraphState,
    lambda x: (((jax.tree_util.GetAttrKey("state"), x.state),), x.graphdef),
    lambda graphdef, children: GraphState(graphdef, *children),
)
