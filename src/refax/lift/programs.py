"""Compiled programs, kept with the function that they were made from.

A program belongs to a function, not to the wrapper around it, so that a transform made again for
the same function compiles nothing. The cache is weak in the function and bounded per function.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax

from .._jax_compat import is_outside_of_traces
from ..objects.trace_errors import tracing
from .arguments import named_like
from .closures import reads_objects
from .replaced import is_anything_replaced

_MAX_PROGRAMS = 256


class _Kept:
    """The programs of a sequence of functions, each known weakly."""

    __slots__ = ("following", "programs")

    def __init__(self) -> None:
        self.programs: dict[Hashable, dict[Any, Any]] = {}  # by options
        self.following: weakref.WeakKeyDictionary[Callable, _Kept] = weakref.WeakKeyDictionary()


_KEPT = _Kept()


def _programs(functions: tuple[Callable, ...], options: Hashable) -> dict[Any, Any]:
    """Raises TypeError where a function has no weak references, or the options no hash."""
    kept = _KEPT
    for function in functions:
        kept = kept.following.get(function) or kept.following.setdefault(function, _Kept())
    return kept.programs.setdefault(options, {})


def programs_of(function: Callable, options: Hashable) -> dict[Any, Any]:
    """The programs of `function` under these options; a dict of its own if either has no hash."""
    try:
        return _programs((function,), options)
    except TypeError:
        return {}


def remember(programs: dict[Any, Any], key: Any, program: Any) -> None:
    """Keep a program; beyond the bound the oldest goes."""
    if len(programs) >= _MAX_PROGRAMS:
        programs.pop(next(iter(programs)), None)
    programs[key] = program


class _Proxy:
    """A function known weakly; `inspect.unwrap` and `inspect.signature` see the function itself."""

    def __init__(self, function: Callable):
        self._reference: Any = weakref.ref(function)

    __wrapped__ = property(lambda self: self._reference())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        user = self._reference()
        with tracing(user):
            return user(*args, **kwargs)


def proxy(function: Callable) -> Callable:
    """The function, known weakly: what its own programs call, so that it may die with them."""
    try:
        return named_like(function, _Proxy(function))
    except TypeError:  # a kind of callable without weak references
        return function


def eager_program(
    functions: tuple[Callable, ...],
    key: Any,
    make: Callable[[tuple[Callable, ...]], Callable],
    compile: Callable[[Callable], Callable] = jax.jit,
) -> Callable:
    """`make(functions)`, compiled once per key when called eagerly.

    Inside a trace the function is part of what is traced, and is made anew. So it is for functions
    that close over objects: a program would have their present values as constants. So it is, too,
    while a function of JAX is replaced.

    Args:
        functions: the user's functions that the program runs.
        key: everything else that the program depends on.
        make: from the functions to the function of (values by group, tree).
        compile: what to do with that.
    """
    if not is_outside_of_traces() or any(map(reads_objects, functions)) or is_anything_replaced():
        return make(functions)
    try:
        programs = _programs(functions, None)
        program = programs.get(key)
    except TypeError:  # a function without weak references, or a key without a hash
        return make(functions)
    if program is None:
        program = compile(named_like(functions[0], make(tuple(map(proxy, functions)))))
        remember(programs, key, program)
    return program
