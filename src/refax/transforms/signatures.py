"""The signatures of transforms, for checkers and editors.

A transform may be written `transform(f, **options)` and, as a decorator with arguments,
`@transform(**options)`. From a function of parameters P with result R most make one of the same
signature. O are the parameters that the transform itself was defined with, after the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Protocol, TypeVar, Unpack, overload

import jax
from jax.typing import ArrayLike

from ..graph.state import State
from ..objects.modes import Modes
from ..objects.node import Node
from ..objects.type_names import A, O, P, Q, R
from .prefixes import Argnums, DiffState, Shardings

if TYPE_CHECKING:
    from .._jax_compat import CheckifyError

OfObject = TypeVar("OfObject", covariant=True)
OfArray = TypeVar("OfArray", covariant=True)
OfOther = TypeVar("OfOther", covariant=True)
AnObject = TypeVar("AnObject", bound=Node | State)
First = Literal[0]
No = Literal[False]
Yes = Literal[True]
Several = Sequence[int | DiffState]
Positions = int | Sequence[int]
Names = str | Iterable[str]


# What the installed JAX takes besides, and is passed on.
class ShardMapOptions(Modes, total=False):
    axis_names: AbstractSet[Any]
    check_vma: bool


class Reduced(Modes, total=False):
    reduce_axes: Sequence[Any]


class JitOptions(Modes, total=False):
    keep_unused: bool
    device: Any
    backend: str | None
    inline: bool
    compiler_options: Mapping[str, Any] | None


class AllJitOptions(JitOptions, total=False):
    in_shardings: Shardings
    out_shardings: Shardings
    static_argnums: Positions | None
    static_argnames: Names | None
    donate_argnums: Positions | None
    donate_argnames: Names | None


class More(Reduced, total=False):
    holomorphic: bool
    allow_int: bool


# fmt: off
class JaxprTransform(Protocol):
    """`make_jaxpr`: of a function of anything of the right shape, such as `ShapeDtypeStruct`s."""

    @overload
    def __call__(self, f: Callable[..., Any], static_argnums: Positions = (), axis_env: Any = None,
                 return_shape: bool = False, **modes: Unpack[Modes]) -> Callable[..., Any]: ...
    @overload
    def __call__(self, *, static_argnums: Positions = (), axis_env: Any = None,
                 return_shape: bool = False, **modes: Unpack[Modes]) -> JaxprTransform: ...


class CheckifyTransform(Protocol):
    """`checkify`: the error comes first."""

    @overload
    def __call__(self, f: Callable[P, R], errors: Any = None,
                 **modes: Unpack[Modes]) -> Callable[P, tuple[CheckifyError, R]]: ...
    @overload
    def __call__(self, *, errors: Any = None, **modes: Unpack[Modes]) -> CheckifyTransform: ...


class MadeByGrad(Protocol):
    _differentiated: None  # which no other callable has


D = TypeVar("D", bound=MadeByGrad)


class Differentiated(Protocol[P, OfObject, OfArray, OfOther]):
    """A function that `grad` made: the result follows from what the first argument is.

    What keeps signatures keeps it whole: taken as a callable, it would be its first overload.
    """

    _differentiated: None
    lower: Any  # what a jitted one has
    trace: Any
    clear_cache: Any

    @overload
    def __call__(self: Differentiated[Concatenate[jax.Array, Q], OfObject, OfArray, OfOther],
                 x: ArrayLike, /, *args: Q.args, **kwargs: Q.kwargs) -> OfArray: ...
    @overload
    def __call__(self: Differentiated[Concatenate[AnObject, Q], OfObject, OfArray, OfOther],
                 x: AnObject, /, *args: Q.args, **kwargs: Q.kwargs) -> OfObject: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> OfOther: ...
    def __get__(self: Differentiated[Concatenate[Any, Q], OfObject, OfArray, OfOther],
                obj: Any, owner: Any = None) -> Callable[Q, OfObject]: ...


class KeepingTransform(Protocol[O]):
    """A transform that keeps the signature of the function."""

    @overload
    def __call__(self, f: D, *args: O.args, **options: O.kwargs) -> D: ...
    @overload
    def __call__(self, f: Callable[P, R], *args: O.args, **options: O.kwargs) -> Callable[P, R]: ...
    @overload
    def __call__(self, *args: O.args, **options: O.kwargs) -> KeepingTransform[[]]: ...


Gradient = Differentiated[P, State, jax.Array, Any]
GradientAndAux = Differentiated[P, tuple[State, A], tuple[jax.Array, A], tuple[Any, A]]
ValueAndGradient = Differentiated[P, tuple[R, State], tuple[R, jax.Array], tuple[R, Any]]


class GradTransform(Protocol):
    """`grad`: the gradient of argument 0 is a State or an array, of others it may be anything."""

    @overload
    def __call__(self, f: Differentiated[P, Any, Any, Any], argnums: First = 0, has_aux: No = False,
                 **more: Unpack[More]) -> Gradient[P]: ...
    @overload
    def __call__(self, f: Callable[P, Any], argnums: First = 0, has_aux: No = False,
                 **more: Unpack[More]) -> Gradient[P]: ...
    @overload
    def __call__(self, f: Callable[P, tuple[Any, A]], argnums: First = 0, *, has_aux: Yes,
                 **more: Unpack[More]) -> GradientAndAux[P, A]: ...
    @overload
    def __call__(self, f: Callable[P, Any], argnums: DiffState, has_aux: No = False,
                 **more: Unpack[More]) -> Callable[P, State]: ...
    @overload
    def __call__(self, f: Callable[P, tuple[Any, A]], argnums: DiffState, has_aux: Yes,
                 **more: Unpack[More]) -> Callable[P, tuple[State, A]]: ...
    @overload
    def __call__(self, f: Callable[P, Any], argnums: Several, has_aux: No = False,
                 **more: Unpack[More]) -> Callable[P, tuple[Any, ...]]: ...
    @overload
    def __call__(self, f: Callable[P, tuple[Any, A]], argnums: Argnums, has_aux: Yes,
                 **more: Unpack[More]) -> Callable[P, tuple[Any, A]]: ...
    @overload
    def __call__(self, f: Callable[P, Any], argnums: int, has_aux: No = False,
                 **more: Unpack[More]) -> Callable[P, Any]: ...
    @overload
    def __call__(self, *, argnums: First = 0, has_aux: No = False,
                 **more: Unpack[More]) -> Callable[[Callable[P, Any]], Gradient[P]]: ...
    @overload
    def __call__(
        self, *, argnums: First = 0, has_aux: Yes, **more: Unpack[More]
    ) -> Callable[[Callable[P, tuple[Any, A]]], GradientAndAux[P, A]]: ...
    @overload
    def __call__(self, *, argnums: DiffState, has_aux: No = False,
                 **more: Unpack[More]) -> Callable[[Callable[P, Any]], Callable[P, State]]: ...
    @overload
    def __call__(self, *, argnums: Argnums, has_aux: bool = False,
                 **more: Unpack[More]) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...


class ValueAndGradTransform(Protocol):
    """`value_and_grad`: the same, after what the function itself returns."""

    @overload
    def __call__(self, f: Callable[P, R], argnums: First = 0, has_aux: bool = False,
                 **more: Unpack[More]) -> ValueAndGradient[P, R]: ...
    @overload
    def __call__(self, f: Callable[P, R], argnums: DiffState, has_aux: bool = False,
                 **more: Unpack[More]) -> Callable[P, tuple[R, State]]: ...
    @overload
    def __call__(self, f: Callable[P, R], argnums: Several, has_aux: bool = False,
                 **more: Unpack[More]) -> Callable[P, tuple[R, tuple[Any, ...]]]: ...
    @overload
    def __call__(self, f: Callable[P, R], argnums: int, has_aux: bool = False,
                 **more: Unpack[More]) -> Callable[P, tuple[R, Any]]: ...
    @overload
    def __call__(self, *, argnums: First = 0, has_aux: bool = False,
                 **more: Unpack[More]) -> Callable[[Callable[P, R]], ValueAndGradient[P, R]]: ...
    @overload
    def __call__(self, *, argnums: DiffState, has_aux: bool = False, **more: Unpack[More]
                 ) -> Callable[[Callable[P, R]], Callable[P, tuple[R, State]]]: ...
    @overload
    def __call__(self, *, argnums: Argnums, has_aux: bool = False, **more: Unpack[More]
                 ) -> Callable[[Callable[P, R]], Callable[P, tuple[R, Any]]]: ...
