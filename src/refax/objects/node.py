"""Node: a plain Python object that a graph is made of; base of `Pytree` and `Module`.

A Node keeps refax's own bookkeeping in slots, so `vars(model)` shows the user's attributes and
nothing else. Writing an attribute does two things besides: it checks that the object belongs to the
current trace, and, if a plan knows the object, tells it of a change of structure.

What an attribute is follows from its value (node, Variable, array, container: data; anything else:
static), unless a mark overrules that (`marks.py`).
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from operator import delitem
from typing import Any

import jax

from .._jax_compat import TRACE
from . import pickling
from .at_once import Write, at_once
from .errors import data_in_static, mark_in_container, slots_of_a_node
from .marks import Mark
from .representation import Form, Shown
from .trace_errors import mutation_error
from .variable import Variable
from .watch import invalidate, is_array, keeps_structure


class Node(Shown):
    """Base of every object of a graph that is not a Variable or a plain container."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_refax_marks",
        "_refax_path",
        "_refax_plans",
        "_refax_trace",
        "_refax_watch",
    )
    _refax_class_marks: typing.ClassVar[Mapping[str, str]]
    # Whether a `cached_property` writes attributes past `__setattr__`.
    _refax_hides_writes: typing.ClassVar[bool] = False
    # `Model[int](…)` would note the alias on the object; without a setter, typing leaves it.
    __orig_class__: property = property()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        slots = cls.__dict__.get("__slots__", ())
        if own := {slots} if isinstance(slots, str) else {*slots} - {"__dict__", "__weakref__"}:
            raise slots_of_a_node(cls, own)
        members = {k: member for base in cls.__mro__[::-1] for k, member in vars(base).items()}
        cls._refax_hides_writes = any(
            isinstance(m, functools.cached_property) for m in members.values()
        )
        abstract = {k for k, m in members.items() if getattr(m, "__isabstractmethod__", False)}
        if abstract:  # as for a class of abc.ABC: it cannot be instantiated
            cls.__abstractmethods__: frozenset[str] = frozenset(abstract)

    if not typing.TYPE_CHECKING:  # where they would let any argument and any attribute pass

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return new_pytree(cls)

        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, self._refax_prepare(name, value))

    def _refax_prepare(self, name: Any, value: Any) -> Any:
        """What is to stand under a key of `vars`, after the checks; plans are told of a change."""
        if self._refax_trace is not TRACE.value:
            raise mutation_error(self, f"set the attribute `{name}` of")
        cls = type(value)
        if cls in _ASKED or self._refax_marks is not None:
            value = self._refax_marked(name, value, cls)
        if self._refax_watch is not None:
            attributes = self.__dict__
            if name not in attributes or not keeps_structure(attributes[name], value):
                self._refax_changed()
        return value

    def _refax_marked(self, name: Any, value: Any, cls: type) -> Any:
        """The value without its mark; what is said of the attribute is checked and noted."""
        marks = self._refax_marks or {}
        kind = marks.get(name)
        if cls is Mark:
            kind, value = value.kind, value.value
        elif cls in _CONTAINERS:
            items = value.values() if cls is dict else value
            if any([type(x) is Mark for x in items]):
                raise mark_in_container(type(self), name, cls)
        if kind == "static":
            check_static(type(self), name, value)
        if kind != marks.get(name):
            set_object_marks(self, {**marks, name: kind})
            self._refax_changed()
        return value

    def __delattr__(self, name: str) -> None:
        at_once(attribute_deletion(self, name))

    def _refax_change(self, action: str) -> None:
        """The check before a change of structure, of which plans are told."""
        if self._refax_trace is not TRACE.value:
            raise mutation_error(self, action)
        self._refax_changed()

    def _refax_changed(self) -> None:
        if self._refax_watch is not None:
            invalidate(self._refax_watch)
            set_object_watch(self, None)

    def __getstate__(self) -> Any:
        for name, value in self.__dict__.items():
            pickling.check(f"{type(self).__name__}.{name}", value)
        return dict(self.__dict__), self._refax_marks

    def __setstate__(self, state: Any) -> None:
        attributes, marks = state
        self.__dict__.update(attributes)
        set_object_marks(self, marks)

    def _refax_form(self) -> Form:
        return Form(type(self).__name__ + "(", vars(self).items())


