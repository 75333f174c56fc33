"""Tensors of PyTorch as arrays; PyTorch itself is not needed, and not imported."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")


def as_numpy(value: Any) -> np.ndarray:
    if is_tensor(value):
        value = value.detach().cpu()
        try:
            return value.numpy()
        except TypeError:  # a dtype that NumPy itself does not know
            value = jnp.from_dlpack(value.contiguous())
    return np.asarray(value)
