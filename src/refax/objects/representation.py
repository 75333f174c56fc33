"""What objects look like in print: a tree with types, sizes and values, capped for big models."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
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
WIDTH = 80  # columns of a terminal
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
            n = math.prod(leaf.shape)
            elements += n
            size += n * getattr(leaf.dtype, "itemsize", 8)  # an extended dtype may have none
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
    queue, seen = [value], set()  # of containers, which may hold themselves
    for part in queue:  # which grows
        if isinstance(part, Shown):
            return True
        if id(part) not in seen and (form := _form(part)) is not None:
            seen.add(id(part))
            queue += [child for _, child in form.items]
    return False


def _sizes_by_type(root: Any) -> Iterator[str]:
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


class _Tree:
    """How one object is shown.

    Args:
        leaf: what is shown of a value that is not gone into.
        collapse: show a run of objects of one structure in a list as its first.
        most: lines of one object, before the rest is counted only.
    """

    def __init__(self, leaf: Callable[[Any], str], collapse: bool, most: float = MAX_LINES):
        self.leaf, self.collapse, self.most = leaf, collapse, most
        self.seen: dict[int, str] = {}  # where each shared object was shown first, by id

    def lines(self, value: Any, path: str, depth: int, label: str = "") -> list[str]:
        """The lines of one value at a path from the root, so many levels down, after a label."""
        form = _form(value)
        if form is None or not _is_tree(value):
            indent = " " * len(label) if is_array(value) else _INDENT
            width = max(WIDTH - len(_INDENT) * depth - len(label) - 1, WIDTH // 2)
            with np.printoptions(linewidth=width):
                text = self.leaf(value)
            below = " " * len("Array(") if is_array(value) else ""
            lines = [wrapped(line, width, below) for line in text.split("\n")]
            first, *rest = "\n".join(lines).split("\n")
            return [first, *(indent + line for line in rest)]
        if not isinstance(value, tuple):
            if id(value) in self.seen:
                return [f"{type(value).__name__}(…same as {self.seen[id(value)] or 'the root'})"]
            self.seen[id(value)] = path
        if depth > _MAX_DEPTH:
            return [f"{type(value).__name__}(…)"]
        head, sep, end, items = form.head, form.sep, form.end, list(form.items)
        sizes = [_size_text(form.values)] if form.values else []
        if sep == "=" and not depth and not sizes:
            sizes = list(_sizes_by_type(value))
        if any(sizes):
            head += f" # {', '.join(sizes)}"
        if not items:
            return [head.rstrip() + end]
        lines = [head]
        i = 0
        while i < len(items):
            key, child = items[i]
            in_run = self.collapse and key is None and isinstance(child, Shown)
            alike = _alike(items[i:]) if in_run else 1
            label = "" if key is None else (key if sep == "=" else repr(key)) + sep
            step = f"[{i}]" if key is None else f"[{key!r}]" if sep == ": " else f".{key}"
            below = self.lines(child, (path + step).lstrip("."), depth + 1, label)
            body = [_INDENT + label + below[0], *(_INDENT + line for line in below[1:])]
            i += alike
            body[-1] += "," if i < len(items) or alike > 1 else ""
            if alike > 1:
                body.append(f"{_INDENT}… ({alike - 1} more of this structure)")
            lines += body
            if len(lines) > self.most and i < len(items):
                lines.append(f"{_INDENT}… ({len(items) - i} more)")
                break
        return [*lines, end]


def _alike(items: list[tuple[Any, Any]]) -> int:
    """How many objects at the start have the structure, shapes and dtypes of the first."""
    first = _structure(items[0][1])
    return sum(1 for _ in takewhile(lambda item: _structure(item[1]) == first, items))


def _structure(value: Any) -> list[str]:
    """What is shown of an object where the values of its arrays do not count."""
    tree = _Tree(lambda x: describe_value(x) if is_array(x) else short(x), False, math.inf)
    return tree.lines(value, "", 1)


def represent(value: Any) -> str:
    for collapse in (False, True):
        lines = _Tree(short, collapse).lines(value, "", 0)
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
        raise NotImplementedError(f"{type(self).__name__} does not define __nnx_repr__().")

    def _refax_form(self) -> Form:
        first, *attributes = self.__nnx_repr__()
        assert isinstance(first, Object), "__nnx_repr__ yields an Object first"
        name = first.type.__name__ if isinstance(first.type, type) else first.type
        items = [(a.key, a.value) for a in attributes if isinstance(a, Attr)]
        return Form(name + first.start, items, first.kv_sep, first.end)


class Text(str):
    """Text of several lines that is shown as it is, at a prompt and in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def as_html(text: str) -> str:
    """Text in columns for a notebook, which scrolls where it is wide."""
    style = "white-space: pre; overflow-x: auto; line-height: 1.2"
    return f'<pre style="{style}">{html.escape(str(text))}</pre>'


def wrapped(line: str, width: int = WIDTH, indent: str = _INDENT) -> str:
    """A line that is too long on several, broken at spaces, all but the first indented."""
    options: dict[str, Any] = dict(break_long_words=False, break_on_hyphens=False)
    fits = len(line) <= width
    return line if fits else textwrap.fill(line, width, subsequent_indent=indent, **options)


def shortened(text: str, width: int) -> str:
    """A path in at most `width` characters: its longest keys are cut, so that all are told apart.

    `encoder.layers.11.attention.query.kernel` becomes `encod….layers.11.atten….query.kernel`;
    where even that is too long, the middle is left out.
    """
    parts = [part[: width + 1] for part in re.split(r"([./])", text)]
    while len("".join(parts)) > width:
        i = max(range(len(parts)), key=lambda i: len(parts[i]))
        if len(parts[i]) <= 4:
            tail = max(width - 1, 1) * 2 // 3
            return f"{text[: max(width - 1 - tail, 0)]}…{text[-tail:]}"
        parts[i] = parts[i].rstrip("…")[: len(parts[i]) - 2] + "…"
    return "".join(parts)
