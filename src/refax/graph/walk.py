"""Walking: everything reachable from some roots, described once.

Breadth first and without recursion, so no depth is too deep. Nodes, Variables, lists and dicts have
an identity and are met once; tuples and other registered pytrees are values and stand where they
are. A pytree of nothing but arrays (an optimizer's raw state in an attribute) is one leaf.
"""

from __future__ import annotations

import types
from collections import OrderedDict, defaultdict
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeGuard

import jax
import numpy as np

from ..objects.marks import class_marks
from ..objects.node import Node, check_static, has_data
from ..objects.statics import compared, is_plain_static, static_key
from ..objects.variable import Variable
from ..objects.watch import is_array
from . import errors
from .graphdef import DICT, ITSELF, LEAF, LIST, OBJECT, PYTREE, TUPLE, VARIABLE, GraphDef
from .guards import STATIC, Guard
from .state import State

_DICTS = frozenset({dict, OrderedDict, defaultdict})
_FUNCTION_LIKE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, np.dtype)


class Walk(NamedTuple):
    graphdef: GraphDef
    objects: list[Any]  # by record
    variables: list[Variable]  # by leaf
    arrays: list[tuple[Any, Any]]  # (container, key) by leaf; the container may be `constants`
    constants: list[Any]  # the arrays inside tuples and other pytrees that cannot be written
    guards: dict[int, list[Guard]]  # by the root through which they were reached
    array_roots: list[int]  # by array: through which root it was reached

    def bare(self: Any) -> list[Any]:
        """The values of the arrays, in order."""
        return [container[key] for container, key in self.arrays]

    def gather(self: Any) -> list[Any]:
        """The values of the leaves, in order."""
        values = [v._value for v in self.variables]
        if self.arrays:
            values += self.bare()
        return values

    def trace(self) -> Any:
        """The one trace that every object belongs to; None if there are several, or snapshots."""
        nodes = [o._refax_trace for o in self.objects if isinstance(o, Node)]
        traces = {id(t): t for t in (*[v._trace for v in self.variables], *nodes)}
        return next(iter(traces.values())) if len(traces) == 1 else None

    def leaves(self: Any) -> list[Any]:
        """The leaves, in order: Variables as they are, values of arrays."""
        return [*self.variables, *self.bare()]


def walk(roots: tuple[Any, ...]) -> Walk:
    """Visit everything reachable from `roots` and describe it."""
    records: list[Any] = []
    objects: list[Any] = []
    positions: dict[int, int] = {}
    variables: list[Variable] = []
    arrays: list[tuple[Any, Any]] = []
    constants: list[Any] = []
    guards: dict[int, list[Guard]] = defaultdict(list)
    in_state: set[int] = set()  # ids of the dicts inside States
    array_roots: list[int] = []
    hidden: list[Any] = []  # containers of unknown types with objects in them
    through: list[int] = []  # by object: through which root it was reached
    root = 0

    def reference(value: Any) -> int:
        position = positions.get(id(value))
        if position is None:
            position = positions[id(value)] = len(objects)
            objects.append(value)
            through.append(root)
        return position

    def array(value: Any, container: Any, key: Any) -> Any:
        if container is None:
            container, key = constants, len(constants)
            constants.append(value)
        arrays.append((container, key))
        array_roots.append(root)
        return LEAF

    def guard(container: Any, keys: Any, items: tuple, of_state: bool = False) -> None:
        guards[root].append((container, keys, items, of_state))

    def child(value: Any, container: Any, key: Any) -> Any:
        cls = type(value)
        if is_plain_static(value, cls):
            return (cls, value)
        if isinstance(value, (Variable, Node)) or cls is list or cls in _DICTS or cls is State:
            return reference(value)
        if is_array(value):
            return array(value, container, key)
        if isinstance(value, _FUNCTION_LIKE) or cls is float:
            return static_key(value)
        if isinstance(value, tuple) or not jax.tree_util.all_leaves((value,)):
            content = jax.tree.leaves(value, is_leaf=_is_graph_part)
            if content and all(map(is_array, content)):  # arrays only: a value as a whole
                return array(value, container, key)
            objects.append(value)  # no identity: a position of its own
            through.append(root)
            return len(objects) - 1
        if (cls.__hash__ is None or is_dataclass(cls)) and _holds_objects(value):
            hidden.append(value)
            return (cls, value)
        return static(value)

    def static(value: Any) -> tuple:
        key = static_key(value)
        guards[root] += [(x, STATIC, (), False) for x in compared(key)]
        return key

    def marked(obj: Node, name: str, mark: str | None) -> Any:
        value = obj.__dict__[name]
        if mark == "static":
            check_static(type(obj), name, value)
            return static(value)
        encoded = child(value, obj.__dict__, name)
        if mark == "data" and type(encoded) is tuple:  # a number as data: a leaf
            return child(_AS_LEAF, obj.__dict__, name)
        return encoded

    root_positions = []
    for number, value in enumerate(roots):
        root = number
        root_positions.append(reference(value))
    done = 0
    while done < len(objects):
        value, root = objects[done], through[done]
        done += 1
        cls = type(value)
        if isinstance(value, Variable):
            variables.append(value)
            records.append((VARIABLE, cls, value._metadata))
        elif isinstance(value, Node):
            attributes = value.__dict__
            marks = class_marks(cls)
            own = value._refax_marks
            if own:
                marks = {**marks, **own} if marks else own
            if marks:
                children = tuple([marked(value, k, marks.get(k)) for k in attributes])
                used = tuple((k, m) for k, m in (own or {}).items() if k in attributes)
            else:
                children = tuple([child(x, attributes, k) for k, x in attributes.items()])
                used = ()
            if cls._refax_hides_writes:
                guard(attributes, tuple(attributes), tuple(attributes.values()))
            records.append((OBJECT, cls, tuple(attributes), children, used))
        elif cls is list:
            items = tuple(value)
            guard(value, None, items)
            children = tuple([child(x, value, i) for i, x in enumerate(items)])
            records.append((LIST, cls, range(len(items)), children))
        elif cls in _DICTS or cls is State:
            mapping = value._tree if cls is State else value
            keys, items = tuple(mapping), tuple(mapping.values())
            of_state = cls is State or id(value) in in_state
            if of_state:
                in_state.update(id(x) for x in items if type(x) is dict)
            guard(mapping, keys, items, of_state)
            children = tuple([child(x, mapping, k) for k, x in zip(keys, items, strict=True)])
            factory = static_key(value.default_factory) if cls is defaultdict else None
            records.append((DICT, cls, keys, children, factory))
        elif isinstance(value, tuple):
            keys = getattr(cls, "_fields", None) or range(len(value))
            records.append((TUPLE, cls, keys, tuple([child(x, None, None) for x in value])))
        elif jax.tree_util.all_leaves((value,)):  # a root only
            leaf = array(value, None, None)
            records.append((PYTREE, jax.tree.structure(0), (ITSELF,), (leaf,)))
        else:  # a registered pytree
            pairs = one_level_with_keys(value)
            items = tuple(x for _, x in pairs)
            one_level = jax.tree.structure(value, is_leaf=lambda x, top=value: x is not top)
            guard(value, LEAF, items)
            names = tuple(key_name(k) for k, _ in pairs)
            children = tuple([child(x, None, None) for x in items])
            records.append((PYTREE, one_level, names, children))
    graphdef = GraphDef(tuple(root_positions), tuple(records), len(arrays))
    for path, _, value in graphdef.statics() if hidden else ():
        if any(value is x for x in hidden):
            raise errors.hidden_objects(path, value)
    return Walk(graphdef, objects, variables, arrays, constants, guards, array_roots)


