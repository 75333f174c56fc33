"""Sequential: layers one after the other; and Identity, the layer that does nothing."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Self, SupportsIndex, overload

from ..objects import arguments as fit
from ..objects.errors import describe_value
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
    plain list, which may be changed; and what a list can do, the Sequential can: `model[0]`,
    `model[1:]` (a Sequential of the same layers), `len`, iteration, `in`, `+`, item assignment.

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
        >>> head, model[1] = model[2:], nnx.gelu
        >>> model.append(nnx.softmax)
        >>> len(model), head[0] is model.layers[2], (head + model[3:])(jnp.ones(4)).shape
        (4, True, (2,))
    """

    def __init__(self, *fns: Callable[..., Any]):
        self.layers: list[Any] = list(fns)

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
                raise fit.ArgumentError(
                    f"Sequential: layers[{i}] is a {type(layer).__name__}, which cannot be called."
                    "\nCure: nnx.Sequential(a, b, c), or nnx.Sequential(*layers) for a list."
                )
            if i > 0:
                args, kwargs = _as_arguments(result)
            if rngs is not None and _takes_rngs(layer):
                kwargs = {**kwargs, "rngs": rngs}
            result = layer(*args, **kwargs)
        return result

    def _number(self, index: SupportsIndex) -> int:
        if not isinstance(index, SupportsIndex):
            raise fit.ArgumentError(
                f"Sequential: an index is an int or a slice, but this is {describe_value(index)}."
            )
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"Sequential: there is no layer {number}, it has {len(self)} layers.")
        return number

    def _with(self, layers: Iterable[Callable[..., Any]]) -> Self:
        new = copy.copy(self)
        new.layers = list(layers)
        return new

    def __len__(self) -> int:
        return len(self.layers)

    def __bool__(self) -> bool:
        return True  # also without layers: `if self.head:` asks whether there is one

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: slice) -> Self: ...
    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """Layer number `index`; or the Sequential of a slice, with the same layers."""
        if isinstance(index, slice):
            return self._with(list(self.layers)[index])
        return self.layers[self._number(index)]

    def __setitem__(self, index: SupportsIndex | slice, layer: Any) -> None:
        self.layers[index if isinstance(index, slice) else self._number(index)] = layer

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        del self.layers[index if isinstance(index, slice) else self._number(index)]

    def append(self, layer: Callable[..., Any]) -> None:
        """Add a layer at the end."""
        self.layers.append(layer)

    def extend(self, layers: Iterable[Callable[..., Any]]) -> None:
        """Add layers at the end."""
        self.layers.extend(layers)

    def insert(self, index: SupportsIndex, layer: Callable[..., Any]) -> None:
        """Put a layer before number `index`."""
        self.layers.insert(index, layer)

    def __add__(self, other: Iterable[Callable[..., Any]]) -> Self:
        if not isinstance(other, (Sequential, list, tuple)):
            return NotImplemented
        return self._with([*self, *other])

    def __radd__(self, other: Iterable[Callable[..., Any]]) -> Self:
        if not isinstance(other, (Sequential, list, tuple)):
            return NotImplemented
        return self._with([*other, *self])

    def __iadd__(self, other: Iterable[Callable[..., Any]]) -> Self:
        self.extend(other)
        return self


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
