"""Einsum: a product of the input and a kernel, as an equation says."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..verbs.rngs import Rngs
from . import contractions, dtypes
from .linear import Affine, default_bias_init, default_kernel_init
from .options import Replaceable, keep_options

Sizes = dict[str, tuple[int, ...]]  # of each label, and those that '...' stands for

_LABELS = r"[A-Za-z]*(\.\.\.)?[A-Za-z]*"
_EQUATION = re.compile(f"(?P<x>{_LABELS}),(?P<kernel>{_LABELS})->(?P<y>{_LABELS})")


def _with_bias(equation: str, sizes: Sizes, y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias, which varies along the axes that the output has from the kernel."""
    head, dots, tail = equation.partition("->")[2].partition("...")
    covered = sizes["..."] if dots else ()
    before, after = ([sizes.get(label, ()) for label in part] for part in (head, tail))
    wanted = sum((*before, covered, *after), ())
    if [n for n in bias.shape if n != 1] != [n for n in wanted if n != 1]:
        raise fit.ArgumentError(
            f"Einsum: the bias has the shape {bias.shape}, but the axes that the output of "
            f"{equation!r} has from the kernel have the sizes {wanted}.\n"
            f"Cure: bias_shape={wanted}."
        )
    ones = (1,) * (y.ndim - len(head) - len(tail) - len(covered))
    before, after = ([n or (1,) for n in part] for part in (before, after))
    return y + bias.reshape(sum((*before, ones, covered, *after), ()))


@functools.lru_cache(maxsize=4096)
def _check_sizes(equation: str, x: tuple[int, ...], kernel: tuple[int, ...]) -> Sizes:
    """The size of each label of the kernel, which are those of the input where it has them."""
    operands, _, _ = equation.partition("->")
    of_x, of_kernel = operands.split(",")
    sizes = _sizes("kernel", of_kernel, kernel, equation)
    for label, size in _sizes("input", of_x, x, equation).items():
        if label != "..." and sizes.get(label, size) != size:
            raise fit.ArgumentError(
                f"Einsum: in {equation!r} the axis {label} has size {size[0]} in the input (shape "
                f"{x}), but {sizes[label][0]} in the kernel (shape {kernel}).\n"
                f"Cure: a kernel_shape with {label}={size[0]}, or an input with the other size."
            )
    return sizes


def _sizes(which: str, labels: str, shape: tuple[int, ...], equation: str) -> Sizes:
    head, dots, tail = labels.partition("...")
    named = len(head) + len(tail)
    if len(shape) < named or (len(shape) > named and not dots):
        raise fit.ArgumentError(
            f"Einsum: in {equation!r} the {which} has {'at least ' if dots else ''}{named} axes, "
            f"but its shape is {shape}.\n"
            "Cure: an equation with `...` for any axes in front, or such an input."
        )
    sizes = {label: (size,) for label, size in zip(head, shape)}
    sizes |= {label: (size,) for label, size in zip(tail[::-1], shape[::-1])}
    return sizes | {"...": shape[len(head) : len(shape) - len(tail)]}


def _canonical(equation: str) -> str:
    """The equation without blanks.

    Raises:
        ValueError: it does not have the form 'input,kernel->output'.
    """
    equation = equation.replace(" ", "")
    found = _EQUATION.fullmatch(equation)
    labels = [*found["y"].replace(".", "")] if found else []
    if (
        not found
        or len({*labels}) < len(labels)
        or not {*labels} <= {*found["x"], *found["kernel"]}
    ):
        raise fit.ArgumentError(
            f"Einsum: einsum_str={equation!r} must name the input, the kernel and the output, with "
            "axes of theirs, each once.\nCure: as in '...i,io->...o'."
        )
    return equation


class Einsum(Affine):
    """The product of the input x and a kernel W that an equation says: einsum(x, W) + b.

    Attributes: `kernel` W (kernel_shape), `bias` b (bias_shape) or None. The bias has those axes of
    the output that the kernel has too, in the order of the output: in 'nta,hab->nthb', (h, b).

    Args:
        einsum_str: 'x,W->y' as in `jnp.einsum`, with `...` where wanted; None if each call says.
        kernel_shape: shape of W.
        bias_shape: shape of b; by default there is no b.
        einsum_op: computes the product, in place of `jnp.einsum`.
        dtype, param_dtype, precision, kernel_init, bias_init, promote_dtype,
            preferred_element_type, rngs, kernel_metadata, bias_metadata: as for `nnx.Linear`.

    Raises:
        ValueError: the equation does not have the form 'x,W->y'.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> heads = nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=nnx.Rngs(0))
        >>> heads(jnp.ones((16, 11, 2))).shape
        (16, 11, 8, 4)
    """

    einsum_op: Replaceable = Replaceable(jnp.einsum, "jax.numpy")

    @fit.checked
    def __init__(
        self,
        einsum_str: str | None,
        kernel_shape: Sequence[fit.Size],
        bias_shape: Sequence[fit.Size] | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: fit.Initializer = default_kernel_init,
        bias_init: fit.Initializer = default_bias_init,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        einsum_op: Callable[..., Any] = jnp.einsum,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: fit.Metadata = fit.NO_METADATA,
        bias_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        keep_options(self, locals())
        self.einsum_str: str | None = None if einsum_str is None else _canonical(einsum_str)
        self._make_parameters(locals(), kernel_shape, bias_shape)

    @fit.checked
    def __call__(
        self, inputs: fit.Array, einsum_str: str | None = None, out_sharding: fit.OutSharding = None
    ) -> jax.Array:
        """einsum(x, W) + b.

        Args:
            inputs: x.
            einsum_str: an equation for this call, in place of the layer's.
            out_sharding: the sharding of the result, on a mesh with explicit axes.

        Raises:
            ValueError: there is no equation, or the shapes of x, W and b do not fit it.
        """
        equation = self.einsum_str if einsum_str is None else _canonical(einsum_str)
        if equation is None:
            raise fit.ArgumentError(
                "Einsum: there is no equation.\nCure: give einsum_str to the layer or to the call."
            )
        x, kernel, bias = self._promoted(inputs)
        sizes = _check_sizes(equation, x.shape, kernel.shape)
        product = contractions.einsum if self.einsum_op is jnp.einsum else self.einsum_op
        y = product(equation, x, kernel, **self._options(out_sharding))
        if bias is None:
            return y
        return contractions.placed(_with_bias(equation, sizes, y, bias), out_sharding)
