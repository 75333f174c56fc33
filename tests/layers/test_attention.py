"""Attention: masks, groups of heads, dropout, low precision, and decoding with the cache."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.layers.cases import AFFINE, attend, softmax

pytestmark = pytest.mark.usefixtures("strict_numerics")


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


Q, K, V = draw(2, 5, 4, 8), draw(2, 7, 4, 8, seed=1), draw(2, 7, 4, 6, seed=2)


@pytest.fixture
def peer() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield pytest.importorskip("flax.nnx")


# -- the function --------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_groups_of_heads(kv_heads: int) -> None:
    key, value = K[:, :, :kv_heads], V[:, :, :kv_heads]
    expected = attend(Q, key, value)
    np.testing.assert_allclose(nnx.dot_product_attention(Q, key, value), expected, atol=3e-6)
    # Each serves consecutive query heads: the same as repeating it.
    repeated = (np.repeat(a, 4 // kv_heads, axis=2) for a in (key, value))
    np.testing.assert_allclose(nnx.dot_product_attention(Q, *repeated), expected, atol=3e-6)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 4, 1, 7), (5, 7)])
def test_bias_and_mask(shape: tuple[int, ...], kv_heads: int) -> None:
    key, value = K[:, :, :kv_heads], V[:, :, :kv_heads]
    bias, mask = draw(*shape, seed=3), draw(*shape, seed=4) < 0.5
    mask[..., 0] = True
    actual = nnx.dot_product_attention(Q, key, value, bias, mask)
    repeat = 4 // kv_heads
    logits = np.einsum("bqhd,bkhd->bhqk", Q, np.repeat(key, repeat, 2), dtype=np.float64)
    logits = np.where(mask, logits / np.sqrt(8) + bias, -np.inf)
    expected = np.einsum("bhqk,bkhd->bqhd", softmax(logits), np.repeat(value, repeat, 2))
    np.testing.assert_allclose(actual, expected, atol=3e-6)
    weights = nnx.nn.attention.dot_product_attention_weights(Q, key, bias, mask)
    np.testing.assert_allclose(weights, softmax(logits), atol=3e-6)


def test_causal_is_the_causal_mask() -> None:
    mask = nnx.make_causal_mask(jnp.zeros((2, 5)))  # ones and zeros: nonzero is True
    key, value = K[:, :5], V[:, :5]
    expected = attend(Q, key, value, causal=True)
    np.testing.assert_allclose(
        nnx.dot_product_attention(Q, key, value, is_causal=True), expected, atol=3e-6
    )
    np.testing.assert_allclose(
        nnx.dot_product_attention(Q, key, value, mask=mask), expected, atol=3e-6
    )


def test_a_query_that_sees_nothing_sees_all_alike() -> None:
    y = nnx.dot_product_attention(Q, K, V, mask=jnp.zeros((5, 7), bool))
    np.testing.assert_allclose(y, np.broadcast_to(V.mean(1, keepdims=True), y.shape), atol=1e-6)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch: tuple[int, ...]) -> None:
    q, k, v = (np.broadcast_to(a[0], (*batch, *a.shape[1:])) for a in (Q, K, V))
    expected = attend(Q[:1], K[:1], V[:1])[0]
    actual = nnx.dot_product_attention(q, k, v)
    np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape), atol=3e-6)


def test_softmax_is_computed_in_float32() -> None:
    q, k, v = (jnp.asarray(a * 4, jnp.bfloat16) for a in (Q, K, V))
    wide = attend(*(np.asarray(a, np.float64) for a in (q, k, v)))
    actual = nnx.dot_product_attention(q, k, v)
    assert actual.dtype == jnp.bfloat16
    # Weights and result are rounded to bfloat16, the sum over keys is not.
    scale = np.abs(np.asarray(v, np.float64)).max()
    np.testing.assert_allclose(np.asarray(actual, np.float64), wide, atol=2**-8 * scale)


def test_wrong_shapes_are_listed() -> None:
    for q, k, v in [
        (Q, K[..., :3], V),
        (Q, K[:1], V),
        (Q, K[:, :, :3], V[:, :, :3]),
        (Q, K, V[1:]),
    ]:
        with pytest.raises(ValueError, match="the query has the shape") as error:
            nnx.dot_product_attention(q, k, v)
        assert all(str(a.shape) in str(error.value) for a in (q, k, v))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mask", (2, 1, 5, 6)), ("mask", (1, 2, 4, 5, 7)), ("bias", (2, 5)), ("bias", (4, 1, 1, 7))],
)
def test_a_mask_or_bias_that_does_not_broadcast(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"the {name} has the shape") as error:
        nnx.dot_product_attention(Q, K, V, **{name: np.ones(shape)})
    assert str(shape) in str(error.value) and "here (2, 4, 5, 7)" in str(error.value)


def test_derivatives_are_those_of_the_plain_softmax() -> None:
    """Forward and reverse mode, and both over each other, with every mask at once."""

    def plainly(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(8)
        unnormalized = jnp.where(mask, jnp.exp(logits), 0)
        weights = unnormalized / unnormalized.sum(-1, keepdims=True)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    with jax.enable_x64(True):
        arrays = tuple(jnp.asarray(a, jnp.float64) for a in (Q, K, V))
        directions = tuple(jnp.asarray(draw(*a.shape, seed=7), jnp.float64) for a in (Q, K, V))
        mask = jnp.asarray(draw(2, 4, 5, 7, seed=8) < 0.5).at[..., 0].set(True)
        derivatives = (
            lambda f: jax.jvp(f, arrays, directions)[1],
            lambda f: jax.grad(lambda *a: jnp.sin(f(*a)).sum(), (0, 1, 2))(*arrays),
            lambda f: jax.jvp(
                jax.grad(lambda *a: jnp.sin(f(*a)).sum(), (0, 1, 2)), arrays, directions
            )[1],
            lambda f: jax.grad(lambda *a: jnp.sin(jax.jvp(f, a, directions)[1]).sum(), (0, 1, 2))(
                *arrays
            ),
        )
        for derivative in derivatives:
            actual = derivative(lambda *a: nnx.dot_product_attention(*a, mask=mask))
            expected = derivative(lambda *a: plainly(*a, mask=mask))
            for mine, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-11)  # float64


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto])
@pytest.mark.parametrize("axis", ["queries", "heads"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_sharding_by_queries_or_heads_stays(kind: Any, axis: str, kv_heads: int) -> None:
    """Also with groups of heads: what is sharded is not gathered, forward or back."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    query, kv = draw(2, 6, 4, 8), draw(2, 6, kv_heads, 8, seed=1)
    spec = P(None, "x") if axis == "queries" else P(None, None, "x")
    expected = nnx.dot_product_attention(query, kv, kv, is_causal=True)
    with jax.set_mesh(mesh):
        query = jax.device_put(query, jax.NamedSharding(mesh, spec))
        kv = jax.device_put(kv, jax.NamedSharding(mesh, spec if axis == "heads" else P()))

        def attend(query: Any, kv: Any) -> jax.Array:
            return nnx.dot_product_attention(query, kv, kv, is_causal=True)

        y = jax.jit(attend)(query, kv)
        text = jax.jit(attend).lower(query, kv).compile().as_text()
        gradient = jax.jit(jax.grad(lambda q, kv: (attend(q, kv) ** 2).sum()))(query, kv)
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    assert y.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), y.ndim)
    assert gradient.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), y.ndim)
    np.testing.assert_allclose(y, expected, atol=3e-6)


