"""Errors of the object graph: each says what, where (the path), why, and the cure."""

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


def describe_value(value: Any) -> str:
    """A value's type with dtype and shape where it has them: `f32[3,4]`-like, short."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}[{','.join(map(str, shape))}]"
    name = type(value).__name__
    if isinstance(value, _SHORT) or (isinstance(value, _CONTAINERS) and len(value) <= 4):
        text = repr(value)
        if len(text) <= 60 and "\n" not in text:
            return f"{name} {text}"
    return name


def suggest(name: Any, choices: Iterable[Any]) -> str:
    """ " Did you mean …?" for the nearest of `choices`, or nothing."""
    others = [str(c) for c in choices if str(c) != str(name)]
    near = difflib.get_close_matches(str(name), others, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def unhashable_static(path: Iterable[Any], value: Any) -> UnhashableStaticError:
    where = path_string(path)
    return UnhashableStaticError(
        f"The static attribute `{where}` is a {type(value).__name__}, which cannot be hashed: "
        f"{describe_value(value)}.\n"
        "A transform compares static attributes between calls to find what it compiled, so they "
        "must be hashable.\n"
        "Cure: make it hashable (a tuple for a list, a frozenset for a set), or, if it holds "
        f"arrays, mark it as data: `self.{where.rpartition('.')[2]} = nnx.data(...)`."
    )


def hidden_objects(path: Iterable[Any], value: Any) -> StructureError:
    return StructureError(
        f"`{path_string(path)}` is a {type(value).__name__}, which is no part of the object graph "
        "(plain lists, tuples and dicts are), but it holds objects or arrays, which would not be "
        "found.\n"
        "Cure: keep them in a plain container or in a Pytree of your own; register the type with "
        "JAX; or mark it nnx.static(...) to leave it out on purpose."
    )


def unknown_path(path: Iterable[Any], choices: Iterable[Any], verb: str) -> StructureError:
    path = tuple(path)
    return StructureError(
        f"nnx.{verb}: the State has a value at `{path_string(path)}`, where the object has no "
        f"Variable or array.{suggest(path[-1] if path else '', choices)}\n"
        "Cure: build the State from an object of the same structure, or drop that path from it "
        "(nnx.filter_state, or `del state[...]`)."
    )


def leaf_missing(path: Iterable[Any], more: int) -> StructureError:
    others = f" (and {more} more)" if more else ""
    return StructureError(
        f"nnx.merge: no value for `{path_string(path)}`{others} in the States that were given.\n"
        "Cure: pass every State that nnx.split returned, nnx.merge(graphdef, *states)."
    )


def shape_mismatch(path: Iterable[Any], old: Any, new: Any, verb: str) -> StructureError:
    return StructureError(
        f"nnx.{verb}: `{path_string(path)}` is {describe_value(old)} in the object but "
        f"{describe_value(new)} in the State.\n"
        "Cure: make the object with the same sizes as the State came from; to replace the array by "
        "one of another shape on purpose, assign it: `variable.value = new`."
    )


def not_exhaustive(paths: list[tuple], verb: str, cure: str) -> GraphError:
    shown = ", ".join(f"`{path_string(p)}`" for p in paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return GraphError(
        f"nnx.{verb}: the filters are not exhaustive: none matches {shown}{more}.\nCure: {cure}"
    )
