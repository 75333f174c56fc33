"""SpectralNorm: weights divided by their largest singular value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..graph.module import Module
from ..graph.rngs import Rngs
from ..graph.variable import BatchStat, Param, Variable
from . import dtypes, initializers
from .options import keep_options
from .weight_norm import Path, replaced, weights_of

_u_init = initializers.normal()


def _is_matrix(path: Path, value: Any) -> bool:
    return isinstance(value, Param) and value.ndim > 1


@partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _normalize_matrix(
    weight: jax.Array, u: jax.Array, steps: int, epsilon: float, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """W / σ, and the new u and σ, after some steps of power iteration from u."""
    wide = dtypes.widest(weight.dtype, dtype)
    matrix = weight.astype(wide).reshape(-1, weight.shape[-1])
    constant = lax.stop_gradient(matrix)  # dσ = v·dW·uᵀ: at the optimum, u and v do not count

    def unit(x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.sum(x * x) + epsilon)

    def step(_: Any, vectors: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        v = unit(vectors[0] @ constant.T)
        return unit(v @ constant), v

    start = lax.stop_gradient(u.astype(wide)), jnp.zeros((1, len(matrix)), wide)
    new_u, v = lax.fori_loop(0, steps, step, start)
    sigma = (v @ matrix @ new_u.T)[0, 0]
    normalized = matrix / jnp.where(sigma == 0, 1, sigma)  # zeros stay zeros
    normalized = normalized.reshape(weight.shape).astype(dtype)
    return normalized, new_u.astype(u.dtype), sigma.astype(u.dtype)


class SpectralNorm(Module):
    """Calls a layer with weights of spectral norm 1: W / σ(W), which bounds its Lipschitz constant.

    σ is the largest singular value, estimated by power iteration from a vector u that is kept:

        v = W·u / ‖W·u‖,  u = Wᵀ·v / ‖Wᵀ·v‖,  σ = vᵀ·W·u

    Every Param of the layer with two axes or more is normalized, as the matrix whose columns are
    its last axis. The Params stay as they are; W / σ is what the layer sees in a call. Derivatives
    take u and v as constants, as in the paper.

    Attributes: `layer_instance`; `batch_stats`, a dict path → BatchStat, with the path of W in the
    layer: `batch_stats['kernel', 'u']` (1, columns) and `batch_stats['kernel', 'sigma']` ().

    Args:
        layer_instance: the layer.
        n_steps: steps of power iteration in each call.
        epsilon: added to the squared norm under the root.
        dtype: the dtype of W / σ; by default what W and u promote to.
        param_dtype: the dtype of u and σ.
        error_on_non_matrix: refuse Params of more than two axes.
        update_stats: keep the new u and σ; `model.train()` and `model.eval()` set it, by the
            attribute `use_running_average`, its opposite.
        rngs: its stream `params` gives the keys.

    Raises:
        ValueError: there is nothing to normalize; or, with `error_on_non_matrix`, a Param of more
            than two axes.

    Paper: Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial
    Networks" (2018), arXiv:1802.05957.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> rngs = nnx.Rngs(0)
        >>> layer = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), n_steps=50, rngs=rngs)
        >>> y = layer(jnp.ones((2, 3)))
        >>> sigma = jnp.linalg.norm(layer.layer_instance.kernel.value, ord=2)
        >>> bool(jnp.allclose(layer.batch_stats["kernel", "sigma"].value, sigma))
        True
    """

    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    error_on_non_matrix: bool = False
    use_running_average: bool = False

    def __init__(
        self,
        layer_instance: Callable[..., Any],
        *,
        n_steps: int = 1,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        rngs: Rngs,
    ):
        keep_options(self, locals())
        self.layer_instance = layer_instance
        self.use_running_average = not update_stats
        self.batch_stats: dict[Path, BatchStat] = {}
        for path, weight in weights_of(layer_instance, _is_matrix):
            if error_on_non_matrix and weight.ndim > 2:
                raise ValueError(
                    f"SpectralNorm: the Param {path} of the {type(layer_instance).__name__} has "
                    f"{weight.ndim} axes (shape {weight.shape}), and error_on_non_matrix=True."
                )
            u = _u_init(rngs.params(), (1, weight.shape[-1]), param_dtype)
            self.batch_stats[*path, "u"] = BatchStat(u)
            self.batch_stats[*path, "sigma"] = BatchStat(jnp.ones((), param_dtype))

    def __call__(self, x: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """`layer_instance(x, **kwargs)`, with normalized weights.

        Args:
            x: the input.
            update_stats: overrules what the attribute says.
            **kwargs: for the layer.
        """
        if update_stats is None:
            update_stats = not self.use_running_average
        found = weights_of(self.layer_instance, _is_matrix)
        results = [self._normalized(path, weight) for path, weight in found]
        with replaced((w, result[0]) for (_, w), result in zip(found, results, strict=True)):
            y = self.layer_instance(x, **kwargs)
        if update_stats:
            for (path, _), (_, u, sigma) in zip(found, results, strict=True):
                self.batch_stats[*path, "u"].value = u
                self.batch_stats[*path, "sigma"].value = sigma
        return y

    def _normalized(self, path: Path, variable: Variable) -> tuple[jax.Array, jax.Array, jax.Array]:
        weight, u = dtypes.as_array(variable.raw_value), self.batch_stats[*path, "u"].value
        dtype = dtypes.promote_dtype((weight, u), dtype=self.dtype)[0].dtype
        return _normalize_matrix(weight, u, self.n_steps, self.epsilon, dtype)
