"""Rows for recurrent layers: each cell run by `RNN`, and loops over its steps in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.layers.case import AFFINE, Case, Params, by_key

RECURRENT: dict[str, Any] = {**AFFINE, "recurrent_kernel_init": by_key}
Step = Callable[[Params, np.ndarray, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]

# -- references: one step, (params, x, carry) → new carry, whose last part is the output -----------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def affine(p: Params, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def simple_step(p: Params, x: np.ndarray, carry: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return (np.tanh(affine(p["dense_i"], x) + affine(p["dense_h"], carry[0])),)


def residual_step(p: Params, x: np.ndarray, carry: tuple[np.ndarray, ...]) -> Any:
    return (np.tanh(affine(p["dense_i"], x) + affine(p["dense_h"], carry[0]) + carry[0]),)


def lstm_update(gates: list[np.ndarray], c: np.ndarray) -> tuple[np.ndarray, ...]:
    i, f, g, o = gates
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def lstm_step(p: Params, x: np.ndarray, carry: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    c, h = carry
    pairs = [("ii", "hi"), ("if_", "hf"), ("ig", "hg"), ("io", "ho")]
    return lstm_update([affine(p[a], x) + affine(p[b], h) for a, b in pairs], c)


def fused_lstm_step(p: Params, x: np.ndarray, carry: tuple[np.ndarray, ...]) -> Any:
    c, h = carry
    gates = affine(p["dense_i"], x) + affine(p["dense_h"], h)
    n = h.shape[-1]
    return lstm_update([gates[..., i * n : (i + 1) * n] for i in range(4)], c)


def gru_step(p: Params, x: np.ndarray, carry: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    (h,) = carry
    n = h.shape[-1]
    a, b = affine(p["dense_i"], x), affine(p["dense_h"], h)
    r = sigmoid(a[..., :n] + b[..., :n])
    z = sigmoid(a[..., n : 2 * n] + b[..., n : 2 * n])
    return ((1 - z) * np.tanh(a[..., 2 * n :] + r * b[..., 2 * n :]) + z * h,)


def run(step: Step, parts: int, p: Params, x: np.ndarray, reverse: bool = False) -> np.ndarray:
    """The outputs (batch, time, features) of the cell `p`, from a carry of zeros."""
    size = next(v for k, v in p.items() if k in ("hi", "dense_h"))["kernel"].shape[0]
    carry = (np.zeros((x.shape[0], size)),) * parts
    y = np.zeros((*x.shape[:2], size))
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        carry = step(p, x[:, t], carry)
        y[:, t] = carry[-1]
    return y


def both_ways(p: Params, x: np.ndarray) -> np.ndarray:
    forward = run(gru_step, 1, p["forward_rnn"]["cell"], x)
    backward = run(simple_step, 1, p["backward_rnn"]["cell"], x, reverse=True)
    return np.concatenate([forward, backward], axis=-1)


# -- the table -----------------------------------------------------------------------------------

X = ((2, 3, 6),)  # (batch, time, features)


def cell(nnx: Any, name: str, seed: int = 0, **options: Any) -> Any:
    # SimpleCell computes in float32 if nothing is said, the others in what they are given.
    options = {"dtype": None, **RECURRENT, **options}
    return getattr(nnx, name)(6, 5, rngs=nnx.Rngs(seed), **options)


CASES = [
    Case(
        "SimpleCell with residual, time first",
        lambda nnx, **o: nnx.RNN(
            cell(nnx, "SimpleCell", residual=True, **o), time_major=True, rngs=nnx.Rngs(3)
        ),
        lambda p, x: run(residual_step, 1, p["cell"], x.swapaxes(0, 1)).swapaxes(0, 1),
        X,
    ),
    Case(
        "LSTMCell",
        lambda nnx, **o: nnx.RNN(cell(nnx, "LSTMCell", **o)),
        lambda p, x: run(lstm_step, 2, p["cell"], x),
        X,
    ),
    Case(
        "OptimizedLSTMCell",
        lambda nnx, **o: nnx.RNN(cell(nnx, "OptimizedLSTMCell", **o), unroll=2),
        lambda p, x: run(fused_lstm_step, 2, p["cell"], x),
        X,
    ),
    Case(
        "GRUCell, backwards",
        lambda nnx, **o: nnx.RNN(cell(nnx, "GRUCell", **o), reverse=True),
        lambda p, x: run(gru_step, 1, p["cell"], x, reverse=True)[:, ::-1],
        X,
    ),
    Case(
        "Bidirectional",
        lambda nnx, **o: nnx.Bidirectional(
            nnx.RNN(cell(nnx, "GRUCell", **o)),
            nnx.RNN(cell(nnx, "SimpleCell", seed=1, **o)),
            rngs=nnx.Rngs(2),
        ),
        both_ways,
        X,
    ),
]
