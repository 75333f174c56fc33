"""The one place where refax touches JAX names that are private or may move.

Each name below has the reason why it is needed and what happens without it, so that a JAX release
that drops one costs speed or a nicer message, never `import refax`.
"""

from __future__ import annotations

from typing import Any


class _OpaqueTrace:
    """Fallback for `TRACE`, built on JAX's public (slower) trace-state query."""

    def __init__(self) -> None:
        self._last: Any = None

    @property
    def value(self) -> Any:
        from jax.extend import core

        state = core.get_opaque_trace_state(convention="nnx")
        if self._last is None or self._last != state:
            self._last = state
        return self._last


# `TRACE.value` is an object that is the same one as long as the same trace is current, and another
# one inside jit, grad, vmap … . It is a weak reference to the trace, so keeping it keeps nothing
# alive. It is read at every write to a Variable: 25 ns here, about 1 µs through the public call.
TRACE: Any
try:
    from jax._src.core import trace_state as TRACE
except ImportError:  # pragma: no cover - depends on the JAX release
    TRACE = _OpaqueTrace()


def describe_current_trace() -> str:
    """What is being traced now and where, as far as JAX tells: "`step` (train.py:12), by jit"."""
    try:
        trace = TRACE.value()
    except TypeError:  # the fallback's token is not a reference
        return "a JAX transform"
    innermost = type(trace).__name__
    # Debug information is private and only some traces carry it; a message can do without.
    for _ in range(8):
        frame = getattr(trace, "frame", None)
        info = getattr(frame, "debug_info", None)
        if info is not None:
            name, _, where = str(info.func_src_info).partition(" at ")
            return f"`{name}`" + (f" ({where})" if where else "") + f", by {info.traced_for}"
        parent = getattr(trace, "parent_trace", None)
        if parent is None:
            break
        trace = parent
    names = {"BatchTrace": "vmap", "JVPTrace": "grad", "LinearizeTrace": "grad"}
    if innermost == "EvalTrace":
        return "no function"
    return f"a function under {names.get(innermost, innermost)}"


def is_mapped_here(value: object) -> bool:
    """Whether `value` varies along the axis of the vmap that is being traced now.

    JAX tells so only by an error after the trace, without a path. If the private attributes go
    away, that error is what users see.
    """
    try:
        here = TRACE.value()
    except TypeError:
        return False
    return getattr(value, "_trace", None) is here and getattr(value, "batch_dim", None) is not None


def varying_axes(value: Any) -> frozenset:
    """The mesh axes of a shard_map along which `value` differs between devices, as JAX tells it.

    The name of the attribute has changed before; without it, JAX's own error is what users see.
    """
    import jax

    aval = jax.typeof(value)
    varying = getattr(aval, "vma", None)
    if varying is None:
        varying = getattr(getattr(aval, "mat", None), "varying", None)
    return frozenset(varying or ())


def load_checkify() -> Any:
    """`jax.experimental.checkify`, which has no public home; loaded when it is used."""
    from jax.experimental import checkify

    return checkify


def jaxpr_as_fun(closed_jaxpr: Any) -> Any:
    """A traced program as a function that can be traced into another one.

    How `cond` and `switch` get by with one trace of each branch. It has stood in `jax.core` before.
    Loaded when it is used: `jax.extend` brings Pallas along, a tenth of what importing refax takes.
    """
    try:
        from jax.extend import core
    except ImportError:  # pragma: no cover - depends on the JAX release
        from jax import core

        return lambda *args: core.eval_jaxpr(closed_jaxpr.jaxpr, closed_jaxpr.consts, *args)
    return core.jaxpr_as_fun(closed_jaxpr)
