"""Names: dotted paths, `blocks.3.attn.kernel`, to what they name and back.

A name is the path's keys with dots between them. A key that would not come through that, such as
a dict key with a dot, stands in brackets: `heads['a.b'].kernel`. So every name that is given out is
found again by `get_path`, which also takes `blocks[3].attn` and the path itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ..graph.filters import Filter, checked, to_predicate
from ..objects.errors import StructureError, describe_value, path_string, suggest
from ..objects.variable import Variable
from ..objects.variable_types import Param
from .iteration import iter_children_of, iter_graph

_PLAIN = re.compile(r"[^.\[\]'\"]+")
# A part of a name: `attn`, `3`, `[3]`, `['a.b']`, `[(1, 2)]`.
_PART = re.compile(r"""\.?([^.\[\]]+)|\[('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\]]*)\]""")


class PathError(StructureError, LookupError):
    """There is nothing at a path; the message names the part that was not found, and where."""


def dotted_name(path: tuple) -> str:
    """`('blocks', 3, 'attn')` as `blocks.3.attn`."""
    name = ""
    for key in path:
        plain = isinstance(key, int) or (isinstance(key, str) and _PLAIN.fullmatch(key))
        name += f".{key}" if plain else f"[{key!r}]"
    return name.removeprefix(".")


def named_variables(node: Any, filter: Filter = ..., /) -> Iterator[tuple[str, Variable]]:
    """Every (dotted name, Variable) below `node` that the filter matches.

    In the order of `nnx.state`: depth first, names sorted. A Variable that is reached several ways
    comes once, under its first name. The graph may be changed on the way: what comes is what was
    there at the call.

    Example:
        >>> from refax import nnx
        >>> norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        >>> [(name, v.shape) for name, v in nnx.named_variables(norm, nnx.BatchStat)]
        [('mean', (3,)), ('var', (3,))]
    """
    matches = to_predicate(filter)
    found = [(p, v) for p, v in iter_graph(node) if isinstance(v, Variable) and matches(p, v)]
    return iter([(dotted_name(path), variable) for path, variable in found])


def named_parameters(node: Any, /) -> Iterator[tuple[str, Param]]:
    """`named_variables(node, nnx.Param)`."""
    return named_variables(node, Param)  # type: ignore[return-value]


def parse_name(name: str, verb: str) -> list[str]:
    """The parts of a name as text; those in brackets keep them."""
    parts, at = [], 0
    while at < len(name):
        match = _PART.match(name, at)
        if match is None:
            raise PathError(
                f"nnx.{verb}: {name!r} is not a path: cannot read {name[at:]!r}.\n"
                "Cure: write 'blocks.3.attn', 'blocks[3].attn', or give the path as a tuple."
            )
        parts.append(match[1] or f"[{match[2]}]")
        at = match.end()
    return parts


def find_key(keys: Collection[Any], part: Any) -> Any:
    """The key that a part of a name (or a key in its other form, 3 and '3') stands for.

    Raises:
        KeyError: there is none.
    """
    if part in keys:
        return part
    text = str(part)
    if text.startswith("["):
        text = text[1:-1]
        as_written = [key for key in keys if repr(key) == text]
        if as_written:
            return as_written[0]
    for key in keys:
        if str(key) == text:
            return key
    raise KeyError(part)


def resolve(node: Any, path: Any, verb: str) -> tuple[tuple, list[Any]]:
    """The path in its own keys, and the values along it, the root first."""
    parts = parse_name(path, verb) if isinstance(path, str) else list(path)
    found: tuple = ()
    values = [node]
    for part in parts:
        value, text = values[-1], str(part).strip("[]")
        children = dict(iter_children_of(value))
        try:
            if isinstance(value, Sequence) and re.fullmatch(r"-\d+", text):
                key = list(children)[: len(value)][int(text)]
            else:
                key = find_key(children, part)
        except (KeyError, IndexError):
            raise _not_found(node, path, found, value, part, verb) from None
        found = (*found, key)
        values.append(children[key])
    return found, values


@checked
def get_path(node: Any, path: str | Sequence[Any]) -> Any:
    """What stands at a path below `node`: a module, a Variable, a container, any attribute.

    Args:
        node: an object graph, or a State.
        path: `'blocks.3.attn'`, `'blocks[3].attn'` or `('blocks', 3, 'attn')`; '' is `node`.
            An index and its text name the same place, negative indices count from the end.

    Raises:
        PathError: (a LookupError) nothing is there; with the part that was not found and the
            nearest names.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> nnx.get_path(model, "layers.0.kernel").shape
        (2, 3)
        >>> try:
        ...     nnx.get_path(model, "layers.0.kernal")
        ... except LookupError as error:
        ...     print(str(error).replace(", a Linear", ",\\n  a Linear"))
        nnx.get_path: there is no 'kernal' in `Sequential.layers[0]`,
          a Linear (path 'layers.0.kernal'). Did you mean 'kernel'?
        Cure: it has 'bias', 'in_features', 'kernel', 'out_features'.
    """
    return resolve(node, path, "get_path")[1][-1]


def place_text(node: Any, path: tuple) -> str:
    return f"`{path_string(path, type(node).__name__)}`"


def _not_found(node: Any, asked: Any, found: tuple, value: Any, part: Any, verb: str) -> PathError:
    children = [str(key) for key, _ in iter_children_of(value)]
    near = suggest(part, children)
    if not near:  # not misspelt: perhaps it is further down
        below = (dotted_name((*found, *p)) for p, _ in iter_graph(value) if p and p[-1] == part)
        near = next((f" Did you mean {name!r}?" for name in below), "")
    shown = asked if isinstance(asked, str) else tuple(asked)
    has = ", ".join(map(repr, children[:12])) + (", ..." if len(children) > 12 else "")
    return PathError(
        f"nnx.{verb}: there is no {part!r} in {place_text(node, found)}, "
        f"a {type(value).__name__} (path {shown!r}).{near}\n"
        f"Cure: it has {has or f'no parts, it is {describe_value(value)}'}."
    )
