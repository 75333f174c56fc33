"""RNN and Bidirectional: a recurrent cell over the time axis of its input.

The loop is `nnx.scan`, so what the cell writes (a counter, random streams, statistics) goes from
step to step and comes out. Parameters are read: the compiled loop neither carries nor stacks them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ..graph.filters import All, Filter
from ..objects import arguments as fit
from ..objects.errors import describe_value
from ..objects.variable import Variable
from ..objects.variable_types import Intermediate, RngState
from ..transforms.carry import Carry
from ..transforms.prefixes import StateAxes
from ..transforms.scan import scan
from ..verbs.module import Module
from ..verbs.rngs import Rngs, RngStream, iter_streams
from ..verbs.splitting import variables
from .dropout import fork_stream
from .dtypes import as_array
from .options import keep_options
from .recurrent_cells import RNNCellBase

Streams = Rngs | RngStream | Annotated[bool, fit.Fits("True or False", fit.is_bool)]

_ALL_CARRIED = StateAxes({Intermediate: 0, ...: Carry})  # what is sown is stacked over time


def _kept_stream(rngs: Rngs | RngStream | bool) -> RngStream | None:
    """The stream for first carries that a layer keeps."""
    if isinstance(rngs, bool):
        return RngStream(0, tag="carry") if rngs else None
    return fork_stream(rngs, "carry")


def _lengths_and_steps(seq_lengths: Any, steps: int) -> tuple[jax.Array, jax.Array]:
    """The lengths as (*batch, 1), and 0, 1, … as (*batch, steps)."""
    lengths = as_array(seq_lengths).astype(jnp.int32)[..., None]
    shape = (*lengths.shape[:-1], steps)
    return lengths, jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


@fit.checked
def flip_sequences(
    inputs: fit.Array, seq_lengths: fit.Integers | None, num_batch_dims: fit.Count, time_major: bool
) -> jax.Array:
    """Reverse each sequence in time; its padding stays behind it.

    Args:
        inputs: (*batch, time, ...), or (time, *batch, ...) with `time_major`.
        seq_lengths: integers (*batch), how long each sequence is; None for the whole axis.
        num_batch_dims: the number of batch axes.
        time_major: where the time axis is.

    Example:
        >>> from refax.layers.recurrent import flip_sequences
        >>> import jax.numpy as jnp
        >>> flip_sequences(jnp.array([[1, 2, 3, 0, 0]]), jnp.array([3]), 1, False).tolist()
        [[3, 2, 1, 0, 0]]
    """
    time_axis = 0 if time_major else num_batch_dims
    if seq_lengths is None:
        return jnp.flip(inputs, time_axis)
    steps = inputs.shape[time_axis]
    lengths, step = _lengths_and_steps(seq_lengths, steps)
    from_step = jnp.moveaxis((lengths - 1 - step) % steps, -1, time_axis)
    features = (1,) * (inputs.ndim - from_step.ndim)
    return jnp.take_along_axis(inputs, from_step.reshape(from_step.shape + features), time_axis)


class RNN(Module):
    """Runs a cell over the time axis: y_t, carry = cell(carry, x_t).

    Shapes: (*batch, time, *features) → (*batch, time, *features of y); the cell says how many axes
    are features.

    Args:
        cell: an `nnx.RNNCellBase`.
        time_major: the time axis is the first one, before the batch axes.
        return_carry: return (last carry, y) in place of y.
        reverse: go from the last step to the first.
        keep_order: with `reverse`, y is in the order of the input; else in that of the steps.
        unroll: how many steps are one iteration of the compiled loop, as in `jax.lax.scan`.
        state_axes: filter → how such state of the RNN goes through `nnx.scan`: `nnx.Carry`, an
            axis, or None for what all steps share. By default all is carried but what the cell
            sows, which is stacked over time.
        broadcast_rngs: which random streams all steps of a call share: then a Dropout drops the
            same units at each.
        rngs: gives the keys, where the cell draws its first carry; True for a stream with the
            seed 0, False for none.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> rnn = nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
        >>> x = jnp.ones((2, 5, 3))
        >>> rnn(x).shape
        (2, 5, 4)
        >>> (c, h), y = rnn(x, seq_lengths=jnp.array([5, 2]), return_carry=True)
        >>> bool((h[1] == y[1, 1]).all())
        True
    """

    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: fit.Size = 1
    state_axes: StateAxes = _ALL_CARRIED
    broadcast_rngs: Filter = None

    @fit.checked
    def __init__(
        self,
        cell: RNNCellBase,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: fit.Size = 1,
        state_axes: StateAxes | Mapping[Filter, Any] | None = None,
        broadcast_rngs: Filter = None,
        rngs: Streams = True,
    ):
        if not isinstance(state_axes, StateAxes):
            state_axes = StateAxes(state_axes) if state_axes else _ALL_CARRIED
        keep_options(self, locals())
        self.cell = cell
        self.rngs: RngStream | None = _kept_stream(rngs)

    @fit.checked
    def __call__(
        self,
        inputs: fit.Array,
        *,
        initial_carry: Any = None,
        seq_lengths: fit.Integers | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Rngs | RngStream | None = None,
    ) -> Any:
        """Run the cell over `inputs`.

        Args:
            inputs: x (*batch, time, *features).
            initial_carry: in place of `cell.initialize_carry`.
            seq_lengths: integers (*batch): how many steps of each sequence count. The carry that is
                returned is the one after them, and `reverse` starts from the last of them. What
                stands in y after them is unspecified.
            return_carry, time_major, reverse, keep_order: overrule the attributes.
            rngs: in place of the layer's own.

        Returns:
            y, or with `return_carry` (carry, y).

        Raises:
            ValueError: too few axes, or lengths whose shape is not that of the batch axes.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order

        x = as_array(inputs)
        batch_axes = x.ndim - self.cell.num_feature_axes - 1
        if batch_axes < 0:
            raise fit.ArgumentError(
                f"RNN: the input has the shape {x.shape}, but needs an axis of time and, for "
                f"{type(self.cell).__name__}, num_feature_axes={self.cell.num_feature_axes}.\n"
                "Cure: x[None] for one step of time."
            )
        time_axis = 0 if time_major else batch_axes
        shape = x.shape[:time_axis] + x.shape[time_axis + 1 :]
        if seq_lengths is not None:
            seq_lengths = as_array(seq_lengths)
            if seq_lengths.shape != shape[:batch_axes]:
                raise fit.ArgumentError(
                    f"RNN: seq_lengths has the shape {seq_lengths.shape}, but the batch axes of "
                    f"the input (shape {x.shape}) are {shape[:batch_axes]}.\n"
                    "Cure: one length for each sequence."
                )
        carry = initial_carry
        if carry is None:
            carry = self.cell.initialize_carry(shape, self.rngs if rngs is None else rngs)

        backwards = reverse and seq_lengths is None  # the loop itself does that, without copies
        if reverse and not backwards:
            x = flip_sequences(x, seq_lengths, batch_axes, time_major)
        last = valid = None
        if return_carry and seq_lengths is not None:
            lengths, step = _lengths_and_steps(seq_lengths, x.shape[time_axis])
            last, valid = carry, step < lengths
        axes = self.state_axes
        if self.broadcast_rngs is not None:
            iter_streams(self.cell, self.broadcast_rngs)  # which finds a misspelt name
            axes = StateAxes([(All(RngState, self.broadcast_rngs), None), *axes.items()])
        loop = scan(
            RNN._step,
            reverse=backwards,
            unroll=self.unroll,
            in_axes=(axes, Carry, (time_axis, batch_axes)),
            out_axes=(Carry, time_axis),
        )
        with _sown_apart(self if self.state_axes is _ALL_CARRIED else ()):
            (carry, last), y = loop(self, (carry, last), (x, valid))
        if reverse and keep_order != backwards:
            y = flip_sequences(y, seq_lengths, batch_axes, time_major)
        if not return_carry:
            return y
        return (carry if valid is None else last), y

    def _step(self, carry: Any, inputs: Any) -> Any:
        """One step: ((carry, last), (x, valid)) → (new carries, y).

        `last` is the carry after the last valid step of each sequence. Where there are no lengths,
        it and `valid` (*batch) are None.
        """
        carry, last = carry
        x, valid = inputs
        carry, y = self.cell(carry, x)
        if valid is not None:
            last = jax.tree.map(lambda new, old: _where(valid, new, old), carry, last)
        return (carry, last), y