def test_dropout_needs_a_key() -> None:
    with pytest.raises(ValueError, match="dropout_rate=0.5 needs a key"):
        nnx.dot_product_attention(Q, K, V, dropout_rate=0.5)
    nnx.dot_product_attention(Q, K, V, dropout_rate=0.5, deterministic=True)


def test_dropout_is_that_of_the_peer(peer: Any) -> None:
    options = {"dropout_rng": jax.random.key(0), "dropout_rate": 0.3}
    options["broadcast_dropout"] = False
    mine = nnx.dot_product_attention(Q, K, V, **options)
    its = peer.dot_product_attention(*map(jnp.asarray, (Q, K, V)), **options)
    np.testing.assert_allclose(mine, its, atol=3e-6)


def test_weights_are_sown() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.attention = nnx.MultiHeadAttention(4, 8, rngs=nnx.Rngs(0))

    model = Model()
    model.attention(draw(2, 5, 8), sow_weights=True)
    (weights,) = nnx.pop(model, nnx.Intermediate)["attention"]["attention_weights"].value
    assert weights.shape == (2, 4, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "options", [{"is_causal": True}, {"bias": True, "mask": True}, {"kv_heads": 2}], ids=str
)
def test_function_beside_the_peer(options: dict, dtype: Any, peer: Any) -> None:
    options = dict(options)
    heads = options.pop("kv_heads", 4)
    q, k, v = (jnp.asarray(a, dtype) for a in (Q, K[:, :, :heads], V[:, :, :heads, :6]))
    v = jnp.concatenate([v, v[..., :2]], -1)  # the peer wants as many features as keys have
    if options.pop("bias", False):
        options["bias"] = jnp.asarray(draw(2, 4, 5, 7, seed=3), dtype)
    if options.pop("mask", False):
        options["mask"] = jnp.asarray(draw(2, 4, 5, 7, seed=4) < 0.5)
    if "is_causal" in options:
        k, v = k[:, :5], v[:, :5]
    mine = nnx.dot_product_attention(q, k, v, **options)
    its = peer.dot_product_attention(q, k, v, **options)
    assert mine.dtype == its.dtype
    tolerance = 3e-6 if dtype == jnp.float32 else 3 * 2**-8
    np.testing.assert_allclose(
        np.asarray(mine, np.float64), np.asarray(its, np.float64), atol=tolerance
    )


