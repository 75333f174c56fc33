"""Rows of the table: normalization by groups, and of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.layers.case import AFFINE, NORM, Case, Params, by_key

CONVERGED = 50  # steps of power iteration, after which u is the singular vector to the last digit


def group_norm(p: Params, x: np.ndarray, size: int = 2, epsilon: float = 1e-6) -> np.ndarray:
    """Example by example, group by group."""
    y = np.empty_like(x)
    for example in range(len(x)):
        for start in range(0, x.shape[-1], size):
            group = x[example, ..., start : start + size]
            deviations = group - group.mean()
            y[example, ..., start : start + size] = deviations / np.sqrt(
                (deviations**2).mean() + epsilon
            )
    return y * p.get("scale", 1.0) + p.get("bias", 0.0)


def instance_norm_of_heads(p: Params, x: np.ndarray) -> np.ndarray:
    """Features along the axes 1 and -1: each position of them has its own statistics."""
    mean, var = x.mean(2, keepdims=True), x.var(2, keepdims=True)
    shape = (x.shape[1], 1, x.shape[-1])
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"].reshape(shape) + p["bias"].reshape(shape)


def weight_norm(p: Params, x: np.ndarray, lengths: Any = None) -> np.ndarray:
    layer = p["layer_instance"]
    if lengths is None:
        lengths = np.linalg.norm(layer["kernel"], axis=0)
    scale = 1.0 if p["scales"] is None else p["scales"]["kernel",]
    return x @ (layer["kernel"] / lengths * scale) + layer["bias"]


def weight_norm_of_all(p: Params, x: np.ndarray) -> np.ndarray:
    return weight_norm({**p, "scales": None}, x, np.linalg.norm(p["layer_instance"]["kernel"]))


def spectral_norm(p: Params, x: np.ndarray) -> np.ndarray:
    layer = p["layer_instance"]
    matrix = layer["kernel"].reshape(-1, layer["kernel"].shape[-1])
    sigma = np.linalg.svd(matrix, compute_uv=False)[0]
    return np.tensordot(x, layer["kernel"] / sigma, layer["kernel"].ndim - 1) + layer["bias"]


CASES = [
    Case(
        "GroupNorm",
        lambda nnx, **o: nnx.GroupNorm(6, num_groups=3, rngs=nnx.Rngs(0), **NORM, **o),
        group_norm,
        ((3, 4, 6),),
        "num_features=6",
    ),
    Case(
        "GroupNorm by size, without bias",
        lambda nnx, **o: nnx.GroupNorm(
            6,
            None,
            3,
            epsilon=1e-3,
            use_bias=False,
            scale_init=by_key,
            reduction_axes=(1, 2, -1),
            rngs=nnx.Rngs(0),
            **o,
        ),
        lambda p, x: group_norm(p, x, 3, 1e-3),
        ((2, 3, 2, 6),),
        "num_features=6",
    ),
    Case(
        "InstanceNorm",
        lambda nnx, **o: nnx.InstanceNorm(6, rngs=nnx.Rngs(0), **NORM, **o),
        lambda p, x: group_norm(p, x, 1),
        ((3, 4, 6),),
        "num_features=6",
    ),
    Case(
        "InstanceNorm along two feature axes",
        lambda nnx, **o: nnx.InstanceNorm(
            12, feature_axes=(-1, 1), epsilon=1e-5, rngs=nnx.Rngs(0), **NORM, **o
        ),
        instance_norm_of_heads,
        ((2, 2, 5, 6),),
        "num_features=12",
    ),
    Case(
        "WeightNorm",
        lambda nnx, **o: nnx.WeightNorm(
            nnx.Linear(6, 5, rngs=nnx.Rngs(0), **AFFINE, **o), rngs=nnx.Rngs(1), **o
        ),
        weight_norm,
        ((3, 6),),
        "in_features=6",
    ),
    Case(
        "WeightNorm by one length, without scale",
        lambda nnx, **o: nnx.WeightNorm(
            nnx.Linear(6, 5, rngs=nnx.Rngs(0), **AFFINE, **o),
            feature_axes=None,
            use_scale=False,
            rngs=nnx.Rngs(1),
            **o,
        ),
        weight_norm_of_all,
        ((3, 6),),
        "in_features=6",
    ),
    Case(
        "SpectralNorm",
        lambda nnx, **o: nnx.SpectralNorm(
            nnx.Linear(6, 5, rngs=nnx.Rngs(0), **AFFINE, **o),
            n_steps=CONVERGED,
            rngs=nnx.Rngs(1),
            **o,
        ),
        spectral_norm,
        ((3, 6),),
        "in_features=6",
        call={"update_stats": False},
    ),
    Case(
        "SpectralNorm of more axes",
        lambda nnx, **o: nnx.SpectralNorm(
            nnx.LinearGeneral((2, 3), 5, axis=(-2, -1), rngs=nnx.Rngs(0), **AFFINE, **o),
            n_steps=CONVERGED,
            rngs=nnx.Rngs(1),
            **o,
        ),
        spectral_norm,
        ((4, 2, 3),),
        "in_features=(2, 3)",
        call={"update_stats": False},
    ),
]
