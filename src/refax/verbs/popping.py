"""`pop`: Variables taken out of an object; and the names under which they were sown."""

from __future__ import annotations

from typing import Any

from ..graph.filters import Filter, first_match, to_predicate
from ..graph.state import State, nest, one_or_all, state_over
from ..objects.errors import path_string
from ..objects.modes import Switch
from ..objects.node import Node
from ..objects.variable import Variable
from .iteration import iter_children_of, iter_graph

SOWN = "sown:"


def sown_attribute(module: Node, name: str) -> str:
    """The attribute that keeps a sown value: `name`, unless that would hide a method."""
    return SOWN + name if callable(getattr(type(module), name, None)) else name


def sown_path(path: tuple) -> tuple:
    """The path of a Variable with the name under which it was sown."""
    *above, name = path
    return (*above, name.removeprefix(SOWN) if isinstance(name, str) else name)


def pop(node: Any, *filters: Filter, graph: Switch = None) -> Any:
    """Take the Variables that the filters match out of an object; one State per filter.

    Raises:
        ValueError: no filter was given.

    Example:
        >>> from refax import nnx
        >>> class Model(nnx.Module):
        ...     def __call__(self, x):
        ...         self.sow(nnx.Intermediate, "x", x)
        >>> model = Model()
        >>> model(1.0)
        >>> nnx.pop(model, nnx.Intermediate)["x"].value
        (1.0,)
    """
    if not filters:
        raise ValueError(
            "nnx.pop needs at least one filter.\nCure: say what to pop, such as nnx.Intermediate."
        )
    predicates = [to_predicate(f) for f in filters]
    groups: list[list[tuple[tuple, Any]]] = [[] for _ in filters]
    holders: list[tuple[Any, Any]] = []
    taken: set[int] = set()
    visited = list(iter_graph(node))
    paths = {id(v): path for path, v in visited if isinstance(v, Variable)}
    for path, holder in visited:
        if not isinstance(holder, (Node, State, dict, list, tuple)):
            continue
        for key, value in iter_children_of(holder):
            if not isinstance(value, Variable):
                continue
            match = first_match(predicates, paths[id(value)], value)
            if match is None:
                continue
            if isinstance(holder, (list, tuple)):
                raise ValueError(
                    f"nnx.pop: `{path_string((*path, key))}` stands in a "
                    f"{type(holder).__name__}, where taking it out would move its neighbours.\n"
                    "Cure: keep what is popped in attributes or dicts."
                )
            holders.append((holder, key))
            if id(value) not in taken:
                taken.add(id(value))
                groups[match].append((sown_path(paths[id(value)]), value))
    for holder, key in holders:
        if isinstance(holder, Node):
            delattr(holder, key)
        else:
            del holder[key]
    return one_or_all(state_over(nest(g)) for g in groups)