# -- the layer -----------------------------------------------------------------------------------


def make(**options: Any) -> Any:
    return nnx.MultiHeadAttention(4, 16, rngs=nnx.Rngs(0), **AFFINE, **options)


X = draw(2, 6, 16)


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({}, [1] * 6),
        ({"num_kv_heads": 2, "normalize_qk": True}, [1] * 6),
        ({"num_kv_heads": 2}, [3, 2, 1]),
        ({}, [6]),
    ],
    ids=str,
)
def test_decoding_gives_causal_attention_at_every_position(options: dict, chunks: list) -> None:
    attention = make(**options)
    expected = attention(X, is_causal=True)
    attention.init_cache((2, 8, 16))  # longer than what is decoded
    step = nnx.jit(lambda attention, x: attention(x, decode=True))
    outputs, start = [], 0
    for size in chunks:
        outputs.append(step(attention, X[:, start : start + size]))
        start += size
    np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=3e-6)
    assert int(attention.cache_index.value) == 6
    attention.init_cache((2, 8, 16))  # starts anew
    np.testing.assert_allclose(attention(X[:, :1], decode=True), expected[:, :1], atol=3e-6)


def test_decoding_inside_a_scan() -> None:
    attention = make()
    expected = attention(X, is_causal=True)
    attention.init_cache(X.shape)
    graphdef, cache, rest = nnx.split(attention, nnx.Cache, ...)

    def step(cache: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        attention = nnx.merge(graphdef, cache, rest)
        y = attention(x[:, None], decode=True)
        return nnx.state(attention, nnx.Cache), y[:, 0]

    _, y = jax.lax.scan(step, cache, jnp.asarray(X.swapaxes(0, 1)))
    np.testing.assert_allclose(y.swapaxes(0, 1), expected, atol=3e-6)


def test_an_ensemble_has_a_cache_for_each_member() -> None:
    attentions = nnx.vmap(lambda key: nnx.MultiHeadAttention(4, 16, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 3)
    )
    x = jnp.asarray(X)
    expected = nnx.vmap(lambda a: a(x, is_causal=True))(attentions)
    attentions.init_cache(X.shape)
    assert attentions.cached_key.shape == (3, *X.shape[:-1], 4, 4)
    step = nnx.jit(nnx.vmap(lambda a, x: a(x, decode=True), in_axes=(0, None)))
    outputs = [step(attentions, x[:, i : i + 1]) for i in range(6)]
    np.testing.assert_allclose(np.concatenate(outputs, 2), expected, atol=3e-6)
    assert attentions.cache_index.tolist() == [6, 6, 6]


def test_decoding_beside_the_peer(peer: Any) -> None:
    mine, its = (
        lib.MultiHeadAttention(4, 16, num_kv_heads=2, decode=True, rngs=lib.Rngs(0), **AFFINE)
        for lib in (nnx, peer)
    )
    for layer in (mine, its):
        layer.init_cache(X.shape)
    for i in range(6):
        x = jnp.asarray(X[:, i : i + 1])
        np.testing.assert_allclose(mine(x), its(x), atol=3e-6)
    for name in ("cached_key", "cached_value", "cache_index"):
        a, b = (vars(layer)[name].get_value() for layer in (mine, its))
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=3e-6)


