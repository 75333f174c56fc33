"""The message of `TraceContextError`: which object, in which function, and the cure."""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import os
import sys
import traceback
from typing import Any

from .._jax_compat import describe_current_trace
from .errors import TraceContextError, describe_value
from .stack import Stack

# Which of the user's functions a transform is tracing, for messages only.
_TRACED = Stack()
tracing = _TRACED.during
_HERE = os.path.dirname(os.path.dirname(__file__))


def where(function: Any) -> str:
    """A function for a message: `train.<locals>.step (train.py:12)`."""
    while isinstance(function := inspect.unwrap(function), functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    at = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"`{getattr(function, '__qualname__', type(function).__name__)}`{at}"


def traced_function() -> str:
    """The function that is traced: JAX knows refax's wrapper, the stack knows the user's."""
    told = describe_current_trace()
    if _TRACED.items and _HERE in told:
        return f"{where(_TRACED.items[-1])}, by {told.rpartition(' by ')[2]}"
    if told.startswith("a function under"):  # grad and vmap carry no name
        return f"{_called_by_jax()}, by {told.rpartition(' ')[2]}"
    return told


def _called_by_jax() -> str:
    """The innermost function of the user's that JAX called, as the stack of frames has it."""
    code = None
    for frame, _ in traceback.walk_stack(sys._getframe(1)):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package == "jax" and code is not None:
            break
        if package not in ("jax", "refax"):
            code = frame.f_code
    assert code is not None
    return f"`{code.co_qualname}` ({code.co_filename}:{code.co_firstlineno})"


def known_name(obj: Any) -> str:
    """Where an object is held, as `Counter.count`, from whoever refers to it; "" if nobody."""
    found = ""
    for holder in () if obj is None else gc.get_referrers(obj):
        attributes = holder if type(holder) is dict else getattr(holder, "__dict__", None)
        if not isinstance(attributes, dict):
            continue
        for name, value in list(attributes.items()):
            if value is obj and isinstance(name, str) and "__name__" not in attributes:
                owner = _owner_of(attributes) if attributes is holder else type(holder).__name__
                if owner:
                    return f"{owner}.{name}"
                found = name  # in a dict of its own, a State's say
    return found


def _owner_of(attributes: dict) -> str:
    for holder in gc.get_referrers(attributes):
        if getattr(holder, "__dict__", None) is attributes and not isinstance(holder, type):
            return type(holder).__name__
    return ""


def name_of_new(variable: Any) -> str:
    """What is being made, for a message: `Net.blocks….kernel`, a Param.

    No object holds it yet. But those who make it are at work, and where the result of a call is
    stored in `self`, the next instruction says by which name; `…` stands for what is between.
    """
    kind, parts, owner, waiting, below = type(variable).__name__, list[str](), variable, None, False
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        code = frame.f_code
        first = code.co_varnames[0] if code.co_argcount else ""
        method = first == "self" or code.co_name == "__init__"
        mine = frame.f_locals.get(first) if method else None
        below = below or code.co_name.startswith("<")  # a comprehension
        if mine is None or mine is owner:
            continue
        if waiting is not None and mine is not waiting:
            break
        after = [i for i in dis.get_instructions(code)
                 if i.offset > frame.f_lasti and i.opname != "CACHE"]  # fmt: skip
        lines = [(i.positions and i.positions.lineno) or line for i in after]
        stores = [i for i, at in zip(after, lines) if i.opname == "STORE_ATTR" and at <= line]
        if len(stores) != 1:
            waiting = mine  # a method that another one of the same object calls
            continue
        between = after[: after.index(stores[0])]
        below = below or not all(i.opname.startswith(("LOAD_", "JUMP_F")) for i in between)
        parts[:0] = [str(stores[0].argval), "…." if below else "."]
        owner, waiting, below = mine, None, False
    return f"`{type(owner).__name__}.{''.join(parts)[:-1]}`, a {kind}" if parts else kind


def mutation_error(obj: Any, action: str, place: str = "") -> TraceContextError:
    """Only for the error path: without a place, looking for the name asks the garbage collector."""
    name = place or known_name(obj)
    kind = type(obj).__name__
    named = f"{kind} `{name}`" if name else f"a {kind}"
    raw = getattr(obj, "_value", None)
    size = f" ({describe_value(raw)})" if raw is not None else ""
    return TraceContextError(
        f"Cannot {action} {named}{size} from inside {traced_function()}: the object belongs "
        "to another trace level.\n"
        "It was created, or entered as an argument, outside of the function that is now traced, "
        "so the change would leave a tracer behind in it.\n"
        "Cure: pass the object (or the model that holds it) to the transformed function as an "
        "argument instead of reading it from the surrounding code:\n"
        "    wrong:  @nnx.jit\n"
        "            def f(x): counter.increment()\n"
        "    right:  @nnx.jit\n"
        "            def f(counter, x): counter.increment()"
    )
