"""What a row of the table of layers is, and the initializers that the rows use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[..., Any]  # (nnx or a peer with its names, **options) → layer
    reference: Callable[..., np.ndarray]  # (params, *inputs) → output
    shapes: tuple[tuple[int, ...], ...]  # of the inputs; a tuple of ints is drawn as normal
    features: str = ""  # a part of the message about a wrong last axis
    call: Mapping[str, Any] = field(default_factory=dict)
    integers: int = 0  # inputs are integers below this
    dtype: bool = True  # takes dtype= and param_dtype=


def inputs_of(case: Case, dtype: Any = np.float32, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    if case.integers:
        return [rng.integers(0, case.integers, shape, np.int32) for shape in case.shapes]
    return [rng.normal(size=shape).astype(dtype) for shape in case.shapes]


def by_key(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """An initializer that NumPy draws from the key: JAX would compile one for every shape.

    It leaves no parameter at zero or one, where a mistake would not show.
    """
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    return jnp.asarray(rng.normal(scale=0.5, size=shape), dtype)


AFFINE = {"kernel_init": by_key, "bias_init": by_key}
NORM = {"scale_init": by_key, "bias_init": by_key}
LOW_RANK = {"a_initializer": by_key, "b_initializer": by_key}
