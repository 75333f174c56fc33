"""The signatures of transforms, for checkers and editors.

A transform may be written `transform(f, **options)` and, as a decorator with arguments,
`@transform(**options)`. From a function of parameters P with result R most make one of the same
signature. O are the parameters that the transform itself was defined with, after the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, Protocol, TypedDict, TypeVar, Unpack, overload

import jax

from ..graph.state import State
from ..objects.modes import Switch
from ..objects.type_names import A, O, P, Q, R
from .prefixes import DiffState

OfObject = TypeVar("OfObject", covariant=True)
OfArray = TypeVar("OfArray", covariant=True)


class KeepingTransform(Protocol[O]):
    """A transform that keeps the signature of the function."""

    @overload
    def __call__(self, f: Callable[P, R], *args: O.args, **options: O.kwargs) -> Callable[P, R]: ...
    @overload
    def __call__(
        self, *args: O.args, **options: O.kwargs
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


class Differentiated(Protocol[P, OfObject, OfArray]):
    """A function that `grad` made: the result follows from what the first argument is."""

    @overload
    def __call__(
        self: Differentiated[Concatenate[jax.Array, Q], OfObject, OfArray],
        x: jax.typing.ArrayLike,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> OfArray: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> OfObject: ...
    def __get__(
        self: Differentiated[Concatenate[Any, Q], OfObject, OfArray], obj: Any, owner: Any = None
    ) -> Callable[Q, OfObject]: ...


Gradient = Differentiated[P, State, jax.Array]
GradientAndAux = Differentiated[P, tuple[State, A], tuple[jax.Array, A]]
ValueAndGradient = Differentiated[P, tuple[R, State], tuple[R, jax.Array]]
First = Literal[0]
No = Literal[False]
Yes = Literal[True]


class More(TypedDict, total=False):
    """What `grad` and `value_and_grad` take besides."""

    holomorphic: bool
    allow_int: bool
    reduce_axes: Sequence[Any]
    graph: Switch
    graph_updates: Switch


class GradTransform(Protocol):
    """`grad`: the gradient of argument 0 is a State or an array, of others it may be anything."""

    @overload
    def __call__(
        self, f: Callable[P, Any], argnums: First = 0, has_aux: No = False, **more: Unpack[More]
    ) -> Gradient[P]: ...
    @overload
    def __call__(
        self, f: Callable[P, tuple[Any, A]], argnums: First = 0, *, has_aux: Yes, **m: Unpack[More]
    ) -> GradientAndAux[P, A]: ...
    @overload
    def __call__(
        self, f: Callable[P, Any], argnums: DiffState, has_aux: No = False, **more: Unpack[More]
    ) -> Callable[P, State]: ...
    @overload
    def __call__(
        self, f: Callable[P, Any], argnums: Any, has_aux: bool = False, **more: Unpack[More]
    ) -> Callable[P, Any]: ...
    @overload
    def __call__(
        self, *, argnums: First = 0, has_aux: No = False, **more: Unpack[More]
    ) -> Callable[[Callable[P, Any]], Gradient[P]]: ...
    @overload
    def __call__(
        self, *, argnums: First = 0, has_aux: Yes, **more: Unpack[More]
    ) -> Callable[[Callable[P, tuple[Any, A]]], GradientAndAux[P, A]]: ...
    @overload
    def __call__(
        self, *, argnums: Any, has_aux: bool = False, **more: Unpack[More]
    ) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...


class ValueAndGradTransform(Protocol):
    """`value_and_grad`: the same, after what the function itself returns."""

    @overload
    def __call__(
        self, f: Callable[P, R], argnums: First = 0, has_aux: bool = False, **more: Unpack[More]
    ) -> ValueAndGradient[P, R]: ...
    @overload
    def __call__(
        self, f: Callable[P, R], argnums: DiffState, has_aux: bool = False, **more: Unpack[More]
    ) -> Callable[P, tuple[R, State]]: ...
    @overload
    def __call__(
        self, f: Callable[P, R], argnums: Any, has_aux: bool = False, **more: Unpack[More]
    ) -> Callable[P, tuple[R, Any]]: ...
    @overload
    def __call__(
        self, *, argnums: First = 0, has_aux: bool = False, **more: Unpack[More]
    ) -> Callable[[Callable[P, R]], ValueAndGradient[P, R]]: ...
    @overload
    def __call__(
        self, *, argnums: Any, has_aux: bool = False, **more: Unpack[More]
    ) -> Callable[[Callable[P, R]], Callable[P, tuple[R, Any]]]: ...
