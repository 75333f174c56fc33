"""Embed: a table of vectors, looked up by integer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..objects import arguments as fit
from ..objects.variable_types import Param
from ..verbs.rngs import Rngs
from . import dtypes, initializers
from .contractions import dot
from .options import Layer, check_last_axis, keep_options, make_parameter

default_embed_init = initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


def _rows(table: jax.Array, indices: jax.Array, out_sharding: Any) -> jax.Array:
    if len(table) == 1:
        indices = jnp.zeros_like(indices)  # there is no other row to ask for
    if out_sharding is not None:
        return table.at[indices].get(mode="fill", fill_value=jnp.nan, out_sharding=out_sharding)
    return jnp.take(table, indices, axis=0)


class Embed(Layer):
    """A table E of vectors: y = E[i] for each integer i.

    Shapes: integers `(...)` → `(..., features)`. An index out of range gives NaN, and of a
    table of one row that row; a negative one counts from the end. Attributes: `embedding` E
    (num_embeddings, features).

    Args:
        num_embeddings: number of rows of E.
        features: size of each row.
        dtype: the dtype of the result; by default that of E.
        param_dtype: the dtype of E.
        embedding_init: initializer of E.
        promote_dtype: brings arrays to one dtype.
        rngs: its stream `params` gives the key.
        embedding_metadata: metadata of E.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> embed = nnx.Embed(num_embeddings=10, features=4, rngs=nnx.Rngs(0))
        >>> x = embed(jnp.array([[1, 5, 9]]))
        >>> x.shape, embed.attend(x).shape
        ((1, 3, 4), (1, 3, 10))
    """

    @fit.checked
    def __init__(
        self,
        num_embeddings: fit.Size,
        features: fit.Size,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        embedding_init: fit.Initializer = default_embed_init,
        promote_dtype: fit.PromoteDtype = dtypes.promote_dtype,
        rngs: Rngs,
        embedding_metadata: fit.Metadata = fit.NO_METADATA,
    ):
        keep_options(self, locals())
        self.embedding: Param[jax.Array] = make_parameter(
            locals(), "embedding", (num_embeddings, features)
        )
        self.num_embeddings = num_embeddings
        self.features = features
        self.dtype: DTypeLike = self.embedding.value.dtype if dtype is None else dtype

    @fit.checked
    def __call__(self, inputs: fit.Array, out_sharding: fit.OutSharding = None) -> jax.Array:
        """The rows of E at the integers `inputs` (...)."""
        indices = dtypes.as_array(inputs)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise fit.ArgumentError(
                f"Embed: the input must be integers, but it is {indices.dtype.name} of shape "
                f"{indices.shape}.\nCure: pass token numbers; for one-hot vectors, "
                "`x @ embed.embedding`."
            )
        # Cast after the look-up: the rows are few, the table is large.
        rows = _rows(self.embedding[...], indices, out_sharding)
        return self.promote_dtype((rows,), dtype=self.dtype, inexact=False)[0]

    @fit.checked
    def attend(self, query: fit.Array, out_sharding: fit.OutSharding = None) -> jax.Array:
        """The scalar product of a query (..., features) with every row: (..., num_embeddings).

        With it, the table that embeds the tokens gives the logits of the output too. Paper: Press
        and Wolf, "Using the Output Embedding to Improve Language Models" (2017), arXiv:1608.05859.
        """
        query, table = self.promote_dtype((query, self.embedding[...]), dtype=self.dtype)
        check_last_axis("Embed.attend", query.shape, "features", table.shape[-1])
        return dot(query, table, axis=1, out_sharding=out_sharding)
