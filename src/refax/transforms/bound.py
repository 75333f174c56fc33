"""What every transform shares: use as a decorator with or without arguments, and as a method."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Generic, Self, cast, overload

import jax

from ..lift.arguments import named_like, set_unbound, unbind
from ..lift.call import Call, enter, pure_function
from ..lift.prefix import by_path
from ..objects.errors import suggest
from ..objects.modes import checked, without_modes
from ..objects.type_names import O, P, Q, R
from ..verbs.pytree import Pytree
from .signatures import KeepingTransform


def decorator_or_function(transform: Callable[Concatenate[Any, O], Any]) -> KeepingTransform[O]:
    """Let `transform(f, **kw)` also be written `@transform`, `@transform(**kw)`, with `fun=f`.

    The switches of `objects/modes.py` stop here.
    """

    transform = checked(transform)

    @functools.wraps(transform)
    def wrapper(fun: Any = None, /, *args: Any, **keywords: Any) -> Any:
        kwargs = dict(without_modes(keywords))
        fun = kwargs.pop("fun", kwargs.pop("f", fun))
        if unknown := sorted(kwargs.keys() - options):
            raise TypeError(
                f"nnx.{transform.__name__}() got an unexpected keyword argument {unknown[0]!r}."
                f"{suggest(unknown[0], options)}\nCure: it takes {listed}."
            )
        if fun is None:
            return lambda f: transform(f, *args, **kwargs)
        return transform(fun, *args, **kwargs)

    signature = inspect.signature(transform)
    named = {**_MODES, **signature.parameters}
    parameters = sorted(named.values(), key=lambda p: p.kind)
    options = {p.name for p in parameters}
    own = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    listed = ", ".join(name for name in own[1:] if name not in _MODES and name[0] != "_")
    if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:  # what else JAX has
        options |= inspect.signature(getattr(jax, transform.__name__)).parameters.keys()
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return cast(Any, wrapper)


_MODES = {
    name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Switch")
    for name in ("graph", "graph_updates")
}


def lifted(f: Callable, run: Callable[[Callable, tuple, dict[str, Any]], Any]) -> Callable:
    """The wrapper of a transform around `f`, which calls `run(f, args, kwargs)`.

    Around a bound method it can be unbound again, so that a transform around it lifts the object.
    """

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return run(f, args, kwargs)

    function, bound = unbind(f)
    if bound is not None:

        def of_object(obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            return run(types.MethodType(function, obj), args, kwargs)

        set_unbound(wrapped, of_object, bound)
    return wrapped


class Bindable(Generic[P, R]):
    """A function as an object, which binds to an instance as a function does."""

    @overload
    def __get__(self, obj: None, objtype: Any = None) -> Self: ...
    @overload
    def __get__(
        self: Bindable[Concatenate[Any, Q], R], obj: Any, objtype: Any = None
    ) -> Callable[Q, R]: ...
    def __get__(self, obj: Any, objtype: Any = None) -> Any:
        bound: Any = self
        return self if obj is None else types.MethodType(bound, obj)


class Together:
    """Several functions of the same arguments, and the objects that they are methods of.

    The objects travel as keyword arguments named `true_fun.self`, so that errors call them so.
    """

    def __init__(self, functions: Mapping[str, Callable]):
        pairs = {name: unbind(f) for name, f in functions.items()}
        self.functions = tuple(function for function, _ in pairs.values())
        self.names = [f"{n}.self" if bound is not None else None for n, (_, bound) in pairs.items()]
        self.objects = {f"{n}.self": bound for n, (_, bound) in pairs.items() if bound is not None}

    def arranged(self, functions: Sequence[Callable]) -> list[Callable]:
        """`functions` (those of `self.functions`, or their proxies), each of all the arguments."""
        if not self.objects:
            return list(functions)
        return [_of_all(f, name) for f, name in zip(functions, self.names, strict=True)]


def _of_all(function: Callable, name: str | None) -> Callable:
    def inner(*args: Any, **objects: Any) -> Any:
        return function(*args) if name is None else function(objects[name], *args)

    return named_like(function, inner)


def belongs_to(wrapped: Any, obj: Any) -> bool:
    """Whether `wrapped` is (under other decorators or not) a method of the object's class."""
    for cls in type(obj).__mro__:
        attribute = vars(cls).get(wrapped.__name__)
        while attribute is not None:
            if attribute is wrapped:
                return True
            attribute = getattr(attribute, "__wrapped__", None)
    return False


