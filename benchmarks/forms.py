"""`python -m benchmarks --forms`: what the ways to write a layer cost, in a GPT.

The same formula can be written in several forms, and XLA's compile time, the time of a step and its
memory depend on which. Here each form takes its turn in the same model of refax: as the class that
stands for `nnx.LayerNorm` or `nnx.Dropout`, as `attention_fn`, or as the loss. The first form of
each part is the one that refax has (for the loss: the one that its examples use).

All forms of a part see the same weights and batch, and must give the same loss and the same loss
after a step, before anything is timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from refax import nnx
from refax.layers.dot_product_attention import _softmax

from .harness import aligned, quantity
from .models import ADAM, GPT, REAL, cross_entropy, inputs, nnx_model

# -- the forms: normalization --------------------------------------------------------------------


class PlainNorm(nnx.LayerNorm):
    """A normalization by its formula, which JAX differentiates."""

    def normalize(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def __call__(self, x: Any, **options: Any) -> jax.Array:
        return self.normalize(x) * self.scale[...] + self.bias[...]


class TwoPasses(PlainNorm):
    def normalize(self, x: jax.Array) -> jax.Array:
        centered = x - jnp.mean(x, -1, keepdims=True)
        return centered * lax.rsqrt(jnp.mean(centered * centered, -1, keepdims=True) + self.epsilon)


class JnpVar(PlainNorm):
    def normalize(self, x: jax.Array) -> jax.Array:
        var = jnp.var(x, -1, keepdims=True)
        return (x - jnp.mean(x, -1, keepdims=True)) * lax.rsqrt(var + self.epsilon)


class MeanOfSquares(PlainNorm):
    def normalize(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(x, -1, keepdims=True)
        var = jnp.maximum(jnp.mean(x * x, -1, keepdims=True) - mean * mean, 0)
        return (x - mean) * lax.rsqrt(var + self.epsilon)


def rms_norm(width: int, *, rngs: Any) -> Any:
    """`nnx.RMSNorm` in the place of a LayerNorm; with a bias as that has."""
    norm = nnx.RMSNorm(width, rngs=rngs)
    norm.bias = nnx.Param(jnp.zeros(width))
    return norm


class PlainRMSNorm(PlainNorm):
    def normalize(self, x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.epsilon)


# -- attention -----------------------------------------------------------------------------------


def _masked(logits: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, logits, jnp.finfo(logits.dtype).min)


def axes_as_they_are(query: Any, key: Any, value: Any, *, mask: Any, **options: Any) -> jax.Array:
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", _softmax(_masked(logits, mask)), value)


def _heads_first(
    attend: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
) -> Callable[..., jax.Array]:
    """An `attention_fn` of a function of (*batch, heads, length, d) arrays and the mask."""

    def attention_fn(query: Any, key: Any, value: Any, *, mask: Any, **options: Any) -> jax.Array:
        y = attend(*(jnp.swapaxes(x, -3, -2) for x in (query, key, value)), mask)
        return jnp.swapaxes(y, -3, -2)

    return attention_fn


def _product(query: jax.Array, key: jax.Array) -> jax.Array:
    return query @ jnp.swapaxes(key, -1, -2)


@_heads_first
def scaled_query(query: Any, key: Any, value: Any, mask: Any) -> jax.Array:
    return _softmax(_masked(_product(query * query.shape[-1] ** -0.5, key), mask)) @ value


@_heads_first
def added_mask(query: Any, key: Any, value: Any, mask: Any) -> jax.Array:
    logits = _product(query, key) * query.shape[-1] ** -0.5
    return _softmax(logits + _masked(jnp.zeros(mask.shape), mask)) @ value


@_heads_first
def softmax_of_jax(query: Any, key: Any, value: Any, mask: Any) -> jax.Array:
    logits = _product(query, key) * query.shape[-1] ** -0.5
    return jax.nn.softmax(_masked(logits, mask)) @ value


@_heads_first
def divided_last(query: Any, key: Any, value: Any, mask: Any) -> jax.Array:
    """The softmax's denominator after the product with the values, which are fewer."""
    logits = _masked(_product(query, key) * query.shape[-1] ** -0.5, mask)
    weights = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, -1, keepdims=True)))
    return weights @ value / jnp.sum(weights, -1, keepdims=True)


