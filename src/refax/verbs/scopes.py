"""Scopes: which method of which Module runs, under which path; operations are named by it.

While JAX traces, a public method of a Module runs in a scope of JAX's that is named by the path of
the Module, from the arguments of the transformed function on: `model.blocks.3.attention.query`,
and `model.encoder.encode` for the method `encode`. XLA keeps the name with each operation, also on
the way back (`transpose(jvp(model.blocks.3))`). A scope stands in for the one that it is directly
in, so a name says a path once; what it runs in besides (a loop, the user's own `jax.named_scope`)
is before it.

The lift tells the objects that it makes inside of a trace what they are called. An object that it
did not make (one from the surrounding code, or made in the trace) is called by its class, and all
below it from there on: `GPT.blocks.3`.

A jitted method that is called inside of a trace goes on from there: its call has the path of its
object, and what is in it a name that begins with a dot, `model.blocks.3/jit(f)/.attention`, so that
one trace of it is good for every object. (A method that is called both ways is traced for each.)

A class gets its methods wrapped when it is made. Outside of traces a wrapped method asks one
question (60 ns) and calls the method. Whoever wants to know of all calls, `watching` tells them,
outside of traces too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .._jax_compat import OUTSIDE, TRACE, hide_frames, name_scope
from ..objects.arguments import PLACES
from ..objects.errors import path_string
from ..objects.modes import using_scopes
from ..objects.node import Node, object_path
from ..objects.stack import Stack
from .iteration import iter_graph

Path = tuple[Any, ...]
Below = Mapping[int, tuple[Any, Path]]


class Running(NamedTuple):
    """A public method of a Module that runs: at the path `path`, whose first key is the root."""

    module: Any
    method: str
    path: Path
    below: Below  # by id: what has no path of its own, and its path here
    within: str = ""  # what a path goes on from whose root is an empty name

    @property
    def name(self) -> str:
        """`model.blocks.3`; `model.encoder.encode` for another method than `__call__`."""
        keys = self.path if self.method.startswith("_") else (*self.path, self.method)
        return ".".join(map(str, keys))

    @property
    def whole_name(self) -> str:
        return self.within + self.name


Before = Callable[[Running, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[Running, Any], None]

hide_frames(__file__)
_RUNNING = Stack()
_WATCHERS = Stack()
_WATCHED: list[None] = []  # as long as there are watchers, in any thread
_trace = TRACE
_quiet: Any = OUTSIDE  # the trace in which there is nothing to do


def running() -> tuple[Running, ...]:
    """The methods that run in this thread, the innermost last: of traces, or while watched."""
    return tuple(_RUNNING.items)


@contextlib.contextmanager
def watching(before: Before | None = None, after: After | None = None) -> Iterator[None]:
    """Tell of each public method of a Module that runs in the block, in this thread.

    Inside of transforms it tells of what is traced, with tracers, each time that JAX traces it. A
    method that calls the one of its base class (or itself) is told of once.

    Args:
        before: gets (running, args, kwargs) before the method runs.
        after: gets (running, output) after it, not if it raised.
    """
    global _quiet
    _WATCHED.append(None)
    _quiet = None
    try:
        with _WATCHERS.during((before, after)):
            yield
    finally:
        _WATCHED.pop()
        _quiet = None if _WATCHED else OUTSIDE


def scope_methods(cls: type) -> None:
    """Wrap the public methods that a class has of its own, or of bases that are no Nodes."""
    for base in cls.__mro__:
        if base is not cls and (issubclass(base, Node) or base.__module__ in _LANGUAGE):
            continue
        for name, method in list(vars(base).items()):
            public = name == "__call__" or not name.startswith("_")
            if public and type(method) is types.FunctionType and unscoped(method) is method:
                if base is cls:
                    setattr(cls, name, _scoped(method, name))
                elif next(b for b in cls.__mro__ if name in vars(b)) is base:
                    setattr(cls, name, _scoped(_inherited(cls, name, method), name))


_LANGUAGE = ("builtins", "abc", "typing", "typing_extensions")


def _inherited(cls: type, name: str, method: Callable) -> Callable:
    """What a class inherits: looked up at each call, since a subclass may have more bases."""

    @functools.wraps(method)
    def inherited(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(cls, self), name)(*args, **kwargs)

    return inherited


def _scoped(method: types.FunctionType, name: str) -> Callable:
    # In place of its contents, which cloudpickle cannot write if it writes a class by value.
    here, code = sys.modules[__name__], method.__code__

    def any_parameters(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if here._trace.value is here._quiet:
            return method(self, *args, **kwargs)
        return here._run(method, name, self, args, kwargs)

    # The most common ones apart: stars would take 0.4 µs, ten times as much as the question.
    def one(self: Any) -> Any:
        if here._trace.value is here._quiet:
            return method(self)
        return here._run(method, name, self, (), {})

    def two(self: Any, a: Any) -> Any:
        if here._trace.value is here._quiet:
            return method(self, a)
        return here._run(method, name, self, (a,), {})

    def three(self: Any, a: Any, b: Any) -> Any:
        if here._trace.value is here._quiet:
            return method(self, a, b)
        return here._run(method, name, self, (a, b), {})

    scoped: Any = any_parameters
    stars = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    if 0 < code.co_argcount < 4 and not (stars or code.co_kwonlyargcount):
        scoped = (one, two, three)[code.co_argcount - 1]
        names, posonly = code.co_varnames[: code.co_argcount], code.co_posonlyargcount
        scoped.__code__ = scoped.__code__.replace(co_varnames=names, co_posonlyargcount=posonly)
        scoped.__defaults__ = method.__defaults__
    return functools.update_wrapper(scoped, method)


def unscoped(function: Any) -> Any:
    """The method itself, of one that was wrapped here."""
    code: Any = getattr(function, "__code__", None)
    ours = code is not None and code.co_qualname.startswith("_scoped.<locals>.")
    return function.__wrapped__ if ours else function


def call_scoped(function: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`function(*args, **kwargs)`, in the scope of its first argument if it is a method of it."""
    first = args[0] if args else None
    is_object = isinstance(first, Node)  # a Variable would be asked for its value
    if is_object and getattr(first, "_refax_phase", "") and is_method(function, first):
        return _run(function, function.__name__, first, args[1:], kwargs)
    return function(*args, **kwargs)


