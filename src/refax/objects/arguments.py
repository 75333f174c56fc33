"""What fits an argument: its annotation says it, and `checked` holds the callers to it.

Sizes, rates, axes, keys and arrays have annotations of their own, below, which a type checker takes
for the plain types. A function or method with the decorator `checked` refuses what its annotations
do not name, before it does anything. What depends on several arguments it checks itself.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from .errors import describe_value
from .torch_names import renamed
from .type_names import F, PromoteDtypeFn
from .type_names import Initializer as Initializer


class ArgumentError(TypeError, ValueError):
    """An argument that does not fit."""

    of_caller = False  # whether it is said of the public callable already
    has_place = False  # whether it says where the object is whose method it is


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


def unfit(value: Any, what: str, cure: str = "") -> ArgumentError:
    """The error about a value deep in a call: of the public callable, and its argument, it came by.

    What is called most often looks at its arguments only where it uses them; the call stack says
    whose they were.
    """
    frame, owner, name = sys._getframe(1), "", "it"
    while frame is not None and frame.f_globals.get("__name__", "").startswith("refax."):
        code = frame.f_code
        starred = bool(code.co_flags & inspect.CO_VARARGS)
        for argument in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + starred]:
            if "<locals>" not in code.co_qualname and _holds(frame.f_locals.get(argument), value):
                owner, name = code.co_qualname.removesuffix(".__init__"), argument
        frame = frame.f_back
    error = misfit(owner, name, value, what, cure)
    error.of_caller = True
    return error


# What tells where an object is, if it does: `verbs/scopes.py` adds it.
PLACES: list[Callable[[Any], str]] = []


def _placed(error: ArgumentError, args: tuple) -> ArgumentError:
    """The error of a method, with the place of its object, if that is in another one."""
    place = next(filter(None, (tell(args[0]) for tell in PLACES if args)), "")
    if place and not error.has_place:
        text, cure, rest = str(error).partition("\nCure:")
        error.args, error.has_place = (f"{text}\nIn `{place}`.{cure}{rest}",), True
    return error


def _holds(given: Any, value: Any) -> bool:
    return given is value or (
        isinstance(given, (tuple, list, dict)) and any(_holds(part, value) for part in given)
    )


def checked(function: F) -> F:
    """`function`, but an argument that does not fit its annotation raises an `ArgumentError`."""
    code, name = inspect.unwrap(function).__code__, function.__name__
    count = code.co_argcount + code.co_kwonlyargcount
    positional = code.co_varnames[: code.co_argcount]
    starred = code.co_varnames[count] if code.co_flags & inspect.CO_VARARGS else ""
    open_ended = bool(code.co_flags & inspect.CO_VARKEYWORDS)
    tests: list[Any] = []  # of the positional arguments
    fits: dict[str, Fits] = {}

    def owner_of(args: tuple) -> str:
        if positional[:1] not in (("self",), ("cls",)):
            return name
        cls = args[0] if positional[0] == "cls" else type(args[0])
        return cls.__name__ + ("" if name.startswith("__") else f".{name}")

    def error(args: tuple, **given: Any) -> ArgumentError:
        named = [*zip(positional, args), *given.items()]
        named += [(starred, value) for value in args[len(positional) :]]
        argument, value = next(x for x in named if x[0] in fits and not fits[x[0]].test(x[1]))
        what, _, cure = fits[argument]
        return misfit(owner_of(args), argument, value, what, cure)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not tests:  # annotations are read at the first call, when all modules are there
            hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
            found = {
                key: _fits(hints[key]) for key in code.co_varnames[: count + 1] if key in hints
            }
            fits.update((key, each) for key, each in found.items() if each is not None)
            tests.extend(fits[key].test if key in fits else None for key in positional)
            tests.append(fits[starred].test if starred in fits else None)
        for test, value in zip(tests, args):
            if test is not None and not test(value):
                raise _placed(error(args), args)
        rest_fits = tests[-1] is None or all(map(tests[-1], args[len(positional) :]))
        named_fit = not kwargs or all(fits[key].test(kwargs[key]) for key in kwargs if key in fits)
        if not (rest_fits and named_fit):
            raise _placed(error(args, **kwargs), args)
        try:
            return function(*args, **kwargs)
        except ArgumentError as inner:  # of a layer inside this one
            owner = owner_of(args)
            told = _placed(inner, args).has_place
            if inner.of_caller or str(inner).startswith(owner):
                raise
            outer = ArgumentError(f"{owner}: {inner}")
            outer.has_place = told
            raise outer from inner
        except TypeError:
            if not open_ended and (said := renamed(kwargs, code.co_varnames[:count])):
                raise TypeError(f"{owner_of(args)}: {said}") from None
            raise

    return typing.cast(F, call)


_ANYTHING = Fits("anything", lambda x: True)


def _fits(hint: Any) -> Fits | None:
    """What fits an annotation; None if anything does."""
    if isinstance(hint, typing.TypeVar):
        hint = hint.__bound__ or Any
    if hint is Any or typing.get_origin(hint) is typing.Unpack:
        return None
    known = next((fits for kind, fits in KNOWN if kind == hint), None)
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
    if origin is tuple and parts[-1] is not ...:
        return _tuple_of([_fits(part) for part in parts])
    if origin in (Sequence, Iterable, tuple):
        several = _sequence_of(_fits(parts[0]))
        once = Iterator if origin is Iterable else ()  # which cannot be looked at
        return several._replace(test=lambda x: isinstance(x, once) or several.test(x))
    if origin is Mapping and parts[0] is not Any:
        return _mapping_of(_fits(parts[0]), _fits(parts[1]))
    if origin is typing.Literal:
        return Fits(", or ".join(map(repr, parts)), lambda x: isinstance(x, str) and x in parts)
    if Callable in (origin, hint):
        return Fits("callable", callable, "pass the function itself, not what it returns.")
    if origin is type and isinstance(parts[0], type):
        what = f"a class of {parts[0].__name__}s"
        return Fits(what, lambda x: isinstance(x, type) and issubclass(x, parts[0]))
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
    what, test, _ = entry or _ANYTHING

    def are(x: Any) -> bool:
        if isinstance(x, (jax.Array, np.ndarray)):
            return x.ndim > 0 and all(map(test, x))
        return (
            isinstance(x, Collection)
            and not isinstance(x, (str, bytes, Mapping))
            and all(map(test, x))
        )

    return Fits(f"[{what}, …]", are)


def _tuple_of(entries: list[Fits | None]) -> Fits:
    fits = [entry or _ANYTHING for entry in entries]

    def are(x: Any) -> bool:
        if not isinstance(x, (tuple, list)) or len(x) != len(fits):
            return False
        return all(entry.test(part) for entry, part in zip(fits, x))

    return Fits(f"({', '.join(entry.what for entry in fits)})", are)


def _mapping_of(key: Fits | None, entry: Fits | None) -> Fits:
    (key_is, fits_key, cure), (entry_is, fits_entry, _) = key or _ANYTHING, entry or _ANYTHING

    def is_mapping(x: Any) -> bool:
        return isinstance(x, Mapping) and all(fits_key(k) and fits_entry(x[k]) for k in x)

    return Fits(f"{{{key_is}: {entry_is}, …}}", is_mapping, cure)


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
    if isinstance(x, (jax.Array, np.ndarray, str)):
        return not isinstance(x, str) and _is_number(x.dtype)
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


def is_dtype(x: Any) -> bool:
    try:
        return _is_number(jnp.dtype(x))
    except TypeError:
        return False


@functools.cache
def _dot_of_precision(x: Any) -> Any:
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(functools.partial(jnp.dot, precision=x), one, one)


def taken_by(function: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Whether a function takes a value, and does not raise."""

    def test(x: Any) -> bool:
        try:
            function(x)
        except (TypeError, ValueError, OverflowError, re.error):
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

