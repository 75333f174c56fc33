"""Compiled programs, kept with the function that they were made from.

A program belongs to a function, not to the wrapper around it, so that a transform made again for
the same function compiles nothing. The cache is weak in the function and bounded per function.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax

from .._jax_compat import TRACE
from ..graph.module import Pytree
from ..graph.state import State
from ..graph.trace_errors import tracing
from ..graph.variable import Variable

_MAX_PROGRAMS = 256
_TOP = TRACE.value

_PROGRAMS: weakref.WeakKeyDictionary[Callable, dict[Any, dict]] = weakref.WeakKeyDictionary()


def programs_of(function: Callable, options: Hashable | None) -> dict[Any, Any]:
    """The programs of `function` under these options; a dict of its own if either has no hash."""
    if options is None:
        return {}
    try:
        return _PROGRAMS.setdefault(function, {}).setdefault(options, {})
    except TypeError:
        return {}


def remember(programs: dict[Any, Any], key: Any, program: Any) -> None:
    """Keep a program; beyond the bound the oldest goes. (String keys are notes, not programs.)"""
    if len(programs) >= _MAX_PROGRAMS:
        programs.pop(next(k for k in programs if not isinstance(k, str)), None)
    programs[key] = program


def proxy(function: Callable) -> Callable:
    """The function, known weakly: what its own programs call, so that it may die with them."""
    try:
        reference: Any = weakref.ref(function)
    except TypeError:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        user = reference()
        with tracing(user):
            return user(*args, **kwargs)

    for name in ("__name__", "__qualname__", "__module__"):
        setattr(call, name, getattr(function, name, "function"))
    return call


def eager_program(
    functions: tuple[Callable, ...],
    key: Any,
    make: Callable[[tuple[Callable, ...]], Callable],
    compile: Callable[[Callable], Callable] = jax.jit,
) -> Callable:
    """`make(functions)`, compiled once per key when called eagerly.

    Inside a trace the function is part of what is traced, and is made anew. So it is for functions
    that close over objects: a program would have their present values as constants.

    Args:
        functions: the user's functions that the program runs.
        key: everything else that the program depends on.
        make: from the functions to the function of (values by group, tree).
        compile: what to do with that.
    """
    if TRACE.value is not _TOP or any(map(_closes_over_objects, functions)):
        return make(functions)
    first, *others = functions
    try:
        programs = programs_of(first, tuple(others))
        program = programs.get(key)
    except TypeError:
        return make(functions)
    if program is None:
        program = compile(make(tuple(map(proxy, functions))))
        remember(programs, key, program)
    return program


def _closes_over_objects(function: Callable, depth: int = 0) -> bool:
    """Whether a function reads Pytrees or Variables from its surroundings, as far as one sees."""
    if depth > 4:
        return True
    if isinstance(function, functools.partial):
        parts = [function.func, *function.args, *function.keywords.values()]
        return any(_holds_objects(part, depth + 1) for part in parts)
    if isinstance(function, types.MethodType):
        return True
    if not isinstance(function, types.FunctionType):
        return False
    for cell in function.__closure__ or ():
        try:
            if _holds_objects(cell.cell_contents, depth + 1):
                return True
        except ValueError:  # an empty cell
            continue
    names = _global_names(function.__code__) & function.__globals__.keys()
    return any(_holds_objects(function.__globals__[name], depth + 1) for name in names)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _holds_objects(value: Any, depth: int) -> bool:
    if isinstance(value, (Pytree, Variable, State)):
        return True
    if isinstance(value, (list, tuple)):
        return depth <= 4 and any(_holds_objects(x, depth + 1) for x in value)
    if isinstance(value, dict):
        return depth <= 4 and any(_holds_objects(x, depth + 1) for x in value.values())
    if isinstance(value, (types.FunctionType, functools.partial)):
        module = getattr(value, "__module__", "") or ""
        if module.partition(".")[0] in ("jax", "refax", "numpy", "optax"):
            return False
        return _closes_over_objects(value, depth + 1)
    return False
