"""The one place where refax touches JAX names that are private or may move.

Each name below has the reason why it is needed and what happens without it, so that a JAX release
that drops one costs speed or a nicer message, never `import refax`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jax.sharding import get_abstract_mesh


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


OUTSIDE = TRACE.value  # what it is outside of every trace

# The mesh of `with mesh:`, JAX's older way to set one, of which `get_abstract_mesh` does not know.
# Without it, only `jax.set_mesh` sets a mesh.
_OF_THREAD: Any
try:
    from jax._src.mesh import thread_resources as _OF_THREAD
except ImportError:  # pragma: no cover - depends on the JAX release
    _OF_THREAD = None


def mesh_around() -> Any:
    """The mesh that is set, by `jax.set_mesh` or by `with mesh:`; an empty one if there is none."""
    mesh: Any = get_abstract_mesh()
    return _OF_THREAD.env.physical_mesh if mesh.empty and _OF_THREAD is not None else mesh


def is_outside_of_traces() -> bool:
    """Whether operations run at once, as they are called: no transform is at work."""
    return TRACE.value is OUTSIDE


def is_top(trace: Any) -> bool:
    """Whether what `TRACE.value` was stands for being outside of every trace."""
    return trace is OUTSIDE


def _current_trace() -> Any:
    """The trace itself; None where the fallback's token, which is no reference, stands for it."""
    return TRACE.value() if callable(TRACE.value) else None


def describe_current_trace() -> str:
    """What is being traced now and where, as far as JAX tells: "`step` (train.py:12), by jit"."""
    trace = _current_trace()
    if trace is None:
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


def name_scope(name: str, within: str) -> Any:
    """`jax.named_scope(name)`, but in the place of the scope `within` if it is right inside that.

    Scopes are otherwise only ever added, and each would repeat the path of the one around it, which
    is what happens if the private names go away.
    """
    try:
        from jax._src import source_info_util as source

        scopes = source.current_name_stack()
        if (
            len(scopes)
            and getattr(scopes.stack[-1], "wrap", None)
            and scopes.stack[-1] == (within,)
        ):
            return source.set_name_stack(scopes[:-1].extend(name))
    except (ImportError, AttributeError):  # pragma: no cover - depends on the JAX release
        pass
    import jax

    return jax.named_scope(name)


def hide_frames(file: str) -> None:
    """Leave a file out of tracebacks, and of where operations come from, as JAX does its own.

    Without the private names, there is a line more for each Module.
    """
    try:
        from jax._src import source_info_util, traceback_util

        source_info_util.register_exclusion(file)
        traceback_util.register_exclusion(file)
    except (ImportError, AttributeError):  # pragma: no cover - depends on the JAX release
        pass


def rebuilds_arguments() -> bool:
    """Whether what asks is rebuilt by JAX as an argument of a function that it traces.

    JAX rebuilds results too, and users their own trees. The module that asks tells them apart, so a
    JAX that has renamed its modules gives False for all.
    """
    frame: Any = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith(_FLATTENING):
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "")
    return module.startswith(_REBUILDING) or frame.f_code.co_name in ("_fun", "f_wrapped")


_FLATTENING = ("refax.", "jax._src.tree_util", "jax._src.flattree")
_REBUILDING = tuple(
    f"jax._src.{name}"
    for name in (
        "api_util",
        "interpreters.partial_eval",
        "interpreters.ad",
        "interpreters.batching",
    )
)


def hides_a_trace() -> bool:
    """Whether JAX traces further up the stack; `jax.ensure_compile_time_eval` hides that."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith(_REBUILDING):
        frame = frame.f_back
    return frame is not None


def only_asked() -> bool:
    """Whether the trace that runs is to compute nothing: `eval_shape` and `make_jaxpr`."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("eval_shape", "make_jaxpr", "make_jaxpr_f"):
            if frame.f_globals.get("__name__", "").startswith("jax."):
                return True
        frame = frame.f_back
    return False


def is_mapped_here(value: object) -> bool:
    """Whether `value` varies along the axis of the vmap that is being traced now.

    JAX tells so only by an error after the trace, without a path. If the private attributes go
    away, that error is what users see.
    """
    here = _current_trace()
    if here is None or getattr(value, "_trace", None) is not here:
        return False
    return getattr(value, "batch_dim", None) is not None


def is_of_current_trace(tracer: object) -> bool:
    """Whether a tracer belongs to the trace that is going on, not to one around it.

    Without the private attribute every tracer counts, also one that is of use outside.
    """
    here = _current_trace()
    return here is None or getattr(tracer, "_trace", here) is here


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


