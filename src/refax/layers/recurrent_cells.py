"""Recurrent cells: one step each, (carry, x) → (new carry, y).

A carry keeps the dtype that it comes with, whatever the cell computes in: a loop over steps needs
that, and an LSTM's memory stays float32 where the products are bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..verbs.module import Module
from ..verbs.rngs import Rngs, RngStream
from . import dtypes, initializers
from .dropout import fork_stream
from .linear import Linear, default_bias_init, default_kernel_init
from .options import Layer, Replaceable, check_last_axis, keep_options

Activation = Callable[[jax.Array], jax.Array]


def default_recurrent_kernel_init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> Any:
    """`initializers.orthogonal()`, computed in at least float32: LAPACK has no narrower dtype."""
    return initializers.orthogonal()(key, shape, dtypes.widest(dtype)).astype(dtype)


modified_orthogonal = default_recurrent_kernel_init


class RNNCellBase(Module):
    """What `nnx.RNN` needs of a cell: a step, the first carry, and the form of an input.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> class Sum(nnx.RNNCellBase):
        ...     def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        ...         return jnp.zeros(input_shape)
        ...
        ...     def __call__(self, carry, inputs):
        ...         return carry + inputs, carry + inputs
        >>> nnx.RNN(Sum())(jnp.ones((1, 3, 1))).ravel().tolist()
        [1.0, 2.0, 3.0]
    """

    num_feature_axes: int = 1  # axes of x, at its end; the ones before are batch axes

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
        """One step.

        Args:
            carry: what the step before returned, or `initialize_carry`.
            inputs: x at this step: batch axes, then `num_feature_axes` axes of features.

        Returns:
            The new carry, of the same form, and the output.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__().")

    def initialize_carry(
        self,
        input_shape: fit.Shape,
        rngs: Rngs | RngStream | None = None,
        carry_init: fit.Initializer | None = None,
    ) -> Any:
        """The carry before the first step.

        Args:
            input_shape: the shape of x at one step: batch axes, then features.
            rngs: its stream `carry` gives the keys.
            carry_init: its initializer.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define initialize_carry.")


class _DenseCell(RNNCellBase, Layer):
    """A cell of affine maps: of x (..., in_features) and of h (..., hidden_features)."""

    gate_fn: Replaceable = Replaceable(sigmoid, "jax.nn")
    activation_fn: Replaceable = Replaceable(tanh, "jax.numpy")
    carry_init: fit.Initializer | None = None
    in_features: fit.Size
    hidden_features: fit.Size
    rngs: RngStream | None
    _has_memory = False  # the carry is (c, h), not h

    def _make_layers(self, from_input: Callable[..., Linear], from_hidden: Any) -> None:
        """Make the maps, from two makers that take the number of outputs and `use_bias`."""
        raise NotImplementedError

    def _keep(self, arguments: Mapping[str, Any]) -> None:
        """What `__init__` does with its arguments."""
        keep_options(self, arguments)
        shared = ("dtype", "param_dtype", "promote_dtype", "bias_init", "bias_metadata", "rngs")

        def maker(size: int, kernel: str) -> Callable[..., Linear]:
            options = {name: arguments[name] for name in shared}
            for option in ("init", "metadata"):
                options[f"kernel_{option}"] = arguments[f"{kernel}_{option}"]
            return partial(Linear, size, **options)

        self.in_features = arguments["in_features"]
        self.hidden_features = arguments["hidden_features"]
        self._make_layers(
            maker(self.in_features, "kernel"), maker(self.hidden_features, "recurrent_kernel")
        )
        self.rngs = fork_stream(arguments["rngs"], "carry") if arguments["keep_rngs"] else None

    def _carry(self, inputs: Any, *carry: Any) -> list[Any]:
        """The parts of the carry as arrays, if they fit the cell, as the input must."""
        shape, name = jnp.shape(inputs), type(self).__name__
        check_last_axis(name, shape, "in_features", self.in_features)
        arrays = [dtypes.as_array(part) for part in carry]
        parts = 2 if self._has_memory else 1
        if [x.shape[-1:] for x in arrays] != [(self.hidden_features,)] * parts:
            raise fit.ArgumentError(
                f"{name}: the carry has the shapes {[x.shape for x in arrays]}, but must be "
                f"{parts} of them, with the last axis hidden_features={self.hidden_features}.\n"
                f"Cure: cell.initialize_carry({shape})."
            )
        return arrays

    @fit.checked
    def initialize_carry(
        self,
        input_shape: fit.Shape,
        rngs: Rngs | RngStream | None = None,
        carry_init: fit.Initializer | None = None,
    ) -> Any:
        """h (..., hidden_features), of an LSTM (c, h): zeros, or what `carry_init` draws.

        Args:
            input_shape: the shape (..., in_features) of x at one step.
            rngs: its stream `carry`, or a stream, gives the key, where `carry_init` needs one.
            carry_init: overrules the attribute.

        Raises:
            ValueError: `carry_init` is to draw, without `rngs`.
        """
        init = self.carry_init if carry_init is None else carry_init
        rngs = self.rngs if rngs is None else rngs
        if init is not None and rngs is None:
            raise fit.ArgumentError(
                f"{type(self).__name__}: carry_init is to draw the first carry, but there are no "
                "`rngs`.\nCure: cell.initialize_carry(shape, nnx.Rngs(carry=0)), or nnx.RNN(cell, "
                "rngs=rngs)."
            )

        def first() -> jax.Array:
            shape = (*input_shape[:-1], self.hidden_features)
            if init is None or rngs is None:  # zeros take no key: a call of an RNN moves no stream
                return jnp.zeros(shape, self.param_dtype)
            return init(rngs.carry() if isinstance(rngs, Rngs) else rngs(), shape, self.param_dtype)

        return (first(), first()) if self._has_memory else first()


class SimpleCell(_DenseCell):
    """The cell of Elman: h' = tanh(W_i·x + b_i + W_h·h), and y = h'.

    Shapes: carry h (..., hidden_features), x (..., in_features) → h', y (..., hidden_features).
    Attributes: `dense_i` (W_i, b_i) and `dense_h` (W_h), two `nnx.Linear`.

    Args:
        in_features: size of the input's last axis.
        hidden_features: size of h.
        dtype: the dtype to compute in; None for what input and parameters promote to.
        param_dtype: the dtype of the parameters, and of the first carry.
        carry_init: initializer of the first carry; by default zeros.
        residual: h' = tanh(W_i·x + b_i + W_h·h + h).
        activation_fn: in place of tanh.
        kernel_init, recurrent_kernel_init, bias_init: initializers of W_i, W_h and b_i.
        promote_dtype: brings input and parameters to one dtype.
        keep_rngs: keep a fork of the stream `carry`, for `carry_init`.
        rngs: its stream `params` gives the keys.
        kernel_metadata, recurrent_kernel_metadata, bias_metadata: metadata of W_i, W_h and b_i.

    Paper: Elman, "Finding Structure in Time", Cognitive Science 14 (1990).

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> cell = nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((2, 3))
        >>> carry, y = cell(cell.initialize_carry(x.shape), x)
        >>> carry.shape, y.shape
        ((2, 4), (2, 4))
    """

    dtype: DTypeLike | None = jnp.float32
    residual: bool = False

    @fit.checked
    def __init__(
        self,
        in_features: fit.Size,
        hidden_features: fit.Size,
        *,
        dtype: DTypeLike | None = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: fit.Initializer | None = None,
        residual: bool = False,
        activation_fn: Activation = tanh,
        kernel_init: fit.Initializer = default_kernel_init,
        recurrent_kernel_init: fit.Initializer = default_recurrent_kernel_init,
        bias_init: fit.Initializer = default_bias_init,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        keep_rngs: bool = False,
        rngs: Rngs,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        recurrent_kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        self._keep(locals())

    def _make_layers(self, from_input: Callable[..., Linear], from_hidden: Any) -> None:
        self.dense_h: Linear = from_hidden(self.hidden_features, use_bias=False)
        self.dense_i: Linear = from_input(self.hidden_features)

    @fit.checked
    def __call__(self, carry: fit.Array, inputs: fit.Array) -> tuple[jax.Array, jax.Array]:
        """One step: h and x → (h', y).

        Raises:
            ValueError: the last axis of x or h has another size.
        """
        (carry,) = self._carry(inputs, carry)
        y = self.dense_i(inputs) + self.dense_h(carry)
        if self.residual:
            y = y + carry.astype(y.dtype)
        y = self.activation_fn(y)
        return y.astype(carry.dtype), y


class _GatedCell(_DenseCell):
    """The arguments that cells with gates have in common."""

    @fit.checked
    def __init__(
        self,
        in_features: fit.Size,
        hidden_features: fit.Size,
        *,
        gate_fn: Activation = sigmoid,
        activation_fn: Activation = tanh,
        kernel_init: fit.Initializer = default_kernel_init,
        recurrent_kernel_init: fit.Initializer = default_recurrent_kernel_init,
        bias_init: fit.Initializer = default_bias_init,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: fit.Initializer | None = None,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        keep_rngs: bool = False,
        rngs: Rngs,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        recurrent_kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        self._keep(locals())


class LSTMCell(_GatedCell):
    """Long short-term memory, with a product for each gate; the carry is (c, h).

    i, f, o = σ(W_i·x + R·h + b) each with its own W_i, R, b, and g = tanh(…) likewise; then
    c' = f·c + i·g, h' = o·tanh(c') and y = h'.

    Shapes: c, h (..., hidden_features), x (..., in_features) → c', h', y (..., hidden_features).
    Attributes: `ii if_ ig io` (the W_i) and `hi hf hg ho` (R and b), eight `nnx.Linear`.

    Args:
        in_features: size of the input's last axis.
        hidden_features: size of c and h.
        gate_fn, activation_fn: in place of σ and tanh.
        kernel_init, recurrent_kernel_init, bias_init: initializers of W_i, R and b.
        dtype: the dtype to compute in; None for what input and parameters promote to. c is kept in
            its own.
        param_dtype: the dtype of the parameters, and of the first carry.
        carry_init, promote_dtype, keep_rngs, rngs, …: as for `nnx.SimpleCell`.

    Paper: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997).

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> cell = nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))
        >>> (c, h), y = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
        >>> c.shape, h.shape, y.shape
        ((2, 4), (2, 4), (2, 4))
    """

    _has_memory = True

    def _make_layers(self, from_input: Callable[..., Linear], from_hidden: Any) -> None:
        n = self.hidden_features
        self.ii, self.if_, self.ig, self.io = (from_input(n, use_bias=False) for _ in range(4))
        self.hi, self.hf, self.hg, self.ho = (from_hidden(n) for _ in range(4))

    def _gates(self, x: Any, h: jax.Array) -> Any:
        """i, f, g and o before their activations."""
        of_x, of_h = (self.ii, self.if_, self.ig, self.io), (self.hi, self.hf, self.hg, self.ho)
        return [from_x(x) + from_h(h) for from_x, from_h in zip(of_x, of_h, strict=True)]

    @fit.checked
    def __call__(
        self, carry: Sequence[fit.Array], inputs: fit.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """One step: (c, h) and x → ((c', h'), y).

        Raises:
            ValueError: the last axis of x, c or h has another size.
        """
        c, h = self._carry(inputs, *carry)
        i, f, g, o = self._gates(inputs, h)
        i, f, o = self.gate_fn(i), self.gate_fn(f), self.gate_fn(o)
        c = f.astype(c.dtype) * c + (i * self.activation_fn(g)).astype(c.dtype)
        y = o * self.activation_fn(c).astype(o.dtype)
        return (c, y.astype(h.dtype)), y


class OptimizedLSTMCell(LSTMCell):
    """`nnx.LSTMCell` with the kernels of all gates side by side: two products in a step, not eight.

    Attributes: `dense_i` (the W_i of i, f, g, o) and `dense_h` (their R and b), two `nnx.Linear`.

    Args:
        in_features, hidden_features, …: as for `nnx.LSTMCell`; initializers make all gates at once.

    Example:
        >>> from refax import nnx
        >>> cell = nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0))
        >>> cell.dense_i.kernel.shape, cell.dense_h.kernel.shape, cell.dense_h.bias.shape
        ((3, 16), (4, 16), (16,))
    """

    def _make_layers(self, from_input: Callable[..., Linear], from_hidden: Any) -> None:
        self.dense_i: Linear = from_input(4 * self.hidden_features, use_bias=False)
        self.dense_h: Linear = from_hidden(4 * self.hidden_features)

    def _gates(self, x: Any, h: jax.Array) -> Any:
        return jnp.split(self.dense_i(x) + self.dense_h(h), 4, axis=-1)


class GRUCell(_GatedCell):
    """The gated recurrent unit: r, z = σ(W·x + b + R·h) each with its own W, b and R, then

    n = tanh(W_n·x + b_n + r·(R_n·h)), h' = (1 - z)·n + z·h and y = h'.

    Shapes: carry h (..., hidden_features), x (..., in_features) → h', y (..., hidden_features).
    Attributes: `dense_i` (W and b of r, z, n side by side) and `dense_h` (their R), two
    `nnx.Linear`.

    Args:
        in_features: size of the input's last axis.
        hidden_features: size of h.
        gate_fn, activation_fn, …: as for `nnx.LSTMCell`; initializers make all gates at once.

    Paper: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014),
    arXiv:1406.1078; r is applied after the product, as in cuDNN.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
        >>> carry, y = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
        >>> cell.dense_i.kernel.shape, cell.dense_h.kernel.shape, y.shape
        ((3, 12), (4, 12), (2, 4))
    """

    def _make_layers(self, from_input: Callable[..., Linear], from_hidden: Any) -> None:
        self.dense_i: Linear = from_input(3 * self.hidden_features)
        self.dense_h: Linear = from_hidden(3 * self.hidden_features, use_bias=False)

    @fit.checked
    def __call__(self, carry: fit.Array, inputs: fit.Array) -> tuple[jax.Array, jax.Array]:
        """One step: h and x → (h', y).

        Raises:
            ValueError: the last axis of x or h has another size.
        """
        (carry,) = self._carry(inputs, carry)
        of_x, of_h = self.dense_i(inputs), self.dense_h(carry)
        r, z, n = jnp.split(of_x, 3, axis=-1)
        hr, hz, hn = jnp.split(of_h, 3, axis=-1)
        r, z = self.gate_fn(r + hr), self.gate_fn(z + hz)
        n = self.activation_fn(n + r * hn)
        h = carry.astype(n.dtype)
        y = (1 - z) * n + z * h
        return y.astype(carry.dtype), y