@contextlib.contextmanager
def _sown_apart(layer: Any) -> Iterator[None]:
    """What was sown before the block, which has no axis of time, comes back before what it sows."""
    sown = jax.tree.leaves(
        variables(layer, Intermediate), is_leaf=lambda x: isinstance(x, Variable)
    )
    before = [variable.value for variable in sown]
    for variable in sown:
        if isinstance(variable.value, (dict, tuple)):
            variable.value = type(variable.value)()
    try:
        yield
    finally:
        for variable, old in zip(sown, before, strict=True):
            variable.value = _joined(old, variable.value)


def _joined(old: Any, new: Any) -> Any:
    if isinstance(old, dict):
        return {**old, **{k: _joined(old[k], x) if k in old else x for k, x in new.items()}}
    return (*old, *new) if isinstance(old, tuple) else new


def _where(valid: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(valid.reshape(valid.shape + (1,) * (new.ndim - valid.ndim)), new, old)


def _concatenate(forward: jax.Array, backward: jax.Array) -> jax.Array:
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(Module):
    """One RNN from the first step to the last and one from the last to the first, merged.

    Shapes: (*batch, time, *features) → the same with the features of both, one after the other.

    Args:
        forward_rnn, backward_rnn: `nnx.RNN`s; their own flags are overruled.
        merge_fn: from both outputs (*batch, time, features), in the order of the input, to one.
        time_major: the time axis is the first one, before the batch axes.
        return_carry: return ((last carry forward, last carry backward), y) in place of y.
        rngs: gives the keys for first carries, as for `nnx.RNN`.

    Paper: Schuster and Paliwal, "Bidirectional Recurrent Neural Networks", IEEE Transactions on
    Signal Processing 45 (1997).

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> rngs = nnx.Rngs(0)
        >>> forward, backward = (nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)) for _ in range(2))
        >>> nnx.Bidirectional(forward, backward)(jnp.ones((2, 5, 3))).shape
        (2, 5, 8)
    """

    merge_fn: Any = staticmethod(_concatenate)
    time_major: bool = False
    return_carry: bool = False

    @fit.checked
    def __init__(
        self,
        forward_rnn: Any,
        backward_rnn: Any,
        *,
        merge_fn: Callable[[jax.Array, jax.Array], jax.Array] = _concatenate,
        time_major: bool = False,
        return_carry: bool = False,
        rngs: Streams = True,
    ):
        for name, rnn in (("forward_rnn", forward_rnn), ("backward_rnn", backward_rnn)):
            if isinstance(rnn, (RNNCellBase, type)) or not callable(rnn):
                raise fit.ArgumentError(
                    f"Bidirectional: {name} is {describe_value(rnn)}, but must be an RNN.\n"
                    "Cure: nnx.RNN(cell)."
                )
        keep_options(self, locals())
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.rngs: RngStream | None = _kept_stream(rngs)

    @fit.checked
    def __call__(
        self,
        inputs: fit.Array,
        *,
        initial_carry: Sequence[Any] | None = None,
        rngs: Rngs | RngStream | None = None,
        seq_lengths: fit.Integers | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Run both over `inputs`.

        Args:
            inputs: x (*batch, time, *features).
            initial_carry: the first carries (forward, backward).
            rngs, seq_lengths, return_carry, time_major: as for `nnx.RNN`.
            reverse, keep_order: accepted, without effect.

        Returns:
            y, or with `return_carry` ((carry forward, carry backward), y).
        """
        del reverse, keep_order
        return_carry = self.return_carry if return_carry is None else return_carry
        carries = (None, None) if initial_carry is None else tuple(initial_carry)
        if len(carries) != 2:
            raise fit.ArgumentError(
                f"Bidirectional: initial_carry has {len(carries)} parts, but must be the first "
                "carries (forward, backward).\nCure: bidirectional.initialize_carry(shape)."
            )
        forward_carry, backward_carry = carries
        common = {
            "rngs": self.rngs if rngs is None else rngs,
            "seq_lengths": seq_lengths,
            "return_carry": True,
            "time_major": self.time_major if time_major is None else time_major,
        }
        forward_carry, forward = self.forward_rnn(
            inputs, initial_carry=forward_carry, reverse=False, **common
        )
        backward_carry, backward = self.backward_rnn(
            inputs, initial_carry=backward_carry, reverse=True, keep_order=True, **common
        )
        y = self.merge_fn(forward, backward)
        return ((forward_carry, backward_carry), y) if return_carry else y