def is_method(function: Any, obj: Any) -> bool:
    """Whether a function is a method of the class of an object, or a base of it."""
    name, place = (getattr(function, key, "") for key in ("__name__", "__qualname__"))
    bases = type(obj).__mro__ if isinstance(obj, Node) else ()
    return any(place == f"{base.__qualname__}.{name}" for base in bases)


def _run(
    method: Callable, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    last = _RUNNING.items[-1] if _RUNNING.items else None
    if last is not None and last.module is module and last.method == name:
        return method(module, *args, **kwargs)
    watchers = tuple(_WATCHERS.items)
    if not (watchers or using_scopes()):
        return method(module, *args, **kwargs)
    now = _now(module, name, last)
    for before, _ in watchers:
        if before is not None:
            before(now, args, kwargs)
    with _inside(now, last):
        try:
            output = method(module, *args, **kwargs)
        except Exception as error:
            _note(error, now)
            raise
    for _, after in watchers:
        if after is not None:
            after(now, output)
    return output


def _note(error: Exception, now: Running) -> None:
    """Note where it was raised, once: Python shows it with the error."""
    told = getattr(error, "has_place", False) or getattr(error, "__notes__", ())
    if not told:
        error.add_note(f"In `{now.whole_name}`, {type(now.module).__name__}.{now.method}.")


def _now(module: Any, method: str, last: Running | None) -> Running:
    if last is None:
        return Running(module, method, *_place(module, {}))
    path, below = _place(module, last.below)
    goes_on = path[0] == "" and last.method == _CALL_OF_JIT
    return Running(module, method, path, below, last.whole_name if goes_on else last.within)


@contextlib.contextmanager
def _inside(now: Running, last: Running | None) -> Iterator[None]:
    with _RUNNING.during(now):
        if now.name and using_scopes():
            with name_scope(now.name, "" if last is None else last.name):
                yield
        else:
            yield


_CALL_OF_JIT = "_"


def call_jitted(program: Callable, inputs: Sequence[Any], module: Any = None) -> Any:
    """`program(*inputs)` inside of a trace: a jitted function, or a method of a module."""
    last = _RUNNING.items[-1] if _RUNNING.items else None
    known = isinstance(module, Node) and path_of(module) is not None and using_scopes()
    if not (known or goes_on()):
        return program(*inputs)
    with _GOES_ON(known):
        if not known:
            return program(*inputs)
        with _inside(_now(module, _CALL_OF_JIT, last), last):
            return program(*inputs)


# Whether names go on from those of the call: a context of JAX, since a trace is for one of both.
_GOES_ON = jax.make_user_context(False)


def goes_on() -> bool:
    return _GOES_ON.value


def path_of(obj: Any) -> Path | None:
    """The path of an object in what is traced now; None if nothing is known of it."""
    return _known(obj, _RUNNING.items[-1].below if _RUNNING.items else {})


def place_of(obj: Any) -> str:
    """Where an object is, `model.blocks[3].norm`, for messages; nothing if it is in no other.

    Outside of traces it is looked for in the objects whose methods run, the outermost first.
    """
    if not isinstance(obj, Node):
        return ""
    frame, holders = sys._getframe(1), []
    while frame is not None:
        code, frame = (frame.f_code, frame.f_locals), frame.f_back
        first = code[1].get(code[0].co_varnames[0]) if code[0].co_argcount else None
        if isinstance(first, Node) and first is not obj:
            holders.append(first)
    if path := path_of(obj):
        root = _RUNNING.items[-1].within if path[0] == "" and _RUNNING.items else str(path[0])
        # A method that a transform traces, in an object outside of traces.
        for holder in holders:
            if type(holder).__name__ == root and path_of(holder) is None:
                root = place_of(holder) or root
                break
        return re.sub(r"\['(\w+\[\*\])'\]", r".\1", path_string(path[1:], root))
    found = ((holder, *each) for holder in holders[::-1] for each in iter_graph(holder))
    places = (path_string(path, type(holder).__name__) for holder, path, x in found if x is obj)
    return next(places, "")


PLACES.append(place_of)


def rename_stacked(obj: Any) -> None:
    """`blocks` is `blocks[*]` in what the running method passes it on to: one for them all."""
    path = path_of(obj)
    if path is not None and _RUNNING.items:
        last: Running = _RUNNING.items[-1]
        entry = obj, (*path[:-1], f"{path[-1]}[*]")
        _RUNNING.items[-1] = last._replace(below={**last.below, id(obj): entry})


def _known(obj: Any, below: Below) -> Path | None:
    found = below.get(id(obj))
    return found[1] if found is not None else object_path(obj)


def _place(module: Any, below: Below) -> tuple[Path, Below]:
    """The path of a Module whose method is called; what is known of the objects below."""
    path = _known(module, below)
    if path is not None:
        return path, below
    root = (type(module).__name__,)
    found = {id(x): (x, (*root, *at)) for at, x in iter_graph(module) if isinstance(x, Node)}
    return root, {**below, **found}
