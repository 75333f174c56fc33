"""What is data: the questions of a class author, and metadata set on a whole object."""

from __future__ import annotations

from typing import Any, TypeVar

from ..graph.filters import Filter, checked
from ..objects.errors import describe_value
from ..objects.marks import class_marks
from ..objects.node import Node, check_static, is_data
from ..objects.variable import Variable
from ..objects.watch import register_array_type
from .layouts import layout_of, plan_of
from .updating import check_writable

C = TypeVar("C", bound=type)


is_data_type = is_data


@checked
def register_data_type(type_: C, /) -> C:
    """Make the values of a type data in attributes: leaves of their own, as arrays are.

    Also a decorator of a class. Such a leaf goes through the verbs; a JAX transform takes it only
    if JAX takes it for an array.

    Example:
        >>> from refax import nnx
        >>> @nnx.register_data_type
        ... class Handle:
        ...     pass
        >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> layer.handle = Handle()
        >>> sorted(nnx.state(layer))
        ['bias', 'handle', 'kernel']
    """
    register_array_type(type_)
    return type_


def check_pytree(pytree: Any) -> None:
    """Raise if an attribute that is marked static holds data, which would not be found.

    Raises:
        TypeError: not a Pytree.
        StructureError: (a ValueError) the attribute, and what it holds.
    """
    if not isinstance(pytree, Node):
        raise TypeError(
            f"nnx.check_pytree takes a Pytree, got {describe_value(pytree)}.\n"
            "Cure: give a Module or another nnx.Pytree."
        )
    marks = {**class_marks(type(pytree)), **(pytree._refax_marks or {})}
    for name, value in vars(pytree).items():
        if marks.get(name) == "static":
            check_static(type(pytree), name, value)


@checked
def set_metadata(node: Any, /, *, only: Filter = Variable, **metadata: Any) -> None:
    """Set metadata on every Variable of an object that the filter matches, in place.

    Example:
        >>> from refax import nnx
        >>> norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        >>> nnx.set_metadata(norm, only=nnx.Param, rate=0.5)
        >>> norm.scale.rate, norm.mean.has_metadata("rate")
        (0.5, False)
    """
    plan = plan_of(node)
    cells = plan.variables
    leaves = [i for i in layout_of(plan, only).leaves if i < len(cells)]
    check_writable(plan, node, leaves, "write the metadata of")
    for i in leaves:
        cells[i].set_metadata(**metadata)
