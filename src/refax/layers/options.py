"""Options that many layers take: their types, what a layer keeps of them, who decides a flag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ..graph.module import Module

Initializer = Callable[..., Any]  # (key, shape, dtype) → array
PromoteDtype = Callable[..., Any]  # (arrays, *, dtype) → arrays of one dtype

NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def keep_options(layer: Module, arguments: Mapping[str, Any]) -> None:
    """Set as attributes the arguments for which the class has a default, where they differ from it.

    Every attribute of a layer is compared when a transform looks for what it compiled before. Most
    layers use the defaults of most options, so those stay off the objects.

    Args:
        layer: the layer, in whose `__init__` this is the first line.
        arguments: the arguments of `__init__`: `locals()`.
    """
    defaults = type(layer)
    for name, value in arguments.items():
        if not name.startswith("_") and getattr(defaults, name, value) is not value:
            setattr(layer, name, value)


def product_options(
    precision: Any, preferred_element_type: Any, out_sharding: Any
) -> tuple[tuple[str, Any], ...]:
    """The keywords for a product, hashable; a user's function need not know the unused ones."""
    optional = {"preferred_element_type": preferred_element_type, "out_sharding": out_sharding}
    used = [(name, value) for name, value in optional.items() if value is not None]
    return ("precision", precision), *used


def resolve_flag(layer: Module, name: str, *choices: bool | None) -> bool:
    """The first of `choices` (the call's argument, then the attribute) that is not None."""
    for choice in choices:
        if choice is not None:
            return choice
    cls = type(layer).__name__
    raise ValueError(
        f"{cls}: nothing says what `{name}` is: it is None as the attribute and in the call.\n"
        f"Cure: {cls}(..., {name}=False), layer(x, {name}=False), or model.train()/model.eval()."
    )