def with_self(
    wrapped: Any, bound: Any, args: tuple, kwargs: dict[str, Any], prefix: Any, default: Any
) -> tuple[tuple, Any, dict[str, Any]]:
    """(arguments with a bound object in front, their prefix, entries of keyword arguments by name).

    `self` takes the default if the prefix leaves it out. Where the prefix is longer than what was
    given by position, it goes on to what was given by name (or left to its default).
    """
    if bound is not None:
        args = (bound, *args)
    if not isinstance(prefix, (tuple, list)):
        return args, prefix, {}
    prefix = tuple(prefix)
    # (Reading a signature takes longer than the rest of an eager call.)
    asked = kwargs or len(prefix) + (bound is not None) > len(args)
    names = _positional(wrapped, 0 if bound is None else 1) if asked else []
    given = len(args)
    if given == 1:  # a method that gets everything by name
        given = max([1, *(i + 1 for i, name in enumerate(names) if name in kwargs)])
    leaves_out = len(prefix) + 1 in (len(args), given) and args and isinstance(args[0], Pytree)
    if bound is not None or (leaves_out and belongs_to(wrapped, args[0])):
        prefix = (default, *prefix)
    rest, surplus = names[len(args) :], prefix[len(args) :]
    if len(surplus) <= len(rest):
        prefix = prefix[: len(args)]
    if len(prefix) == len(args):
        prefix = tuple(map(by_path, prefix, args))
    named = dict(zip(rest, surplus, strict=False))
    return args, prefix, {k: by_path(named[k], v) for k, v in kwargs.items() if k in named}


def _positional(f: Callable, shift: int) -> list[str]:
    """The names of what `f` takes by position, after as many without a name as `shift` says."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [""] * shift + [p.name for p in parameters if p.kind in kinds]


def positions(numbers: int | Iterable[int], count: int, shift: int) -> list[int]:
    """Positions as the user counts them, in the arguments with a bound object in front."""
    given = count - shift
    numbers = (numbers,) if isinstance(numbers, int) else numbers
    return [shift + (n if n >= 0 else given + n) for n in numbers if -given <= n < given]


def without_static(
    args: tuple, numbers: int | Iterable[int], shift: int
) -> tuple[tuple, dict[int, Any]]:
    """(the arguments with None for static ones, the static ones by position)."""
    static = {i: args[i] for i in positions(numbers, len(args), shift)}
    return tuple(None if i in static else a for i, a in enumerate(args)), static


def enter_unbound(
    f: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    static: int | Iterable[int] = (),
    static_names: Iterable[str] = (),
    captured: bool = False,
) -> tuple[Call, Callable]:
    """(the call, its pure function) of a function or bound method, less its static arguments."""
    function, bound = unbind(f)
    args = args if bound is None else (bound, *args)
    args, statics = without_static(args, static, 0 if bound is None else 1)
    named = {name: kwargs[name] for name in static_names if name in kwargs}
    call = enter(args, {k: v for k, v in kwargs.items() if k not in named})
    return call, pure_function(with_static(function, statics, named), call, captured=captured)


def with_static(
    function: Callable, static: dict[int, Any], named: dict[str, Any] | None = None
) -> Callable:
    """The function of the arguments that `without_static`, and taking out `named`, leaves."""
    if not static and not named:
        return function

    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*(static.get(i, a) for i, a in enumerate(args)), **kwargs, **named or {})

    return functools.update_wrapper(inner, function, updated=())


def by_position(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], prefix: Any = None
) -> tuple[Any, ...]:
    """All arguments by position, for JAX functions that take no keywords.

    What a tuple of prefixes has an entry for, and what stands before an argument given by name,
    may be left to its default.
    """
    wanted = len(prefix) if isinstance(prefix, (tuple, list)) else 0
    if not kwargs and wanted <= len(args):
        return args
    bound = inspect.signature(function).bind(*args, **kwargs)
    given = [i for i, name in enumerate(bound.signature.parameters) if name in bound.arguments]
    bound.apply_defaults()
    count = max([wanted, *(i + 1 for i in given)]) if len(args) <= len(given) else len(bound.args)
    named = sorted(bound.kwargs.keys() & kwargs.keys())
    if named:
        raise TypeError(
            f"{function.__name__}: {named} are keyword-only, but this transform "
            "maps arguments by position.\nCure: make them positional, or bind them with "
            "functools.partial."
        )
    return bound.args[: max(count, len(args))]


resolve_kwargs = by_position
