"""What objects a function reads from its surroundings, as constants of its compiled programs.

A compiled program has what a function closes over as constants. A Variable that is read that way
has another value at the next call, which a kept program would not see. So an eager transform looks,
at each call, at what the function can reach: closure cells, defaults, the globals that its code
loads, and from there functions, containers and plain instances, each once.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from typing import Any

from ..graph.state import State
from ..objects.outer_reads import COLLECTING, Reads
from ..objects.variable import Variable, watch_reads
from ..verbs.iteration import iter_graph
from ..verbs.pytree import Pytree

_OBJECTS = (Pytree, Variable, State)
_NAMESPACES = (types.ModuleType, type)  # of which what is named counts
PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), range, slice})
# Code that holds no objects of the user's, except in what it wraps.
_LIBRARIES = frozenset({"jax", "jaxlib", "numpy", "optax", "refax"}) | sys.stdlib_module_names
_MANY = 2000  # beyond, one cannot tell in reasonable time


def reads_objects(function: Callable) -> bool:
    """Whether `function` can read Pytrees or Variables that it did not get as arguments."""
    return next(closed_over(function), None) is not None


def closed_over(function: Callable) -> Iterator[Any]:
    """The objects that `function` can reach; `_MANY` comes last if it reaches too much to look."""
    pending: list[Any] = [function]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if type(value) in PLAIN or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _OBJECTS):
            yield value
            continue
        pending.extend(reached(value))
        if len(seen) + len(pending) > _MANY:
            yield _MANY
            return


@contextlib.contextmanager
def collecting(reads: Reads, function: Callable) -> Iterator[None]:
    """Note in `reads` the Variables of its surroundings that `function` reads in the block.

    Only for the time of a trace: reading a Variable that nobody watches costs nothing.
    """
    objects = [obj for obj in closed_over(function) if isinstance(obj, (Pytree, Variable))]
    variables = [v for _, v in iter_graph(objects) if isinstance(v, Variable)]
    try:
        for variable in variables:
            watch_reads(variable, True)
        with COLLECTING.during(reads):
            yield
    finally:
        for variable in variables:
            watch_reads(variable, False)


def reached(value: Any) -> Iterator[Any]:
    """What can be read through a value, one step on."""
    if isinstance(value, types.FunctionType):
        if not _is_library(value.__module__):
            yield from held_by(value)
            yield from _globals_of(value)
    elif isinstance(value, types.CellType):
        yield content(value)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif not isinstance(value, (type, types.ModuleType)):  # an instance
        if _is_library(type(value).__module__):
            yield getattr(value, "__wrapped__", None)
            return
        yield from getattr(value, "__dict__", {}).values()
        for cls in type(value).__mro__:
            yield vars(cls).get("__call__")
            for name, member in vars(cls).items():
                if isinstance(member, types.MemberDescriptorType):  # of __slots__
                    yield getattr(value, name, None)


def held_by(function: types.FunctionType) -> Iterator[Any]:
    """What a function itself holds."""
    yield from function.__closure__ or ()
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()  # `__wrapped__`


def content(cell: types.CellType) -> Any:
    """What is in a cell; None if nothing is."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _globals_of(function: types.FunctionType) -> Iterator[Any]:
    """The globals that a function loads; of modules and classes, what they name."""
    (loaded, names), surroundings = _names(function.__code__), function.__globals__
    found = [surroundings[name] for name in loaded & surroundings.keys()]
    for value in [*found, *map(content, function.__closure__ or ())]:
        if not isinstance(value, _NAMESPACES):
            yield value
        elif not _is_library(getattr(value, "__module__", value.__name__)):
            yield from (vars(value)[n] for n in names & vars(value).keys())


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(loaded as globals, those and others) by the code of a function and of those inside it."""
    loaded = {i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL_LOADS}
    every = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names(constant)
            loaded |= inner[0]
            every |= inner[1]
    return frozenset(loaded), frozenset(every)


_GLOBAL_LOADS = ("LOAD_GLOBAL", "LOAD_NAME")


def _is_library(module: str | None) -> bool:
    package = (module or "").partition(".")[0]
    return package in _LIBRARIES or _is_foreign(package)


@functools.cache
def _is_foreign(package: str) -> bool:
    """Whether a package is installed and knows nothing of refax, so that it has no objects of it.

    Such as pytest, which puts its modules into every function that has an `assert`.
    """
    place = getattr(sys.modules.get(package), "__file__", None) or ""
    installed = sysconfig.get_paths()
    if not place.startswith((installed["purelib"], installed["platlib"])):
        return False
    names = (
        (getattr(value, "__module__", None) or getattr(value, "__name__", None))
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package
        for value in list(getattr(module, "__dict__", {}).values())
        if isinstance(value, (type, types.FunctionType, types.ModuleType))
    )
    return not any(str(name).partition(".")[0] == "refax" for name in names)
