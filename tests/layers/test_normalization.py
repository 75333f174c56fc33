"""LayerNorm, RMSNorm, BatchNorm: statistics, masks, mapped axes, derivatives of every kind."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from refax import nnx
from refax.layers.standardize import Averaging, standardize

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 5, 6)).astype(np.float32)
MASK = np.random.default_rng(1).uniform(size=(4, 5, 1)) < 0.6
HOWS = [
    Averaging((2,), 1e-3, statistics=True),
    Averaging((2,), 1e-3, center=False, statistics=True),
    Averaging((0, 1), 1e-3),
]


def plain(x: jax.Array, mask: Any, how: Averaging) -> tuple:
    """The same in so many words, with the derivative that JAX works out."""
    where = None if mask is None else jnp.broadcast_to(mask, x.shape)
    mean = None
    if how.center:
        mean = jnp.mean(x, how.axes, keepdims=True, where=where)
        x = x - mean
    var = jnp.mean(x * x, how.axes, keepdims=True, where=where)
    y = x / jnp.sqrt(var + how.epsilon)
    return (y, mean, var) if how.statistics else (y, None, None)


@pytest.mark.parametrize(
    ("how", "masked"), [(HOWS[0], True), (HOWS[1], False), (HOWS[2], False)], ids=str
)
def test_derivatives_of_standardize(how: Averaging, masked: bool) -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        mask = jnp.asarray(np.random.default_rng(2).uniform(size=X.shape) < 0.7)
        mask = mask if masked else None
        direction = jnp.asarray(np.random.default_rng(3).normal(size=X.shape))

        def leaves(f: Any) -> Any:
            return lambda x: jax.tree.leaves(f(x, mask, how))

        def rows(f: Any) -> Any:  # a scalar function that uses all outputs, for the Hessian
            return lambda x: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(f(x, mask, how)))

        for ours, plainly in zip(leaves(standardize)(x), leaves(plain)(x)):
            np.testing.assert_allclose(ours, plainly, rtol=1e-12)
        check_grads(leaves(standardize), (x,), order=1, rtol=1e-5, atol=1e-5)
        for second in (
            lambda f: jax.jvp(jax.grad(f), (x,), (direction,))[1],  # forward over reverse
            lambda f: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), direction))(x),
        ):
            np.testing.assert_allclose(
                jax.jit(second, static_argnums=0)(rows(standardize)),
                jax.jit(second, static_argnums=0)(rows(plain)),
                rtol=1e-9,
                atol=1e-12,
            )


def test_reverse_mode_keeps_two_arrays() -> None:
    """y, and the reciprocal of the deviation: neither x nor x - mean."""
    x = jnp.asarray(X)
    how = HOWS[0]
    _, pullback = jax.vjp(lambda x: standardize(x, None, how)[0], x)
    residuals = [a for a in jax.tree.leaves(pullback) if getattr(a, "shape", ()) != ()]
    assert sorted(a.shape for a in residuals) == [(4, 5, 1), (4, 5, 6)]


@pytest.mark.parametrize("layer", [nnx.LayerNorm, nnx.RMSNorm])
def test_far_from_zero_no_digits_are_lost(layer: Any) -> None:
    x = np.float32(1e4) + X
    norm = layer(6, rngs=nnx.Rngs(0))
    wide = x.astype(np.float64)
    if layer is nnx.LayerNorm:
        wide = wide - wide.mean(-1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    # The mean is right up to its own rounding, 1e4·ε, and the deviations are at least 1.
    np.testing.assert_allclose(norm(x), expected, atol=1e4 * np.finfo(np.float32).eps)


def test_low_precision_input_gets_float32_statistics() -> None:
    x = jnp.asarray(X + 100, jnp.bfloat16)
    norm = nnx.LayerNorm(6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    wide = np.asarray(x, np.float64)
    wide = wide - wide.mean(-1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    # The only rounding to bfloat16 is the last.
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, rtol=2**-8, atol=1e-6)


def test_axes_may_be_any() -> None:
    norm = nnx.LayerNorm(4, reduction_axes=(0, -1), feature_axes=0, rngs=nnx.Rngs(0))
    norm.scale.value = jnp.arange(1.0, 5.0)
    mean, std = X.mean((0, 2), keepdims=True), X.std((0, 2), keepdims=True)
    expected = (X - mean) / std * np.arange(1.0, 5.0)[:, None, None]
    np.testing.assert_allclose(norm(X), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no axis 3 in an input of 3 axes"):
        nnx.LayerNorm(6, reduction_axes=3, rngs=nnx.Rngs(0))(X)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "BatchNorm"])
def test_mask_says_which_elements_count(name: str) -> None:
    norm = getattr(nnx, name)(6, rngs=nnx.Rngs(0))
    mask = MASK if name == "BatchNorm" else np.arange(6) < 4
    axes = (0, 1) if name == "BatchNorm" else -1
    where = np.broadcast_to(mask, X.shape)
    mean = 0 if name == "RMSNorm" else X.mean(axes, keepdims=True, where=where)
    square = ((X - mean) ** 2).mean(axes, keepdims=True, where=where)
    expected = (X - mean) / np.sqrt(square + norm.epsilon)
    np.testing.assert_allclose(norm(X, mask=jnp.asarray(mask)), expected, rtol=1e-4, atol=1e-5)
    if name == "BatchNorm":
        np.testing.assert_allclose(norm.mean.value, 0.01 * mean[0, 0], rtol=1e-5)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "BatchNorm"])
@pytest.mark.parametrize("masked", [False, True])
def test_axis_name_extends_the_average_over_a_mapped_axis(name: str, masked: bool) -> None:
    """Statistics over shards are those of the whole, also where the shards' masks differ."""
    make = getattr(nnx, name)
    mask = jnp.asarray(np.broadcast_to(MASK, X.shape)) if masked else None

    def apply(norm: Any, x: jax.Array, mask: Any) -> jax.Array:
        return norm(x, mask=mask)

    if name == "BatchNorm":  # the leading axis is a further one to average over
        whole = make(6, rngs=nnx.Rngs(0))
        shards, masks = jnp.asarray(X), mask
        expected = whole(shards, mask=mask)
    else:  # the features lie on two shards
        whole = make(6, rngs=nnx.Rngs(0))
        expected = whole(X, mask=None if mask is None else jnp.broadcast_to(mask, X.shape))
        shards = jnp.asarray(X.reshape(4, 5, 2, 3).transpose(2, 0, 1, 3))
        masks = None if mask is None else mask.reshape(4, 5, 2, 3).transpose(2, 0, 1, 3)
        expected = expected.reshape(4, 5, 2, 3).transpose(2, 0, 1, 3)
    part = make(shards.shape[-1], axis_name="shards", rngs=nnx.Rngs(0))
    actual = jax.vmap(apply, (None, 0, 0 if masked else None), axis_name="shards")(
        part, shards, masks
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_axis_index_groups() -> None:
    norm = nnx.BatchNorm(6, axis_name="i", axis_index_groups=[[0, 1], [2, 3]], rngs=nnx.Rngs(0))
    actual = jax.pmap(lambda x: nnx.clone(norm)(x), axis_name="i")(jnp.asarray(X))
    groups = X.reshape(2, 2, 5, 6)
    expected = (groups - groups.mean((1, 2), keepdims=True)) / groups.std((1, 2), keepdims=True)
    np.testing.assert_allclose(actual, expected.reshape(X.shape), rtol=1e-3, atol=1e-4)


# -- BatchNorm -----------------------------------------------------------------------------------


def test_running_averages_move_in_training_only() -> None:
    norm = nnx.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
    mean, var = np.zeros(6), np.ones(6)
    for step in range(3):
        x = X + step
        norm(x)
        mean = 0.9 * mean + 0.1 * x.mean((0, 1))
        var = 0.9 * var + 0.1 * x.var((0, 1))
    np.testing.assert_allclose(norm.mean.value, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var.value, var, rtol=1e-5)
    before = norm.mean.value, norm.var.value
    norm.eval()
    norm(X)
    norm.train()
    norm(X, use_running_average=True)
    assert norm.mean.value is before[0] and norm.var.value is before[1]


def test_running_averages_move_as_those_of_the_peer() -> None:
    peer = pytest.importorskip("flax.nnx")
    layers = [lib.BatchNorm(6, momentum=0.8, rngs=lib.Rngs(0)) for lib in (nnx, peer)]
    with jax.numpy_rank_promotion("allow"):
        for step in range(3):
            for layer in layers:
                layer(jnp.asarray(X * step))
    for name in ("mean", "var"):
        mine, its = (vars(layer)[name].get_value() for layer in layers)
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)


def test_batch_norm_writes_through_a_transform() -> None:
    norm, other = (nnx.BatchNorm(6, rngs=nnx.Rngs(0)) for _ in range(2))
    nnx.jit(lambda norm, x: norm(x))(norm, jnp.asarray(X))
    other(X)
    np.testing.assert_allclose(norm.mean.value, other.mean.value, rtol=1e-6)


def test_the_feature_axis_may_be_another() -> None:
    norm = nnx.BatchNorm(5, axis=1, rngs=nnx.Rngs(0))
    mean, std = X.mean((0, 2), keepdims=True), X.std((0, 2), keepdims=True)
    np.testing.assert_allclose(norm(X), (X - mean) / std, rtol=1e-4, atol=1e-5)


def test_no_one_said_which_statistics() -> None:
    norm = nnx.BatchNorm(6, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="nothing says what `use_running_average` is"):
        norm(X)
    assert norm(X, use_running_average=True).shape == X.shape
