"""The trace that runs, as a user may ask for it."""

from __future__ import annotations

from .._jax_compat import TRACE


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
        self.jax_trace = current_jax_trace()

    def is_valid(self) -> bool:
        """Whether it is the current one."""
        return self.jax_trace is TRACE.value
