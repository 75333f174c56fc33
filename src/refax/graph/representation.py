"""What objects look like in print: a tree with types, sizes and values, capped for big models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .errors import path_string
from .graphdef import VARIABLE, GraphDef, record_children
from .module import Pytree
from .state import State
from .statics import FunctionKey
from .variable import Variable
from .walk import walk
from .watch import is_array

_MAX_LINES = 400
_MAX_DEPTH = 60
_INDENT = "  "


def bytes_text(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return ""


def count(values: Iterable[Any]) -> tuple[int, int]:
    """(elements, bytes) of the arrays among the leaves of `values`."""
    elements = size = 0
    for leaf in jax.tree.leaves(list(values)):
        if is_array(leaf):
            n = int(np.prod(leaf.shape))
            elements += n
            try:
                size += n * leaf.dtype.itemsize
            except (AttributeError, TypeError):  # an extended dtype
                size += n * 8
    return elements, size


def size_comment(values: Iterable[Any]) -> str:
    elements, size = count(values)
    return f" # {elements:,} ({bytes_text(size)})" if elements else ""


def _variables_below(node: Any) -> list[Variable]:
    from .iteration import iter_graph

    return [v for _, v in iter_graph(node) if isinstance(v, Variable)]


def _by_type(variables: Iterable[Variable]) -> str:
    groups: dict[str, list[Any]] = {}
    for v in variables:
        groups.setdefault(type(v).__name__, []).append(v._value)
    parts = []
    for name, values in groups.items():
        elements, size = count(values)
        if elements:
            parts.append(f"{name}: {elements:,} ({bytes_text(size)})")
    return " # " + ", ".join(parts) if parts else ""


def short(value: Any) -> str:
    """One value on as few lines as it takes; big arrays by type and shape only."""
    if isinstance(value, Tracer):
        return f"Traced<{value.dtype}[{','.join(map(str, value.shape))}]>"
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"ShapeDtypeStruct(shape={value.shape}, dtype={value.dtype})"
    if isinstance(value, jax.Array):
        if value.is_deleted():
            return f"Array(deleted, shape={value.shape}, dtype={value.dtype})"
        if jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return f"Array(shape={value.shape}, dtype={value.dtype})"
        if value.size > 40 or not value.is_fully_addressable:
            return f"Array(shape={value.shape}, dtype=dtype('{value.dtype}'))"
        return repr(value)
    if isinstance(value, np.ndarray) and value.size > 40:
        return f"ndarray(shape={value.shape}, dtype=dtype('{value.dtype}'))"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, FunctionKey):
        return value.describe()
    if callable(value) and hasattr(value, "__qualname__"):
        return f"<{type(value).__name__} {value.__qualname__}>"
    return repr(value)


def _lines(value: Any, seen: dict[int, str], path: str, depth: int, collapse: bool) -> list[str]:
    """The lines of one value.

    Args:
        value: what to show.
        seen: where each shared object was shown first, by id.
        path: of the value, from the root.
        depth: how many levels down.
        collapse: show a run of objects of one structure in a list as its first.
    """
    compound = isinstance(value, (Pytree, Variable, State)) or (
        isinstance(value, (list, tuple, dict)) and _has_objects(value)
    )
    if not compound:
        return short(value).split("\n")
    if not isinstance(value, tuple):
        if id(value) in seen:
            return [f"{type(value).__name__}(…same as {seen[id(value)] or 'the root'})"]
        seen[id(value)] = path
    if depth > _MAX_DEPTH:
        return [f"{type(value).__name__}(…)"]
    name = type(value).__name__
    items: Any
    if isinstance(value, Variable):
        head = f"{name}({size_comment([value._value])}"
        items = [("value", value._value), *value._metadata.items()]
        sep, end = "=", ")"
    elif isinstance(value, Pytree):
        head = f"{name}({'' if depth else _by_type(_variables_below(value))}"
        items, sep, end = vars(value).items(), "=", ")"
    elif isinstance(value, State):
        head, items, sep, end = "State({", value._tree.items(), ": ", "})"
    elif isinstance(value, Mapping):
        head, items, sep, end = "{", value.items(), ": ", "}"
    elif isinstance(value, tuple):
        head, items, sep, end = "(", [(None, x) for x in value], "", ")"
    else:
        head, items, sep, end = "[", [(None, x) for x in value], "", "]"
    lines = [head]
    if not items:
        return [head.rstrip() + end]
    items = list(items)
    i = 0
    while i < len(items):
        key, child = items[i]
        alike = _alike(value, i) if collapse and isinstance(value, (list, tuple)) else 1
        label = "" if key is None else (key if sep == "=" else repr(key)) + sep
        step = f"[{i}]" if key is None else f"[{key!r}]" if sep == ": " else f".{key}"
        below = _lines(child, seen, (path + step).lstrip("."), depth + 1, collapse)
        body = [_INDENT + label + below[0], *(_INDENT + line for line in below[1:])]
        i += alike
        body[-1] += "," if i < len(items) or alike > 1 else ""
        if alike > 1:
            body.append(f"{_INDENT}… ({alike - 1} more of this structure)")
        lines += body
        if len(lines) > _MAX_LINES and i < len(items):
            lines.append(f"{_INDENT}… ({len(items) - i} more)")
            break
    return [*lines, end]


def _alike(items: list | tuple, start: int) -> int:
    """How many objects from `start` on have the structure, shapes and dtypes of the first."""
    if not isinstance(items[start], Pytree):
        return 1
    first = _structure(items[start])
    end = start + 1
    while end < len(items) and isinstance(items[end], Pytree) and _structure(items[end]) == first:
        end += 1
    return end - start


def _structure(node: Pytree) -> tuple:
    """The records, and the shapes and dtypes of the Variables."""
    walked = walk((node,))
    leaves = jax.tree.leaves([v._value for v in walked.variables])
    shapes = [(x.shape, x.dtype) if is_array(x) else type(x) for x in leaves]
    return walked.graphdef.records, shapes


def _has_objects(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return any(
        isinstance(x, (Pytree, Variable, State))
        or (isinstance(x, (list, tuple, dict)) and _has_objects(x))
        for x in items
    )


def represent(value: Any) -> str:
    lines = _lines(value, {}, "", 0, False)
    if len(lines) > _MAX_LINES:
        lines = _lines(value, {}, "", 0, True)
    if len(lines) > _MAX_LINES:
        half = _MAX_LINES // 2
        cut = len(lines) - 2 * half
        lines = [*lines[:half], f"{_INDENT}… ({cut} lines more)", *lines[-half:]]
    return "\n".join(lines)


def represent_graphdef(graphdef: GraphDef) -> str:
    lines = [f"GraphDef({len(graphdef.records)} nodes, {len(graphdef.paths.leaves)} leaves"]
    for path, record in zip(graphdef.paths.nodes, graphdef.records, strict=True):
        if record[0] == VARIABLE:
            text = record[1].__name__
            if record[2]:
                text += f" {dict(record[2])}"
        else:
            statics = [
                f"{k}={c[1]!r}"
                for k, c in zip(*record_children(record), strict=True)
                if type(c) is tuple
            ]
            cls = record[1] if isinstance(record[1], type) else type(record[1])
            text = f"{cls.__name__}({', '.join(statics)})"
        lines.append(f"{_INDENT}{path_string(path)}: {text}")
        if len(lines) > _MAX_LINES:
            lines.append(f"{_INDENT}…")
            break
    return "\n".join([*lines, ")"])


def treescope_constructor(
    value: Any, attributes: dict[str, Any], path: Any, subtree_renderer: Any
) -> Any:
    import treescope

    return treescope.repr_lib.render_object_constructor(
        object_type=type(value), attributes=attributes, path=path, subtree_renderer=subtree_renderer
    )
