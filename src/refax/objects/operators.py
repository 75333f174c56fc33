"""The operators of an array, given to Variable from one table.

Each reads the Variable's value and lets the array do the work, so a Variable can stand wherever an
array can. The in-place ones write the cell and return the cell: `self.count += 1` keeps the same
Variable in the attribute.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from jax.core import Tracer

from .entering import kept_in_place, operand
from .errors import describe_value
from .representation import Shown
from .trace_errors import known_name

_BINARY = (
    "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor".split()
)  # each with a reflected form
_COMPARE = "lt le eq ne gt ge".split()
_UNARY = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": abs,
    "invert": operator.invert,
    "int": int,
    "float": float,
    "complex": complex,
    "index": operator.index,
    "len": len,
    "iter": iter,
    "round": round,
    "array": np.asarray,
    "dlpack": lambda array, **options: array.__dlpack__(**options),
    "dlpack_device": operator.methodcaller("__dlpack_device__"),
}
_FUNCTIONS: dict[str, Callable] = {"and": operator.and_, "or": operator.or_, "divmod": divmod}

if TYPE_CHECKING:  # the table, for checkers: what a `jax.Array` has and may be passed to

    class LikeArray(Shown, jax.Array):
        sharding: Any  # the annotation, or the array's

        def __hash__(self) -> int: ...

        def __iadd__(self, other: Any) -> Self: ...

        __isub__ = __imul__ = __imatmul__ = __itruediv__ = __ifloordiv__ = __imod__ = __iadd__
        __ipow__ = __ilshift__ = __irshift__ = __iand__ = __ixor__ = __ior__ = __iadd__

        # What newer versions of JAX declare to give `Self` gives an array.
        def __neg__(self) -> jax.Array: ...
        def __abs__(self) -> jax.Array: ...
        def __invert__(self) -> jax.Array: ...
        def reshape(self, *args: Any, **options: Any) -> jax.Array: ...
        def transpose(self, *args: Any) -> jax.Array: ...
        def flatten(self, *args: Any, **options: Any) -> jax.Array: ...
        def squeeze(self, axis: Any = None) -> jax.Array: ...

        T: jax.Array
else:
    LikeArray = Shown


def add_operators(cls: type) -> None:
    def other_value(other: Any) -> Any:
        return other.value if isinstance(other, cls) else other

    def define(name: str, method: Callable) -> None:
        method.__name__ = f"__{name}__"
        method.__qualname__ = f"{cls.__qualname__}.__{name}__"
        setattr(cls, method.__name__, method)

    def binary(name: str, apply: Callable) -> None:
        define(name, lambda self, other: apply(self.value, other_value(other)))

    def in_place(name: str, apply: Callable) -> None:
        def method(self: Any, other: Any) -> Any:
            current = self.value
            new = apply(current, operand(other_value(other), current))
            self.value = kept_in_place(new, current)
            return self

        define("i" + name, method)

    for name in _BINARY:
        apply = _FUNCTIONS.get(name) or getattr(operator, name)
        binary(name, apply)
        define("r" + name, lambda self, other, apply=apply: apply(other_value(other), self.value))
        if name != "divmod":
            in_place(name, apply)
    for name in _COMPARE:
        binary(name, getattr(operator, name))
    for name, unary in _UNARY.items():
        define(name, lambda self, *args, unary=unary, **kw: unary(self.value, *args, **kw))
    for name in ("shape", "dtype", "ndim", "size"):
        setattr(cls, name, property(operator.attrgetter(f"value.{name}")))
    define("bool", _truth)
    define("call", _called)
    define("contains", lambda self, item: other_value(item) in self.value)
    define("format", lambda self, spec: format(self.value, spec) if spec else repr(self))
    # Comparison is elementwise, so identity is what a Variable can be hashed by.
    cls.__hash__ = object.__hash__  # type: ignore[method-assign,assignment]


def _truth(self: Any) -> bool:
    value: Any = self.value
    if getattr(value, "size", 1) == 1 or isinstance(value, Tracer):
        return bool(value)
    name = known_name(self)
    raise ValueError(
        f"The truth of {type(self).__name__}{f' `{name}`' if name else ''} "
        f"({describe_value(value)}) is ambiguous: it has several entries, or none.\n"
        "Cure: `variable.value.any()` or `.all()`; whether there is one: `variable is not None`."
    )


def _called(self: Any, *args: Any, **options: Any) -> Any:
    if callable(value := self.value):
        return value(*args, **options)
    name = known_name(self)
    raise TypeError(
        f"{type(self).__name__}{f' `{name}`' if name else ''} ({describe_value(value)}) is called, "
        "but holds no function.\nCure: variable.value is what it holds; in the place of PyTorch's "
        "optimizer.step() there is optimizer.update(model, gradients)."
    )
