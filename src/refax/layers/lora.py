"""LoRA: low-rank adapters, to fine-tune a model by few parameters."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.errors import describe_value
from ..objects.variable import Variable
from ..objects.variable_types import LoRAParam
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .contractions import dot, placed
from .linear import Linear
from .linear_general import LinearGeneral
from .options import Layer, check_last_axis, initial, keep_options

VariableType = Annotated[
    type[Variable],
    fit.Fits("a Variable type", lambda x: isinstance(x, type) and issubclass(x, Variable)),
]
default_a_initializer = initializers.he_uniform()
default_b_initializer = initializers.zeros


class LoRA(Layer):
    """A low-rank map, alone or added to a module: y = x·A·B, or module(x) + x·A·B.

    B is zero at first, so that it starts as no change.

    Shapes: `(..., in_features)` → `(..., out_features)`.
    Attributes: `lora_a` A (in_features, lora_rank), `lora_b` B (lora_rank, out_features).

    Args:
        in_features: size of the input's last axis.
        lora_rank: the rank.
        out_features: size of the output's last axis.
        base_module: a module to add to.
        dtype: the dtype to compute in; by default what input and parameters promote to.
        param_dtype: the dtype of the parameters.
        a_initializer, b_initializer: initializers of A and B.
        lora_param_type: the Variable type of A and B, by which they are found:
            `nnx.state(model, nnx.LoRAParam)`.
        promote_dtype: brings input and parameters to one dtype.
        rngs: its stream `params` gives the keys.
        a_metadata, b_metadata: metadata of A and B.

    Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021),
    arXiv:2106.09685.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> layer = nnx.LoRA(3, 2, 4, rngs=nnx.Rngs(0))
        >>> layer.lora_a.shape, layer.lora_b.shape, layer(jnp.ones((5, 3))).shape
        ((3, 2), (2, 4), (5, 4))
    """

    lora_param_type: type[Variable] = LoRAParam

    @fit.checked
    def __init__(
        self,
        in_features: fit.Size,
        lora_rank: fit.Size,
        out_features: fit.Size,
        *,
        base_module: Any = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        a_initializer: fit.Initializer = default_a_initializer,
        b_initializer: fit.Initializer = default_b_initializer,
        lora_param_type: VariableType = LoRAParam,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        a_metadata: fit.Metadata = fit.NO_METADATA,
        b_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        keep_options(self, locals())
        if base_module is not None and not callable(base_module):
            raise fit.ArgumentError(
                f"LoRA: base_module is a {type(base_module).__name__}, which cannot be called: "
                f"{describe_value(base_module)}."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.base_module = base_module
        shape = (in_features, lora_rank)
        a = initial("a_initializer", a_initializer, rngs.params(), shape, param_dtype)
        shape = (lora_rank, out_features)
        b = initial("b_initializer", b_initializer, rngs.params(), shape, param_dtype)
        self.lora_a: Variable[jax.Array] = lora_param_type(a, **a_metadata)
        self.lora_b: Variable[jax.Array] = lora_param_type(b, **b_metadata)

    @fit.checked
    def __call__(self, x: fit.Array, **kwargs: Any) -> jax.Array:
        """x·A·B, plus `base_module(x, **kwargs)` if there is one."""
        given, a, b = self.promote_dtype((x, self.lora_a[...], self.lora_b[...]), dtype=self.dtype)
        check_last_axis("LoRA", given.shape, "in_features", a.shape[0])
        change = dot(dot(given, a), b)
        if self.base_module is None:
            return change
        return _add(self.base_module(x, **kwargs), change, kwargs.get("out_sharding"))


def _add(y: Any, change: jax.Array, out_sharding: fit.OutSharding = None) -> jax.Array:
    if jnp.shape(y) != change.shape:
        raise fit.ArgumentError(
            f"base_module returns {describe_value(y)}, but x·A·B has the shape {change.shape}, of "
            "which the last axis is out_features."
        )
    # In the dtype of y: an adapter must not change the precision of the model around it.
    return placed(y + dtypes.cast(change, y.dtype), out_sharding)


class LoRALinear(Linear):
    """A Linear with a low-rank adapter: y = x·W + b + x·A·B.

    Made from sizes, or around an existing Linear or LinearGeneral, whose parameters it then shares.
    B is zero at first, so that the new layer gives what the old one gave.

    Shapes: `(..., in_features)` → `(..., out_features)`; around a LinearGeneral its shapes, and
    its axes of features are one for the adapter.
    Attributes: those of the old layer, and `lora`, a `nnx.LoRA`.

    Args:
        in_features: size of the input's last axis; or the layer.
        out_features: size of the output's last axis; not with a Linear.
        lora_rank: the rank of the adapter; `rank` is another spelling.
        lora_dtype, lora_param_dtype, lora_promote_dtype, a_initializer, b_initializer,
            lora_param_type, rngs, a_metadata, b_metadata: of the adapter, as for `nnx.LoRA`.
        **kwargs: as for `nnx.Linear`; not with a Linear.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> linear = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        >>> adapted = nnx.LoRALinear(linear, rank=2, rngs=nnx.Rngs(1))
        >>> (
        ...     adapted.kernel is linear.kernel,
        ...     bool((adapted(jnp.ones(3)) == linear(jnp.ones(3))).all()),
        ... )
        (True, True)
    """

    @fit.checked
    def __init__(
        self,
        in_features: Any,  # a Size, a Linear or a LinearGeneral
        out_features: fit.Size | None = None,
        *,
        lora_rank: fit.Size | None = None,
        rank: fit.Size | None = None,
        lora_dtype: DTypeLike | None = None,
        lora_param_dtype: DTypeLike = jnp.float32,
        a_initializer: fit.Initializer = default_a_initializer,
        b_initializer: fit.Initializer = default_b_initializer,
        lora_param_type: VariableType = LoRAParam,
        lora_promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        a_metadata: fit.Metadata = fit.NO_METADATA,
        b_metadata: fit.Metadata = fit.NO_METADATA,
        **kwargs: Any,
    ):
        lora_rank = rank if lora_rank is None else lora_rank
        if lora_rank is None:
            raise fit.ArgumentError("LoRALinear: the rank of the adapter is missing: lora_rank=8.")
        if isinstance(in_features, (Linear, LinearGeneral)):
            self._adopt(in_features, out_features, kwargs)
        elif out_features is None:
            raise fit.ArgumentError(
                "LoRALinear takes sizes, LoRALinear(in_features, out_features, …), or a Linear, "
                f"LoRALinear(linear, …); got {describe_value(in_features)}."
            )
        else:
            super().__init__(in_features, out_features, rngs=rngs, **kwargs)
        self.lora: LoRA = LoRA(
            math.prod(fit.as_tuple(self.in_features)),
            lora_rank,
            math.prod(fit.as_tuple(self.out_features)),
            dtype=lora_dtype,
            param_dtype=lora_param_dtype,
            a_initializer=a_initializer,
            b_initializer=b_initializer,
            lora_param_type=lora_param_type,
            promote_dtype=lora_promote_dtype,
            rngs=rngs,
            a_metadata=a_metadata,
            b_metadata=b_metadata,
        )

    def _adopt(self, linear: Any, out_features: int | None, kwargs: dict[str, Any]) -> None:
        """Take over the attributes of a layer: the same Variables, not copies."""
        if out_features is not None or kwargs:
            given = ["out_features"] * (out_features is not None) + list(kwargs)
            raise fit.ArgumentError(
                f"LoRALinear: {', '.join(given)} cannot be given together with a Linear, which "
                "says it already."
            )
        if isinstance(linear, LoRALinear):
            raise fit.ArgumentError("LoRALinear: this Linear has an adapter already, `.lora`.")
        if getattr(linear, "batch_axis", ()):
            raise fit.ArgumentError(
                f"LoRALinear: this LinearGeneral has batch_axis={dict(linear.batch_axis)}, a "
                "kernel for each index there, and the adapter is one for all.\n"
                "Cure: a LinearGeneral without batch_axis, or nnx.vmap over LoRALinear."
            )
        for name, value in vars(linear).items():
            setattr(self, name, value)
        if isinstance(linear, LinearGeneral):
            # What the two kinds have different defaults of.
            self.dot_general, self.dot_general_cls = linear.dot_general, linear.dot_general_cls

    @fit.checked
    def __call__(self, x: fit.Array, out_sharding: fit.OutSharding = None) -> jax.Array:
        """y = x·W + b + x·A·B, in the dtype of x·W + b."""
        if not isinstance(self.out_features, tuple):
            return _add(super().__call__(x, out_sharding), self.lora(x), out_sharding)
        layer: Any = self  # which has the attributes of a LinearGeneral
        y = LinearGeneral.__call__(layer, x, out_sharding)
        axes = len(layer.axis)
        moved = jnp.moveaxis(dtypes.as_array(x), layer.axis, range(-axes, 0))
        rest = moved.shape[: moved.ndim - axes]
        change = self.lora(moved.reshape(*rest, -1))
        return _add(y, change.reshape(*rest, *self.out_features), out_sharding)
