"""Writing text with a trained model, token by token, with a cache of keys and values."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from refax import nnx

from .model import LanguageModel

READ_AT_ONCE = 16


@nnx.jit
def next_tokens(
    model: LanguageModel, tokens: jax.Array, rngs: nnx.Rngs, temperature: float, top_k: int
) -> jax.Array:
    """The token after each row of `tokens`, (batch, length), which the model's caches take in."""
    logits = model(tokens)[:, -1]
    least = jnp.sort(logits)[:, -top_k]
    kept = jnp.where(logits < least[:, None], -jnp.inf, logits)
    drawn = jax.random.categorical(rngs.sample(), kept / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, drawn, logits.argmax(-1))


def generate(
    model: LanguageModel,
    prompt: np.ndarray,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """`count` tokens that go on from a prompt of at least one token, the same for the same seed.

    The prompt is read in blocks, then each new token by itself. Where the text outgrows the model's
    context, its last half is read again into empty caches.

    Args:
        temperature: divides the logits; 0 takes the likeliest token always.
        top_k: draw from the k likeliest tokens only; None: from all.
    """
    context, vocab_size = model.config.context, model.config.vocab_size
    model = nnx.clone(model)  # the caches are the clone's
    model.start_decoding(batch_size=1)
    rngs = nnx.Rngs(sample=seed)
    text = list(prompt)
    cached, unread = 0, text[-context:]
    for _ in range(count):
        if cached + len(unread) > context:
            model.start_decoding(batch_size=1)
            cached, unread = 0, text[-(context // 2) :]
        for block in _blocks(unread):
            tokens = jnp.array([block], jnp.int32)
            token = next_tokens(model, tokens, rngs, temperature, top_k or vocab_size)
        cached, unread = cached + len(unread), [int(token[0])]
        text += unread
    return np.array(text[len(prompt) :], np.uint8)


def _blocks(tokens: list[int]) -> Iterator[list[int]]:
    """The tokens in blocks of `READ_AT_ONCE`, then one by one: two shapes, so two compilations."""
    whole = len(tokens) - len(tokens) % READ_AT_ONCE
    for start in range(0, whole, READ_AT_ONCE):
        yield tokens[start : start + READ_AT_ONCE]
    for token in tokens[whole:]:
        yield [token]
