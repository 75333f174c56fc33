"""The same two models for each side: hand-written JAX on dicts, an NNX namespace, Equinox.

`initialize(shapes)` makes the one set of weights, as nested dicts under the paths that the NNX
models have; `nnx_model` and `equinox_model` copy it into theirs, so that every side computes the
same. The copies matter: a donating side must not delete the arrays of another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = dict[Any, Any]
ADAM = optax.adam(1e-3)  # one for all sides: the same transformation on the same math
_EPSILON = 1e-6


class MLP(NamedTuple):
    """`layers` × (Linear, relu), and the squared error of what comes out."""

    layers: int = 10
    width: int = 16
    batch: int = 4

    name = property(lambda self: f"MLP of {self.layers}")
    leaves = property(lambda self: 2 * self.layers)


class GPT(NamedTuple):
    """A decoder-only transformer, by default small enough for the dispatch to show."""

    layers: int = 12
    width: int = 16
    heads: int = 2
    vocabulary: int = 32
    length: int = 8
    batch: int = 1
    dropout: float = 0.0  # of what attention and MLP add to the stream
    scanned: bool = False  # the blocks are one, with stacked weights, in a loop

    leaves = property(lambda self: 16 * (1 if self.scanned else self.layers) + 5)

    @property
    def name(self) -> str:
        name = f"{'scanned ' * self.scanned}GPT of {self.layers}"
        if self.width != GPT().width:
            name += f" (width {self.width})"
        return name + ", dropout" * bool(self.dropout)


# A size as people train it on a CPU: the work of XLA shows, and not the dispatch.
REAL = GPT(12, width=128, heads=4, vocabulary=256, length=64, batch=4)
REAL_24 = REAL._replace(layers=24)
# One sequence, for which all sides draw the same dropout masks.
REAL_DROPOUT = REAL._replace(length=256, batch=1, dropout=0.1)


Size = MLP | GPT


def inputs(size: Size) -> tuple[jax.Array, jax.Array]:
    """A batch: (x, y)."""
    key = jax.random.key(1)
    if isinstance(size, MLP):
        shape = (size.batch, size.width)
        return jax.random.normal(key, shape), jax.random.normal(jax.random.key(2), shape)
    tokens = jax.random.randint(key, (size.batch, size.length + 1), 0, size.vocabulary)
    return tokens[:, :-1], tokens[:, 1:]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((outputs - targets) ** 2)


def loss_of(size: Size) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return squared_error if isinstance(size, MLP) else cross_entropy


# -- weights -------------------------------------------------------------------------------------


def shapes(size: Size) -> Params:
    """The shapes of a model's weights, nested as the attributes of the NNX models are."""
    width = size.width
    linear = {"kernel": (width, width), "bias": (width,)}
    if isinstance(size, MLP):
        return {"layers": {i: linear for i in range(size.layers)}}
    heads, norm = (size.heads, width // size.heads), {"scale": (width,), "bias": (width,)}
    into = {"kernel": (width, *heads), "bias": heads}
    block = {
        "norm1": norm,
        "attention": {
            "query": into,
            "key": into,
            "value": into,
            "out": {"kernel": (*heads, width), "bias": (width,)},
        },
        "norm2": norm,
        "up": {"kernel": (width, 4 * width), "bias": (4 * width,)},
        "down": {"kernel": (4 * width, width), "bias": (width,)},
    }
    if size.scanned:
        stacked = jax.tree.map(lambda shape: (size.layers, *shape), block, is_leaf=_is_shape)
        blocks: Params = {"blocks": stacked}
    else:
        blocks = {i: block for i in range(size.layers)}
    return {
        "embed": {"embedding": (size.vocabulary, width)},
        "position": {"embedding": (size.length, width)},
        "blocks": blocks,
        "norm": norm,
        "head": {"kernel": (width, size.vocabulary)},
    }


def initialize(size: Size, seed: int = 0) -> Params:
    """The weights: truncated normal of variance 1/fan-in, zeros and ones, array by array."""
    stream = jax.random.key(seed)
    count = 0

    def make(path: tuple[Any, ...], shape: tuple[int, ...]) -> jax.Array:
        nonlocal count
        kind = path[-1].key
        if kind == "scale":
            return jnp.ones(shape)
        if kind == "bias":
            return jnp.zeros(shape)
        count += 1
        fan_in = shape[1] if kind == "embedding" else size.width
        key = jax.random.fold_in(stream, count)
        return jax.random.truncated_normal(key, -2.0, 2.0, shape) * (1.137 * fan_in**-0.5)

    return jax.tree_util.tree_map_with_path(make, shapes(size), is_leaf=_is_shape)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


# -- hand-written JAX: the floor -----------------------------------------------------------------


def layer_norm(p: Params, x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centered = x - mean
    variance = jnp.mean(centered * centered, axis=-1, keepdims=True)
    return centered * (jax.lax.rsqrt(variance + _EPSILON) * p["scale"]) + p["bias"]


def attention(p: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
    query, key, value = (
        jnp.einsum("btd,dhk->bthk", x, p[n]["kernel"]) + p[n]["bias"]
        for n in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhk,bthk->bhqt", query * query.shape[-1] ** -0.5, key)
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
    mixed = jnp.einsum("bhqt,bthk->bqhk", weights, value)
    return jnp.einsum("bqhk,hkd->bqd", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def linear(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def mlp(p: Params, x: jax.Array) -> jax.Array:
    for layer in p["layers"].values():
        x = jax.nn.relu(linear(layer, x))
    return x


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def gpt_block(
    rate: float, p: Params, x: jax.Array, mask: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    h = attention(p["attention"], layer_norm(p["norm1"], x), mask)
    x = x + (h if keys is None else dropout(h, rate, keys[0]))
    h = linear(p["down"], jax.nn.gelu(linear(p["up"], layer_norm(p["norm2"], x))))
    return x + (h if keys is None else dropout(h, rate, keys[1]))


def gpt(size: GPT, p: Params, tokens: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    length = tokens.shape[1]
    x = p["embed"]["embedding"][tokens] + p["position"]["embedding"][:length]
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))

    def step(x: jax.Array, block: Params) -> tuple[jax.Array, None]:
        return gpt_block(0.0, block, x, mask), None

    if size.scanned:
        x, _ = jax.lax.scan(step, x, p["blocks"]["blocks"])
    else:
        for i, block in p["blocks"].items():
            x = gpt_block(size.dropout, block, x, mask, None if keys is None else keys[i])
    return layer_norm(p["norm"], x) @ p["head"]["kernel"]


def dropout_keys(size: Size, step: jax.Array) -> tuple[jax.Array, ...]:
    """The keys of a step, (blocks, 2): two of each block's own stream, as NNX draws them."""
    if isinstance(size, MLP) or not size.dropout:
        return ()
    fold = jax.random.fold_in
    streams = jax.vmap(lambda i: fold(jax.random.key(1), i))(jnp.arange(size.layers))
    draw = jax.vmap(jax.vmap(fold, (None, 0)), (0, None))
    return (draw(streams, 2 * step + jnp.arange(2)),)


def apply_of(size: Size) -> Callable[..., jax.Array]:
    """(params, x, the dropout keys if there are to be any) → outputs."""
    return mlp if isinstance(size, MLP) else functools.partial(gpt, size)


class Flat:
    """A model and its adam state as flat tuples, and functions of them: what JAX likes best."""

    def __init__(self, size: Size):
        self.size = size
        self.tree = initialize(size)
        values, self._params = jax.tree.flatten(self.tree)
        state, self._state = jax.tree.flatten(ADAM.init(self.tree))
        self.params, self.state = tuple(values), tuple(state)

    def apply(self, params: tuple, x: jax.Array) -> jax.Array:
        return apply_of(self.size)(self._params.unflatten(params), x)

    def train_step(
        self, params: tuple, state: tuple, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, tuple, tuple]:
        apply, loss_function = apply_of(self.size), loss_of(self.size)
        tree, adam = self._params.unflatten(params), self._state.unflatten(state)
        keys = dropout_keys(self.size, adam[0].count)
        loss, grads = jax.value_and_grad(lambda p: loss_function(apply(p, x, *keys), y))(tree)
        updates, adam = ADAM.update(grads, adam, tree)
        new = optax.apply_updates(tree, updates)
        return loss, tuple(jax.tree.leaves(new)), tuple(jax.tree.leaves(adam))


# -- the NNX API: refax and Flax -----------------------------------------------------------------


@functools.cache
def nnx_classes(nnx: Any) -> dict[type, Callable[[Any], Any]]:
    """The models in an NNX namespace, by size class: `nnx_classes(nnx)[GPT](size)`."""

    class Mlp(nnx.Module):
        def __init__(self, size: MLP, rngs: Any):
            self.layers = nnx.List(
                [nnx.Linear(size.width, size.width, rngs=rngs) for _ in range(size.layers)]
            )

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = jax.nn.relu(layer(x))
            return x

    class Block(nnx.Module):
        def __init__(self, size: GPT, rngs: Any):
            width = size.width
            self.norm1 = nnx.LayerNorm(width, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(size.heads, width, decode=False, rngs=rngs)
            self.norm2 = nnx.LayerNorm(width, rngs=rngs)
            self.up = nnx.Linear(width, 4 * width, rngs=rngs)
            self.down = nnx.Linear(4 * width, width, rngs=rngs)
            # For train() and eval() to have something to set, if nothing else.
            self.dropout = nnx.Dropout(size.dropout, rngs=rngs if size.dropout else None)

        def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
            x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
            return x + self.dropout(self.down(jax.nn.gelu(self.up(self.norm2(x)))))

    class Looped(nnx.Module):
        def __init__(self, size: GPT, rngs: Any):
            make = nnx.vmap(lambda rngs: Block(size, rngs), in_axes=0, out_axes=0)
            self.layers = size.layers
            self.blocks = nnx.split_rngs(splits=size.layers)(make)(rngs)

        def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
            step = nnx.scan(
                lambda x, block: block(x, mask),
                in_axes=(nnx.Carry, 0),
                out_axes=nnx.Carry,
                length=self.layers,
            )
            return step(x, self.blocks)

    def stack(size: GPT, rngs: Any) -> Any:
        if hasattr(nnx, "Stack"):  # refax has it as a layer
            return nnx.Stack(lambda rngs: Block(size, rngs), size.layers, rngs=rngs)
        return Looped(size, rngs)

    class Gpt(nnx.Module):
        def __init__(self, size: GPT, rngs: Any):
            self.embed = nnx.Embed(size.vocabulary, size.width, rngs=rngs)
            self.position = nnx.Embed(size.length, size.width, rngs=rngs)
            if size.scanned:
                self.blocks = stack(size, rngs)
            else:
                self.blocks = nnx.List([Block(size, rngs) for _ in range(size.layers)])
            self.scanned = size.scanned
            self.norm = nnx.LayerNorm(size.width, rngs=rngs)
            self.head = nnx.Linear(size.width, size.vocabulary, use_bias=False, rngs=rngs)

        def __call__(self, tokens: jax.Array) -> jax.Array:
            length = tokens.shape[1]
            x = self.embed(tokens) + self.position(jnp.arange(length))
            mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
            for block in (self.blocks,) if self.scanned else self.blocks:
                x = block(x, mask)
            return self.head(self.norm(x))

    return {
        MLP: lambda size: Mlp(size, nnx.Rngs(0)),
        GPT: lambda size: Gpt(size, nnx.Rngs(0, dropout=1)),
    }


def nnx_model(nnx: Any, size: Size) -> Any:
    """A model of refax or Flax with the weights of the floor."""
    model = nnx_classes(nnx)[type(size)](size)
    for path, value in jax.tree_util.tree_leaves_with_path(initialize(size)):
        place = functools.reduce(_step, [entry.key for entry in path], model)
        if place.shape != value.shape:
            raise AssertionError(f"{path}: {place.shape} here, {value.shape} in the floor")
        place.value = value
    return model


def _step(place: Any, key: Any) -> Any:
    return place[key] if isinstance(key, int) else getattr(place, key)


# -- Equinox -------------------------------------------------------------------------------------


@functools.cache
def equinox_classes() -> dict[type, Callable[[Any], Any]]:
    """The models in Equinox, by size class. One key serves for all: the weights are replaced."""
    import equinox as eqx

    key = jax.random.key(0)

    class Mlp(eqx.Module):
        layers: list[Any]

        def __init__(self, size: MLP):
            width = size.width
            self.layers = [eqx.nn.Linear(width, width, key=key) for _ in range(size.layers)]

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = jax.nn.relu(jax.vmap(layer)(x))
            return x

    class Block(eqx.Module):
        norm1: Any
        attention: Any
        norm2: Any
        up: Any
        down: Any
        dropout: Any

        def __init__(self, size: GPT):
            width = size.width
            self.norm1 = eqx.nn.LayerNorm(width, eps=_EPSILON)
            self.attention = equinox_attention(size)
            self.norm2 = eqx.nn.LayerNorm(width, eps=_EPSILON)
            self.up = eqx.nn.Linear(width, 4 * width, key=key)
            self.down = eqx.nn.Linear(4 * width, width, key=key)
            self.dropout = eqx.nn.Dropout(size.dropout)

        def __call__(self, x: jax.Array, mask: jax.Array, keys: Any = (None, None)) -> jax.Array:
            h = jax.vmap(self.norm1)(x)
            x = x + self.dropout(self.attention(h, h, h, mask=mask), key=keys[0])
            h = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x)))
            return x + self.dropout(jax.vmap(self.down)(h), key=keys[1])

    class Looped(eqx.Module):
        blocks: Any

        def __init__(self, size: GPT):
            self.blocks = eqx.filter_vmap(lambda _: Block(size))(jnp.arange(size.layers))

        def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
            arrays, rest = eqx.partition(self.blocks, eqx.is_array)

            def step(x: jax.Array, arrays: Any) -> tuple[jax.Array, None]:
                return eqx.combine(arrays, rest)(x, mask), None

            return jax.lax.scan(step, x, arrays)[0]

    class Gpt(eqx.Module):
        embed: Any
        position: Any
        blocks: Any
        norm: Any
        head: Any

        def __init__(self, size: GPT):
            width = size.width
            self.embed = eqx.nn.Embedding(size.vocabulary, width, key=key)
            self.position = eqx.nn.Embedding(size.length, width, key=key)
            self.blocks = (
                Looped(size) if size.scanned else [Block(size) for _ in range(size.layers)]
            )
            self.norm = eqx.nn.LayerNorm(width, eps=_EPSILON)
            self.head = eqx.nn.Linear(width, size.vocabulary, use_bias=False, key=key)

        def __call__(self, tokens: jax.Array, keys: jax.Array | None = None) -> jax.Array:
            return jax.vmap(self._sequence, (0, None))(tokens, keys)

        def _sequence(self, tokens: jax.Array, keys: jax.Array | None) -> jax.Array:
            length = len(tokens)
            x = jax.vmap(self.embed)(tokens) + jax.vmap(self.position)(jnp.arange(length))
            mask = jnp.tril(jnp.ones((length, length), bool))
            if isinstance(self.blocks, Looped):
                x = self.blocks(x, mask)
            else:
                for i, block in enumerate(self.blocks):
                    x = block(x, mask) if keys is None else block(x, mask, keys[i])
            return jax.vmap(self.head)(jax.vmap(self.norm)(x))

    return {MLP: Mlp, GPT: Gpt}


def equinox_attention(size: GPT) -> Any:
    import equinox as eqx

    biases: dict[str, Any] = {f"use_{n}_bias": True for n in ("query", "key", "value", "output")}
    return eqx.nn.MultiheadAttention(size.heads, size.width, key=jax.random.key(0), **biases)


def equinox_with_weights(model: Any, params: Params) -> Any:
    """An Equinox module with these weights in the place of its own."""
    import equinox as eqx

    renamed = {
        "query": "query_proj",
        "key": "key_proj",
        "value": "value_proj",
        "out": "output_proj",
    }
    paths, values = [], []
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        *keys, name = [renamed.get(entry.key, entry.key) for entry in path]
        convert = functools.partial(_equinox_weight, name, keys[-1:] == ["output_proj"])
        stacked = keys[:2] == ["blocks", "blocks"]
        paths.append([*keys, "bias" if name == "bias" else "weight"])
        values.append(jnp.array(jax.vmap(convert)(value) if stacked else convert(value)))
    return eqx.tree_at(lambda m: [functools.reduce(_step, p, m) for p in paths], model, values)


def _equinox_weight(name: Any, out: bool, value: jax.Array) -> jax.Array:
    """A weight in the shape that Equinox has it in."""
    if name == "bias":
        return value.reshape(-1)
    if name != "kernel":
        return value
    if out:
        return value.reshape(-1, value.shape[-1]).T  # (heads, size, width)
    return value.reshape(len(value), -1).T  # (width, heads, size)


def equinox_model(size: Size) -> Any:
    """An Equinox model with the weights of the floor."""
    return equinox_with_weights(equinox_classes()[type(size)](size), initialize(size))
