"""The mutable arrays of JAX itself, under the names that NNX once had for them."""

from __future__ import annotations

from typing import Any, TypeGuard

import jax

ArrayRef = jax.Ref
array_ref = jax.new_ref


def is_array_ref(x: Any) -> TypeGuard[jax.Ref]:
    """Whether `x` is a `jax.Ref`."""
    return isinstance(x, jax.Ref)
