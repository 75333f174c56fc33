"""What fits an argument: its annotation says it, and `checked` holds the callers to it.

Sizes, rates, axes, keys and arrays have annotations of their own, below, which a type checker takes
for the plain types. A function or method with the decorator `checked` refuses what its annotations
do not name, before it does anything. What depends on several arguments it checks itself.
"""

from __future__ import annotations

import functools
import operator
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ..graph.filters import to_predicate
from ..objects.errors import describe_value
from ..objects.type_names import F, PromoteDtypeFn
from ..objects.type_names import Initializer as Initializer
from ..verbs.rngs import Rngs, RngStream


class ArgumentError(TypeError, ValueError):
    """An argument of a layer, or of a function of layers, that does not fit."""


class Fits(NamedTuple):
    """What fits an annotation: in words, as a test, and what to write instead."""

    what: str
    test: Callable[[Any], Any]
    cure: str = ""


def misfit(owner: str, name: str, value: Any, what: str, cure: str = "") -> ArgumentError:
    """The error about an argument, with its value where that is short, else dtype and shape."""
    shown = repr(value) if isinstance(value, np.generic) else describe_value(value)
    kind, _, text = shown.partition(" ")
    if isinstance(value, np.generic) or (text and kind == type(value).__name__):
        shown = f"{name}={text or shown}"
    else:
        shown = f"{name} is {shown}"
    cure = f"\nCure: {cure}" if cure else ""
    return ArgumentError(f"{owner}: {shown}, but must be {what}.{cure}")


def checked(function: F) -> F:
    """`function`, but an argument that does not fit its annotation raises an `ArgumentError`."""
    code, name = function.__code__, function.__name__
    positional = code.co_varnames[: code.co_argcount]
    tests: list[Any] = []  # of the positional arguments
    fits: dict[str, Fits] = {}

    def owner_of(args: tuple) -> str:
        if positional[:1] != ("self",):
            return name
        return type(args[0]).__name__ + ("" if name.startswith("__") else f".{name}")

    def error(args: tuple, **given: Any) -> ArgumentError:
        named = {**dict(zip(positional, args)), **given}
        argument = next(key for key in named if key in fits and not fits[key].test(named[key]))
        what, _, cure = fits[argument]
        return misfit(owner_of(args), argument, named[argument], what, cure)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not tests:  # annotations are read at the first call, when all modules are there
            fits.update(_annotated(function))
            tests.extend(fits[key].test if key in fits else None for key in positional)
        for test, value in zip(tests, args):
            if test is not None and not test(value):
                raise error(args)
        if kwargs and not all(fits[key].test(kwargs[key]) for key in kwargs if key in fits):
            raise error(args, **kwargs)
        try:
            return function(*args, **kwargs)
        except ArgumentError as inner:  # of a layer inside this one
            owner = owner_of(args)
            if str(inner).startswith(owner):
                raise
            raise ArgumentError(f"{owner}: {inner}") from inner

    return typing.cast(F, call)


def _anything(value: Any) -> bool:
    return True


def _annotated(function: Callable[..., Any]) -> dict[str, Fits]:
    code, hints = function.__code__, typing.get_type_hints(function, include_extras=True)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    fits = {name: _fits(hints[name]) for name in names if name in hints}
    return {name: found for name, found in fits.items() if found is not None}


def _fits(hint: Any) -> Fits | None:
    """What fits an annotation; None if anything does."""
    if hint is Any:
        return None
    known = next((fits for kind, fits in _KNOWN if kind == hint), None)
    if known is not None:
        return known
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return parts[1]
    if origin in (typing.Union, UnionType):
        rest = [part for part in parts if part is not NoneType]
        if len(rest) < len(parts):  # beside None there may be a union that is known as a whole
            rest = [functools.reduce(operator.or_, rest), NoneType]
        return _either([_fits(part) for part in rest])
    if origin is Sequence:
        return _sequence_of(_fits(parts[0]))
    if origin is Callable:
        return Fits("callable", callable)
    kind = origin or hint
    return Fits(f"of type {kind.__name__}", lambda x: isinstance(x, kind))


def _either(kinds: list[Fits | None]) -> Fits | None:
    fits = [kind for kind in kinds if kind is not None]
    if len(fits) < len(kinds):
        return None
    cure = next((kind.cure for kind in fits if kind.cure), "")
    what = ", or ".join(kind.what for kind in fits)
    return Fits(what, lambda x: any(kind.test(x) for kind in fits), cure)


def _sequence_of(entry: Fits | None) -> Fits:
    what, test = entry[:2] if entry else ("anything", _anything)

    def are(x: Any) -> bool:
        if isinstance(x, (jax.Array, np.ndarray)):
            return x.ndim > 0 and all(map(test, x))
        return (
            isinstance(x, Collection)
            and not isinstance(x, (str, bytes, Mapping))
            and all(map(test, x))
        )

    return Fits(f"[{what}, …]", are)


_NO_INTS = (bool, np.bool_, jax.Array, np.ndarray)  # though Python would take them for one


