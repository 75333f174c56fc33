"""What layers have in common: options, what is kept of them, parameters, who decides a flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..lift.replaced import Replaceable as Replaceable
from ..objects.type_names import A, PromoteDtypeFn
from ..objects.type_names import Initializer as Initializer
from ..objects.variable_types import Param
from ..verbs.module import Module
from . import dtypes

PromoteDtype = PromoteDtypeFn
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


PROMOTE_DTYPE = Replaceable(dtypes.promote_dtype, dtypes.__name__, *dtypes.ADDRESSES)


class Layer(Module):
    """Base of layers with parameters: the options that all of them take."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    promote_dtype = PROMOTE_DTYPE


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
        default = value if name.startswith("_") else getattr(defaults, name, value)
        if default is not value and not isinstance(default, property):
            setattr(layer, name, value)


def make_parameter(arguments: Mapping[str, Any], name: str, shape: Sequence[int]) -> Param:
    """A Param with the initializer and metadata that the arguments of an `__init__` give for it."""
    init, rngs = arguments[f"{name}_init"], arguments["rngs"]
    value = init(rngs.params(), tuple(shape), arguments["param_dtype"])
    return Param(value, **arguments[f"{name}_metadata"])


def value_of(parameter: Param | None) -> jax.Array | None:
    """The value of a parameter that a layer may lack."""
    return None if parameter is None else parameter.value


def check_last_axis(where: str, shape: tuple[int, ...], name: str, size: int) -> None:
    """Raise unless the last axis of an input has the size that the argument `name` says."""
    if shape[-1:] != (size,):
        raise ValueError(
            f"{where}: the input has the shape {shape}, but its last axis must have {name}={size}."
        )


def first_from(*args: A | None, error_msg: str) -> A:
    """The first argument that is not None.

    Raises:
        ValueError: all are None; with the message that was given.
    """
    for arg in args:
        if arg is not None:
            return arg
    raise ValueError(error_msg)


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
