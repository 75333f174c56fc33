"""What every transform shares: use as a decorator with or without arguments, and as a method."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

__all__ = ["decorator_or_function", "method_of"]


def decorator_or_function(transform: Callable) -> Callable:
    """Let `transform(f, **kw)` also be written `@transform` and `@transform(**kw)`."""

    @functools.wraps(transform)
    def wrapper(fun: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        if fun is None or not callable(fun):
            if fun is not None:
                raise TypeError(
                    f"nnx.{transform.__name__} takes a function, got {type(fun).__name__}."
                )
            return lambda f: transform(f, *args, **kwargs)
        return transform(fun, *args, **kwargs)

    return wrapper


def method_of(wrapped: Callable, obj: Any) -> Any:
    """A wrapper in a class body, bound to an object, as a plain function would be."""
    return types.MethodType(wrapped, obj)
