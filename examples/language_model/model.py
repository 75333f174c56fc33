"""A decoder-only transformer: pre-norm blocks, learned positions, output tied to the embedding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from refax import nnx


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a `LanguageModel`."""

    vocab_size: int
    context: int
    n_layers: int
    n_heads: int
    d_model: int
    dropout: float


class Block(nnx.Module):
    """Attention, then a two-layer perceptron, each on a normalized input and added to it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        d_model = config.d_model
        self.attention_norm = nnx.LayerNorm(d_model, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            config.n_heads, d_model, dropout_rate=config.dropout, decode=False, rngs=rngs
        )
        self.mlp_norm = nnx.LayerNorm(d_model, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(d_model, 4 * d_model, rngs=rngs),
            nnx.gelu,
            nnx.Linear(4 * d_model, d_model, rngs=rngs),
        )
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.attention_norm(x), is_causal=True))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class LanguageModel(nnx.Module):
    """Logits of the next token at every place of a text.

    After `start_decoding`, each call goes on from the tokens of the calls before it, whose keys and
    values are kept in caches: at most `config.context` tokens in all.

    Example:
        model = LanguageModel(config, rngs=nnx.Rngs(0))
        logits = model(tokens)  # int (batch, length) → float (batch, length, vocab_size)
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(
            config.vocab_size, config.d_model, embedding_init=init, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.context, config.d_model, embedding_init=init, rngs=rngs
        )
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.blocks = [Block(config, rngs=rngs) for _ in range(config.n_layers)]
        self.norm = nnx.LayerNorm(config.d_model, rngs=rngs)
        self.decode = False

    def __call__(self, tokens: jax.Array | np.ndarray) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])
        if self.decode:
            positions = positions + self.length
            self.length += tokens.shape[1]
        x = self.dropout(self.embedding(tokens) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        return self.embedding.attend(self.norm(x))

    def start_decoding(self, batch_size: int) -> None:
        """Turn to generating, with empty caches and without dropout."""
        self.eval(decode=True)
        self.length = nnx.Cache(jnp.array(0, jnp.int32))
        for block in self.blocks:
            block.attention.init_cache((batch_size, self.config.context, self.config.d_model))