_AN_ARRAY = Fits(
    "an array of numbers (or what `jnp.asarray` takes)",
    is_array,
    "the array itself; of several, jnp.stack([…]); an object is called for one, model(x).",
)
is_size, is_axis = _at_least(1), _at_least(-np.inf)
Size = Annotated[int, Fits("an int of at least 1", is_size)]
Count = Annotated[int, Fits("an int of at least 0", _at_least(0))]
Axis = Annotated[int, Fits("an int", is_axis)]
Axes = Axis | Sequence[Axis]
Sizes = Size | Sequence[Size]
AnyMesh = Mesh | AbstractMesh
Hooks = Callable[..., Any] | Sequence[Callable[..., Any]]
Rate = Annotated[float, Fits("a number between 0 and 1", _between(0, 1))]
Epsilon = Annotated[float, Fits("a number of at least 0", _between(0, np.inf))]
Number = Annotated[float, Fits("a number", _between(-np.inf, np.inf))]
Array = Annotated[Any, _AN_ARRAY]
Key = Annotated[jax.Array, Fits("one random key", _is_key, "jax.random.key(0).")]
Integers = Annotated[Any, Fits("an array of integers", _are_integers)]
Wrapped = Annotated[
    Callable[..., Any],
    Fits("a layer", lambda x: callable(x) and not isinstance(x, type), "an object, not its class."),
]
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
KNOWN: list[tuple[Any, Fits]] = [
    (bool, _FLAG),
    (int, Fits("an int", is_axis)),
    (float, Fits("a number", _between(-np.inf, np.inf))),
    (str, Fits("a string", lambda x: isinstance(x, str))),
    (NoneType, Fits("None", lambda x: x is None)),
    (DTypeLike, Fits("a dtype of numbers", is_dtype, "jnp.float32, 'bfloat16', ….")),
    (
        lax.PrecisionLike,
        Fits("a precision of jax.lax", taken_by(_dot_of_precision), "None, 'high', …."),
    ),
]