def _at_least(least: float) -> Callable[[Any], bool]:
    """Whether a value is an int, of Python or NumPy, of at least that."""

    def test(x: Any) -> bool:
        try:
            return not isinstance(x, _NO_INTS) and operator.index(x) >= least
        except TypeError:
            return False

    return test


def _between(least: float, greatest: float) -> Callable[[Any], bool]:
    """Whether a value is a real number between two, or a traced one."""

    def test(x: Any) -> bool:
        if isinstance(x, (jax.Array, np.ndarray)):
            if x.ndim or not jnp.issubdtype(x.dtype, jnp.number):
                return False
        elif is_bool(x) or not isinstance(x, Real):
            return False
        return isinstance(x, Tracer) or least <= float(x) <= greatest

    return test


def as_tuple(x: Any) -> tuple[Any, ...]:
    """A sequence as a tuple, one entry alone as a tuple of one."""
    return tuple(x) if isinstance(x, Collection) else (x,)


def is_bool(x: Any) -> bool:
    """Whether it is a boolean that is known: Python's, NumPy's, or an array of no axes."""
    if isinstance(x, jax.Array):
        return not isinstance(x, Tracer) and x.dtype == np.bool_ and not x.ndim
    return isinstance(x, (bool, np.bool_))


@functools.cache
def _is_number(dtype: Any) -> bool:
    return dtype == np.bool_ or jnp.issubdtype(dtype, jnp.number)


def is_array(x: Any) -> bool:
    if isinstance(x, (jax.Array, np.ndarray)):
        return _is_number(x.dtype)
    try:
        return _is_number(jnp.asarray(x).dtype)
    except (TypeError, ValueError, OverflowError):
        return False


def _are_integers(x: Any) -> bool:
    return is_array(x) and jnp.issubdtype(jnp.asarray(x).dtype, jnp.integer)


def _is_key(x: Any) -> bool:
    if not isinstance(x, (jax.Array, np.ndarray)):
        return False
    return x.ndim == (0 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else 1)


def _is_dtype(x: Any) -> bool:
    try:
        return _is_number(jnp.dtype(x))
    except TypeError:
        return False


@functools.cache
def _dot_of_precision(x: Any) -> Any:
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(functools.partial(jnp.dot, precision=x), one, one)


def _taken_by(function: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Whether a function takes a value, and does not raise."""

    def test(x: Any) -> bool:
        try:
            function(x)
        except (TypeError, ValueError, OverflowError):
            return False
        return True

    return test


def _is_metadata(x: Any) -> bool:
    return isinstance(x, Mapping) and all(isinstance(key, str) for key in x)


_FLAG = Fits(
    "True or False",
    lambda x: is_bool(x) or (isinstance(x, int) and x in (0, 1)),
    "a bool of Python; where JAX compiles a function, a static argument of it.",
)

is_size = _at_least(1)
Size = Annotated[int, Fits("an int of at least 1", is_size)]
Count = Annotated[int, Fits("an int of at least 0", _at_least(0))]
Axis = Annotated[int, Fits("an int", _at_least(-np.inf))]
Axes = Axis | Sequence[Axis]
Sizes = Size | Sequence[Size]
Rate = Annotated[float, Fits("a number between 0 and 1", _between(0, 1))]
Epsilon = Annotated[float, Fits("a number of at least 0", _between(0, np.inf))]
Number = Annotated[float, Fits("a number", _between(-np.inf, np.inf))]
Array = Annotated[Any, Fits("an array of numbers (or what `jnp.asarray` takes)", is_array)]
Key = Annotated[jax.Array, Fits("one random key", _is_key, "jax.random.key(0).")]
Integers = Annotated[Any, Fits("an array of integers", _are_integers)]
Wrapped = Annotated[
    Callable[..., Any],
    Fits("a layer", lambda x: callable(x) and not isinstance(x, type), "an object, not its class."),
]
Selector = Annotated[Any, Fits("a filter", _taken_by(to_predicate))]
Metadata = Annotated[
    Mapping[str, Any], Fits("a mapping with names as keys", _is_metadata, "{'sharding': (…)}.")
]
PromoteDtype = PromoteDtypeFn
Shape = Sequence[Count]
AxisNames = str | Sequence[str] | None
Groups = Sequence[Sequence[Count]] | None
NO_METADATA: Metadata = MappingProxyType({})
OutSharding = NamedSharding | PartitionSpec | None

# What stands for an annotation that is neither of these nor a class.
_KNOWN: list[tuple[Any, Fits]] = [
    (bool, _FLAG),
    (str, Fits("a string", lambda x: isinstance(x, str))),
    (NoneType, Fits("None", lambda x: x is None)),
    (DTypeLike, Fits("a dtype of numbers", _is_dtype, "jnp.float32, 'bfloat16', ….")),
    (
        lax.PrecisionLike,
        Fits("a precision of jax.lax", _taken_by(_dot_of_precision), "None, 'high', …."),
    ),
    (Rngs, Fits("nnx.Rngs", lambda x: isinstance(x, Rngs), "nnx.Rngs(0), or nnx.Rngs(key).")),
    (RngStream, Fits("a stream of it", lambda x: isinstance(x, RngStream))),
]
