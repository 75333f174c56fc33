"""Sequential: layers one after the other; and Identity, the layer that does nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic

from ..objects.type_names import T
from ..verbs.module import Module
from ..verbs.rngs import Rngs, RngStream


class Identity(Module):
    """Returns its input. Any arguments at construction, and further ones at a call, are ignored.

    Example:
        >>> from refax import nnx
        >>> nnx.Identity(3, rngs=nnx.Rngs(0))(5.0)
        5.0
    """

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x


class Sequential(Module, Generic[T]):
    """Calls layers one after the other.

    A layer gets what the one before it returned: a tuple as positional arguments, a mapping with
    string keys as keyword arguments, anything else as the one argument. Attributes: `layers`, a
    plain list, which may be changed.

    Args:
        *fns: Modules or any callables.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs)
        ... )
        >>> model(jnp.ones((5, 3))).shape, model.layers[0].kernel.shape
        ((5, 2), (3, 4))
    """

    def __init__(self, *fns: Callable[..., Any]):
        self.layers = list(fns)

    def __call__(self, *args: Any, rngs: Rngs | RngStream | None = None, **kwargs: Any) -> Any:
        """Call the first layer with these arguments, and so on.

        Args:
            *args: for the first layer.
            rngs: for every layer that takes `rngs`.
            **kwargs: for the first layer.
        """
        result: Any = args[0] if len(args) == 1 else args or kwargs or None
        for i, layer in enumerate(self.layers):
            if not callable(layer):
                raise TypeError(
                    f"Sequential: layers[{i}] is a {type(layer).__name__}, which cannot be called."
                )
            if i > 0:
                args, kwargs = _as_arguments(result)
            if rngs is not None and _takes_rngs(layer):
                kwargs = {**kwargs, "rngs": rngs}
            result = layer(*args, **kwargs)
        return result


def _as_arguments(result: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(result, tuple):
        return result, {}
    if isinstance(result, Mapping) and all(isinstance(key, str) for key in result):
        return (), dict(result)
    return (result,), {}


def _takes_rngs(layer: Callable[..., Any]) -> bool:
    if isinstance(layer, Module):  # its class says so, once for all layers of that class
        return _has_rngs(type(layer).__call__)
    return has_rngs(layer)  # a cache would keep what it closes over alive


def has_rngs(function: Callable[..., Any]) -> bool:
    """Whether a function, or a class, has a parameter `rngs`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in, without a signature
        return False
    return "rngs" in parameters


_has_rngs = functools.lru_cache(maxsize=512)(has_rngs)
