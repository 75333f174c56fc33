"""Views: the same Variables in new objects with other attributes; and attributes set in place.

    train, evaluate = nnx.view(model, deterministic=False), nnx.view(model, deterministic=True)

A view costs no memory. What is written through it into a Variable is written for all; attributes,
containers and bare arrays are its own. A layer says which attributes are modes of it by a method
`set_view`, whose parameters are None for "as it is".
"""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..graph.filters import All, Filter, Predicate, checked, matches_any
from ..objects.at_once import Write, at_once
from ..objects.errors import path_string
from ..objects.modes import Switch, without_modes
from ..objects.node import Node, attribute_write
from .copying import clone
from .iteration import BEFORE, iter_graph, pytrees_below, visit
from .layouts import N

_OPEN = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


@checked
def view(
    node: N,
    /,
    *filters: Filter,
    only: Filter = ...,
    raise_if_not_found: bool = True,
    graph: Switch = None,
    **modes: Any,
) -> N:
    """A new object graph over the same Variables, whose layers are in these modes.

    Args:
        node: a Module, or a container of them; stays as it is.
        *filters, only: which layers are set.
        raise_if_not_found: whether a mode that no layer has is an error.
        graph: accepted, without effect.
        **modes: `deterministic`, `use_running_average`, `decode`, …: what the `set_view` of a layer
            takes, see `nnx.view_info`.

    Raises:
        ValueError: a mode that no matching layer has.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5))
        >>> evaluate = nnx.view(model, deterministic=True)
        >>> evaluate.layers[1].deterministic, model.layers[1].deterministic
        (True, False)
        >>> evaluate.layers[0].kernel is model.layers[0].kernel
        True
    """
    copy = clone(node, variables=False)
    unused, known = set(modes), dict[str, str]()
    for path, layer, parameters, takes_all in list(
        _layers_with_modes(copy, _selected(filters, only))
    ):
        known = {name: path_string(path) for name in parameters} | known
        given = {k: v for k, v in modes.items() if takes_all or k in parameters}
        left = layer.set_view(**given)  # a set_view that takes all may return what it did not use
        unused -= set(given) - set(left) if isinstance(left, Mapping) else set(parameters)
    if unused and raise_if_not_found:
        cure = "pass what nnx.view_info lists (nnx.with_attributes sets any attribute)"
        raise _not_found("view", "has the mode", node, unused, known, cure)
    return copy


@checked
def view_info(node: Any, /, *filters: Filter, only: Filter = ..., graph: Switch = None) -> str:
    """Which modes the layers below `node` have for `nnx.view`, with types, defaults and help.

    Args:
        node: a Module, or a container of them.
        *filters, only: which layers.
        graph: accepted, without effect.

    Example:
        >>> from refax import nnx
        >>> print(nnx.view_info(nnx.Sequential(nnx.Dropout(0.5), nnx.Dropout(0.1))))
        Dropout:
          deterministic: bool | None = None
            True: nothing is dropped.
    """
    layers = {
        type(layer): p for _, layer, p, _ in _layers_with_modes(node, _selected(filters, only))
    }
    lines: list[str] = []
    for cls, parameters in sorted(layers.items(), key=lambda item: item[0].__qualname__):
        lines.append(f"{cls.__qualname__}:")
        documented = _argument_help(inspect.getdoc(cls.set_view) or "")
        for name, parameter in parameters.items():
            kind = parameter.annotation
            text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
            typed = "" if kind is parameter.empty else f": {text}"
            default = "" if parameter.default is parameter.empty else f" = {parameter.default}"
            lines.append(f"  {name}{typed}{default}")
            lines += [f"    {line}" for line in documented.get(name, ())]
    return "\n".join(lines)


