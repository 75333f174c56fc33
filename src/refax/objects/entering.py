"""Values on their way into a Variable: what comes from outside of JAX becomes an array, once.

A NumPy array that a Variable kept would be sent to the device at every compiled call, would have
none of an array's methods, and would follow what its owner writes into it. So numbers, NumPy arrays
and lists of numbers are copied into a `jax.Array` when they enter: of the dtype and in the place of
what the Variable has, where it has something. Arrays of JAX, tracers, and values that are no
numbers at all (strings, None, objects) pass as they are, also inside a pytree.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from .errors import StructureError, describe_value, path_string
from .trace_errors import known_name

_NUMBERS = (bool, int, float, complex)
_KINDS = (np.bool_, np.integer, np.floating, np.complexfloating)
_AS_THEY_ARE = frozenset({str, bytes, type(None)})
# The classes of arrays, learnt as they come: `isinstance(x, jax.Array)` is slow.
ARRAYS: set[type] = set()


def entered(value: Any, like: Any = None, holder: Any = None, dtype: bool = True) -> Any:
    """`value` as a Variable keeps it.

    Args:
        value: what is given.
        like: what the Variable has, whose place and dtype an array from outside takes.
        holder: the Variable, or the path of it, for messages.
        dtype: whether the dtype of `like` counts.

    Raises:
        StructureError: numbers that the dtype cannot hold, such as 1.5 as an int32.
    """
    cls = type(value)
    if cls in ARRAYS or cls in _AS_THEY_ARE:
        return value
    if isinstance(value, jax.Array):
        ARRAYS.add(cls)
        return value
    if _from_outside(value):
        return _array(value, like, holder, dtype)
    leaves, structure = jax.tree.flatten(value)
    if not any(map(_from_outside, leaves)):
        return value
    same = jax.tree.structure(like) == structure
    if cls is list and not same and _are_numbers(value):
        try:
            return _array(np.array(value), like, holder, dtype)
        except ValueError:  # of several lengths
            pass

    def made(x: Any, y: Any = None) -> Any:
        return _array(x, y, holder, dtype) if _from_outside(x) else x

    return jax.tree.map(made, value, like) if same else jax.tree.map(made, value)


def conformed(value: Any, like: Any, path: tuple) -> Any:
    """`value` as it replaces `like`: an array of JAX gets its dtype too, and its place if free."""
    value = keys_of_data(entered(value, like, path), like)
    if value is like:
        return value
    if type(value) in ARRAYS and value.dtype == getattr(like, "dtype", None):
        return placed(value, like)
    if isinstance(value, jax.Array) and _is_number(value.dtype) and _has_numbers(like):
        if not castable(value.dtype, like.dtype):
            if isinstance(value, Tracer) or not value.is_fully_addressable:
                _refuse(value, like.dtype, path)
            return _array(value, like, path, True)
        return conformed(value.astype(like.dtype), like, path)
    structure = jax.tree.structure(value)
    if jax.tree.structure(like) != structure or jax.tree_util.all_leaves((value,)):
        return value
    return jax.tree.map(lambda x, y: conformed(x, y, path), value, like)


def keys_of_data(value: Any, like: Any) -> Any:
    """Random keys, where `value` is their data, as files have it, and `like` is keys."""
    if not is_key(like) or is_key(value):
        return value
    like = jax.ShapeDtypeStruct(like.shape, like.dtype)
    data = jax.eval_shape(jax.random.key_data, like)
    if (getattr(value, "shape", None), getattr(value, "dtype", None)) != (data.shape, data.dtype):
        return value
    impl: list[Any] = []
    jax.eval_shape(lambda keys: impl.append(jax.random.key_impl(keys)), like)
    return jax.random.wrap_key_data(jnp.asarray(value), impl=impl[0])


def is_key(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.bool_), jax.dtypes.prng_key)


def placed(value: Any, like: Any) -> Any:
    """An array without a place of its own goes where `like` is."""
    if not isinstance(value, jax.Array) or isinstance(value, Tracer) or value.committed:
        return value
    place = _place(like, value.shape)
    return value if place is None else jax.device_put(value, place)


def operand(value: Any, like: Any) -> Any:
    """The other side of an in-place operator: NumPy's does not widen what JAX computes with."""
    if not isinstance(value, (np.ndarray, np.generic)) or not _has_numbers(like):
        return value
    wide = jnp.promote_types(like.dtype, jax.dtypes.canonicalize_dtype(value.dtype))
    if wide == like.dtype or not castable(value.dtype, like.dtype):
        return value
    return value.astype(like.dtype)