def test_a_mask_counts_when_decoding_too() -> None:
    attention = make()
    mask = np.ones((6, 6), bool)
    mask[:, 1] = False  # nobody may look at the second position …
    mask[1, 1] = True  # … but itself
    expected = attention(X, mask=mask, is_causal=True)
    attention.init_cache(X.shape)
    for i in range(6):
        y = attention(X[:, i : i + 1], mask=mask[i : i + 1], decode=True)
        np.testing.assert_allclose(y, expected[:, i : i + 1], atol=3e-6)


def test_low_precision_cache() -> None:
    attention = make(dtype=jnp.bfloat16)
    attention.init_cache(X.shape, jnp.bfloat16)
    assert attention.cached_key.dtype == jnp.bfloat16
    y = attention(X[:, :2], decode=True)
    assert y.dtype == jnp.bfloat16 and attention.cached_key.dtype == jnp.bfloat16


def test_past_the_end_of_the_cache_comes_nan_not_a_wrong_answer() -> None:
    attention = make(decode=True)
    attention.init_cache((2, 3, 16))
    assert all(jnp.isfinite(attention(X[:, i : i + 1])).all() for i in range(3))
    assert jnp.isnan(attention(X[:, 3:4])).all()


def test_cache_that_is_missing_or_of_another_shape() -> None:
    attention = make(decode=True)
    with pytest.raises(ValueError, match="no cache to decode with"):
        attention(X[:, :1])
    attention.init_cache((2, 3, 16))
    with pytest.raises(ValueError, match=r"the cache is for inputs of shape \(2, 3\)"):
        attention(X[:1, :1])
    with pytest.raises(ValueError, match=r"this one has \(2, 6\)"):
        attention(X)


def test_the_cache_is_of_its_own_type_and_path() -> None:
    attention = make()
    attention.init_cache(X.shape)
    cache = nnx.state(attention, nnx.Cache)
    assert {k: v.shape for k, v in cache.items()} == {
        "cached_key": (2, 6, 4, 4),
        "cached_value": (2, 6, 4, 4),
        "cache_index": (),
    }
    assert attention.cache_index.dtype == jnp.int32


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="qkv_features=10 is not a multiple of num_heads=4"):
        make(qkv_features=10)
    with pytest.raises(ValueError, match="num_heads=4 is not a multiple of num_kv_heads=3"):
        make(num_kv_heads=3)
    with pytest.raises(ValueError, match="inputs_v was given without inputs_k"):
        make()(X, inputs_v=X)


def test_dropout_has_its_own_stream() -> None:
    attention, quiet = make(dropout_rate=0.5), make()
    assert isinstance(attention.rngs, nnx.RngStream) and quiet.rngs is None
    attention.train()
    first, second = attention(X), attention(X)
    assert (first != second).any()
    attention.eval()
    np.testing.assert_allclose(attention(X), quiet(X), atol=3e-6)
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        attention(X, deterministic=False, rngs=key), attention(X, deterministic=False, rngs=key)
    )
    bare = make(dropout_rate=0.5, keep_rngs=False)
    with pytest.raises(ValueError, match="nothing says what `deterministic` is"):
        bare(X)
    with pytest.raises(ValueError, match="has no `rngs`"):
        bare(X, deterministic=False)
    assert bare(X, deterministic=False, rngs=nnx.Rngs(dropout=0)).shape == X.shape