def of_jax(query: Any, key: Any, value: Any, *, mask: Any, **options: Any) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


# -- the loss ------------------------------------------------------------------------------------


def log_softmax(logits: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -jnp.mean(chosen)


def one_hot(logits: jax.Array, labels: jax.Array) -> jax.Array:
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, targets).mean()


def one_hot_sum(logits: jax.Array, labels: jax.Array) -> jax.Array:
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.sum(logits * targets, -1))


@jax.custom_jvp
def _by_hand(logits: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)


@_by_hand.defjvp
def _by_hand_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    logits, labels = primals
    slope = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    return _by_hand(logits, labels), jnp.sum(slope * tangents[0]) / labels.size


# -- dropout -------------------------------------------------------------------------------------


class PlainDropout(nnx.Dropout):
    """The same masks as those of `nnx.Dropout`, put to use in another way."""

    def __call__(self, x: Any, **options: Any) -> jax.Array:
        kept = jax.random.bernoulli(self.rngs(), 1 - self.rate, x.shape)
        return self.drop(x, kept, 1 - self.rate)

    def drop(self, x: jax.Array, kept: jax.Array, keep: float) -> jax.Array:
        raise NotImplementedError


class Multiply(PlainDropout):
    def drop(self, x: jax.Array, kept: jax.Array, keep: float) -> jax.Array:
        return x * (kept.astype(x.dtype) / keep)


class SelectScale(PlainDropout):
    def drop(self, x: jax.Array, kept: jax.Array, keep: float) -> jax.Array:
        return x * jnp.where(kept, 1 / keep, 0).astype(x.dtype)


class ScaleLast(PlainDropout):
    def drop(self, x: jax.Array, kept: jax.Array, keep: float) -> jax.Array:
        return jnp.where(kept, x, 0) / keep


class SixteenBits(nnx.Dropout):
    """Masks of 16 random bits an element: other masks, so the loss is not compared."""

    def __call__(self, x: Any, **options: Any) -> jax.Array:
        bits = jax.random.bits(self.rngs(), x.shape, jnp.uint16)
        return jnp.where(bits < round((1 - self.rate) * 2**16), x / (1 - self.rate), 0)


# -- the parts of the model, each with its forms -------------------------------------------------


class Form(NamedTuple):
    name: str
    replaced: dict[str, Any] = {}  # attributes of the namespace
    loss: Callable[..., jax.Array] = cross_entropy
    compared: bool = True


class Part(NamedTuple):
    name: str
    size: GPT
    forms: tuple[Form, ...]


def _attends(function: Callable[..., jax.Array]) -> dict[str, Any]:
    return {"MultiHeadAttention": partial(nnx.MultiHeadAttention, attention_fn=function)}


PARTS = (
    Part(
        "LayerNorm",
        REAL,
        (
            Form("refax: derivative by hand"),
            Form("mean and variance in two passes", {"LayerNorm": TwoPasses}),
            Form("jnp.var", {"LayerNorm": JnpVar}),
            Form("E[x²] - E[x]²", {"LayerNorm": MeanOfSquares}),
        ),
    ),
    Part(
        "RMSNorm",
        REAL,
        (
            Form("refax: derivative by hand", {"LayerNorm": rms_norm}),
            Form("by its formula", {"LayerNorm": PlainRMSNorm}),
        ),
    ),
    Part(
        "attention",
        REAL._replace(length=256),
        (
            Form("refax: heads first, softmax's derivative by hand"),
            Form("axes as they are", _attends(axes_as_they_are)),
            Form("query scaled", _attends(scaled_query)),
            Form("mask added", _attends(added_mask)),
            Form("jax.nn.softmax", _attends(softmax_of_jax)),
            Form("denominator last", _attends(divided_last)),
            Form("jax.nn.dot_product_attention", _attends(of_jax)),
        ),
    ),
    Part(
        "cross-entropy, vocabulary of 8,192",
        REAL._replace(vocabulary=8192),
        (
            Form("optax: integer labels"),
            Form("log_softmax, then the label's", loss=log_softmax),
            Form("optax: one-hot", loss=one_hot),
            Form("logsumexp less a one-hot sum", loss=one_hot_sum),
            Form("derivative by hand", loss=_by_hand),
        ),
    ),
    Part(
        "dropout",
        REAL._replace(dropout=0.1),
        (
            Form("refax: select x / keep"),
            Form("multiply by the mask", {"Dropout": Multiply}),
            Form("multiply by a selected scale", {"Dropout": SelectScale}),
            Form("divide after selecting", {"Dropout": ScaleLast}),
            Form("masks of 16 bits", {"Dropout": SixteenBits}, compared=False),
        ),
    ),
)


