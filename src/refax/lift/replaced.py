"""Whether somebody has replaced a function of JAX, as libraries do that quantize a whole program.

They put another function at an address (`jax.lax.dot_general`), or other code into the function
that stands there, and expect that whatever is called from then on reaches it. A program that was
compiled before does not, so eager code takes none while something is replaced.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_MODULES = [vars(module) for module in (lax, jnp, jax.nn, jax.random)]
_NAMES = [[name for name, f in names.items() if callable(f)] for names in _MODULES]
_FUNCTIONS = [[names[n] for n in known] for names, known in zip(_MODULES, _NAMES, strict=True)]
_WITH_CODE = [f for group in _FUNCTIONS for f in group if isinstance(f, types.FunctionType)]
_CODE_OF = operator.attrgetter("__code__")
_CODE = list(map(_CODE_OF, _WITH_CODE))
_REPLACEABLE: list[Replaceable] = []


def is_anything_replaced() -> bool:
    """Whether a function of `jax.lax`, `.numpy`, `.nn`, `.random`, or an option's default, is."""
    # Lists are compared by identity first, in C: about 20 µs.
    if [*map(_CODE_OF, _WITH_CODE)] != _CODE:
        return True
    if any(option.now() is not option.function for option in _REPLACEABLE):
        return True
    now = [[*map(names.get, known)] for names, known in zip(_MODULES, _NAMES, strict=True)]
    return now != _FUNCTIONS


def at_address(function: Callable[..., Any], *modules: str) -> Callable[..., Any]:
    """`function`, or what stands in its place in one of these modules now.

    Libraries that quantize replace functions of JAX and of the layers by their addresses. So
    nothing here keeps a function that it got when it was imported.
    """
    for module in modules:
        found = getattr(sys.modules.get(module), function.__name__, function)
        if found is not function:
            return found
    return function


class Replaceable:
    """A class attribute: an option's default, a function that may be replaced at its addresses.

    The class has the function itself, an object what stands there when it is read.
    """

    def __init__(self, function: Callable[..., Any], *modules: str):
        self.function = function
        self.modules = modules
        _REPLACEABLE.append(self)
        if isinstance(function, types.FunctionType):
            _WITH_CODE.append(function)
            _CODE.append(function.__code__)

    def __get__(self, instance: Any, owner: Any = None) -> Callable[..., Any]:
        return self.function if instance is None else self.now()

    def now(self) -> Callable[..., Any]:
        return at_address(self.function, *self.modules)

    def instead_of(self, given: Callable[..., Any]) -> Callable[..., Any]:
        """What a function's own default stands for."""
        return self.now() if given is self.function else given