def attribute_deletion(obj: Node, name: Any) -> list[Write]:
    """What deletes an attribute (or an entry of `nnx.Dict`), for `at_once`, after the checks."""
    obj._refax_change(f"delete the attribute `{name}` of")
    delete = functools.partial(object.__delattr__, obj, name)
    if type(name) is not str:
        delete = functools.partial(delitem, obj.__dict__, name)
    writes: list[Write] = [delete]
    if name in (obj._refax_marks or {}):
        writes.append(functools.partial(_unmark, obj, name))
    return writes


def _unmark(obj: Node, name: str) -> None:
    set_object_marks(obj, {k: v for k, v in obj._refax_marks.items() if k != name} or None)


def attribute_write(obj: Node, name: str, value: Any) -> Write:
    """What sets an attribute, for `at_once`, after the checks."""
    if type(obj).__setattr__ is not Node.__setattr__:
        return functools.partial(setattr, obj, name, value)
    return functools.partial(object.__setattr__, obj, name, obj._refax_prepare(name, value))


# What is marked, or may have marks in it.
_CONTAINERS = frozenset({list, tuple, dict})
_ASKED = _CONTAINERS | {Mark}


def is_data(value: Any, /) -> bool:
    """Whether a value by itself is data in an attribute: an array, a Variable, an object.

    A number or a string is static. So is a plain container by this question, though what it holds
    may be data: see `nnx.has_data`.

    Example:
        >>> import jax.numpy as jnp
        >>> from refax import nnx
        >>> [
        ...     nnx.is_data(x)
        ...     for x in (jnp.ones(2), nnx.Param(1), nnx.Rngs(0), 1, "a", [jnp.ones(2)])
        ... ]
        [True, True, True, False, False, False]
    """
    return isinstance(value, (Node, Variable)) or is_array(value)


def has_data(value: Any, /) -> list[Any]:
    """What in a pytree is data by `nnx.is_data`; an empty list if nothing is.

    Example:
        >>> from refax import nnx
        >>> len(nnx.has_data({"a": [nnx.Param(1), 2]})), nnx.has_data([1, "b"])
        (1, [])
    """
    # JAX may be unable to sort the keys of a dict.
    value = list(value.values()) if isinstance(value, dict) else value
    parts = jax.tree.leaves(value, is_leaf=lambda x: isinstance(x, dict) or is_data(x))
    return [y for x in parts for y in (has_data(x) if isinstance(x, dict) else [x] * is_data(x))]


def check_static(cls: type, name: Any, value: Any) -> None:
    """Raise if a static attribute holds data."""
    found = [x for x in has_data(value) if not isinstance(x, jax.ShapeDtypeStruct)]
    if found:
        raise data_in_static(cls, name, found[0])


# The slot descriptors, called as functions, go past `__setattr__` and its checks.
set_object_marks = Node.__dict__["_refax_marks"].__set__
set_object_plans = Node.__dict__["_refax_plans"].__set__
set_object_watch = Node.__dict__["_refax_watch"].__set__
set_object_path = Node.__dict__["_refax_path"].__set__
_object_path = Node.__dict__["_refax_path"].__get__
_set_trace = Node.__dict__["_refax_trace"].__set__


def object_path(obj: Node) -> tuple[Any, ...] | None:
    """The path that the lift gave to an object which it made inside of a trace."""
    try:
        return _object_path(obj)
    except AttributeError:  # it has none; (an own `__getattr__` is not asked)
        return None


def new_pytree(cls: type[Any]) -> Any:
    """An object of `cls` with no attributes, made in the current trace, with no `__init__`."""
    self = object.__new__(cls)
    _set_trace(self, TRACE.value)
    set_object_watch(self, None)
    set_object_plans(self, None)
    set_object_marks(self, None)
    return self
