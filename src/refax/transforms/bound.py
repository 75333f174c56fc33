"""What every transform shares: use as a decorator with or without arguments, and as a method."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from ..graph.module import Pytree


def decorator_or_function(transform: Callable) -> Callable:
    """Let `transform(f, **kw)` also be written `@transform` and `@transform(**kw)`."""

    @functools.wraps(transform)
    def wrapper(fun: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        if fun is None or not callable(fun):
            if fun is not None:
                raise TypeError(
                    f"nnx.{transform.__name__} takes a function, got {type(fun).__name__}.\n"
                    f"Cure: nnx.{transform.__name__}(function)(arguments)."
                )
            return lambda f: transform(f, *args, **kwargs)
        return transform(fun, *args, **kwargs)

    return wrapper


def method_of(wrapped: Callable, obj: Any) -> Any:
    """A wrapper in a class body, bound to an object, as a plain function would be."""
    return types.MethodType(wrapped, obj)


def belongs_to(wrapped: Any, obj: Any) -> bool:
    """Whether `wrapped` is (under other decorators or not) a method of the object's class."""
    for cls in type(obj).__mro__:
        attribute = vars(cls).get(wrapped.__name__)
        while attribute is not None:
            if attribute is wrapped:
                return True
            attribute = getattr(attribute, "__wrapped__", None)
    return False


def with_self(wrapped: Any, prefix: Any, args: tuple, default: Any) -> Any:
    """A prefix tuple that leaves `self` out, with the default for it in front."""
    if not isinstance(prefix, (tuple, list)):
        return prefix
    prefix = tuple(prefix)
    if (
        len(prefix) == len(args) - 1
        and isinstance(args[0], Pytree)
        and belongs_to(wrapped, args[0])
    ):
        return (default, *prefix)
    return prefix


def by_position(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple:
    """All arguments by position, for JAX functions that take no keywords."""
    if not kwargs:
        return args
    bound = inspect.signature(function).bind(*args, **kwargs)
    if bound.kwargs:
        raise TypeError(
            f"{function.__name__}: {sorted(bound.kwargs)} are keyword-only, but this transform "
            "maps arguments by position.\nCure: make them positional, or bind them with "
            "functools.partial."
        )
    return bound.args


def cached_partial(f: Callable, *objects: Any) -> Callable:
    """`functools.partial(f, *objects)`, for code that fixes the objects of a jitted step.

    Plans make every call cheap, so there is nothing left to cache.
    """
    return functools.partial(f, *objects)
