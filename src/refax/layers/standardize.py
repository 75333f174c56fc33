"""Zero mean and unit variance: the one computation behind the normalization layers.

    mean = M(x),  var = M((x - mean)²),  y = (x - mean) / √(var + ε)

with M the average over some axes. How this is written decides what a train step costs. XLA takes
long to compile the derivative that JAX works out of these lines, and longer yet for `jnp.var` or
E[x²] - E[x]², which also loses digits. So the derivative is written by hand. With r = 1/√(var + ε)
and s = r·dx,

    dy = s - M(s) - y·M(y·s)

which needs y and r and nothing else. As a rule for forward mode (`jax.custom_jvp`), which JAX
transposes, it gives reverse mode too, and higher derivatives, since y and r are functions of x in
the rule as well. That r is multiplied first matters: with r outside the bracket, a train step of 24
blocks takes XLA five times as long to compile, and runs slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._jax_compat import is_outside_of_traces


class Averaging(NamedTuple):
    """What M averages over, and whether the mean is taken off."""

    axes: tuple[int, ...]
    epsilon: float
    center: bool = True  # False: y = x / √(M(x²) + ε), as in RMSNorm
    axis_name: Any = None  # also over this mapped axis, or these
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    statistics: bool = False  # whether mean and var are wanted, and their derivatives

    def over(self, mask: jax.Array | None) -> Callable[[jax.Array], jax.Array]:
        """M, over the elements where the mask is True; the averaged axes keep size 1."""

        def total(x: jax.Array) -> jax.Array:
            kept = x if mask is None else jnp.where(mask, x, 0)
            return self._collect(lax.psum, jnp.sum(kept, self.axes, keepdims=True))

        def average(x: jax.Array) -> jax.Array:
            if mask is None:
                return self._collect(lax.pmean, jnp.mean(x, self.axes, keepdims=True))
            ones = jnp.ones_like(x)
            return total(x) / total(ones)

        return average

    def _collect(self, collective: Callable[..., Any], x: jax.Array) -> jax.Array:
        if self.axis_name is None:
            return x
        return collective(x, self.axis_name, axis_index_groups=self.axis_index_groups)


def standardize(
    x: jax.Array, mask: jax.Array | None, how: Averaging
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """(y, mean, var), the statistics with axes of size 1 to broadcast against x, or None.

    Args:
        x: floating, in the precision that the statistics are to have.
        mask: booleans that broadcast to x: which elements count for the statistics.
        how: the axes; ε; with `center=False`, mean is None and var is M(x²).
    """
    # A derivative costs where there is none to be taken: three times the operations themselves.
    return (_plain if is_outside_of_traces() else _standardize)(x, mask, how)


def _parts(x: jax.Array, mask: jax.Array | None, how: Averaging) -> tuple:
    """y, mean, var and 1/√(var + ε)."""
    average = how.over(mask)
    mean = None
    if how.center:
        mean = average(x)
        x = x - mean
    var = average(x * x)
    factor = lax.rsqrt(var + how.epsilon)
    return x * factor, mean, var, factor


def _plain(x: jax.Array, mask: jax.Array | None, how: Averaging) -> tuple:
    y, mean, var, _ = _parts(x, mask, how)
    return (y, mean, var) if how.statistics else (y, None, None)


_standardize = jax.custom_jvp(_plain, nondiff_argnums=(2,))


@_standardize.defjvp
def _standardize_jvp(how: Averaging, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x, mask), (dx, _) = primals, tangents
    average = how.over(mask)
    y, mean, var, factor = _parts(x, mask, how)
    scaled = factor * dx
    along = average(y * scaled)
    dy = scaled - y * along
    if how.center:
        dy = dy - average(scaled)
    if not how.statistics:
        return (y, None, None), (dy, None, None)
    dmean = average(dx) if how.center else None
    # d var = 2·M((x - mean)·dx) = 2·(var + ε)·M(y·s)
    return (y, mean, var), (dy, dmean, 2 * (var + how.epsilon) * along)
