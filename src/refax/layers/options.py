"""What layers have in common: options, what is kept of them, parameters, who decides a flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import FunctionType, NoneType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..lift.replaced import Replaceable as Replaceable
from ..objects.arguments import ArgumentError, as_tuple
from ..objects.errors import describe_value
from ..objects.torch_names import OF_A_LAYER, tell
from ..objects.type_names import A, Initializer
from ..objects.variable_types import Param
from ..verbs.module import Module
from . import dtypes

PROMOTE_DTYPE = Replaceable(dtypes.promote_dtype, dtypes.__name__, *dtypes.ADDRESSES)


class Layer(Module):
    """Base of layers with parameters: the options that all of them take."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    promote_dtype = PROMOTE_DTYPE


tell(Layer, OF_A_LAYER)


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


def make_parameter(
    arguments: Mapping[str, Any], name: str, shape: Sequence[int]
) -> Param[jax.Array]:
    """A Param with the initializer and metadata that the arguments of an `__init__` give for it."""
    init, dtype, shape = arguments[f"{name}_init"], arguments["param_dtype"], tuple(shape)
    value = initial(f"{name}_init", init, arguments["rngs"].params(), shape, dtype)
    return Param(value, **arguments[f"{name}_metadata"])


def initial(
    name: str, init: Initializer, key: jax.Array, shape: tuple[int, ...], dtype: Any
) -> Any:
    """What the initializer, an argument of that name, makes."""
    of_dtype = jax.dtypes.canonicalize_dtype(dtype)
    wanted = f"{name} is to make an array of shape {shape}, param_dtype={of_dtype}"
    try:
        value = init(key, shape, dtype)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{wanted}, and raised: {error}") from error
    if isinstance(value, FunctionType):
        cure = f"call it: {name}={getattr(init, '__name__', 'initializer')}()."
        raise ArgumentError(f"{wanted}, but made a function: it makes initializers.\nCure: {cure}")
    numbers = (jax.Array, np.ndarray, float, int, NoneType)
    if isinstance(value, numbers) and getattr(value, "shape", ()) != shape:
        raise ArgumentError(f"{wanted}, but made {describe_value(value)}.")
    return value


def value_of(parameter: Param | None) -> jax.Array | None:
    """The value of a parameter that a layer may lack."""
    return None if parameter is None else parameter[...]


def check_last_axis(where: str, shape: tuple[int, ...], name: str, size: int) -> None:
    """Raise unless the last axis of an input has the size that the argument `name` says."""
    if shape[-1:] != (size,):
        raise ArgumentError(
            f"{where}: the input has the shape {shape}, but its last axis must have {name}={size}."
            f"{wrong_size(where.partition('.')[0], name, *shape[-1:])}"
        )


def wrong_size(layer: str, name: str, size: int = 0) -> str:
    """The cure of an input with `size` features, when the layer's argument `name` says another."""
    made = f"{layer}({name}={size}, …) for this input, or " if size else ""
    return f"\nCure: {made}an input with the features along that axis."


def check_broadcasts(name: str, given: tuple[int, ...], shape: tuple[int, ...], form: str) -> None:
    """Raise unless an array of the shape `given` broadcasts to `shape`."""
    ends = zip(given[::-1], shape[::-1], strict=False)
    if len(given) > len(shape) or any(a not in (1, b) for a, b in ends):
        raise ArgumentError(
            f"the {name} has the shape {given}, which does not broadcast to {form}, here {shape}.\n"
            "Cure: one of its axes, or an axis of length 1, for each of them."
        )


def positive_axes(name: str, axes: Any, ndim: int, of: str = "an input") -> tuple[int, ...]:
    """The axes that an argument of that name gives, counted from 0, sorted."""
    axes = as_tuple(axes)
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ArgumentError(
                f"{name}={axes}: there is no axis {axis} in {of} of {ndim} axes.\n"
                "Cure: an axis that is there; a batch axis is added by x[None]."
            )
    positive = tuple(sorted(axis % ndim for axis in axes))
    if len({*positive}) < len(positive):
        raise ArgumentError(
            f"{name}={axes} names an axis twice, in {of} of {ndim} axes.\nCure: each axis once."
        )
    return positive


def first_from(*args: A | None, error_msg: str) -> A:
    """The first argument that is not None.

    Raises:
        ValueError: all are None; with the message that was given.
    """
    for arg in args:
        if arg is not None:
            return arg
    raise ArgumentError(error_msg)


def resolve_flag(layer: Module, name: str, *choices: bool | None) -> bool:
    """The first of `choices` (the call's argument, then the attribute) that is not None."""
    for choice in choices:
        if choice is not None:
            return choice
    cls = type(layer).__name__
    raise ArgumentError(
        f"{cls}: nothing says what `{name}` is: it is None as the attribute and in the call.\n"
        f"Cure: {cls}(..., {name}=False), layer(x, {name}=False), or model.train()/model.eval()."
    )
