"""Rows of the table: convolutions and Einsum. References are loops over places and windows."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.layers.case import AFFINE, Case, Params, by_key

Pads = tuple[tuple[int, int], ...]


def masked(p: Params) -> np.ndarray:
    return p["kernel"] * p.get("mask", 1.0)


def convolution(
    p: Params,
    x: np.ndarray,  # (batch, *spatial, features)
    pads: Pads,
    strides: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    input_dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    mode: Any = "constant",
) -> np.ndarray:
    """At each place of the output, the sum over the places of the window."""
    kernel, axes = masked(p), x.ndim - 2
    ones = (1,) * axes
    strides, dilation = strides or ones, dilation or ones
    if input_dilation:
        spread = [d * (n - 1) + 1 for n, d in zip(x.shape[1:], input_dilation)]
        between = np.zeros((x.shape[0], *spread, x.shape[-1]))
        between[:, *(slice(None, None, d) for d in input_dilation)] = x
        x = between
    x = np.pad(x, [(0, 0), *pads, (0, 0)], mode=mode)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel.shape)]
    sizes = [(n - span - 1) // s + 1 for n, span, s in zip(x.shape[1:], spans, strides)]
    y = np.zeros((x.shape[0], *sizes, kernel.shape[-1]))
    for n in np.ndindex(*sizes):
        for j in np.ndindex(*kernel.shape[:axes]):
            seen = x[:, *(s * a + d * b for s, a, d, b in zip(strides, n, dilation, j))]
            parts = zip(np.split(seen, groups, -1), np.split(kernel[j], groups, -1))
            y[:, *n] += np.concatenate([part @ weights for part, weights in parts], -1)
    return y + p.get("bias", 0.0)


def transposed(
    p: Params,
    x: np.ndarray,  # (batch, *spatial, features)
    sizes: tuple[int, ...],  # of the output
    low: tuple[int, ...],  # how much of its beginning is cut off
    strides: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    transpose_kernel: bool = False,
    periodic: bool = False,
) -> np.ndarray:
    """Each place of the input adds a window to the output."""
    kernel, axes = masked(p), x.ndim - 2
    strides, dilation = strides or (1,) * axes, dilation or (1,) * axes
    if transpose_kernel:
        kernel = np.swapaxes(kernel, -1, -2)
    else:
        kernel = np.flip(kernel, tuple(range(axes)))
    y = np.zeros((x.shape[0], *sizes, kernel.shape[-1]))
    for n in np.ndindex(*x.shape[1:-1]):
        for j in np.ndindex(*kernel.shape[:axes]):
            at = [s * a + d * b - c for s, a, d, b, c in zip(strides, n, dilation, j, low)]
            if periodic:
                at = [i % size for i, size in zip(at, sizes)]
            if all(0 <= i < size for i, size in zip(at, sizes)):
                y[:, *at] += x[:, *n] @ kernel[j]
    return y + p.get("bias", 0.0)


def mask_of(*shape: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(5).uniform(size=shape) < 0.6)


CASES = [
    Case(
        "Conv",
        lambda nnx, **o: nnx.Conv(3, 5, 3, rngs=nnx.Rngs(0), **AFFINE, **o),
        partial(convolution, pads=((1, 1),)),
        ((2, 7, 3),),
        "in_features=3",
    ),
    Case(
        "Conv of images with strides, dilation and groups",
        lambda nnx, **o: nnx.Conv(
            4,
            6,
            (3, 2),
            (2, 1),
            padding=((1, 2), 1),
            kernel_dilation=(1, 3),
            feature_group_count=2,
            rngs=nnx.Rngs(0),
            **AFFINE,
            **o,
        ),
        partial(convolution, pads=((1, 2), (1, 1)), strides=(2, 1), dilation=(1, 3), groups=2),
        ((2, 4, 5, 4),),
        "in_features=4",
    ),
    Case(
        "Conv, circular and masked",
        lambda nnx, **o: nnx.Conv(
            3,
            5,
            (4,),
            2,
            padding="CIRCULAR",
            mask=mask_of(4, 3, 5),
            rngs=nnx.Rngs(0),
            **AFFINE,
            **o,
        ),
        partial(convolution, pads=((1, 2),), strides=(2,), mode="wrap"),
        ((2, 7, 3),),
        "in_features=3",
    ),
    Case(
        "Conv of volumes with input dilation",
        lambda nnx, **o: nnx.Conv(
            2, 3, (2, 1, 2), padding=0, input_dilation=(1, 3, 2), rngs=nnx.Rngs(0), **AFFINE, **o
        ),
        partial(convolution, pads=((0, 0),) * 3, input_dilation=(1, 3, 2)),
        ((1, 3, 2, 2, 2),),
        "in_features=2",
    ),
    Case(
        "ConvTranspose",
        lambda nnx, **o: nnx.ConvTranspose(3, 5, 4, 2, rngs=nnx.Rngs(0), **AFFINE, **o),
        partial(transposed, sizes=(10,), low=(1,), strides=(2,)),
        ((2, 5, 3),),
        "in_features=3",
    ),
    Case(
        "ConvTranspose of images by the kernel of a Conv",
        lambda nnx, **o: nnx.ConvTranspose(
            3,
            4,
            (3, 2),
            (2, 3),
            padding="VALID",
            kernel_dilation=(2, 1),
            transpose_kernel=True,
            rngs=nnx.Rngs(0),
            **AFFINE,
            **o,
        ),
        partial(  # along the second axis the window is smaller than the step, and y ends in zeros
            transposed,
            sizes=(9, 6),
            low=(0, 0),
            strides=(2, 3),
            dilation=(2, 1),
            transpose_kernel=True,
        ),
        ((2, 3, 2, 3),),
        "in_features=3",
    ),
    Case(
        "ConvTranspose, circular, masked, without bias",
        lambda nnx, **o: nnx.ConvTranspose(
            3,
            5,
            (4,),
            2,
            padding="CIRCULAR",
            mask=mask_of(4, 3, 5),
            use_bias=False,
            kernel_init=by_key,
            rngs=nnx.Rngs(0),
            **o,
        ),
        partial(transposed, sizes=(10,), low=(1,), strides=(2,), periodic=True),
        ((2, 5, 3),),
        "in_features=3",
    ),
    Case(
        "Einsum",
        lambda nnx, **o: nnx.Einsum(
            "nta,hab->nhtb", (3, 6, 5), (3, 5), rngs=nnx.Rngs(0), **AFFINE, **o
        ),
        lambda p, x: np.stack(
            [x @ kernel + bias for kernel, bias in zip(p["kernel"], p["bias"])], 1
        ),
        ((2, 4, 6),),
        "6 in the kernel",
    ),
    Case(
        "Einsum with any axes in front",
        lambda nnx, **o: nnx.Einsum(
            "...a, ab -> ...b", (6, 5), kernel_init=by_key, rngs=nnx.Rngs(0), **o
        ),
        lambda p, x: x @ p["kernel"],
        ((2, 4, 6),),
        "6 in the kernel",
    ),
]
