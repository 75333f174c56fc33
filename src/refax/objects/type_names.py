"""Names for annotations: type variables, and what an argument of a usual kind may be."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVarTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from typing_extensions import TypeVar

A = TypeVar("A", default=Any)
B = TypeVar("B")
C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])
G = TypeVar("G", bound=Callable[..., Any])
K = TypeVar("K", default=Any)
M = TypeVar("M", default=Any)
O = ParamSpec("O")  # noqa: E741
P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T", default=Any)
Ts = TypeVarTuple("Ts")
V = TypeVar("V", default=Any)

Key = Hashable  # one step of a path: an attribute name, an index, a key
PathParts = tuple[Any, ...]
Path = PathParts
KeyPath = PathParts
StateMapping = Mapping[PathParts, Any]
Index = int
Leaf = Any
Leaves = list[Leaf]

Dtype = DTypeLike
Shape = Sequence[int]
Axis = int
Axes = int | Sequence[int]
AxisName = Hashable
Size = int
LaxPadding = str | Sequence[tuple[int, int]]
PaddingLike = str | int | Sequence[int | tuple[int, int]]
PrecisionLike = jax.lax.PrecisionLike
OutShardingType = NamedSharding | PartitionSpec | None
Carry = Any
Output = Any

Initializer = Callable[..., Any]  # (key, shape, dtype) → array
PromoteDtypeFn = Callable[..., Any]  # (arrays, *, dtype) → arrays of one dtype
DotGeneralT = Callable[..., Any]  # as `jax.lax.dot_general`
ConvGeneralDilatedT = Callable[..., Any]  # as `jax.lax.conv_general_dilated`
EinsumT = Callable[..., Any]  # as `jax.numpy.einsum`
GetValueHook = Callable[[Any, A], A]  # (Variable, value) → value
SetValueHook = Callable[[Any, A], A]
CreateValueHook = Callable[[Any, A], A]
AddAxisHook = Callable[[V, int, Any], None]  # (Variable, axis, its name) → nothing
RemoveAxisHook = Callable[[V, int, Any], None]
AxisIndex = int
IsLeafCallable = Callable[[PathParts, Any], bool]
ExtractValueFn = Callable[[Any], Any]  # of a leaf of a State, in `to_pure_dict`
SetValueFn = Callable[[Any, Any], Any]  # (leaf, value) → leaf, in `replace_by_pure_dict`

RngValue = int | jax.Array
SplitPattern = int | tuple[int | None, ...] | None
AxesValue = int | None
Counts = list[int]


class KeylessInitializer(Protocol):
    """An initializer that has its key already: (shape, dtype) → array."""

    def __call__(self, shape: Any, dtype: Any = ..., /, *args: Any, **kwargs: Any) -> jax.Array: ...
