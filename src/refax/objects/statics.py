"""Static values: what of an object is compared, not traced, and how two of them are compared.

A static is kept in a GraphDef as `(type, value)`, so that `1`, `1.0` and `True`, which are equal in
Python but make different programs, stay apart. Functions are compared by what they do, as far as it
can be told: two closures over equal values from the same source line are equal, so that
`optax.adam(1e-3)` made twice is one static, and a step compiled for the first serves the second.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import types
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_PLAIN = frozenset({int, str, bool, bytes, type(None), type, np.dtype})
_IN_PLAIN_TUPLE = frozenset({int, str, type(None)})
FUNCTIONS = (types.FunctionType, functools.partial)


def is_plain_static(value: Any, cls: type) -> bool:
    """The statics that need no further look: scalars, types, and tuples of ints and strings."""
    if cls in _PLAIN:
        return True
    return cls is tuple and all(type(x) in _IN_PLAIN_TUPLE for x in value)


def static_key(value: Any) -> tuple:
    cls = type(value)
    if cls is float and (value != value or value == 0.0):  # nan != nan, 0.0 == -0.0
        return (cls, math.nan if value != value else value, math.copysign(1.0, value))
    if cls in FUNCTIONS:
        return (cls, FunctionKey(value))
    if cls is complex or isinstance(value, np.generic):
        return (cls, value, repr(value))  # zeros with a sign again
    if isinstance(value, tuple) and not is_plain_static(value, cls):
        return (cls, TupleKey(value, tuple(map(static_key, value))))  # (1,) == (True,) == (1.0,)
    try:
        hash(value)
    except TypeError:
        return (cls, EqualKey(value))
    return (cls, value)


def static_value(key: tuple) -> Any:
    value = key[1]
    if type(value) is TupleKey:
        if not any(map(compared, value.keys)):
            return value.value
        parts = map(static_value, value.keys)
        return tuple(parts) if type(value.value) is tuple else type(value.value)(*parts)
    if type(value) is EqualKey:
        return value.content()
    return value.function if type(value) is FunctionKey else value


def compared(key: tuple) -> list[EqualKey]:
    """What in a static's key is compared by `==`, and may change in place."""
    if type(key[1]) is TupleKey:
        return [x for part in key[1].keys for x in compared(part)]
    return [key[1]] if type(key[1]) is EqualKey else []


def _equal(x: Any, y: Any) -> bool | None:
    """Whether `x == y`; None where the comparison fails (as of arrays within), or is no bool."""
    try:
        both = isinstance(x, np.ndarray) and isinstance(y, np.ndarray)
        same = x.dtype == y.dtype and np.array_equal(x, y) if both else x == y
    except Exception:
        return None
    return bool(same) if isinstance(same, (bool, np.bool_)) else None


class EqualKey:
    """A static without a hash (a plain dataclass, a set), compared by `==` with what it was.

    It may be changed in place, so what is compared is a copy; a value that does not equal its copy
    is equal to itself only. One whose comparison fails, or is no bool, has no hash.
    """

    __slots__ = ("_copy", "_fails", "_value")

    def __init__(self, value: Any):
        self._value, self._copy, self._fails = value, value, False
        for make in (copy.deepcopy, copy.copy):
            with contextlib.suppress(Exception):
                made = make(value)
                if (same := _equal(made, value)) is not False:
                    self._copy, self._fails = made, same is None
                    return

    def holds(self) -> bool:
        """Whether the value is still what it was."""
        return self._fails or self._value is self._copy or bool(_equal(self._value, self._copy))

    def content(self) -> Any:
        return self._value if self.holds() else copy.deepcopy(self._copy)

    def __eq__(self, other: object) -> bool:
        if type(other) is not EqualKey or type(other._copy) is not type(self._copy):
            return False
        if self._copy is other._copy or self._fails:
            return self._value is other._value or not self._fails
        return bool(_equal(self._copy, other._copy))

    def __hash__(self) -> int:
        if self._fails:
            raise TypeError("it cannot be compared")
        return hash(type(self._value))

    def __repr__(self) -> str:
        return repr(self._value)

    def __reduce__(self) -> Any:
        return (EqualKey, (self._value,))


@dataclasses.dataclass(frozen=True, slots=True)
class TupleKey:
    """A tuple, compared by the keys of its parts."""

    value: tuple = dataclasses.field(compare=False)
    keys: tuple

    def __repr__(self) -> str:
        return repr(self.value)


# The hash of each function as it was first seen. A function may rebind what it closes over when it
# is called (optax's cosine schedule makes a float of its steps) and is the same static still.
_HASHES: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class FunctionKey:
    """A function or partial, compared by code, defaults and what it closes over."""

    def __init__(self, function: Any):
        self.function = function

    @functools.cached_property
    def key(self) -> Any:
        return frozen(self.function)

    @functools.cached_property
    def _hash(self) -> int:
        if self.function not in _HASHES:
            _HASHES[self.function] = hash(self.key)
        return _HASHES[self.function]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FunctionKey):
            return False
        return self.function is other.function or self.key == other.key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    def describe(self) -> str:
        """The function's name with the scalars that it closes over, for messages."""
        scalars: list[str] = []

        def collect(part: Any) -> None:
            if isinstance(part, tuple) and len(part) >= 2 and part[0] in (int, float, bool, str):
                scalars.append(repr(part[1]))
            elif isinstance(part, tuple):
                for inner in part:
                    collect(inner)

        collect(self.key)
        return f"{self!r}({', '.join(scalars[:12])})" if scalars else repr(self)

    def __reduce__(self) -> Any:
        return (FunctionKey, (self.function,))


@dataclasses.dataclass(eq=False, slots=True)
class _SameObject:
    """Equal to itself only: for what cannot be compared by content."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameObject) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def frozen(value: Any, seen: dict[int, int] | None = None) -> Any:
    """`value` as something hashable that is equal for equal content."""
    seen = {} if seen is None else seen
    cls = type(value)
    if cls in _PLAIN or cls is float:
        return static_key(value)
    if id(value) in seen:  # a function that closes over itself
        return ("seen", seen[id(value)])
    if isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer):
        if value.size <= 4096 and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
            data = np.asarray(value)
            return (cls, data.shape, str(data.dtype), data.tobytes())
        return _SameObject(value)
    parts = _parts(value)
    if parts is None:
        return (cls, value)
    if len(parts) == 1 and parts[0] is value:
        return _SameObject(value)
    seen[id(value)] = len(seen)
    return (cls, *(frozen(part, seen) for part in parts))


def _parts(value: Any) -> Sequence[Any] | None:
    """What a value is compared by, part by part; None if it can be compared as a whole."""
    cls = type(value)
    if cls is types.FunctionType:
        return (
            value.__code__,
            _SameObject(value.__globals__),
            value.__defaults__,
            value.__kwdefaults__,
            *(value.__closure__ or ()),
        )
    if cls is types.CellType:
        try:
            return (value.cell_contents,)
        except ValueError:  # nothing in it yet
            return ()
    if cls is functools.partial:
        return (value.func, value.args, value.keywords)
    if isinstance(value, (tuple, list)):
        return value
    if cls is dict:
        return [*value.keys(), *value.values()]
    try:
        hash(value)
    except TypeError:  # a pytree, such as a State of masks; or itself
        leaves, treedef = jax.tree.flatten(value)
        return leaves if jax.tree_util.treedef_is_leaf(treedef) else (treedef, *leaves)
    return None
