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
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice, zip_longest
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..graph.filters import Filter
from ..graph.rebuild import write_leaves
from ..objects.arguments import Fits, checked, is_dtype, taken_by
from ..objects.entering import castable, is_key, keys_of_data
from ..objects.errors import suggest
from ..objects.representation import WIDTH, shortened, wrapped
from ..objects.variable import raw
from ..verbs.errors import Misfits
from ..verbs.matching import same_values, void_corrections
from ..verbs.spmd import check_annotations, named_sharding_of
from ..verbs.updating import check_writable
from .file_errors import too_large
from .places import Place, Places
from .stacks import read, with_stacks


def _says_dtype(x: Any) -> bool:
    return x is not None and (x in ("model", "file") or is_dtype(x))


LoadDtype = Annotated[Any, Fits("'model', 'file', or a dtype", _says_dtype)]
_Pattern = Annotated[str, Fits("a regular expression", taken_by(re.compile))]
Rename = Mapping[_Pattern, str] | Mapping[_Pattern, str | None] | Callable[[str], str | None]
Transform = Callable[[str, Any], Any]
_SHOWN = 6  # names, of each kind
_OTHER_NAMES = (
    "rename={…} for other names; strict=False for what is missing, or is not of the object"
)


class Loaded(NamedTuple):
    """What `load_state_dict` and `load` did not do as it stood in the mapping."""

    missing: list[str]
    """Names of the object that the mapping does not have: they keep their values."""
    unexpected: list[str]
    """Names of the mapping that the object does not have."""
    cast: dict[str, tuple[Any, Any]]
    """Names whose dtype was changed: (of the mapping, of the object)."""

    def __repr__(self) -> str:
        line = f"Loaded({', '.join(f'{k}={v}' for k, v in self._asdict().items())})"
        if len(line) <= WIDTH:
            return line
        pairs: dict[str, list[str]] = {}
        for name, (given, taken) in self.cast.items():
            pairs.setdefault(f"{given} → {taken}", []).append(name)
        casts = ", ".join(f"{pair}: {_some(names)}" for pair, names in pairs.items())
        parts = [f"missing={_some(self.missing)}", f"unexpected={_some(self.unexpected)}"]
        lines = [
            f"  {wrapped(part, WIDTH - 3, '    ')},\n" for part in (*parts, f"cast={{{casts}}}")
        ]
        return f"Loaded(\n{''.join(lines)})"


def _some(names: list[str]) -> str:
    """The first names, and how many there are."""
    more = f", … {len(names):,} in all" if len(names) > _SHOWN else ""
    return f"[{', '.join(repr(shortened(name, 60)) for name in names[:_SHOWN])}{more}]"


@checked
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
    return found | {name: place.value for name, place in places.all_names()} if aliases else found


