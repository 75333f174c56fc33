"""Pytree: a node of an object graph that is a JAX pytree too."""

from __future__ import annotations

from typing import Any, ClassVar

from ..graph.jax_pytree import register
from ..objects.node import Node
from ..objects.torch_names import OF_AN_OBJECT, tell, there
from .copying import deep_copy
from .scopes import scope_methods


class Pytree(Node):
    """Base of every object of a graph that is not a Variable or a plain container.

    A subclass is a JAX pytree (with value semantics: `jax.tree.map(f, obj)` is a new object) and a
    node of the object graph (with reference semantics in the nnx transforms).
    """

    __slots__ = ()
    # What its public methods do, by whose names operations are named: "forward" or "update".
    _refax_phase: ClassVar[str] = ""

    def __init_subclass__(cls, pytree: bool | str = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if pytree:
            register(cls)
        if cls._refax_phase:
            scope_methods(cls)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        return deep_copy(self, memo)

    def __dir__(self) -> list[str]:
        return there(self, super().__dir__())


tell(Pytree, OF_AN_OBJECT)
Object = Pytree  # its older name
