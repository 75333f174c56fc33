"""The layers in one table: how to make each, an input, and what it computes, in float64 NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.layers import cases_convolution, cases_normalization, cases_recurrent
from tests.layers.case import AFFINE, LOW_RANK, NORM, Case, Params, by_key

# -- references ----------------------------------------------------------------------------------


def linear(p: Params, x: np.ndarray) -> np.ndarray:
    y = np.tensordot(x, p["kernel"], axes=1)
    return y + p["bias"] if "bias" in p else y


def linear_batch(p: Params, x: np.ndarray) -> np.ndarray:
    return (
        np.stack([np.einsum("iaj,ijk->ak", *pair) for pair in zip(x, p["kernel"])])
        + (p["bias"][:, None, :])
    )


def standardized(x: np.ndarray, axes: Any, epsilon: float) -> np.ndarray:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + epsilon)


def layer_norm(p: Params, x: np.ndarray) -> np.ndarray:
    return standardized(x, -1, 1e-6) * p["scale"] + p["bias"]


def rms_norm(p: Params, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def batch_norm(p: Params, x: np.ndarray) -> np.ndarray:
    return standardized(x, (0, 1), 1e-5) * p["scale"] + p["bias"]


def batch_norm_running(p: Params, x: np.ndarray) -> np.ndarray:
    return (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool = False) -> np.ndarray:
    """Attention of (batch, length, heads, depth) arrays, head by head."""
    group = q.shape[2] // k.shape[2]
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = q[b, :, h] @ k[b, :, h // group].T / math.sqrt(q.shape[-1])
            if causal:
                logits[np.triu_indices(logits.shape[0], 1)] = -np.inf
            out[b, :, h] = softmax(logits) @ v[b, :, h // group]
    return out


def project(p: Params, x: np.ndarray) -> np.ndarray:
    return np.einsum("bti,ihd->bthd", x, p["kernel"]) + p["bias"]


def attention(p: Params, x: np.ndarray, *others: np.ndarray, causal: bool = False) -> np.ndarray:
    source = others[0] if others else x
    q, k, v = project(p["query"], x), project(p["key"], source), project(p["value"], source)
    if "query_ln" in p:
        q = standardized(q, -1, 1e-6) * p["query_ln"]["scale"]
        k = standardized(k, -1, 1e-6) * p["key_ln"]["scale"]
    y = attend(q, k, v, causal)
    return np.einsum("bthd,hdo->bto", y, p["out"]["kernel"]) + p["out"]["bias"]


def attention_causal(p: Params, x: np.ndarray) -> np.ndarray:
    return attention(p, x, causal=True)


def lora(p: Params, x: np.ndarray) -> np.ndarray:
    return x @ p["lora_a"] @ p["lora_b"]


def gelu_network(p: Params, x: np.ndarray) -> np.ndarray:
    layers = p["layers"]
    x = linear(layers[0], x)
    x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return linear(layers[3], layer_norm(layers[2], x))


# -- the table -----------------------------------------------------------------------------------

CASES = [
    Case(
        "Linear",
        lambda nnx, **o: nnx.Linear(6, 5, rngs=nnx.Rngs(0), **AFFINE, **o),
        linear,
        ((3, 4, 6),),
        "in_features=6",
    ),
    Case(
        "Linear without bias",
        lambda nnx, **o: nnx.Linear(
            6, 5, use_bias=False, rngs=nnx.Rngs(0), kernel_init=by_key, **o
        ),
        linear,
        ((6,),),
        "in_features=6",
    ),
    Case(
        "LinearGeneral",
        lambda nnx, **o: nnx.LinearGeneral(6, (2, 5), rngs=nnx.Rngs(0), **AFFINE, **o),
        linear,
        ((3, 4, 6),),
        "in_features=(6,)",
    ),
    Case(
        "LinearGeneral with batch axis",
        lambda nnx, **o: nnx.LinearGeneral(
            (4, 5), 7, axis=(1, -1), batch_axis={0: 3}, rngs=nnx.Rngs(0), **AFFINE, **o
        ),
        linear_batch,
        ((3, 4, 2, 5),),
        "in_features=(4, 5)",
    ),
    Case(
        "Embed",
        lambda nnx, **o: nnx.Embed(11, 5, rngs=nnx.Rngs(0), embedding_init=by_key, **o),
        lambda p, x: p["embedding"][x],
        ((3, 4),),
        integers=11,
    ),
    Case(
        "LayerNorm",
        lambda nnx, **o: nnx.LayerNorm(6, rngs=nnx.Rngs(0), **NORM, **o),
        layer_norm,
        ((3, 4, 6),),
        "num_features=6",
    ),
    Case(
        "RMSNorm",
        lambda nnx, **o: nnx.RMSNorm(6, rngs=nnx.Rngs(0), scale_init=by_key, **o),
        rms_norm,
        ((3, 4, 6),),
        "num_features=6",
    ),
    Case(
        "BatchNorm",
        lambda nnx, **o: nnx.BatchNorm(6, rngs=nnx.Rngs(0), **NORM, **o),
        batch_norm,
        ((3, 4, 6),),
        "num_features=6",
    ),
    Case(
        "BatchNorm by running averages",
        lambda nnx, **o: nnx.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0), **NORM, **o),
        batch_norm_running,
        ((3, 4, 6),),
        "num_features=6",
    ),
    Case(
        "MultiHeadAttention",
        lambda nnx, **o: nnx.MultiHeadAttention(
            4, 8, decode=False, rngs=nnx.Rngs(0), **AFFINE, **o
        ),
        attention,
        ((2, 5, 8),),
        "in_features=(8,)",
    ),
    Case(
        "MultiHeadAttention with groups of heads, causal",
        lambda nnx, **o: nnx.MultiHeadAttention(
            4,
            8,
            qkv_features=12,
            num_kv_heads=2,
            out_features=7,
            normalize_qk=True,
            decode=False,
            rngs=nnx.Rngs(0),
            **AFFINE,
            **o,
        ),
        attention_causal,
        ((2, 5, 8),),
        "in_features=(8,)",
        call={"is_causal": True},
    ),
    Case(
        "MultiHeadAttention to another input",
        lambda nnx, **o: nnx.MultiHeadAttention(
            2, 8, in_kv_features=6, decode=False, rngs=nnx.Rngs(0), **AFFINE, **o
        ),
        attention,
        ((2, 5, 8), (2, 3, 6)),
    ),
    Case(
        "LoRA",
        lambda nnx, **o: nnx.LoRA(6, 2, 5, rngs=nnx.Rngs(0), **LOW_RANK, **o),
        lora,
        ((3, 4, 6),),
        "in_features=6",
    ),
    Case(
        "LoRALinear",
        lambda nnx, **o: nnx.LoRALinear(
            6, 5, lora_rank=2, rngs=nnx.Rngs(0), **LOW_RANK, **AFFINE, **o
        ),
        lambda p, x: linear(p, x) + lora(p["lora"], x),
        ((3, 4, 6),),
        "in_features=6",
    ),
    Case(
        "PReLU",
        lambda nnx, **o: nnx.PReLU(0.3, **o),
        lambda p, x: np.where(x >= 0, x, p["negative_slope"] * x),
        ((3, 4),),
    ),
    Case(
        "Sequential",
        lambda nnx: nnx.Sequential(
            nnx.Linear(6, 8, rngs=nnx.Rngs(0), **AFFINE),
            nnx.gelu,
            nnx.LayerNorm(8, rngs=nnx.Rngs(1), **NORM),
            nnx.Linear(8, 5, rngs=nnx.Rngs(2), **AFFINE),
        ),
        gelu_network,
        ((3, 6),),
        "in_features=6",
        dtype=False,
    ),
]
CASES += cases_convolution.CASES
CASES += cases_normalization.CASES
CASES += cases_recurrent.CASES

BY_NAME = {case.name: case for case in CASES}
