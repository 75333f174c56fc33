"""`from_torch` and `to_torch`: PyTorch's state dicts in and out, by the type of each layer.

PyTorch is not needed to read: a state dict is a mapping of names to arrays, or a file of them.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..graph.filters import All, Not
from ..graph.filters import Any as AnyOf
from ..layers.convolution import ConvTranspose
from ..layers.recurrent_cells import GRUCell
from ..layers.weight_norm import SpectralNorm
from ..objects.arguments import checked
from ..objects.variable import Variable
from ..objects.variable_types import Cache, Intermediate, Param, Perturbation, RngState
from ..verbs.errors import Misfits
from .file_errors import not_concrete
from .files import opened
from .places import Places
from .stacks import read
from .state_dict import LoadDtype, Loaded, Rename, Transform, add_unmatched, load_into, renamed
from .tensors import as_numpy
from .torch_layouts import Entry, Slot, entries

# Random streams, caches and records have no counterpart; PyTorch's attributes are not saved.
_STORED = All(Variable, Not(AnyOf(RngState, Cache, Intermediate, Perturbation)))
_APART = re.compile(r"_proj\.(weight|bias)$")  # of attention, each projection by itself


@checked
def from_torch(
    model: Any,
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    rename: Rename | None = None,
    strict: bool = True,
    *,
    transform: Transform | None = None,
    dtype: LoadDtype = "model",
) -> Loaded:
    """Write the weights of a PyTorch model into this one: all of them or, on an error, nothing.

    What an array is called and how its axes lie is known for each type of layer; where both models
    have the same attributes, nothing else need be said. docs/weights.md has the table.

    Args:
        model: the model; its arrays may be abstract (`nnx.eval_shape`) and are filled in then.
        state_dict: names → tensors of PyTorch, or arrays: `torch_model.state_dict()`; or the path
            of a safetensors file, an index of several, or a folder of Hugging Face's.
        rename: `{regular expression: replacement}`, applied to each name one after the other, to
            get the name that a PyTorch model with the attributes of this one would have; None in
            place of a replacement drops the entry. Or a function of the name.
        strict: whether a missing or an unexpected name is an error. Shapes always have to fit.
        transform: (name after `rename`, array) → the array as PyTorch's layer has it: for weights
            that are laid out otherwise, such as those of GPT-2 at Hugging Face (in, out).
        dtype: as in `nnx.load_state_dict`.

    A `GRUCell` has no bias beside h; where PyTorch's is not zero, `dense_h` gets one.

    Returns:
        What was missing (names of the model), what was unexpected, and what was cast.

    Raises:
        ValueError: with every name that does not fit, its shapes, and near misses; the model is as
            it was.

    Example:
        >>> from refax import nnx
        >>> import numpy as np
        >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.relu)
        >>> theirs = {
        ...     "0.weight": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        ...     "0.bias": np.ones(2),
        ... }
        >>> nnx.from_torch(model, theirs).missing
        []
        >>> model.layers[0].kernel[:, 1].tolist()
        [4.0, 5.0, 6.0]
    """
    misfits = Misfits("from_torch", "mapping")
    if not isinstance(state_dict, Mapping):
        with opened(Path(state_dict), "from_torch") as file:
            state_dict = {name: read(tensor) for name, tensor in file.tensors.items()}
    given = renamed({n: as_numpy(x) for n, x in state_dict.items()}, rename, misfits)
    if transform is not None:
        given = {name: np.asarray(transform(name, value)) for name, value in given.items()}
    places = Places(model, _STORED, "from_torch")
    known = list(entries(places))
    cells = [e.layer for e in known if _needs_bias(e, given)]
    try:
        for cell in cells:
            cell.dense_h.bias = Param(jnp.zeros(cell.dense_i.bias.shape, cell.dense_i.bias.dtype))
        if cells:
            places = Places(model, _STORED, "from_torch")
            known = list(entries(places))
        arrays, missing, unexpected = _matched(known, given, misfits)
        if strict:
            names = dict.fromkeys(name for theirs in missing.values() for name in theirs)
            wanted = [name for entry in known for s in entry.slots for name in _names(entry, s)]
            add_unmatched(misfits, names, unexpected, wanted)
        loaded = load_into(places, arrays, strict=False, dtype=dtype, misfits=misfits)
    except BaseException:
        for cell in cells:
            cell.dense_h.bias = None
        raise
    return Loaded(list(missing), unexpected, loaded.cast)


@checked
def to_torch(
    model: Any,
    rename: Rename | None = None,
    *,
    transform: Transform | None = None,
    fused: bool = True,
) -> dict[str, Any]:
    """The state dict that a PyTorch model with the attributes of this one would have.

    `torch_model.load_state_dict(nnx.to_torch(model))` takes it: tensors with copies of the values;
    where PyTorch is not installed, NumPy arrays. Names and axes go by the type of each layer, as in
    `nnx.from_torch`; a tied array is there under each of its names.

    Args:
        model: the model.
        rename: `{regular expression: replacement}` or a function, as in `nnx.from_torch`, the other
            way: of the name that a PyTorch model with these attributes has, to the name to give.
        transform: (name before `rename`, array of NumPy) → the array to give.
        fused: whether queries, keys and values of attention are one array, as PyTorch has them
            where it can; or each by itself, `q_proj.weight`, … .

    Raises:
        ValueError: an array is abstract or traced; two get the same name by `rename`.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Conv(3, 8, (5, 5), rngs=nnx.Rngs(0)), nnx.relu)
        >>> {name: tuple(array.shape) for name, array in nnx.to_torch(model).items()}
        {'0.bias': (8,), '0.weight': (8, 3, 5, 5)}
    """
    parts: dict[str, dict[int, np.ndarray]] = {}  # by the first row
    spectral: dict[str, bool] = {}
    for entry in entries(Places(model, _STORED, "to_torch")):
        if not entry.slots:
            continue
        value, slot = entry.place.value, entry.slots[0]
        if not fused:
            slot = next((s for s in entry.slots if _APART.search(s.name)), slot)
        if not isinstance(value, (jax.Array, np.ndarray)) or isinstance(value, Tracer):
            raise not_concrete(entry.name, value, "to_torch")
        blocks = np.asarray(value).reshape(-1, *entry.shape)
        row = slot.rows[0] if slot.rows else 0
        for block, name in zip(blocks, entry.names(slot.name)):
            parts.setdefault(name, {})[row] = array = slot.layout.to_torch(block)
            if isinstance(entry.layer, SpectralNorm) and name.endswith("_u"):
                spectral[name] = isinstance(entry.layer.layer_instance, ConvTranspose)
        for name in entry.names(slot.added) if slot.added else ():
            parts.setdefault(name, {})[row] = np.zeros_like(array)
    arrays = {
        name: np.concatenate([rows[row] for row in sorted(rows)]) if len(rows) > 1 else rows[0]
        for name, rows in parts.items()
    }
    for name, transposed in spectral.items():  # the second singular vector, which we do not keep
        u, weight = arrays[name], arrays[name.replace("weight.0._u", "weight.original")]
        v = u @ (weight.swapaxes(0, 1) if transposed else weight).reshape(len(u), -1)
        arrays[name.removesuffix("u") + "v"] = (v / np.linalg.norm(v)).astype(u.dtype)
    if transform is not None:
        arrays = {name: np.asarray(transform(name, array)) for name, array in arrays.items()}
    misfits = Misfits("to_torch", "state dict")
    arrays = renamed(arrays, rename, misfits)
    misfits.raise_if_any()
    return {name: _as_tensor(array) for name, array in arrays.items()}


def _matched(
    known: list[Entry], given: Mapping[str, Any], misfits: Misfits
) -> tuple[dict[str, np.ndarray], dict[str, list[str]], list[str]]:
    """({name: array} for the object, {name that is missing: PyTorch's}, the unexpected names)."""
    arrays: dict[str, np.ndarray] = {}
    missing: dict[str, list[str]] = {}
    found: set[str] = set()
    used: set[str] = set()
    told: set[str] = set()
    for entry in known:
        slots = [s for s in entry.slots if _names(entry, s) & given.keys()] or entry.slots
        if not slots or 0 in entry.blocks:
            continue
        slot, shape = slots[0], entry.shape
        blocks, lacking = [], []
        for i, name in enumerate(entry.names(slot.name)):
            terms = [n for n in (name, *entry.names(slot.added)[i : i + 1]) if n in given]
            used.update(terms)
            if terms:
                blocks.append(_block(entry, slot, {n: given[n] for n in terms}, misfits, told))
            elif slot.added and re.sub("bias_.h", "weight_ih", name) in given:
                blocks.append(np.zeros(shape, entry.place.value.dtype))  # of bias=False
            else:
                lacking.append(name)
        if not blocks:
            missing.setdefault(entry.place.name, lacking)
            continue
        found.add(entry.place.name)
        lines = [f"`{name}` is missing, one of the blocks of `{entry.name}`." for name in lacking]
        misfits.add("as many blocks as the Stack has", *lines)
        if not lacking and all(block is not None for block in blocks):
            whole = np.stack(blocks).reshape(*entry.blocks, *shape) if entry.blocks else blocks[0]
            arrays[entry.name] = whole
    # What is not missing under another name; and what PyTorch keeps beside an array, and we do not.
    missing = {name: theirs for name, theirs in missing.items() if name not in found}
    used |= {f"{name[:-1]}v" for name in used if name.endswith(("weight.0._u", "weight_u"))}
    unexpected = [n for n in given if n not in used and not n.endswith("num_batches_tracked")]
    return arrays, missing, unexpected


def _names(entry: Entry, slot: Slot) -> set[str]:
    return {*entry.names(slot.name), *entry.names(slot.added)}


def _block(
    entry: Entry, slot: Slot, terms: Mapping[str, np.ndarray], misfits: Misfits, told: set[str]
) -> np.ndarray | None:
    """The array, as the object has it; None if it does not fit, which is told once for a name."""
    start, end, rows = slot.rows or (0, None, None)
    shape = slot.layout.to_torch(np.broadcast_to(np.int8(0), entry.shape)).shape
    shape = (rows, *shape[1:]) if rows else shape
    unlike = {name: value for name, value in terms.items() if value.shape != shape}
    for name in sorted(unlike.keys() - told):
        expected = jax.ShapeDtypeStruct(shape, entry.place.value.dtype)
        what, cure = f"`{name}` (here `{entry.name}`)", "transform=… for another layout in PyTorch"
        misfits.unlike(what, expected, unlike[name], cure)
    told.update(unlike)
    if unlike:
        return None
    value = reduce(np.add, terms.values())
    return slot.layout.from_torch(value[start:end] if rows else value, entry.shape)


def _needs_bias(entry: Entry, given: Mapping[str, Any]) -> bool:
    """Whether PyTorch adds to h what a GRUCell has no place for."""
    names = [name for slot in entry.slots for name in entry.names(slot.added)]
    return isinstance(entry.layer, GRUCell) and any(np.any(given[n]) for n in names if n in given)


def _as_tensor(array: np.ndarray) -> Any:
    array = np.array(array, order="C")  # a copy: JAX's own are read-only
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return array
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(f"i{array.itemsize}")).view(getattr(torch, array.dtype.name))
