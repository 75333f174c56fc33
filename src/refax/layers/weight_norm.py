"""WeightNorm: direction and length of weights, apart; and how a wrapper replaces weights in a call.

A wrapper holds a layer and, for the time of a call, puts other values into some of its Variables.
They go in below the hooks and the check of the trace: nobody outside of the call can tell, not even
if the layer raises, and a layer that a function closes over may be called as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..graph.errors import path_string
from ..graph.filters import Filter, PathContains, to_predicate
from ..graph.iteration import iter_graph
from ..graph.module import Module
from ..graph.rngs import Rngs
from ..graph.variable import Param, Variable, set_raw_value
from ..graph.verbs import clone
from . import dtypes, initializers
from .normalization import Axes, positive_axes, scale_and_shift
from .options import Initializer, PromoteDtype, keep_options

Path = tuple[Any, ...]
KERNELS = PathContains("kernel")


def weights_of(layer: Any, filter: Filter) -> list[tuple[Path, Variable]]:
    """The Variables below `layer` that the filter matches, with their paths from there, sorted."""
    matches = to_predicate(filter)
    variables = [(p, v) for p, v in iter_graph(layer) if isinstance(v, Variable)]
    weights = [(p, v) for p, v in variables if matches(p, v)]
    if not weights:
        known = ", ".join(path_string(p) for p, _ in variables) or "none"
        raise ValueError(
            f"There is no weight to normalize in the {type(layer).__name__}, whose Variables are: "
            f"{known}.\nCure: SpectralNorm takes Params of two axes or more, WeightNorm what "
            "variable_filter matches: variable_filter=nnx.PathContains('embedding')."
        )
    return weights


@contextmanager
def replaced(values: Iterable[tuple[Variable, jax.Array]]) -> Iterator[None]:
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


@partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _normalize_weight(
    weight: jax.Array,
    scale: jax.Array | None,
    feature_axes: tuple[int, ...],
    epsilon: float,
    dtype: Any,
) -> jax.Array:
    weight = weight.astype(dtypes.widest(weight.dtype, dtype))
    axes = tuple(i for i in range(weight.ndim) if i not in feature_axes)
    square = jnp.sum(weight * weight, axes, keepdims=True)
    return scale_and_shift(weight * lax.rsqrt(square + epsilon), scale, None, feature_axes, dtype)


class WeightNorm(Module):
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

    feature_axes: Axes | None = -1
    use_scale: bool = True
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    variable_filter: Filter = KERNELS
    promote_dtype = staticmethod(dtypes.promote_dtype)

    def __init__(
        self,
        layer_instance: Callable[..., Any],
        *,
        feature_axes: Axes | None = -1,
        use_scale: bool = True,
        scale_init: Initializer = initializers.ones,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        variable_filter: Filter = KERNELS,
        promote_dtype: PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
    ):
        keep_options(self, locals())
        self.layer_instance = layer_instance
        self.scales: dict[Path, Param] | None = None
        variables = weights_of(layer_instance, variable_filter)
        if use_scale:
            # Ones need no randomness: the layers made after this one get the keys as without it.
            key = clone(rngs).params()
            self.scales = {}
            for i, (path, v) in enumerate(variables):
                shape = tuple(v.shape[axis] for axis in self._axes(v))
                scale = scale_init(jax.random.fold_in(key, i), shape, param_dtype)
                self.scales[path] = Param(scale)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer_instance(x, *args, **kwargs)`, with normalized weights."""
        found = weights_of(self.layer_instance, self.variable_filter)
        with replaced((v, self._normalized(path, v)) for path, v in found):
            return self.layer_instance(x, *args, **kwargs)

    def _axes(self, variable: Variable) -> tuple[int, ...]:
        return () if self.feature_axes is None else positive_axes(self.feature_axes, variable.ndim)

    def _normalized(self, path: Path, variable: Variable) -> jax.Array:
        scale = None if self.scales is None else self.scales[path].value
        weight = dtypes.as_array(variable.raw_value)
        dtype = self.promote_dtype((weight, scale), dtype=self.dtype)[0].dtype
        return _normalize_weight(weight, scale, self._axes(variable), self.epsilon, dtype)
