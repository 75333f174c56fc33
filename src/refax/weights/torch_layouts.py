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
from ..layers.arguments import as_tuple
from ..layers.attention import MultiHeadAttention
from ..layers.convolution import Conv, ConvTranspose
from ..layers.dropout import Dropout
from ..layers.embed import Embed
from ..layers.linear import Linear
from ..layers.linear_general import LinearGeneral
from ..layers.normalization import Normalization
from ..layers.recurrent import RNN, Bidirectional
from ..layers.recurrent_cells import GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell
from ..layers.sequential import Sequential
from ..layers.stack import Stack
from ..layers.weight_norm import SpectralNorm, WeightNorm
from ..objects.variable import Variable
from ..verbs.containers import List
from ..verbs.iteration import iter_children_of
from ..verbs.module import Module
from ..verbs.names import dotted_name
from .places import Place, Places

Shape = tuple[int, ...]


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
    names, out = ("out_proj", "o_proj"), _matrix(layer.out)
    slots: Slots = {
        "out.kernel": [Slot(f"{name}.weight", out) for name in names],
        "out.bias": [Slot(f"{name}.bias") for name in names],
    }
    # The first names are PyTorch's own; it has no grouped heads, which go by the last ones.
    grouped = layer.num_heads != layer.num_kv_heads
    one_input = len({as_tuple(x.in_features) for x in (layer.query, layer.key, layer.value)}) == 1
    kv = layer.num_kv_heads * layer.head_dim
    start, rows = 0, layer.qkv_features + 2 * kv
    for part, size in ("query", layer.qkv_features), ("key", kv), ("value", kv):
        layout, fused, name = _matrix(getattr(layer, part)), (start, start + size, rows), part[0]
        weights = [Slot(f"{name}_proj_weight", layout), Slot(f"{name}_proj.weight", layout)]
        biases = [Slot("in_proj_bias", _FLAT, fused), Slot(f"{name}_proj.bias", _FLAT)]
        if one_input:
            weights.insert(0, Slot("in_proj_weight", layout, fused))
        order = -1 if grouped else 1
        slots |= {f"{part}.kernel": weights[::order], f"{part}.bias": biases[::order]}
        start += size
    return slots


def _recurrent(*gates: tuple[str, str]) -> Callable[[Any], Slots]:
    """Of the names of the maps of x and of h: for each gate, as PyTorch orders them, or for all."""

    def slots_of(cell: Any) -> Slots:
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

    return slots_of


def _weight_norm(wrapper: Any) -> Slots:
    """Of a layer: what its weight is made from, by parametrization (PyTorch 2) and before."""
    slots: Slots = {}
    layer, axes = wrapper.layer_instance, wrapper.feature_axes
    for path in wrapper.scales or ():
        for weight in slots_of(layer).get(dotted_name(path), ()):
            names = "parametrizations.weight.original", "weight_"
            g, v = ([n + end for n, end in zip(names, ends)] for ends in ("0g", "1v"))
            scale = _AS_IS if axes is None else _widened(weight.layout, layer, as_tuple(axes))
            slots[dotted_name(("layer_instance", *path))] = [Slot(n, weight.layout) for n in v]
            slots[dotted_name(("scales", path))] = [Slot(n, scale) for n in g]
    return slots


def _widened(layout: Layout, layer: Any, axes: Shape) -> Layout:
    """Of an array along some axes of a kernel: with axes of size 1 for the others."""

    def wide(shape: Shape) -> Shape:
        sizes = [1] * (2 + len(getattr(layer, "kernel_size", ())))
        for axis, size in zip(axes, shape):
            sizes[axis] = size
        return tuple(sizes)

    return Layout(
        lambda x: layout.to_torch(x.reshape(wide(x.shape))),
        lambda y, shape: layout.from_torch(y, wide(shape)).reshape(shape),
    )


def _spectral_norm(wrapper: Any) -> Slots:
    slots: Slots = {}
    for *path, kept in wrapper.batch_stats:
        for weight in slots_of(wrapper.layer_instance).get(dotted_name(tuple(path)), ()):
            names = "parametrizations.weight.original", "weight_orig"
            u = "parametrizations.weight.0._u", "weight_u"
            slots[dotted_name(("layer_instance", *path))] = [Slot(n, weight.layout) for n in names]
            # σ is computed at each call.
            slots[dotted_name(("batch_stats", (*path, kept)))] = [
                Slot(n, _FLAT) for n in u if kept == "u"
            ]
    return slots


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
    WeightNorm: _weight_norm,
    SpectralNorm: _spectral_norm,
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
            here, ending = "".join(f"{key}." for key in keys), end.format(number)
            for slot in own or ():
                added = slot.added and f"{here}{slot.added}{ending}"
                slots.append(slot._replace(name=f"{here}{slot.name}{ending}", added=added))
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
        slots = [Slot(".".join(map(str, keys))) for keys, _ in ways]
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