# -- measuring -----------------------------------------------------------------------------------


class Namespace:
    """`refax.nnx` with some of its parts replaced."""

    def __init__(self, replaced: dict[str, Any]):
        vars(self).update({**vars(nnx), **replaced})


@dataclass
class Program:
    """A compiled function: what it took to make, and what a call takes."""

    call: Callable[[], Any]
    compile_seconds: float  # of all cores
    temporaries: int
    instructions: int
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, function: Callable, *args: Any) -> Program:
        lowered = nnx.jit(function).lower(*args)
        start = time.process_time()
        compiled = lowered.compile()
        seconds = time.process_time() - start
        return cls(
            lambda: jax.block_until_ready(compiled(*args)),
            seconds,
            compiled.memory_analysis().temp_size_in_bytes,
            compiled.as_text().count(" = "),
        )

    def run(self) -> None:
        start = time.perf_counter()
        self.call()
        self.seconds.append(time.perf_counter() - start)

    @property
    def best(self) -> float:
        """The median of the calmest quarter of the calls."""
        return float(np.median(sorted(self.seconds)[: max(1, len(self.seconds) // 4)]))


def _programs(form: Form, size: GPT) -> tuple[Program, Program]:
    """(the forward pass, a train step) of a new model."""
    model = nnx_model(Namespace(form.replaced), size)
    optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
    x, y = inputs(size)

    def forward(model: Any, x: Any, y: Any) -> jax.Array:
        return form.loss(model(x), y)

    def step(model: Any, optimizer: Any, x: Any, y: Any) -> jax.Array:
        loss, grads = nnx.value_and_grad(forward)(model, x, y)
        optimizer.update(model, grads)
        return loss

    return Program.of(forward, model, x, y), Program.of(step, model, optimizer, x, y)


def _losses(programs: tuple[Program, Program]) -> list[float]:
    return [float(program.call()) for program in (*programs, *programs)]


def lines(part: Part, blocks: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """One line of the table for each form of a part."""
    size = part.size._replace(layers=blocks)
    made = [(form, _programs(form, size)) for form in part.forms]
    expected = _losses(made[0][1])
    for form, programs in made[1:]:
        found = _losses(programs)
        if form.compared:
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=form.name)
    for turn in range(rounds):
        for _, programs in made[turn % len(made) :] + made[: turn % len(made)]:
            for program in programs:
                program.run()
    first = made[0][1]
    for form, (forward, step) in made:
        yield (
            f"{part.name}: {form.name}",
            str(blocks),
            f"{forward.compile_seconds:.1f} s",
            f"{step.compile_seconds:.1f} s",
            quantity(forward.best, "s"),
            quantity(step.best, "s"),
            f"{step.best / first[1].best:.2f}×",
            quantity(step.temporaries, "B"),
            f"{step.instructions:,}",
        )


HEADER = (
    "form", "blocks", "compile forward", "compile step", "forward", "step", "step/first",
    "temporaries", "instructions",
)  # fmt: skip


def table(patterns: Sequence[str] | None, quick: bool) -> str:
    """The table, also shown line by line while it is measured.

    Args:
        patterns: only parts with one of these in their names.
        quick: small models, and few turns: to see that it runs.
    """
    found = [HEADER]
    for part in PARTS:
        if patterns is None or any(pattern in part.name for pattern in patterns):
            for blocks in (1, 2) if quick else (12, 24):
                for cells in lines(part, blocks, rounds=4 if quick else 40):
                    found.append(cells)
                    print("  ".join(cells), file=sys.stderr, flush=True)
    return aligned(found)
