"""`state_dict` and `load_state_dict`: an object's arrays by dotted names, out and in.

    state_dict        object → {name: array}
    load_state_dict   {name: array} → into the object: all of it or nothing

Loading has three steps. *Matching*: names are renamed and found (under any name that a tied array
has), and a stacked layer is taken from single blocks or the other way round. *Checking*: what does
not fit is collected and told at once. *Placing*: each array becomes one on the devices, with the
sharding, memory kind and dtype of the array in whose place it comes; then all are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._jax_compat import TRACE
from ..graph.filters import Filter
from ..graph.rebuild import write_leaves
from ..objects.node import Node
from ..objects.trace_errors import mutation_error
from ..objects.variable import Variable, raw
from . import errors
from .places import Place, Places, all_names
from .stacks import joined, parted

Rename = Mapping[str, str] | Callable[[str], str | None]
Transform = Callable[[str, Any], Any]


class Loaded(NamedTuple):
    """What `load_state_dict` and `load` did not do as it stood in the mapping."""

    missing: list[str]
    """Names of the object that the mapping does not have: they keep their values."""
    unexpected: list[str]
    """Names of the mapping that the object does not have."""
    cast: dict[str, tuple[Any, Any]]
    """Names whose dtype was changed: (of the mapping, of the object)."""


def state_dict(obj: Any, *, filter: Filter = ..., aliases: bool = False) -> dict[str, jax.Array]:
    """The arrays of an object by dotted names, in the order of `nnx.state`.

    Args:
        obj: a Module, an Optimizer, a container, a State: any object graph.
        filter: which arrays; everything by default.
        aliases: give a tied array under each of its names, as PyTorch does; by default under the
            first one only.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> {name: array.shape for name, array in nnx.state_dict(model).items()}
        {'layers.0.bias': (3,), 'layers.0.kernel': (2, 3)}
    """
    places = Places(obj, filter, "state_dict")
    found = {name: place.value for name, place in places.by_name.items()}
    if not aliases:
        return found
    for name, variable in all_names(obj):
        if name not in found and raw(variable) is not None:
            place = places.find(name)
            if place is not None:
                found[name] = place.value
    return found


def load_state_dict(
    obj: Any,
    mapping: Mapping[str, Any],
    *,
    strict: bool = True,
    rename: Rename | None = None,
    transform: Transform | None = None,
    dtype: Any = "model",
    filter: Filter = ...,
) -> Loaded:
    """Write arrays by dotted names into an object: all of them or, on an error, nothing.

    Args:
        obj: the object; its arrays may be abstract (`nnx.eval_shape`) and are filled in then.
        mapping: names → arrays (of JAX, NumPy, PyTorch's `.numpy()`, numbers). A tied array is
            found under any of its names. A `Stack` takes single blocks, a list stacked ones.
        strict: whether a missing or an unexpected name is an error. Shapes always have to fit.
        rename: `{regular expression: replacement}`, applied to each name one after the other
            (`re.sub`), or a function of the name; None drops the entry.
        transform: (name in the object, array) → the array to load, such as a transpose.
        dtype: `"model"` keeps the dtypes of the object, `"file"` takes those of the mapping; a
            dtype is for all floating-point arrays.
        filter: which arrays of the object take part.

    Returns:
        What was missing, what was unexpected, and what was cast.

    Raises:
        ValueError: with every name that does not fit, its shapes, and near misses; the object is as
            it was.
        TraceContextError: the object belongs to an outer trace.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> theirs = {"fc.weight": jnp.ones((3, 2)), "fc.bias": jnp.ones(3)}
        >>> nnx.load_state_dict(
        ...     linear,
        ...     theirs,
        ...     rename={r"^fc\\.": "", "weight": "kernel"},
        ...     transform=lambda name, array: array.T if name == "kernel" else array,
        ... )
        Loaded(missing=[], unexpected=[], cast={})
    """
    return load_into(obj, mapping, strict, rename, transform, dtype, filter, "load_state_dict")


def load_into(
    obj: Any,
    mapping: Mapping[str, Any],
    strict: bool,
    rename: Rename | None,
    transform: Transform | None,
    dtype: Any,
    filter: Filter,
    verb: str,
    *,
    sharding_of: Callable[[Place], Any] | None = None,
) -> Loaded:
    """`load_state_dict`, for every verb that loads.

    Args:
        obj, mapping, strict, rename, transform, dtype, filter: as in `load_state_dict`; a value of
            the mapping may be lazy: with `shape`, `dtype`, and `read(index)`.
        verb: for messages.
        sharding_of: where an array goes, if not where the one before it is.
    """
    if dtype not in ("model", "file"):
        dtype = jnp.dtype(dtype)
    places = Places(obj, filter, verb)
    problems = errors.Problems(verb, obj)
    incoming = _renamed(mapping, rename, problems)
    matched: dict[str, tuple[Place, Any, str]] = {}  # by first name
    unexpected: list[str] = []
    names = iter(list(incoming.items()))
    known = places.find
    for name, value in _with_stacks(names, places, incoming, problems):
        place = known(name)
        if place is None:
            if not places.is_left_out(name):
                unexpected.append(name)
            continue
        before = matched.get(place.name)
        if before is not None and not _same(before[1], value):
            problems.two_values(before[2], name)
        matched[place.name] = (place, value, name)
    missing = [name for name in places.by_name if name not in matched]
    cast: dict[str, tuple[Any, Any]] = {}
    ready: list[tuple[Place, Any, Any]] = []
    for name, (place, value, given) in matched.items():
        if transform is not None:
            value = transform(name, value.read() if hasattr(value, "read") else value)
        form = value if hasattr(value, "dtype") else np.asarray(value)
        if tuple(form.shape) != tuple(place.value.shape):
            problems.misshapen(name, given, place.value, form)
            continue
        target = _dtype(place.value.dtype, form.dtype, dtype)
        if not _castable(form.dtype, target):
            problems.other_kind(name, given, place.value, form)
            continue
        if target != form.dtype:
            cast[name] = (form.dtype, target)
        ready.append((place, value if hasattr(value, "read") else form, target))
    if strict:
        problems.missing(missing, unexpected)
        problems.unexpected(unexpected, list(places.by_name))
    problems.raise_if_any()
    _check_trace(places, [place.leaf for place, _, _ in ready])
    _write(places, [(p, _placed(p, v, t, sharding_of)) for p, v, t in ready])
    return Loaded(missing, unexpected, cast)


def _renamed(
    mapping: Mapping[str, Any], rename: Rename | None, problems: errors.Problems
) -> dict[str, Any]:
    if not isinstance(mapping, Mapping):
        raise errors.no_mapping(problems.verb, mapping)
    if rename is None:
        return dict(mapping)
    renamed: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in mapping.items():
        new: str | None = name
        if callable(rename):
            new = rename(name)
        else:
            for pattern, replacement in rename.items():
                new = re.sub(pattern, replacement, new)
        if new is None:
            continue
        if new in origin and not _same(renamed[new], value):
            problems.renamed_to_one(origin[new], name, new)
        renamed[new], origin[new] = value, name
    return renamed


def _with_stacks(
    names: Iterator[tuple[str, Any]],
    places: Places,
    incoming: Mapping[str, Any],
    problems: errors.Problems,
) -> Iterator[tuple[str, Any]]:
    """The entries, with single blocks joined for a Stack, and stacked ones parted for a list."""
    stacked = joined(places, incoming, problems)
    for name, value in names:
        if name in stacked:
            whole = stacked[name]
            if whole is not None:
                yield whole
            continue
        yield from parted(places, name, value) or ((name, value),)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    arrays = [np.asarray(x.read() if hasattr(x, "read") else x) for x in (one, other)]
    return arrays[0].shape == arrays[1].shape and bool(np.all(arrays[0] == arrays[1]))


def _dtype(model: Any, given: Any, wanted: Any) -> Any:
    if jnp.issubdtype(model, jax.dtypes.prng_key):
        return model
    if wanted == "model":
        return model
    if wanted == "file":
        return jax.dtypes.canonicalize_dtype(given)
    return wanted if jnp.issubdtype(given, jnp.floating) else model


def _castable(given: Any, target: Any) -> bool:
    """Whether a cast keeps the kind of a number: no float becomes an int, no number a key."""
    if given == target:
        return True
    kinds = (jax.dtypes.prng_key, jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    of = [[i for i, k in enumerate(kinds) if jnp.issubdtype(d, k)] for d in (given, target)]
    if not of[0] or not of[1] or 0 in of[0] or 0 in of[1]:
        return False
    return of[0][0] <= of[1][0]


def _placed(
    place: Place, value: Any, dtype: Any, sharding_of: Callable[[Place], Any] | None
) -> jax.Array:
    """The value as an array on the devices where it belongs; each part is read for itself."""
    old, lazy = place.value, hasattr(value, "read")
    abstract = isinstance(old, jax.ShapeDtypeStruct)
    sharding = sharding_of(place) if sharding_of is not None else None
    if sharding is None and not isinstance(old, Tracer) and getattr(old, "committed", abstract):
        sharding = getattr(old, "sharding", None)
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if lazy and sharding is not None and not is_key:
        return jax.make_array_from_callback(
            tuple(value.shape), sharding, lambda index: value.read(index).astype(dtype)
        )
    value = value.read() if lazy else value
    if isinstance(value, np.ndarray):
        value = np.array(value, dtype)  # a copy: the caller may go on writing into his own
    array = value if is_key else jnp.asarray(value, dtype)
    return array if sharding is None else jax.device_put(array, sharding)


def _check_trace(places: Places, leaves: list[int]) -> None:
    trace = TRACE.value
    for leaf in leaves:
        holder = places.leaves[leaf]
        if not isinstance(holder, Variable):
            holder = places.obj
        own = holder._refax_trace if isinstance(holder, Node) else getattr(holder, "_trace", trace)
        if own is not trace:
            raise mutation_error(holder, "load weights into")


def _write(places: Places, values: list[tuple[Place, jax.Array]]) -> None:
    """Put the arrays into the object; nothing before the last line changes it."""
    by_leaf: dict[int, Any] = {}
    for place, array in values:
        leaf = place.leaf
        if leaf not in by_leaf:
            by_leaf[leaf] = jax.tree.flatten(raw(places.leaves[leaf]))
        by_leaf[leaf][0][place.part] = array
    new = [treedef.unflatten(parts) for parts, treedef in by_leaf.values()]
    write_leaves(places.plan, (places.obj,), list(by_leaf), new)
