"""Pickling functions that objects hold: by their public names, or an error with the place.

`pickle` looks a function up by module and name. Those of `jax.nn` and `jax.numpy` are objects
around functions of private modules, where it does not find them; here they go by the name under
which everybody knows them. A lambda, or a function made by another (an initializer, an optax
transformation), has no name to go by: `check` says where it is, for plain `pickle` only, since
cloudpickle takes it.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import pickle
import pkgutil
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MODULES = ("jax.nn", "jax.numpy", "jax.lax", "jax.numpy.linalg", "jax.random", "optax")
_OTHERS = ("cloudpickle", "dill", "copy")  # they ask for the same, and take functions


def _reduce(function: Any) -> Any:
    name = getattr(function, "__name__", "")
    for module in _MODULES:
        if getattr(sys.modules.get(module), name, None) is function:
            return pkgutil.resolve_name, (f"{module}:{name}",)
    return function.__reduce_ex__(4)


for _kind in (type(jax.jit(lambda: None)), jax.custom_jvp, type(jnp.add)):
    if _kind is not types.FunctionType:
        copyreg.pickle(_kind, _reduce)  # type: ignore[arg-type]


def check(place: str, value: Any) -> None:
    """Raise if plain `pickle` is at work and cannot take a function in `value`.

    Args:
        place: of the value, as the message names it.
        value: an attribute, or another static value.
    """
    for below, function in _nameless(value, ""):
        if not _by_another_pickler():
            name = getattr(function, "__qualname__", repr(function))
            raise pickle.PicklingError(
                f"`{place}{below}` is the function `{name}`, which pickle cannot find by a name: "
                "it is a lambda, or was made inside of another function.\n"
                "Cure: cloudpickle.dumps(…), which takes the code along; or a function of a module."
            )


def _nameless(value: Any, below: str, depth: int = 0) -> Iterator[tuple[str, types.FunctionType]]:
    cls = type(value)
    if cls is types.FunctionType:
        found: Any = sys.modules.get(value.__module__)
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not value:
            yield below, value
    elif cls is functools.partial:
        yield from _nameless(value.func, f"{below}.func", depth)
    elif isinstance(value, (tuple, list, dict)) and depth < 8:
        names = getattr(value, "_fields", None)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            step = f"[{key!r}]" if names is None else f".{names[key]}"
            yield from _nameless(item, below + step, depth + 1)


def _by_another_pickler() -> bool:
    stack = traceback.walk_stack(sys._getframe(1))
    modules = (frame.f_globals.get("__name__", "") for frame, _ in stack)
    return any(module.partition(".")[0] in _OTHERS for module in modules)


def copy_leaf(leaf: Any) -> Any:
    """A leaf of a value with a buffer of its own."""
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else copy.deepcopy(leaf)


class _PackedKey:
    """A typed random key as pickle can take it: the raw words and the name of its generator."""

    def __init__(self, key: jax.Array):
        self.key = key

    def __reduce__(self) -> Any:
        data = np.asarray(jax.random.key_data(self.key))
        return (_unpack_key, (data, str(jax.random.key_impl(self.key))))


def _unpack_key(data: np.ndarray, impl: str) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)


def pack_leaf(leaf: Any) -> Any:
    """A leaf of a value as `pickle` can take it."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _PackedKey(leaf)
    return leaf
