"""WeightNorm and SpectralNorm: a layer called with normalized weights in the place of its own.

A wrapper holds a layer and, for the time of a call, puts other values into some of its Variables.
They go in below the hooks and the check of the trace: nobody outside of the call can tell, not even
if the layer raises, and a layer that a function closes over may be called as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..graph.filters import Filter, PathContains, to_predicate
from ..objects import arguments as fit
from ..objects.errors import path_string
from ..objects.variable import Variable, set_raw_value
from ..objects.variable_types import BatchStat, Param
from ..verbs.copying import clone
from ..verbs.iteration import iter_graph
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .contractions import dot
from .normalization import scale_and_shift
from .options import Layer, initial, keep_options, positive_axes

Path = tuple[Any, ...]
KERNELS = PathContains("kernel")


def _weights_of(layer: Any, filter: Filter) -> list[tuple[Path, Variable]]:
    """The Variables below `layer` that the filter matches, with their paths from there, sorted."""
    matches = to_predicate(filter)
    variables = [(p, v) for p, v in iter_graph(layer) if isinstance(v, Variable)]
    weights = [(p, v) for p, v in variables if matches(p, v)]
    if not weights:
        known = ", ".join(path_string(p) for p, _ in variables) or "none"
        raise fit.ArgumentError(
            f"There is no weight to normalize in the {type(layer).__name__}, whose Variables are: "
            f"{known}.\nCure: SpectralNorm takes Params of two axes or more, WeightNorm what "
            "variable_filter matches: variable_filter=nnx.PathContains('embedding')."
        )
    return weights


@contextmanager
def _replaced(values: Iterable[tuple[Variable, jax.Array]]) -> Iterator[None]:
    """Each Variable holds the value that is given with it, until the end of the block."""
    values = list(values)
    before = [(variable, variable.raw_value) for variable, _ in values]
    try:
        for variable, value in values:
            set_raw_value(variable, value)
        yield
    finally:
        for variable, value in before:
            set_raw_value(variable, value)


class WeightNorm(Layer):
    """Calls a layer with weights of given length: w = v / √(‖v‖² + ε) · scale.

    v is the layer's parameter, which stays as it is; w is what the layer sees in a call. The norm
    is taken for each feature over all other axes.

    Attributes: `layer_instance`; `scales`, a dict path → Param, the path being that of v in the
    layer: `scales['kernel',]` (features,); or None.

    Args:
        layer_instance: the layer.
        feature_axes: the axes of v along which each index has a norm and a scale of its own; None
            for one norm over all of v.
        use_scale: whether the length is learned; else it is 1.
        scale_init: initializer of the scales. Its keys are derived from the next key of the stream
            `params`, which is not used up.
        epsilon: ε.
        dtype: the dtype of w; by default what v and scale promote to.
        param_dtype: the dtype of the scales.
        variable_filter: says which of the layer's Variables are normalized.
        promote_dtype: decides the dtype of w.
        rngs: its stream `params` gives the keys.

    Raises:
        ValueError: the filter matches nothing.

    Paper: Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
    Training of Deep Neural Networks" (2016), arXiv:1602.07868.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> rngs = nnx.Rngs(0)
        >>> layer = nnx.WeightNorm(nnx.Linear(1, 3, rngs=rngs), rngs=rngs)
        >>> layer(jnp.ones((2, 1))).shape, layer.scales["kernel",].shape
        ((2, 3), (3,))
    """

    feature_axes: fit.Axes | None = -1
    use_scale: bool = True
    scale_init: Any = staticmethod(initializers.ones)
    epsilon: fit.Epsilon = 1e-12
    variable_filter: Filter = KERNELS

    @fit.checked
    def __init__(
        self,
        layer_instance: fit.Wrapped,
        *,
        feature_axes: fit.Axes | None = -1,
        use_scale: bool = True,
        scale_init: fit.Initializer = initializers.ones,
        epsilon: fit.Epsilon = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        variable_filter: Filter = KERNELS,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
    ):
        keep_options(self, locals())
        self.layer_instance: Any = layer_instance
        self.scales: dict[Path, Param] | Any = None
        variables = _weights_of(layer_instance, variable_filter)
        if use_scale:
            # Ones need no randomness: the layers made after this one get the keys as without it.
            key = clone(rngs).params()
            self.scales = {}
            for i, (path, v) in enumerate(variables):
                shape = tuple(v.shape[axis] for axis in self._axes(v))
                of_path = jax.random.fold_in(key, i)
                scale = initial("scale_init", scale_init, of_path, shape, param_dtype)
                self.scales[path] = Param(scale)

    @fit.checked
    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer_instance(x, *args, **kwargs)`, with normalized weights."""
        found = _weights_of(self.layer_instance, self.variable_filter)
        with _replaced((v, self._normalized(path, v)) for path, v in found):
            return self.layer_instance(x, *args, **kwargs)

    def _axes(self, variable: Variable) -> tuple[int, ...]:
        if self.feature_axes is None:
            return ()
        return positive_axes("feature_axes", self.feature_axes, variable.ndim, "a weight")

    def _normalized(self, path: Path, variable: Variable) -> jax.Array:
        scale = None if self.scales is None else self.scales[path].value
        weight = dtypes.as_array(variable.raw_value)
        dtype = self.promote_dtype((weight, scale), dtype=self.dtype)[0].dtype
        weight, features = weight.astype(dtypes.widest(weight.dtype, dtype)), self._axes(variable)
        others = tuple(i for i in range(weight.ndim) if i not in features)
        square = jnp.sum(weight * weight, others, keepdims=True)
        normalized = weight * lax.rsqrt(square + self.epsilon)
        return scale_and_shift(normalized, scale, None, features, dtype)


