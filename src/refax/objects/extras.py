"""What stands at an address of NNX and is not used by refax itself.

Unique ids, the mutable arrays of JAX under the names that NNX once had for them, the trace that
runs, and a look at a signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeGuard
from uuid import UUID as UUID
from uuid import uuid4

import jax

from .._jax_compat import TRACE

uuid = uuid4
ArrayRef = jax.Ref
array_ref: Callable[..., jax.Ref] = jax.new_ref


def is_array_ref(x: Any) -> TypeGuard[jax.Ref]:
    """Whether `x` is a `jax.Ref`."""
    return isinstance(x, jax.Ref)


def current_jax_trace() -> object:
    """What stands for the current trace: the same object as long as it is the same trace."""
    return TRACE.value


class TraceState:
    """The trace in which it was made.

    Example:
        >>> from refax import nnx
        >>> import jax
        >>> outside, inside = nnx.tracers.TraceState(), []
        >>> _ = jax.jit(lambda: inside.append(outside.is_valid()))()
        >>> outside.is_valid(), inside
        (True, [False])
    """

    __slots__ = ("jax_trace",)

    def __init__(self) -> None:
        self.jax_trace: object = current_jax_trace()

    def is_valid(self) -> bool:
        """Whether it is the current one."""
        return self.jax_trace is TRACE.value


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def has_keyword_arg(func: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of its own that can be given by this name.

    Example:
        >>> from refax import nnx
        >>> [nnx.helpers.has_keyword_arg(f, "x") for f in (lambda x: x, lambda **x: x)]
        [True, False]
    """
    parameter = inspect.signature(func).parameters.get(name)
    return parameter is not None and parameter.kind in _BY_NAME