@checked
def with_attributes(
    node: N,
    /,
    *filters: Filter,
    only: Filter = ...,
    raise_if_not_found: bool = True,
    graph: Switch = None,
    **attributes: Any,
) -> N:
    """A view, see `nnx.view`, with these attributes on every object that has them.

    Args:
        node: an object graph, or a container of them; stays as it is.
        *filters, only: which objects.
        raise_if_not_found: whether an attribute that no object has is an error.
        graph: accepted, without effect.
        **attributes: name → value.

    Example:
        >>> from refax import nnx
        >>> dropout = nnx.Dropout(0.5)
        >>> nnx.with_attributes(dropout, rate=0.1).rate, dropout.rate
        (0.1, 0.5)
    """
    copy = clone(node, variables=False)
    assign(copy, _selected(filters, only), attributes, "with_attributes", raise_if_not_found)
    return copy


def assign(
    node: Any,
    matches: Predicate | None,
    attributes: Mapping[str, Any],
    verb: str,
    raise_if_not_found: bool = True,
) -> None:
    """Set attributes on every object below `node` that has them and that the predicate matches."""
    attributes = without_modes(attributes)
    if matches is None:
        objects = pytrees_below(node)
    else:
        nodes = [(p, v) for p, v, when in visit(node) if isinstance(v, Node) and when == BEFORE]
        objects = [v for path, v in nodes if matches(path, v)]
    remaining = set(attributes)
    of_class: dict[type, set[str]] = {}
    writes: list[Write] = []
    for obj in objects:
        own, cls = obj.__dict__, type(obj)
        if cls not in of_class:
            of_class[cls] = {name for name in attributes if hasattr(cls, name)}
        inherited = of_class[cls]
        for name, value in attributes.items():
            if name in own or name in inherited:
                remaining.discard(name)
                if name not in own or own[name] is not value:
                    writes.append(attribute_write(obj, name, value))
    if remaining and raise_if_not_found:
        known = {
            name: path_string(path)
            for path, x in iter_graph(node)
            if isinstance(x, Node)
            for name in x.__dict__
        }
        cure = "set it in the module's __init__"
        raise _not_found(verb, "has the attribute", node, remaining, known, cure)
    at_once(writes)


def _selected(filters: Iterable[Filter], only: Filter) -> Predicate | None:
    """What the filters select; None is all."""
    return All(only, matches_any(filters) or ...) if filters or only is not ... else None


def _layers_with_modes(
    node: Any, matches: Predicate | None
) -> Iterator[tuple[tuple, Any, dict[str, inspect.Parameter], bool]]:
    """(path, layer, named parameters of its `set_view`, if that takes all) of layers with modes."""
    for path, value in iter_graph(node):
        cls: Any = type(value)
        has_modes = isinstance(value, Node) and hasattr(cls, "set_view")
        if has_modes and (matches is None or matches(path, value)):
            _, *parameters = inspect.signature(cls.set_view).parameters.values()
            named = {p.name: p for p in parameters if p.kind not in _OPEN}
            yield path, value, named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _argument_help(docstring: str) -> dict[str, list[str]]:
    """The lines on each argument in a docstring's section `Args:`."""
    _, _, after = docstring.partition("Args:\n")
    indented: Any = re.match(r"(?: .*\n?)*", after)
    section = textwrap.dedent(indented[0])
    entries = re.findall(r"^\**(\w+)(?: *\(.*?\))?: *(.*(?:\n .*)*)", section, re.MULTILINE)
    return {name: [line.strip() for line in text.splitlines() if line] for name, text in entries}


def _not_found(
    verb: str, what: str, node: Any, names: set[str], known: Mapping[str, str], cure: str
) -> ValueError:
    near = [n for name in sorted(names) for n in difflib.get_close_matches(name, known, 1)]
    hints = "".join(f" Did you mean {n!r} (`{known[n]}`)?" for n in near)
    return ValueError(
        f"{verb}: nothing below {type(node).__name__} that the filters match {what} "
        f"{', '.join(map(repr, sorted(names)))}.{hints}\n"
        f"Cure: {cure}, or pass raise_if_not_found=False."
    )
