"""Hypothesis strategies for object graphs and for changes of them; a naive walk to compare by.

A graph is made of a pool of nodes, Variables, lists and dicts that refer to each other at random,
so sharing and cycles come by themselves. A change (`Change`) says what to do to which object by
number, in the order of a naive walk; so the same can be done to a copy, or inside a transform.

Nothing here knows of plans or GraphDefs.
"""

import dataclasses
import operator
import random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from refax import nnx
from tests.models import Count, Node, Pair

VARIABLE_TYPES = (nnx.Param, nnx.BatchStat, Count)
NAMES = ("a", "b", "c", "d")
STATICS = (0, 1, True, 2.5, -0.0, 0.0, "text", None, (1, 2), operator.neg)
ONE_FOR_ALL = jnp.array(2.0)  # the same array object in several places must not tie them


def array(number: int) -> jax.Array:
    if number % 5 == 0:
        return ONE_FOR_ALL
    return jnp.full((2,) if number % 2 else (), number / 8, jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    """A pytree that knows nothing of refax."""

    left: Any
    right: Any


class Names:
    """The same choices again for the same seed: Hypothesis draws one integer, not hundreds."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def number(self, below: int) -> int:
        return self.random.randrange(below)

    def of(self, choices: Any) -> Any:
        return choices[self.number(len(choices))]

    def chance(self, percent: int) -> bool:
        return self.number(100) < percent


def make_variable(names: Names) -> nnx.Variable:
    metadata = {"tag": names.of(("x", "y"))} if names.chance(30) else {}
    if names.chance(5):
        return nnx.RngKey(jax.random.key(names.number(9)), **metadata)
    if names.chance(5):
        return nnx.Cache((array(1), {"k": array(3)}), **metadata)
    return names.of(VARIABLE_TYPES)(array(names.number(40)), **metadata)


def make_value(names: Names, pool: list[Any], depth: int = 0) -> Any:
    """Something to put in an attribute or container: a reference half of the time."""
    kind = names.number(100)
    if kind < 45 and pool:
        return names.of(pool)
    if kind < 60:
        return array(names.number(40))
    if kind < 75 or depth > 1:
        return names.of(STATICS)
    if kind < 80:
        return (array(names.number(40)), array(names.number(40)))
    if kind < 85:
        return Registered(make_value(names, pool, depth + 1), make_value(names, pool, depth + 1))
    if kind < 90:
        return Pair(make_value(names, pool, depth + 1), make_value(names, pool, depth + 1))
    items = [make_value(names, pool, depth + 1) for _ in range(names.number(3))]
    return tuple(items) if kind < 95 else items if kind < 98 else dict(zip("xyz", items))


def make_graph(seed: int, size: int = 4) -> Node:
    names = Names(seed)
    variables = [make_variable(names) for _ in range(1 + names.number(size))]
    nodes = [Node() for _ in range(1 + names.number(size))]
    pool: list[Any] = [*variables, *nodes]
    for _ in range(names.number(size)):  # containers refer to earlier ones only: no cycle of lists
        items = [make_value(names, pool) for _ in range(names.number(4))]
        pool.append(items if names.chance(50) else dict(zip(names.of(("xyz", "zyx")), items)))
    for node in nodes:
        for name in NAMES[: names.number(5)]:
            setattr(node, name, make_value(names, pool))
    return nodes[0]


graphs = st.builds(make_graph, st.integers(0, 2**32 - 1), st.integers(1, 5))


# -- a naive walk --------------------------------------------------------------------------------


def is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray))


def has_identity(value: Any) -> bool:
    return isinstance(value, (nnx.Pytree, nnx.Variable, nnx.State, list, dict))


def children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, nnx.List):
        return list(enumerate(value))
    if isinstance(value, (nnx.Dict, nnx.State)):
        content = value._tree if isinstance(value, nnx.State) else value
        return [(key, content[key]) for key in content]
    if isinstance(value, nnx.Pytree):
        return list(vars(value).items())
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, Registered):
        return [("left", value.left), ("right", value.right)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value))
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else []


def objects_of(root: Any) -> list[Any]:
    """Every object with an identity, each once, in the order of a depth-first walk."""
    found: list[Any] = []

    def visit(value: Any) -> None:
        if has_identity(value):
            if any(value is known for known in found):
                return
            found.append(value)
        if not isinstance(value, nnx.Variable):
            for _, child in children(value):
                visit(child)

    visit(root)
    return found


def is_leaf(value: Any) -> bool:
    """A Variable, an array, or a tuple or registered pytree of nothing but arrays."""
    if isinstance(value, nnx.Variable) or is_array(value):
        return True
    leaves = jax.tree.leaves(value) if type(value) in (tuple, Pair, Registered) else ()
    return bool(leaves) and all(map(is_array, leaves)) and not contains_objects(value)


def leaf_paths(root: Any) -> list[tuple]:
    """The paths of the Variables and arrays as a State has them: depth first, sorted names."""
    paths: list[tuple] = []
    seen: list[Any] = []

    def visit(value: Any, path: tuple) -> None:
        if has_identity(value):
            if any(value is known for known in seen):
                return
            seen.append(value)
        if is_leaf(value):
            paths.append(path)
            return
        items = children(value)
        sort = isinstance(value, (nnx.Pytree, dict, Pair, Registered))
        for key, child in sorted(items, key=lambda item: item[0]) if sort else items:
            visit(child, (*path, key))

    visit(root, ())
    return paths


def contains_objects(value: Any) -> bool:
    return has_identity(value) or any(contains_objects(x) for _, x in children(value))


def skeleton(root: Any) -> str:
    """A text that is equal for equal structure: all but the values of leaves."""
    seen: list[Any] = []

    def text(value: Any) -> str:
        if has_identity(value):
            for i, known in enumerate(seen):
                if value is known:
                    return f"<{i}>"
            seen.append(value)
        name = type(value).__name__
        if isinstance(value, nnx.Variable):
            return f"{name} {sorted(value.get_metadata().items())}"
        if is_leaf(value):
            return "leaf"
        below = children(value)
        return f"{name}({', '.join(f'{k}: {text(x)}' for k, x in below)})" if below else repr(value)

    return text(root)


def same_content(a: Any, b: Any) -> bool:
    """Whether two values without identity are the same."""
    if is_array(a):
        if not is_array(b) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return np.array_equal(np.asarray(a), np.asarray(b))
    return type(a) is type(b) and (a is b or (a == b and repr(a) == repr(b)))


def difference(a: Any, b: Any) -> str:
    """Where two graphs differ, by a walk over both at once; "" if they are isomorphic."""
    partner: dict[int, Any] = {}
    reverse: dict[int, Any] = {}

    def visit(a: Any, b: Any, path: str) -> str:
        if is_array(a) or not (has_identity(a) or children(a)):
            return "" if same_content(a, b) else f"{path}: {a!r} and {b!r}"
        if type(a) is not type(b):
            return f"{path}: {type(a).__name__} and {type(b).__name__}"
        if has_identity(a):
            if id(a) in partner or id(b) in reverse:
                same = partner.get(id(a)) is b and reverse.get(id(b)) is a
                return "" if same else f"{path}: shared differently"
            partner[id(a)], reverse[id(b)] = b, a
        if isinstance(a, nnx.Variable):
            if a.get_metadata() != b.get_metadata():
                return f"{path}: {a.get_metadata()} and {b.get_metadata()}"
            return visit(a.raw_value, b.raw_value, path + ".value")
        if [k for k, _ in children(a)] != [k for k, _ in children(b)]:
            return f"{path}: {[k for k, _ in children(a)]} and {[k for k, _ in children(b)]}"
        for (key, x), (_, y) in zip(children(a), children(b)):
            if found := visit(x, y, f"{path}.{key}"):
                return found
        return ""

    return visit(a, b, "root")


def total(root: Any) -> jax.Array:
    """A number that depends on every value and static, and on the place of each."""
    result = jnp.float32(0)
    seen: list[Any] = []

    def visit(value: Any, weight: float) -> None:
        nonlocal result
        if has_identity(value):
            if any(value is known for known in seen):
                result = result + weight
                return
            seen.append(value)
        if isinstance(value, nnx.Variable):
            value = value.raw_value
        for leaf in [value] if is_array(value) else []:
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                result = result + weight * leaf.sum()
        if isinstance(value, (int, float)):
            result = result + weight * float(value)
        for i, (_, child) in enumerate(children(value)):
            visit(child, (weight * 3 + i + 1) % 7 + 1)

    visit(root, 1.0)
    return result


# -- changes -------------------------------------------------------------------------------------


class Change(NamedTuple):
    kind: str
    seed: int


KINDS = (
    "set attribute",
    "replace attribute",
    "delete attribute",
    "swap attributes",
    "share",
    "append",
    "pop",
    "swap items",
    "set item",
    "set entry",
    "delete entry",
    "reorder entries",
    "new value",
    "new shape",
    "metadata",
    "array for Variable",
    "Variable for array",
    "new node",
    "mark as data",
)


def changes_of(kinds: Any) -> st.SearchStrategy[Change]:
    return st.builds(Change, st.sampled_from(kinds), st.integers(0, 2**32 - 1))


changes = changes_of(KINDS)
# A number marked as data is an array after a transform.
traced_changes = changes_of([kind for kind in KINDS if kind != "mark as data"])


def apply(root: Any, change: Change) -> None:
    """Do a change to the graph of `root`; nothing where there is no object of the kind."""
    names = Names(change.seed)
    objects = objects_of(root)
    nodes = [x for x in objects if isinstance(x, Node)]
    variables = [x for x in objects if isinstance(x, VARIABLE_TYPES)]
    lists = [x for x in objects if isinstance(x, list)]
    dicts = [x for x in objects if isinstance(x, dict)]
    pool = [x for x in objects if isinstance(x, (Node, nnx.Variable))]
    node = names.of(nodes)
    attributes = list(vars(node))
    kind = change.kind
    if kind == "set attribute":
        setattr(node, names.of(NAMES), make_value(names, pool))
    elif kind == "replace attribute" and attributes:
        setattr(node, names.of(attributes), make_value(names, pool))
    elif kind == "delete attribute" and attributes:
        delattr(node, names.of(attributes))
    elif kind == "swap attributes" and len(attributes) > 1:
        a, b = names.random.sample(attributes, 2)
        x, y = getattr(node, a), getattr(node, b)
        setattr(node, a, y)
        setattr(node, b, x)
    elif kind == "share":
        setattr(node, names.of(NAMES), names.of([*pool, *lists, *dicts]))
    elif kind == "append" and lists:
        names.of(lists).append(make_value(names, pool))
    elif kind == "pop" and any(lists):
        items = names.of([x for x in lists if x])
        items.pop(names.number(len(items)))
    elif kind == "swap items" and any(len(x) > 1 for x in lists):
        items = names.of([x for x in lists if len(x) > 1])
        items[0], items[-1] = items[-1], items[0]
    elif kind == "set item" and any(lists):
        items = names.of([x for x in lists if x])
        items[names.number(len(items))] = make_value(names, pool)
    elif kind == "set entry" and dicts:
        names.of(dicts)[names.of("xyz")] = make_value(names, pool)
    elif kind == "delete entry" and any(dicts):
        entries = names.of([x for x in dicts if x])
        del entries[names.of(list(entries))]
    elif kind == "reorder entries" and any(len(x) > 1 for x in dicts):
        entries = names.of([x for x in dicts if len(x) > 1])
        first = next(iter(entries))
        entries[first] = entries.pop(first)
    elif kind == "new value" and variables:
        variable = names.of(variables)
        variable.value = variable.value * 2 + 1
    elif kind == "new shape" and variables:
        names.of(variables).value = jnp.full((names.number(3) + 1,), 0.5)
    elif kind == "metadata" and variables:
        variable = names.of(variables)
        if variable.has_metadata("tag") and names.chance(50):
            variable.del_metadata("tag")
        else:
            variable.tag = names.of(("x", "y", 1, True))
    elif kind == "array for Variable":
        places = [(n, k) for n in nodes for k, x in vars(n).items() if isinstance(x, nnx.Variable)]
        if places:
            holder, name = names.of(places)
            setattr(holder, name, array(names.number(40)))
    elif kind == "Variable for array":
        places = [(n, k) for n in nodes for k, x in vars(n).items() if is_array(x)]
        if places:
            holder, name = names.of(places)
            setattr(holder, name, nnx.Param(getattr(holder, name)))
    elif kind == "new node":
        setattr(node, names.of(NAMES), Node(a=make_variable(names), b=[names.of(pool)]))
    elif kind == "mark as data":
        setattr(node, names.of(NAMES), nnx.data(1.5))