def _is_graph_part(value: Any) -> bool:
    cls = type(value)
    return isinstance(value, (Node, Variable, State)) or cls is list or cls in _DICTS


def _holds_objects(value: Any) -> bool:
    """Whether data would be hidden in a container of an unknown type, or objects in a record."""
    if isinstance(value, (list, dict, set)):
        return bool(has_data(list(value.values() if isinstance(value, dict) else value)))
    names: Any = getattr(value, "__dict__", ())
    if is_dataclass(value):
        names = [f.name for f in fields(value)]
    for name in names:
        part: Any = getattr(value, name, None)
        inside = part.values() if isinstance(part, dict) else part
        inside = inside if isinstance(part, (dict, list, tuple)) else (part,)
        if any(isinstance(x, (Node, Variable)) for x in inside):
            return True
    return False


# Stands for "whatever is in that place, as an array": `child` then records a LEAF.
_AS_LEAF = jax.ShapeDtypeStruct((), "float32")


def one_level_with_keys(value: Any) -> list[tuple[Any, Any]]:
    """The (JAX key, child) pairs of a registered pytree."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
    return [(path[0], leaf) for path, leaf in pairs]


def key_name(key: Any) -> Any:
    """A JAX path key as refax writes it in a path."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


# -- What kind of thing a value is in an object graph ---------------------------------------------

NodeDef = GraphDef  # a name of it in older programs


def is_graph_node(x: Any) -> TypeGuard[Node | Variable]:
    """Whether `x` has an identity that is kept: a Pytree (such as a Module) or a Variable.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> [nnx.graph.is_graph_node(x) for x in (linear, linear.kernel, [linear], 1)]
        [True, True, False, False]
    """
    return isinstance(x, (Node, Variable))


def is_pytree_node(x: Any, *, check_graph_registry: bool = True) -> bool:
    """Whether `x` is a container that JAX knows, such as a list or a State, and no graph node.

    Args:
        x: any value.
        check_graph_registry: False to count Pytrees and Variables too, which JAX also knows.
    """
    return not (check_graph_registry and is_graph_node(x)) and not jax.tree_util.all_leaves((x,))


def is_node(x: Any) -> bool:
    """Whether there may be something inside `x`: a Pytree, or a container that JAX knows.

    Example:
        >>> from refax import nnx
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> [nnx.graph.is_node(x) for x in (linear, linear.kernel, [linear], 1)]
        [True, False, True, False]
    """
    return isinstance(x, Node) or is_pytree_node(x)


def is_node_leaf(x: Any) -> bool:
    """Whether `x` is a leaf of an object graph: a Variable, or a bare array."""
    return isinstance(x, Variable) or is_array(x)


def jax_to_nnx_path(jax_path: tuple[Any, ...], /) -> tuple[Any, ...]:
    """A key path of `jax.tree_util` as a path of names, indices and keys.

    Example:
        >>> from refax import nnx
        >>> import jax
        >>> [(path, _)], _ = jax.tree_util.tree_flatten_with_path({"a": [1]})
        >>> nnx.graph.jax_to_nnx_path(path)
        ('a', 0)
    """
    return tuple(map(key_name, jax_path))