_u_init = initializers.normal()


def _is_matrix(path: Path, value: Any) -> bool:
    return isinstance(value, Param) and value.ndim > 1


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
        v = unit(dot(vectors[0], constant, axis=1))
        return unit(dot(v, constant)), v

    start = lax.stop_gradient(u.astype(wide)), jnp.zeros((1, len(matrix)), wide)
    new_u, v = lax.fori_loop(0, steps, step, start)
    sigma = dot(dot(v, matrix), new_u, axis=1)[0, 0]
    normalized = matrix / jnp.where(sigma == 0, 1, sigma)  # zeros stay zeros
    normalized = normalized.reshape(weight.shape).astype(dtype)
    return normalized, new_u.astype(u.dtype), sigma.astype(u.dtype)


class SpectralNorm(Layer):
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

    n_steps: fit.Size = 1
    epsilon: fit.Epsilon = 1e-12
    error_on_non_matrix: bool = False
    use_running_average: bool = False

    @fit.checked
    def __init__(
        self,
        layer_instance: fit.Wrapped,
        *,
        n_steps: fit.Size = 1,
        epsilon: fit.Epsilon = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        rngs: Rngs,
    ):
        keep_options(self, locals())
        self.layer_instance: Any = layer_instance
        self.use_running_average = not update_stats
        self.batch_stats: dict[Path, BatchStat] = {}
        for path, weight in _weights_of(layer_instance, _is_matrix):
            if error_on_non_matrix and weight.ndim > 2:
                raise fit.ArgumentError(
                    f"SpectralNorm: the Param {path} of the {type(layer_instance).__name__} has "
                    f"{weight.ndim} axes (shape {weight.shape}), and error_on_non_matrix=True."
                )
            u = _u_init(rngs.params(), (1, weight.shape[-1]), param_dtype)
            self.batch_stats[*path, "u"] = BatchStat(u)
            self.batch_stats[*path, "sigma"] = BatchStat(jnp.ones((), param_dtype))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """The mode of this layer, for `nnx.view`.

        Args:
            use_running_average: True: the stored singular vectors are used and not improved.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    @fit.checked
    def __call__(self, x: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """`layer_instance(x, **kwargs)`, with normalized weights.

        Args:
            x: the input.
            update_stats: overrules what the attribute says.
            **kwargs: for the layer.
        """
        if update_stats is None:
            update_stats = not self.use_running_average
        found = _weights_of(self.layer_instance, _is_matrix)
        results = [self._normalized(path, weight) for path, weight in found]
        with _replaced((w, result[0]) for (_, w), result in zip(found, results, strict=True)):
            y = self.layer_instance(x, **kwargs)
        if update_stats:
            for (path, _), (_, u, sigma) in zip(found, results, strict=True):
                self.batch_stats[*path, "u"].value = u
                self.batch_stats[*path, "sigma"].value = sigma
        return y

    def _normalized(self, path: Path, variable: Variable) -> tuple[jax.Array, jax.Array, jax.Array]:
        weight, u = dtypes.as_array(variable.raw_value), self.batch_stats[*path, "u"].value
        dtype = self.promote_dtype((weight, u), dtype=self.dtype)[0].dtype
        return _normalize_matrix(weight, u, self.n_steps, self.epsilon, dtype)
