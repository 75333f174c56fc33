"""What objects look like in print: a tree with types, sizes and values, capped for big models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .errors import describe_value
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


def _size_text(values: Iterable[Any]) -> str:
    elements, size = count(values)
    return f"{elements:,} ({bytes_text(size)})" if elements else ""


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


def _form(value: Any) -> Form | None:
    """The form of an object, or of a plain container; None for any other value."""
    if isinstance(value, Shown):
        return value._refax_form()
    if isinstance(value, dict):
        return Form("{", value.items(), ": ", "}")
    if isinstance(value, (list, tuple)):
        start, end = "()" if isinstance(value, tuple) else "[]"
        return Form(start, [(None, x) for x in value], "", end)
    return None


def _is_tree(value: Any) -> bool:
    """Whether there are objects to show: it is one, or a plain container with one in it."""
    if isinstance(value, Shown):
        return True
    form = _form(value)
    return form is not None and any(_is_tree(child) for _, child in form.items)


def _sizes_by_type(root: Shown) -> Iterator[str]:
    """The sizes of the cells below `root`, by their types."""
    groups: dict[str, list[Any]] = {}
    seen = {id(root)}
    queue: list[Any] = [root]
    for value in queue:  # which grows
        form = _form(value)
        if form is not None and form.values:
            groups.setdefault(type(value).__name__, []).extend(form.values)
        elif form is not None:
            for _, child in form.items:
                if id(child) not in seen:
                    seen.add(id(child))
                    queue.append(child)
    for name, values in groups.items():
        if text := _size_text(values):
            yield f"{name}: {text}"


def short(value: Any) -> str:
    """One value on as few lines as it takes; big arrays by type and shape only."""
    if isinstance(value, Tracer):
        return f"Traced<{describe_value(value)}>"
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
    form = _form(value)
    if form is None or not _is_tree(value):
        return short(value).split("\n")
    if not isinstance(value, tuple):
        if id(value) in seen:
            return [f"{type(value).__name__}(…same as {seen[id(value)] or 'the root'})"]
        seen[id(value)] = path
    if depth > _MAX_DEPTH:
        return [f"{type(value).__name__}(…)"]
    head, sep, end, items = form.head, form.sep, form.end, list(form.items)
    if form.values:
        sizes = [_size_text(form.values)]
    else:
        sizes = list(_sizes_by_type(value)) if sep == "=" and not depth else []
    if any(sizes):
        head += f" # {', '.join(sizes)}"
    if not items:
        return [head.rstrip() + end]
    lines = [head]
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
    first = _structure(items[start][1])
    run = takewhile(lambda x: isinstance(x[1], Shown) and _structure(x[1]) == first, items[start:])
    return max(len(list(run)), 1)


def _structure(root: Any) -> list[Any]:
    """What tells two objects apart in print when the values of their arrays do not count."""
    seen: dict[int, int] = {}
    found: list[Any] = []
    stack = [root]
    while stack:
        value = stack.pop()
        form = _form(value)
        if form is None:
            found.append((value.shape, value.dtype) if is_array(value) else short(value))
        elif id(value) in seen and not isinstance(value, tuple):
            found.append(seen[id(value)])
        else:
            seen[id(value)] = len(seen)
            items = list(form.items)
            found += [type(value), *(key for key, _ in items)]
            stack += [child for _, child in reversed(items)]
    return found


def represent(value: Any) -> str:
    for collapse in (False, True):
        lines = _lines(value, {}, "", 0, collapse)
        if len(lines) <= MAX_LINES:
            return "\n".join(lines)
    half = MAX_LINES // 2
    cut = f"{_INDENT}… ({len(lines) - 2 * half} lines more)"
    return "\n".join([*lines[:half], cut, *lines[-half:]])


# A user's own form, told in parts: an `Object`, then its `Attr`s.


class Object(NamedTuple):
    """What is shown around the attributes: `type(a=1, b=2)`."""

    type: str | type
    start: str = "("
    end: str = ")"
    kv_sep: str = "="


class Attr(NamedTuple):
    """One attribute."""

    key: str | Any
    value: Any


class Representable(Shown):
    """Base of what is shown by the parts that `__nnx_repr__` yields.

    Example:
        >>> from refax import nnx
        >>> class Point(nnx.reprlib.Representable):
        ...     def __nnx_repr__(self):
        ...         yield nnx.reprlib.Object("Point")
        ...         yield nnx.reprlib.Attr("x", 1)
        >>> Point()
        Point(
          x=1
        )
    """

    __slots__ = ()

    def __nnx_repr__(self) -> Iterator[Object | Attr]:
        raise NotImplementedError

    def _refax_form(self) -> Form:
        first, *attributes = self.__nnx_repr__()
        assert isinstance(first, Object), "__nnx_repr__ yields an Object first"
        name = first.type.__name__ if isinstance(first.type, type) else first.type
        items = [(a.key, a.value) for a in attributes if isinstance(a, Attr)]
        return Form(name + first.start, items, first.kv_sep, first.end)