def kept_in_place(new: Any, old: Any) -> Any:
    """What was computed in place of `old` goes back where that was, also into the host's memory."""
    if type(old) not in ARRAYS or type(new) is not type(old) or isinstance(old, Tracer):
        return new
    if not old.committed or new.shape != old.shape or new.sharding == old.sharding:
        return new
    return jax.device_put(new, old.sharding)


def broadcasts(value: Any, current: Any) -> bool:
    """Whether numbers that are written to all of an array, by `[...] =`, have another shape."""
    if type(current) not in ARRAYS:
        return False
    shape = getattr(value, "shape", None)
    if shape is None:
        shape = np.shape(value) if isinstance(value, _NUMBERS) else current.shape
    return isinstance(value, list) or shape != current.shape


def with_part(current: Any, index: Any, value: Any, holder: Any) -> Any:
    """An array with `value` in a part of it, or broadcast to all of it.

    Raises:
        StructureError: it cannot be broadcast to all of it.
    """
    array = jnp.asarray(current)
    if isinstance(value, list) and any(isinstance(x, jax.Array) for x in jax.tree.leaves(value)):
        value = jnp.asarray(value)
    value = entered(value, array, holder)
    try:
        return kept_in_place(array.at[index].set(value), array)
    except ValueError:
        if index is not ...:
            raise
        name = f"`{known_name(holder) or type(holder).__name__}`"
        raise StructureError(
            f"{describe_value(value)} is written with `[...] =` to all of {name}, which is "
            f"{describe_value(array)}, and cannot be broadcast to it.\n"
            "Cure: `variable.value = new` replaces the array by one of another shape."
        ) from None


def replicated(place: Any) -> Any:
    """The same devices and memory, for an array of any shape; None if that cannot be said."""
    if isinstance(place, NamedSharding):
        return NamedSharding(place.mesh, PartitionSpec(), memory_kind=place.memory_kind)
    return place if len(place.device_set) == 1 else None


def _from_outside(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return _is_number(value.dtype)
    return isinstance(value, _NUMBERS)


def _are_numbers(values: list) -> bool:
    return all(
        isinstance(x, (*_NUMBERS, np.generic)) or type(x) is list and _are_numbers(x)
        for x in values
    )


def _is_number(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.number) or dtype == np.bool_


def _has_numbers(like: Any) -> bool:
    return hasattr(like, "dtype") and _is_number(like.dtype)


def castable(given: Any, target: Any) -> bool:
    """Whether a cast stays in the kind of number, or goes to one that holds it; none is a key."""

    def rank(dtype: Any) -> int:
        return next(i for i, kind in enumerate(_KINDS) if jnp.issubdtype(dtype, kind))

    return _is_number(given) and _is_number(target) and rank(given) <= rank(target)


def _array(value: Any, like: Any, holder: Any, dtype: bool) -> jax.Array:
    given: Any = np.asarray(value)
    if not given.dtype.isnative:  # as files of another machine have it
        given = given.astype(given.dtype.newbyteorder("="))
    target = like.dtype if dtype and _has_numbers(like) else given.dtype
    target = jax.dtypes.canonicalize_dtype(target)
    with np.errstate(invalid="ignore", over="ignore"):
        real = given if jnp.issubdtype(target, np.complexfloating) else given.real
        host = np.array(real, target)  # always a copy: the owner may write into the other
    exact = not jnp.issubdtype(target, np.inexact) or real is not given and np.iscomplexobj(given)
    if exact and given.dtype != target and not np.array_equal(host, given):
        _refuse(value, target, holder)
    return jax.device_put(host, _place(like, host.shape))


def _place(like: Any, shape: tuple) -> Any:
    """Where an array of this shape goes to be beside `like`; None for wherever JAX likes."""
    if isinstance(like, Tracer):
        return None
    place = getattr(like, "sharding", None)
    if not isinstance(place, Sharding) or not getattr(like, "committed", True):
        return None
    try:
        place.shard_shape(shape)
    except (ValueError, IndexError):
        return replicated(place)
    return place


def _refuse(value: Any, dtype: Any, holder: Any) -> None:
    name = path_string(holder) if isinstance(holder, tuple) else known_name(holder)
    raise StructureError(
        f"{describe_value(value)} does not fit into {f'`{name}`' if name else 'the Variable'}, "
        f"whose dtype is {dtype}: the numbers would not be the same.\n"
        "Cure: cast the value, if that is meant (`value.astype(...)`), or make the Variable with "
        "the wider dtype: `variable.replace(value)` gives one."
    )
