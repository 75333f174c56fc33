"""How PyTorch stores the arrays of each layer: the name, the rows, the axes.

The type of a layer decides, never the shape of an array: a square matrix is turned as any other.

    LAYERS    type of layer → function of the layer → {its Variable: where PyTorch has it}
    entries   the arrays of an object and where PyTorch has them; lists, stacks, wrappers and
              recurrent layers are worked into the names
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..layers.activations import PReLU
from ..layers.attention import MultiHeadAttention
from ..layers.convolution import Conv, ConvTranspose
from ..layers.dropout import Dropout
from ..layers.embed import Embed
from ..layers.linear import Affine, Linear
from ..layers.linear_general import LinearGeneral
from ..layers.normalization import Normalization
from ..layers.recurrent import RNN, Bidirectional
from ..layers.recurrent_cells import GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell
from ..layers.sequential import Sequential
from ..layers.stack import Stack
from ..layers.weight_norm import SpectralNorm, WeightNorm
from ..objects.arguments import as_tuple
from ..objects.variable import Variable
from ..verbs.containers import List
from ..verbs.iteration import iter_children_of
from ..verbs.module import Module
from ..verbs.names import dotted_name
from .places import Place, Places

Shape = tuple[int, ...]
Names = tuple[str, str]


class Layout(NamedTuple):
    """The axes of an array, there and back (to a shape)."""

    to_torch: Callable[[np.ndarray], np.ndarray] = lambda x: x
    from_torch: Callable[[np.ndarray, Shape], np.ndarray] = lambda y, shape: y


class Slot(NamedTuple):
    """Where PyTorch has an array."""

    name: str
    layout: Layout = Layout()
    rows: tuple[int, int, int] | None = None  # (from, to, of how many) of a fused array
    added: str | None = None  # what PyTorch adds to it, and is zero when it is written

    def under(self, start: str, end: str = "") -> Slot:
        added = self.added and f"{start}{self.added}{end}"
        return self._replace(name=f"{start}{self.name}{end}", added=added)


Slots = dict[str, Sequence[Slot]]  # by the name in the layer; the first is the one to write

_AS_IS = Layout()
_FLAT = Layout(lambda x: x.reshape(-1), lambda y, shape: y.reshape(shape))
_OUT_IN_SPACE = Layout(
    lambda x: np.moveaxis(x, (-1, -2), (0, 1)), lambda y, _: np.moveaxis(y, (0, 1), (-1, -2))
)
# The window of PyTorch's transposed convolution is turned round: it is the gradient of another.
_IN_OUT_SPACE = Layout(
    lambda x: np.moveaxis(_turned(x), (-2, -1), (0, 1)),
    lambda y, _: _turned(np.moveaxis(y, (0, 1), (-2, -1))),
)


def _turned(kernel: np.ndarray) -> np.ndarray:
    return np.flip(kernel, tuple(range(kernel.ndim - 2)))


def _matrix(layer: Any) -> Layout:
    """(*in, *out) as (out, in)."""
    n = len(as_tuple(layer.in_features))
    return Layout(
        lambda x: x.reshape(math.prod(x.shape[:n]), -1).T, lambda y, shape: y.T.reshape(shape)
    )


def _affine(layer: Any) -> Slots:
    return {"kernel": [Slot("weight", _matrix(layer))], "bias": [Slot("bias", _FLAT)]}


def _convolution(layer: Any) -> Slots:
    forward = isinstance(layer, Conv) or layer.transpose_kernel
    layout = _OUT_IN_SPACE if forward else _IN_OUT_SPACE
    return {"kernel": [Slot("weight", layout)], "bias": [Slot("bias")]}


def _normalization(layer: Any) -> Slots:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {name: [Slot(theirs)] for name, theirs in names.items()}


def _attention(layer: Any) -> Slots:
    """Queries, keys and values fused, as in PyTorch, or each by itself."""
    slots: Slots = {}
    heads = {"query": layer.num_heads, "key": layer.num_kv_heads, "value": layer.num_kv_heads}
    parts = {part: getattr(layer, part) for part in heads}
    plain = all(isinstance(part, Affine) for part in parts.values())
    inputs = [as_tuple(part.in_features) for part in parts.values()] if plain else []
    biased = plain and len({part.bias is None for part in parts.values()}) == 1
    fused = {"kernel": plain and inputs == inputs[:1] * 3, "bias": biased}
    # PyTorch's own names come first. It has neither grouped heads nor a bias for some of the three;
    # those go by the last ones, as in published models.
    order = 1 if layer.num_heads == layer.num_kv_heads and biased else -1
    for end in ("kernel", "bias"):
        for slot in slots_of(layer.out).get(end, ()):
            slots[f"out.{end}"] = [slot.under(name) for name in ("out_proj.", "o_proj.")]
        start, total = 0, sum(heads.values()) * layer.head_dim
        for name, part in parts.items():
            rows = (start, start := start + heads[name] * layer.head_dim, total)
            for slot in slots_of(part).get(end, ()):
                apart = [slot.under(f"{name[0]}_proj{mark}") for mark in "_."]
                joint = [slot.under("in_proj_")._replace(rows=rows)] if fused[end] else []
                slots[f"{name}.{end}"] = [*joint, *apart][::order]
    return slots


def _recurrent(*gates: tuple[str, str]) -> Callable[[Any], Slots]:
    """Of the names of the maps of x and of h: for each gate, as PyTorch orders them, or for all."""

    def slots_of_cell(cell: Any) -> Slots:
        slots: Slots = {}
        size = cell.hidden_features
        for i, names in enumerate(gates):
            rows = (i * size, (i + 1) * size, len(gates) * size) if len(gates) > 1 else None
            maps = [getattr(cell, name) for name in names]
            both = all(layer.bias is not None for layer in maps)
            for name, layer, of, other in zip(names, maps, ("ih", "hh"), ("hh", "ih")):
                slots[f"{name}.kernel"] = [Slot(f"weight_{of}", _matrix(layer), rows)]
                added = None if both else f"bias_{other}"
                slots[f"{name}.bias"] = [Slot(f"bias_{of}", _AS_IS, rows, added)]
        return slots

    return slots_of_cell


def _normalized(weights: Names, beside: Names) -> Callable[[Any], Slots]:
    """Of the names of a layer's weight, and of what the wrapper keeps beside it.

    First those of a parametrization (PyTorch 2), then the old ones.
    """

    def slots_of_wrapper(wrapper: Any) -> Slots:
        slots: Slots = {}
        inner, spectral = slots_of(wrapper.layer_instance), isinstance(wrapper, SpectralNorm)
        kept = wrapper.batch_stats if spectral else wrapper.scales or ()
        for key in kept:
            path = key[:-1] if spectral else key
            for weight in inner.get(dotted_name(path), ()):
                layout = _FLAT if spectral else _scale(wrapper, weight.layout)
                names = beside if key[-1] != "sigma" else ()  # σ is computed at each call
                slots[dotted_name(("layer_instance", *path))] = [
                    weight._replace(name=name) for name in weights
                ]
                place = ("batch_stats" if spectral else "scales", key)
                slots[dotted_name(place)] = [Slot(name, layout) for name in names]
        return slots

    return slots_of_wrapper


def _scale(wrapper: Any, layout: Layout) -> Layout:
    """Of an array along the feature axes of a kernel: with axes of size 1 for the others."""
    axes = wrapper.feature_axes
    if axes is None:
        return _AS_IS

    def wide(shape: Shape) -> Shape:
        sizes = [1] * (2 + len(getattr(wrapper.layer_instance, "kernel_size", ())))
        for axis, size in zip(as_tuple(axes), shape):
            sizes[axis] = size
        return tuple(sizes)

    return Layout(
        lambda x: layout.to_torch(x.reshape(wide(x.shape))),
        lambda y, shape: layout.from_torch(y, wide(shape)).reshape(shape),
    )


_SIDE_BY_SIDE = _recurrent(("dense_i", "dense_h"))
_ONE = Layout(lambda x: x.reshape((1, *x.shape)), lambda y, shape: y.reshape(shape))

LAYERS: dict[type, Callable[[Any], Slots]] = {
    Linear: _affine,
    LinearGeneral: _affine,
    Conv: _convolution,
    ConvTranspose: _convolution,
    Embed: lambda _: {"embedding": [Slot("weight")]},
    Normalization: _normalization,
    PReLU: lambda _: {"negative_slope": [Slot("weight", _ONE)]},
    MultiHeadAttention: _attention,
    LSTMCell: _recurrent(("ii", "hi"), ("if_", "hf"), ("ig", "hg"), ("io", "ho")),
    OptimizedLSTMCell: _SIDE_BY_SIDE,
    GRUCell: _SIDE_BY_SIDE,
    SimpleCell: _SIDE_BY_SIDE,
    WeightNorm: _normalized(
        ("parametrizations.weight.original1", "weight_v"),
        ("parametrizations.weight.original0", "weight_g"),
    ),
    SpectralNorm: _normalized(
        ("parametrizations.weight.original", "weight_orig"),
        ("parametrizations.weight.0._u", "weight_u"),
    ),
}


def slots_of(layer: Any) -> Slots:
    """Where PyTorch has the arrays of a layer, or of one of a type derived from it."""
    return next((LAYERS[t](layer) for t in type(layer).__mro__ if t in LAYERS), {})


_BLOCK = "\0"  # stands in a name for the number of a block of a Stack


class Entry(NamedTuple):
    """An array of an object, by one of its names, and where PyTorch has it."""

    name: str
    place: Place
    layer: Any  # whose it is
    slots: list[Slot]  # none: PyTorch has nothing like it
    blocks: Shape  # sizes of the Stacks around it: its leading axes

    @property
    def shape(self) -> Shape:
        """Of one block."""
        return tuple(self.place.value.shape[len(self.blocks) :])

    def names(self, name: str | None) -> list[str]:
        """The name in PyTorch of each block, in order."""
        if name is None:
            return []
        pattern = name.replace("%", "%%").replace(_BLOCK, "%d")
        return [pattern % index for index in np.ndindex(self.blocks)]


def entries(places: Places) -> Iterator[Entry]:
    """The arrays, a tied one under each of its names."""
    for name, place in places.all_names():
        yield Entry(name, place, *_find(places.obj, place.path))


# Attributes that PyTorch's names do not have; a cell is its RNN.
_NOT_NAMED = (
    (Sequential, "layers"),
    (WeightNorm, "layer_instance"),
    (SpectralNorm, "layer_instance"),
)
_RECURRENT = (RNN, Bidirectional)


def _find(root: Any, path: tuple) -> tuple[Any, list[Slot], Shape]:
    at, above, layer, blocks = root, None, None, ()
    slots: list[Slot] = []
    # The keys that lead here in PyTorch, and the number of a recurrent layer at the names' end.
    ways: list[tuple[tuple, Any]] = [((), 0)]
    end = ""
    for i, key in enumerate(path):
        if isinstance(at, Variable):
            ways = [((*keys, *path[i:]), number) for keys, number in ways]
            break
        own = slots_of(at).get(dotted_name(path[i:]))
        layer = at if layer is None and own is not None else layer
        for keys, number in ways:
            start = "".join(f"{key}." for key in keys)
            slots += [slot.under(start, end.format(number)) for slot in own or ()]
        child = dict(iter_children_of(at))[key]
        if isinstance(at, RNN) and key == "cell":
            end = end or "_l{}"
        elif isinstance(at, Bidirectional):
            end = "_l{}_reverse" if key == "backward_rnn" else "_l{}"
        elif not any(isinstance(at, t) and key == name for t, name in _NOT_NAMED):
            if isinstance(at, Stack) and key == "blocks":
                blocks, key = (*blocks, at.n), _BLOCK
            ways = _ways(ways, above, at, key, child)
        at, above = child, at
    if layer is None:
        slots = [Slot(".".join(map(str, keys)) or "value") for keys, _ in ways]
    return layer, slots, blocks


def _ways(ways: list[tuple[tuple, Any]], above: Any, at: Any, key: Any, child: Any) -> list:
    """One level further down.

    A list of recurrent layers may be one layer in PyTorch, of several: `weight_ih_l1`. A Sequential
    of such is, as PyTorch's layers cannot be put in a Sequential.
    """
    apart = [((*keys, key), number) for keys, number in ways]
    if not isinstance(child, _RECURRENT) or not isinstance(at, (list, tuple, List, Stack)):
        return apart
    layers = [x for _, x in iter_children_of(at) if isinstance(x, _RECURRENT)]
    number = key if key == _BLOCK else [x is child for x in layers].index(True)
    joint = [(keys, number) for keys, _ in ways]
    passive = (*_RECURRENT, Dropout)
    if isinstance(above, Sequential) and all(
        isinstance(x, passive) or not isinstance(x, Module) for x in above
    ):
        return joint + apart
    return apart + joint
