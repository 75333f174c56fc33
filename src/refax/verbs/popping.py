"""`pop`: Variables and arrays taken out of an object; and the names under which they were sown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import delitem
from typing import Any, overload

from ..graph.filters import Filter
from ..graph.state import State, States, form_changed, nest, one_or_all, state_over
from ..objects.at_once import Write, at_once
from ..objects.errors import path_string
from ..objects.modes import Switch
from ..objects.node import Node, attribute_deletion
from ..objects.variable import Variable
from .iteration import is_attribute, is_mutable, iter_children_of, iter_graph
from .layouts import layouts, plan_of
from .names import get_path

SOWN = "sown:"


def sown_attribute(holder: Any, name: str) -> str:
    """The attribute that keeps a sown value: `name`, unless that would hide a method."""
    hides = isinstance(holder, Node) and callable(getattr(type(holder), name, None))
    return SOWN + name if hides else name


def sown_path(path: tuple) -> tuple:
    """The path of a Variable with the name under which it was sown."""
    *above, name = path
    return (*above, name.removeprefix(SOWN) if isinstance(name, str) else name)


@overload
def pop(node: Any, filter: Filter, /, *, graph: Switch = None) -> State: ...
@overload
def pop(node: Any, a: Filter, b: Filter, /, *more: Filter, graph: Switch = None) -> States: ...
def pop(node: Any, *filters: Filter, graph: Switch = None) -> Any:
    """Take the leaves that the filters match out of an object; one State per filter.

    Args:
        node: an object graph; it keeps what no filter matches.
        *filters: each Variable and bare array goes to the first that matches.

    Raises:
        ValueError: no filter was given; or a leaf stands where it cannot be taken out.

    Example:
        >>> from refax import nnx
        >>> class Model(nnx.Module):
        ...     def __call__(self, x):
        ...         self.sow(nnx.Intermediate, "x", x)
        >>> model = Model()
        >>> model(1.0)
        >>> nnx.pop(model, nnx.Intermediate)["x"].value
        (Array(1., dtype=float32),)
    """
    if not filters:
        raise ValueError(
            "nnx.pop needs at least one filter.\nCure: say what to pop, such as nnx.Intermediate."
        )
    plan = plan_of(node)
    found, _ = layouts(plan, filters, "pop")
    paths, leaves = plan.graphdef.paths.leaves, plan.leaves()
    popped = {i for layout in found for i in layout.leaves}
    variables = {id(leaves[i]) for i in popped}
    holders = [
        (holder, (*path, key))
        for path, holder in iter_graph(node)
        for key, value in iter_children_of(holder)
        if isinstance(value, Variable) and id(value) in variables
    ]
    for i in popped:
        if i >= len(plan.variables):
            holders.append((get_path(node, paths[i][:-1]), paths[i]))
    for holder, path in holders:
        has_order = isinstance(holder, Sequence) and not is_attribute(holder, path[-1])
        if has_order or not is_mutable(holder):
            raise ValueError(
                f"nnx.pop: `{path_string(path)}` stands in a {type(holder).__name__}, where taking "
                "it out would move its neighbours.\n"
                "Cure: keep what is popped in attributes or dicts."
            )
    writes: list[Write] = []
    for holder, path in holders:
        if isinstance(holder, Node):
            writes += attribute_deletion(holder, path[-1])
        else:
            writes.append(partial(delitem, getattr(holder, "_tree", holder), path[-1]))
    form_changed()
    at_once(writes)
    return one_or_all(
        state_over(nest((sown_path(paths[i]), leaves[i]) for i in layout.leaves))
        for layout in found
    )