@checked
def load_state_dict(
    obj: Any,
    mapping: Mapping[str, Any],
    *,
    strict: bool = True,
    rename: Rename | None = None,
    transform: Transform | None = None,
    dtype: LoadDtype = "model",
    filter: Filter = ...,
) -> Loaded:
    """Write arrays by dotted names into an object: all of them or, on an error, nothing.

    Args:
        obj: the object; its arrays may be abstract (`nnx.eval_shape`) and are filled in then.
        mapping: names → arrays (of JAX, NumPy, PyTorch's `.numpy()`, numbers). A tied array is
            found under any of its names. A `Stack` takes single blocks, a list stacked ones.
        strict: whether a missing or an unexpected name is an error. Shapes always have to fit.
        rename: `{regular expression: replacement}`, applied to each name one after the other
            (`re.sub`), or a function of the name; None, in place of a replacement too, drops the
            entry.
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
    places = Places(obj, filter, "load_state_dict")
    return load_into(places, mapping, strict, rename, transform, dtype)


def load_into(
    places: Places,
    mapping: Mapping[str, Any],
    strict: bool = True,
    rename: Rename | None = None,
    transform: Transform | None = None,
    dtype: Any = "model",
    mesh: Any = None,
    misfits: Misfits | None = None,
) -> Loaded:
    """`load_state_dict`, for every verb that loads.

    Args:
        places: of the object.
        mapping, strict, rename, transform, dtype: as in `load_state_dict`; a value of the mapping
            may be lazy: with `shape`, `dtype`, and `read(index)`.
        mesh: where arrays go, by their annotations, if not where the ones before them are.
        misfits: what is known not to fit already, for the one report.
    """
    if dtype not in ("model", "file"):
        dtype = jnp.dtype(dtype)
    misfits = misfits or Misfits(places.verb, "mapping")
    matched: dict[str, tuple[Place, Any, str]] = {}  # by first name
    unexpected: list[str] = []
    others: list[str] = []  # of random streams as older programs kept them
    for name, value in with_stacks(places, renamed(mapping, rename, misfits), misfits):
        place = places.find(name)
        if place is None:
            if places.is_passed_over(name):
                others.append(name)
            elif not places.is_left_out(name):
                unexpected.append(name)
            continue
        _, before, other = matched.setdefault(place.name, (place, value, name))
        if not _same(before, value):
            misfits.add(
                "drop one of the two names, or untie them in the object",
                f"`{other}` and `{name}` are one tied array, but have two values.",
            )
    given = [place.leaf for place, _, _ in matched.values()]
    zero = set(void_corrections(places.plan.graphdef, given))
    for name, place in places.by_name.items():
        if place.leaf in zero:
            matched[name] = place, np.zeros(place.value.shape, place.value.dtype), name
    missing = [name for name in places.by_name if name not in matched]
    cast: dict[str, tuple[Any, Any]] = {}
    ready: list[tuple[Place, Any, Any]] = []
    for name, (place, value, given) in matched.items():
        if transform is not None:
            value = transform(name, read(value))
        value = _array(name, value, misfits)
        if value is None:
            continue
        if is_key(place.value) and not is_key(value):
            value = keys_of_data(read(value), place.value)
        target, cure = _dtype(place.value.dtype, value.dtype, dtype), None
        if tuple(value.shape) != tuple(place.value.shape):
            cure = "transform=… for another layout, such as a transpose"
        elif value.dtype != target and not castable(value.dtype, target):
            cure = "transform=… to convert the values on purpose"
        if cure is not None:
            also = "" if given == name else f" (given as `{given}`)"
            misfits.unlike(f"`{name}`{also}", place.value, value, cure)
            continue
        if target != value.dtype:
            cast[name] = (value.dtype, target)
        ready.append((place, value, target))
    if strict:
        kept = {name for name in missing if others and places.is_of_stream(name)}
        needed = [name for name in missing if name not in kept]
        add_unmatched(misfits, needed, unexpected, places.by_name)
    misfits.raise_if_any()
    unexpected += others
    leaves = [place.leaf for place, _, _ in ready]
    check_writable(places.plan, places.obj, leaves, "load weights into")
    if mesh is not None:
        check_annotations(places.obj, mesh)
    new = {leaf: jax.tree.flatten(raw(places.leaves[leaf])) for leaf in leaves}
    for place, value, target in ready:
        what, leaf = f"nnx.{places.verb}: `{place.name}`", places.leaves[place.leaf]
        sharding = place.sharding if mesh is None else named_sharding_of(leaf, mesh)
        new[place.leaf][0][place.part] = _placed(what, value, target, sharding)
    values = [treedef.unflatten(parts) for parts, treedef in new.values()]
    write_leaves(places.plan, (places.obj,), list(new), values)
    return Loaded(missing, unexpected, cast)


def add_unmatched(
    misfits: Misfits, missing: Iterable[str], unexpected: Iterable[str], known: Iterable[str]
) -> None:
    """Tell the names without a counterpart, the first with near misses, which take time to find."""
    for what, names, others in (
        ("missing", missing, unexpected),
        ("unexpected", unexpected, known),
    ):
        near = [suggest(name, others) for name in islice(names, 20)]
        lines = [f"{what}: `{n}`.{hint}" for n, hint in zip_longest(names, near, fillvalue="")]
        misfits.add(_OTHER_NAMES, *lines)


def renamed(mapping: Mapping[str, Any], rename: Rename | None, misfits: Misfits) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in mapping.items():
        new: str | None = name
        if callable(rename):
            new = rename(name)
        for pattern, replacement in () if callable(rename) else (rename or {}).items():
            if new is not None and re.search(pattern, new):
                new = None if replacement is None else re.sub(pattern, replacement, new)
        if new is None:
            continue
        if new in origin and not _same(renamed[new], value):
            line = f"`{origin[new]}` and `{name}` are both renamed to `{new}`."
            misfits.add("another rename={…}", line)
        renamed[new], origin[new] = value, name
    return renamed


def _same(one: Any, other: Any) -> bool:
    return one is other or same_values(read(one), read(other))


def _dtype(model: Any, given: Any, wanted: Any) -> Any:
    if wanted == "model" or jnp.issubdtype(model, jax.dtypes.prng_key):
        return model
    if wanted == "file":
        return jax.dtypes.canonicalize_dtype(given)
    return wanted if jnp.issubdtype(given, jnp.floating) else model


def _array(name: str, value: Any, misfits: Misfits) -> Any:
    """What a mapping has, as something with shape and dtype; None if it is nothing of the kind."""
    what = ""
    if isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.is_deleted():
        what = "was deleted, or given away to a function (donated)"
    elif isinstance(value, np.ma.MaskedArray):
        what = "has a mask, which an array of JAX cannot have"
    elif hasattr(value, "dtype"):
        return value
    else:
        try:
            return np.asarray(value)
        except ValueError:
            what = "is a list of lists of several lengths"
    misfits.add("a mapping to arrays or numbers", f"`{name}` {what}.")
    return None


def _as_dtype(what: str, dtype: Any, array: Any, fresh: bool = False) -> Any:
    """The array with a dtype, copied unless it is `fresh`.

    Raises:
        StructureError: the dtype cannot hold the values, such as 300 as an int8; of fractions, only
            the precision may be lost.
    """
    if array.dtype == dtype or isinstance(array, Tracer):
        return array.astype(dtype, copy=not fresh)
    xp: Any = jnp if isinstance(array, jax.Array) else np
    with np.errstate(over="ignore", invalid="ignore"):  # told as an error
        new = array.astype(dtype)
        if jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, np.bool_):
            lost = ((new.astype(array.dtype) != array) | ((new < 0) != (array < 0))).any()
        else:
            lost = not xp.isfinite(new).all() and (xp.isfinite(array) & ~xp.isfinite(new)).any()
    if lost:
        raise too_large(what, array.dtype, dtype)
    return new


def _placed(what: str, value: Any, dtype: Any, sharding: Any) -> jax.Array:
    """The value as an array on the devices where it belongs; each part is read for itself."""
    # Over several processes; what comes like that is spread already.
    spread = sharding is not None and not sharding.is_fully_addressable
    spread = spread and getattr(value, "is_fully_addressable", True)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        value = read(value)
        if spread:  # there, device_put takes numbers only
            make = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(value))
            return jax.jit(make, out_shardings=sharding)(np.asarray(jax.random.key_data(value)))
        return value if sharding is None else jax.device_put(value, sharding)
    if sharding is not None and (spread or hasattr(value, "read")):

        def part(index: Any) -> np.ndarray:
            found = np.asarray(read(value, index))
            fresh = hasattr(value, "read") and found.flags.owndata  # else somebody's own
            fresh = fresh or getattr(value, "makes_fresh", False)
            return _as_dtype(what, dtype, found, fresh)

        return jax.make_array_from_callback(tuple(value.shape), sharding, part)
    value = read(value)
    if not isinstance(value, jax.Array):
        value = np.asarray(value)  # copied below: the caller may go on writing into his own
    array = jnp.asarray(_as_dtype(what, dtype, value, isinstance(value, jax.Array)))
    return array if sharding is None else jax.device_put(array, sharding)
