"""Arguments: where the objects are in what a call was given, and a tree that JAX can take.

`take_apart` replaces every object (Pytree or Variable) in a pytree by a `Slot`, a pytree node
without leaves that says which object stood there, and collects the objects themselves, each once.
What is left is an ordinary pytree: JAX flattens it in C++ and compares slots as static data, so the
same object in two places is part of what a program is compiled for. `put_back` is the inverse.

A `State` is an ordinary pytree here, with value semantics, although it holds Variables; but not if
it holds those that `nnx.capture` records in, which stay themselves wherever they go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import jax
import numpy as np

from ..graph.state import State
from ..objects.metadata import SHARED
from ..objects.variable import Variable
from ..verbs.pytree import Pytree
from ..verbs.scopes import unscoped


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """The place of object number `number`."""

    number: int


# The C++ kind of pytree node: a Python flatten function would cost 0.3 µs per object and call.
jax.tree_util.register_dataclass(Slot, data_fields=[], meta_fields=["number"])
_SLOTS = tuple(Slot(i) for i in range(64))


def is_slot(value: Any) -> TypeGuard[Slot]:
    return type(value) is Slot


LEAF_TYPES: set[type] = {int, float, bool, complex, str, type(None), np.ndarray, State}
_OBJECTS = (Pytree, Variable)


_CAPTURING: list[None] = []  # as long as there are captures


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """For the length of the block, a State of what `nnx.capture` records in holds objects."""
    _CAPTURING.append(None)
    LEAF_TYPES.discard(State)
    try:
        yield
    finally:
        _CAPTURING.pop()
        if not _CAPTURING:
            LEAF_TYPES.add(State)


def is_captured() -> bool:
    """Whether there are captures."""
    return bool(_CAPTURING)


def _records(state: State) -> bool:
    variables = jax.tree.leaves(state, is_leaf=is_object)
    return any(isinstance(x, Variable) and SHARED in x.raw_metadata for x in variables)


def is_object(value: Any) -> bool:
    return isinstance(value, _OBJECTS)


def stops(value: Any) -> bool:
    if isinstance(value, State):
        return not (_CAPTURING and _records(value))
    return isinstance(value, _OBJECTS)


def take_apart(tree: Any, objects: list[Any], numbers: dict[int, int]) -> Any:
    """`tree` with slots; the objects are appended to `objects`, numbered by identity."""
    cls = type(tree)
    if cls in LEAF_TYPES:
        return tree
    leaf = LEAF_TYPES  # asked here, which saves a call for most arguments
    if cls is tuple or cls is list:
        return cls([x if type(x) in leaf else take_apart(x, objects, numbers) for x in tree])
    if isinstance(tree, _OBJECTS):
        number = numbers.get(id(tree))
        if number is None:
            number = numbers[id(tree)] = len(objects)
            objects.append(tree)
        return _SLOTS[number] if number < 64 else Slot(number)
    if cls is dict:
        return {
            k: x if type(x) in leaf else take_apart(x, objects, numbers) for k, x in tree.items()
        }
    if isinstance(tree, jax.Array):
        if cls.__module__.startswith(("jax", "jaxlib")):
            LEAF_TYPES.add(cls)
        return tree
    leaves, treedef = jax.tree.flatten(tree, is_leaf=stops)
    if not any(map(is_object, leaves)):
        return tree
    return treedef.unflatten([take_apart(x, objects, numbers) for x in leaves])


def put_back(tree: Any, objects: Any) -> Any:
    """`tree` with `objects[number]` in the place of each slot."""
    cls = type(tree)
    if cls is Slot:
        return objects[tree.number]
    if cls in LEAF_TYPES:
        return tree
    if cls is tuple or cls is list:
        return cls([put_back(x, objects) for x in tree])
    if cls is dict:
        return {k: put_back(x, objects) for k, x in tree.items()}
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_slot)
    if not any(map(is_slot, leaves)):
        return tree
    return treedef.unflatten([objects[x.number] if is_slot(x) else x for x in leaves])


def slot_numbers(tree: Any) -> set[int]:
    """Which objects stand in a tree."""
    return {x.number for x in jax.tree.leaves(tree, is_leaf=is_slot) if is_slot(x)}


def slot_places(tree: Any, name: Callable[[Any], str]) -> dict[int, str]:
    """Which objects stand in a tree, each with the `name(JAX path)` of its first place."""
    places: dict[int, str] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_slot):
        if is_slot(x):
            places.setdefault(x.number, name(path))
    return places


def named_like(function: Any, wrapper: Any) -> Any:
    """`wrapper` under the name of a function; without `__wrapped__`, whose signature JAX reads."""
    for attribute in ("__name__", "__qualname__", "__module__"):
        setattr(wrapper, attribute, getattr(function, attribute, "function"))
    return wrapper


# Of partials of methods: the function of the object. It is what programs are kept with.
_OF_PARTIALS: weakref.WeakKeyDictionary[Any, Callable] = weakref.WeakKeyDictionary()


def unbind(f: Callable) -> tuple[Callable, Any]:
    """(function, object) of what calls a method of an object; (f, None) of anything else.

    That is a bound method, a callable object, a partial of one, or what a transform made of one.
    The object then travels as an argument, so that what the method changes comes back.
    """
    if isinstance(f, types.MethodType) and isinstance(f.__self__, Pytree):
        return unscoped(f.__func__), f.__self__
    if isinstance(f, Pytree):
        return unscoped(type(f).__call__), f
    if isinstance(f, functools.partial):
        function, bound = unbind(f.func)
        return (f, None) if bound is None else (_of_partial(f, function), bound)
    owner, function, bound = getattr(f, "_refax_unbound", (None, f, None))
    # (A wrapper of the user's own, made with functools.wraps, has the attribute of what it wraps.)
    return (function, bound) if owner == id(f) else (unscoped(f), None)


def _of_partial(f: functools.partial, function: Callable) -> Callable:
    if f not in _OF_PARTIALS:
        first, named = f.args, f.keywords

        def inner(obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            return function(obj, *first, *args, **{**named, **kwargs})

        _OF_PARTIALS[f] = _of_object(inner, f, function)
    return _OF_PARTIALS[f]


def _of_object(function: Any, method: Callable, named: Callable) -> Callable:
    """`function`, with the object in front of the arguments of `method`, under a name."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    try:
        parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
        function.__signature__ = inspect.Signature([own, *parameters])
    except (TypeError, ValueError):  # nothing is known of its arguments
        pass
    return named_like(named, function)


def set_unbound(f: Any, function: Callable, bound: Any) -> None:
    """Let `unbind(f)` tell that calling `f` is calling `function` with `bound` in front."""
    f._refax_unbound = (id(f), _of_object(function, f, f), bound)