def test_dropout_of_the_layer_is_that_of_the_peer(peer: Any) -> None:
    mine, its = (
        lib.MultiHeadAttention(
            4, 16, dropout_rate=0.3, deterministic=False, decode=False, rngs=lib.Rngs(0)
        )
        for lib in (nnx, peer)
    )
    for _ in range(2):
        np.testing.assert_allclose(mine(X), its(jnp.asarray(X)), atol=3e-6)


def test_attention_fn_gets_what_the_peers_gets(peer: Any) -> None:
    given: list[dict] = []

    def record(query: Any, key: Any, value: Any, **options: Any) -> jax.Array:
        given.append(options)
        return nnx.dot_product_attention(query, key, value)

    for lib in (nnx, peer):
        layer = lib.MultiHeadAttention(
            4, 16, attention_fn=record, decode=False, precision="highest", rngs=lib.Rngs(0)
        )
        layer(jnp.asarray(X), is_causal=True)
    assert given[0] == given[1]


def test_metadata_of_parameters() -> None:
    names = {"kernel": "in", "out_kernel": "out", "bias": "b", "out_bias": "ob"}
    names |= {"query_ln_scale": "q", "key_ln_scale": "k"}
    layer = make(normalize_qk=True, **{f"{k}_metadata": {"tag": v} for k, v in names.items()})
    tags = {path: v.tag for path, v in nnx.to_flat_state(nnx.state(layer))}
    assert tags == {
        **{(m, "kernel"): "in" for m in ("query", "key", "value")},
        **{(m, "bias"): "b" for m in ("query", "key", "value")},
        ("out", "kernel"): "out",
        ("out", "bias"): "ob",
        ("query_ln", "scale"): "q",
        ("key_ln", "scale"): "k",
    }


# -- masks ---------------------------------------------------------------------------------------


def test_masks_beside_the_peer(peer: Any) -> None:
    queries, keys = jnp.asarray([[1, 1, 0]]), jnp.asarray([[1, 0, 1, 1]])
    for options in ({}, {"extra_batch_dims": 2}, {"dtype": bool}, {"pairwise_fn": jnp.equal}):
        mine = nnx.make_attention_mask(queries, keys, **options)
        its = peer.make_attention_mask(queries, keys, **options)
        assert mine.dtype == its.dtype
        np.testing.assert_array_equal(mine, its)
    for options in ({}, {"extra_batch_dims": 1}, {"dtype": bool}):
        mine, its = (lib.make_causal_mask(keys, **options) for lib in (nnx, peer))
        assert mine.dtype == its.dtype
        np.testing.assert_array_equal(mine, its)


def test_combine_masks() -> None:
    causal = nnx.make_causal_mask(jnp.zeros((1, 3)))
    padding = nnx.make_attention_mask(jnp.ones((1, 3)), jnp.array([[1.0, 1.0, 0.0]]), jnp.greater)
    assert nnx.combine_masks(None, None) is None
    assert nnx.combine_masks(causal, None).tolist() == causal.tolist()
    both = nnx.combine_masks(causal, None, jnp.array([[[[True, False, True]]]]), dtype=bool)
    assert both.astype(int).tolist() == [[[[1, 0, 0], [1, 0, 0], [1, 0, 1]]]]
    with pytest.raises(ValueError, match=r"\(1, 1, 3, 3\), \(3, 3\)"):
        nnx.combine_masks(causal, jnp.ones((3, 3)))
    assert padding.shape == causal.shape


def test_a_projection_can_be_replaced_by_any_layer():
    class Twice(nnx.Module):
        def __init__(self, layer):
            self.layer = layer

        def __call__(self, x):
            return 2 * self.layer(x)

    attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3, 8))
    expected = 2 * attention(x)
    attention.out = Twice(attention.out)
    np.testing.assert_allclose(attention(x), expected, rtol=1e-6)