if TYPE_CHECKING:
    from jax.experimental.checkify import Error as CheckifyError  # noqa: F401


def load_checkify() -> Any:
    """`jax.experimental.checkify`, which has no public home; loaded when it is used."""
    from jax.experimental import checkify

    return checkify


def jaxpr_as_fun(closed_jaxpr: Any) -> Any:
    """A traced program as a function that can be traced into another one.

    How `cond` and `switch` get by with one trace of each branch. Loaded when it is used:
    `jax.extend` brings Pallas along, a tenth of what importing refax takes.
    """
    from jax.extend import core

    return core.jaxpr_as_fun(closed_jaxpr)


def run_equation(equation: Any, values: Sequence[Any]) -> list[Any]:
    """The outputs of one operation of a jaxpr.

    Releases differ in whether the functions that an operation calls stand beside its parameters.
    """
    primitive = equation.primitive
    found = primitive.get_bind_params(equation.params)
    functions, params = found if isinstance(found, tuple) else ((), found)
    outputs = primitive.bind(*functions, *values, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


def depends(jaxpr: Any, inputs: Sequence[bool], drawn: list[str] | None = None) -> list[bool]:
    """By output of a jaxpr, whether it depends on one of the inputs that are marked.

    The names of operations that draw random numbers from what does not are added to `drawn`.

    The classes and the names of parameters are JAX's own. Of what is not known here, every output
    depends on every input: then a program may be refused that could run.
    """
    from jax.extend.core import Literal

    marked = {v for v, mark in zip(jaxpr.invars, inputs, strict=True) if mark}
    for equation in jaxpr.eqns:
        on = [not isinstance(v, Literal) and v in marked for v in equation.invars]
        drawn = [] if drawn is None else drawn
        outs = zip(equation.outvars, _equation_depends(equation, on, drawn), strict=True)
        marked.update(v for v, mark in outs if mark)
    return [not isinstance(v, Literal) and v in marked for v in jaxpr.outvars]


def _equation_depends(equation: Any, on: list[bool], drawn: list[str]) -> list[bool]:
    from jax.extend.core import ClosedJaxpr, Jaxpr  # pyright: ignore[reportPrivateImportUsage]

    name, params, count = equation.primitive.name, equation.params, len(equation.outvars)
    if name == "axis_index":
        return [True] * count  # which differs between devices by itself
    if name in ("random_bits", "random_gamma") and not any(on):
        drawn.append(name)
    if name == "cond" and "branches" in params:
        branches = [depends(b.jaxpr, on[1:], drawn) for b in params["branches"]]
        return [on[0] or any(marks) for marks in zip(*branches, strict=True)]
    if name == "while" and "cond_nconsts" in params:
        of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
        consts, carry = on[:of_cond], on[of_cond + of_body :]
        before: list[bool] = []
        here: list[str] = []
        while before != carry:  # marks only spread; what the last round draws counts
            before, here = carry, []
            body = depends(params["body_jaxpr"].jaxpr, on[of_cond:-count] + carry, here)
            carry = [a or b for a, b in zip(carry, body, strict=True)]
        drawn += here
        return [x or any(depends(params["cond_jaxpr"].jaxpr, consts + carry)) for x in carry]
    bodies = [p for p in params.values() if isinstance(p, (Jaxpr, ClosedJaxpr))]
    body = getattr(bodies[0], "jaxpr", bodies[0]) if len(bodies) == 1 else None
    if body is None or (len(body.invars), len(body.outvars)) != (len(on), count):
        return [any(on)] * count  # an operation, or something that is not known here
    here = []
    outs = depends(body, on, here)
    if name == "scan":
        first, last = scan_carry(equation, body)
        spread: list[bool] = []
        while spread != on:
            carry = [a or b for a, b in zip(on[first:last], outs, strict=False)]
            spread, on = on, [*on[:first], *carry, *on[last:]]
            here = []
            outs = depends(body, on, here)
    drawn += here
    return outs


def scan_carry(equation: Any, body: Any) -> tuple[int, int]:
    """Where among the inputs of a scan the carry begins and ends, after the constants.

    What is scanned has one axis more outside than in the body; the parameters have had other names.
    """
    last = len(equation.invars) - _more_axes(equation.invars, body.invars)
    return last - len(equation.outvars) + _more_axes(equation.outvars, body.outvars), last


def _more_axes(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(len(a.aval.shape) > len(b.aval.shape) for a, b in pairs)


def gathered(array: Any) -> Any:
    """The arrays of all processes, stacked, for which JAX has no public function."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array)


def messages() -> Any:
    """What the processes of a program leave notes for each other in, for threads too."""
    from jax._src.distributed import global_state

    return global_state.client
