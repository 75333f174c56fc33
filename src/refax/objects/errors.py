"""The errors of the object graph, and how their texts show a path and a value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class GraphError(ValueError):
    """Base of the errors about an object graph or a State."""


class StructureError(GraphError):
    """A State and an object graph, or a path and an object, do not fit together."""


class UnhashableStaticError(GraphError, TypeError):
    """A static attribute cannot be hashed, so JAX cannot cache what was compiled for it."""


class TraceContextError(RuntimeError):
    """An object that belongs to an outer trace was mutated inside a transform."""


def left_behind(place: str, value: Any) -> TraceContextError:
    return TraceContextError(
        f"`{place}` ({describe_value(value)}) holds a tracer that an earlier transformed call left "
        "behind: it stood for a value of that call and has none now.\n"
        "Cure: while a function is traced, keep nothing in globals, closures or objects that are "
        "no arguments of it; return the value, or assign it to an attribute of an argument."
    )


def path_string(path: Iterable[Any], root: str = "") -> str:
    """`('blocks', 3, 'attn')` as `blocks[3].attn`, after the name of the root if there is one."""
    text = root
    for key in path:
        if isinstance(key, str) and key.isidentifier():
            text += f".{key}" if text else key
        else:
            text += f"[{key!r}]"
    return text or "the root"


_SHORT = (int, float, complex, str, bytes, type, type(None))


_CONTAINERS = (tuple, list, set, frozenset, dict)


def clipped(text: str, length: int = 250) -> str:
    """A text as a part of a message, which stays readable."""
    return text if len(text) <= length else text[:length] + " …"


def describe_value(value: Any) -> str:
    """A value's type with dtype and shape where it has them: `f32[3,4]`-like, short."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{dtype}[{','.join(map(str, shape))}]"
    name = type(value).__name__
    if isinstance(value, _SHORT) or (isinstance(value, _CONTAINERS) and len(value) <= 4):
        text = repr(value)
        if len(text) <= 60 and "\n" not in text:
            return f"{name} {text}"
    return name


def suggest(name: Any, choices: Iterable[Any]) -> str:
    """ " Did you mean …?" for the nearest of `choices`, or nothing."""
    # Names of a sane length: to compare others takes long.
    names = [str(c) for c in (name, *choices)]
    others = [c for c in names if c != names[0] and len(c) + len(names[0]) < 400]
    near = difflib.get_close_matches(str(name), others, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def slots_of_a_node(cls: type, slots: Iterable[str]) -> TypeError:
    return TypeError(
        f"{cls.__qualname__} has __slots__ ({', '.join(sorted(slots))}): the parts of a Module are "
        "looked for in its attributes, and what stands in a slot would not be found.\n"
        "Cure: leave __slots__ out; for a dataclass, leave out slots=True."
    )


def data_in_static(cls: type, name: Any, value: Any) -> StructureError:
    return StructureError(
        f"`{path_string((name,), cls.__name__)}` is marked static, but holds "
        f"{describe_value(value)}, which no verb or transform would find.\n"
        "Cure: leave the mark out, or mark it nnx.data(...)."
    )


def mark_in_container(cls: type, name: Any, container: type) -> StructureError:
    kind = container.__name__
    return StructureError(
        f"`{path_string((name,), cls.__name__)}` is given a {kind} with nnx.data(...) or "
        "nnx.static(...) in it, which say what an attribute is, and of nothing inside one.\n"
        f"Cure: mark the whole {kind}, or hold the items in an nnx.List or nnx.Dict."
    )
