"""What objects look like in print: a tree with types, sizes and values, capped for big models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .statics import FunctionKey
from .watch import is_array

MAX_LINES = 400
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


class Form(NamedTuple):
    """How an object is shown: `head` items `end`, the label of each item before `sep`."""

    head: str
    items: Iterable[tuple[Any, Any]]
    sep: str = "="
    end: str = ")"
    values: tuple = ()  # of the object itself, if it is a cell


class Shown:
    """Base of what is shown as a tree: it says its form."""

    __slots__ = ()

    def _refax_form(self) -> Form:
        raise NotImplementedError

    def __repr__(self) -> str:
        return represent(self)

    def __treescope_repr__(self, path: Any, subtree_renderer: Any) -> Any:
        import treescope

        form = self._refax_form()
        if form.sep != "=":
            return subtree_renderer(dict(form.items), path=path)
        return treescope.repr_lib.render_object_constructor(
            object_type=type(self),
            attributes=dict(form.items),
            path=path,
            subtree_renderer=subtree_renderer,
        )


def _by_type(root: Shown) -> str:
    """The sizes of the cells below `root`, by their types."""
    groups: dict[str, list[Any]] = {}
    seen = {id(root)}
    queue: list[Any] = [root]
    for value in queue:  # which grows
        if isinstance(value, Shown):
            form = value._refax_form()
            if form.values:
                groups.setdefault(type(value).__name__, []).extend(form.values)
                continue
            children: Iterable[Any] = (child for _, child in form.items)
        elif isinstance(value, (list, tuple, dict)):
            children = value.values() if isinstance(value, dict) else value
        else:
            continue
        for child in children:
            if isinstance(child, (Shown, list, tuple, dict)) and id(child) not in seen:
                seen.add(id(child))
                queue.append(child)
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
    if not isinstance(value, Shown) and not _holds_shown(value):
        return short(value).split("\n")
    if not isinstance(value, tuple):
        if id(value) in seen:
            return [f"{type(value).__name__}(…same as {seen[id(value)] or 'the root'})"]
        seen[id(value)] = path
    if depth > _MAX_DEPTH:
        return [f"{type(value).__name__}(…)"]
    if isinstance(value, Shown):
        head, items, sep, end, values = value._refax_form()
        if values:
            head += size_comment(values)
        elif sep == "=" and not depth:
            head += _by_type(value)
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
        alike = _alike(items, i) if collapse and key is None else 1
        label = "" if key is None else (key if sep == "=" else repr(key)) + sep
        step = f"[{i}]" if key is None else f"[{key!r}]" if sep == ": " else f".{key}"
        below = _lines(child, seen, (path + step).lstrip("."), depth + 1, collapse)
        body = [_INDENT + label + below[0], *(_INDENT + line for line in below[1:])]
        i += alike
        body[-1] += "," if i < len(items) or alike > 1 else ""
        if alike > 1:
            body.append(f"{_INDENT}… ({alike - 1} more of this structure)")
        lines += body
        if len(lines) > MAX_LINES and i < len(items):
            lines.append(f"{_INDENT}… ({len(items) - i} more)")
            break
    return [*lines, end]


def _alike(items: list[tuple[Any, Any]], start: int) -> int:
    """How many objects from `start` on have the structure, shapes and dtypes of the first."""
    if not isinstance(items[start][1], Shown):
        return 1
    first = _structure(items[start][1])
    for number, (_, item) in enumerate(items[start:]):
        if not isinstance(item, Shown) or _structure(item) != first:
            return number
    return len(items) - start


def _structure(root: Any) -> list[Any]:
    """What tells two objects apart in print when the values of their arrays do not count."""
    seen: dict[int, int] = {}
    found: list[Any] = []
    stack = [root]
    while stack:
        value = stack.pop()
        if is_array(value):
            found.append((value.shape, value.dtype))
        elif not isinstance(value, (Shown, list, tuple, dict)):
            found.append(short(value))
        elif id(value) in seen and not isinstance(value, tuple):
            found.append(seen[id(value)])
        else:
            seen[id(value)] = len(seen)
            found.append(type(value))
            if isinstance(value, Shown):
                items = list(value._refax_form().items)
            else:
                items = list(value.items() if isinstance(value, dict) else enumerate(value))
            found.extend(key for key, _ in items)
            stack.extend(child for _, child in reversed(items))
    return found


def _holds_shown(value: Any) -> bool:
    if not isinstance(value, (list, tuple, dict)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return any(isinstance(x, Shown) or _holds_shown(x) for x in items)


def represent(value: Any) -> str:
    lines = _lines(value, {}, "", 0, False)
    if len(lines) > MAX_LINES:
        lines = _lines(value, {}, "", 0, True)
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        cut = len(lines) - 2 * half
        lines = [*lines[:half], f"{_INDENT}… ({cut} lines more)", *lines[-half:]]
    return "\n".join(lines)
