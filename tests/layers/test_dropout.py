"""Dropout: what it drops, where its randomness comes from, and when it is off."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.ones((64, 32))


def test_drops_the_given_share_and_keeps_the_mean() -> None:
    y = np.asarray(nnx.Dropout(0.25, rngs=nnx.Rngs(0))(X))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    # 2048 draws: five standard deviations of the share are 0.048.
    assert abs((y == 0).mean() - 0.25) < 0.05


def test_each_call_draws_anew_and_a_seed_repeats() -> None:
    dropout, again = (nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    first, second = dropout(X), dropout(X)
    assert (first != second).any()
    assert (again(X) == first).all() and (again(X) == second).all()


def test_keeps_a_fork_of_what_it_was_given() -> None:
    rngs = nnx.Rngs(params=0, dropout=1)
    dropout = nnx.Dropout(0.5, rngs=rngs)
    from_stream = nnx.Dropout(0.5, rngs=nnx.Rngs(params=0, dropout=1).dropout)
    assert isinstance(dropout.rngs, nnx.RngStream) and dropout.rngs is not rngs.dropout
    assert int(rngs.dropout.count.value) == 1
    y = dropout(X)
    assert int(dropout.rngs.count.value) == 1 and int(rngs.dropout.count.value) == 1
    assert (from_stream(X) == y).all()


def test_randomness_of_the_call_goes_first() -> None:
    dropout = nnx.Dropout(0.5, rng_collection="noise", rngs=nnx.Rngs(0))
    rngs = nnx.Rngs(noise=7)
    key = jax.random.fold_in(jax.random.key(7), 0)
    y = dropout(X, rngs=rngs)
    assert int(rngs.noise.count.value) == 1 and int(dropout.rngs.count.value) == 0
    assert (dropout(X, rngs=nnx.Rngs(noise=7).noise) == y).all()
    assert (dropout(X, rngs=key) == y).all()


def test_when_it_is_off() -> None:
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    assert dropout(X, deterministic=True) is X
    dropout.eval()
    assert dropout(X) is X
    assert (dropout(X, deterministic=False) == 0).any()
    dropout.train()
    assert (dropout(X) == 0).any()
    assert nnx.Dropout(0.0)(X) is X
    assert not nnx.Dropout(1.0)(X).any()


def test_broadcast_dims_share_a_mask() -> None:
    y = np.asarray(nnx.Dropout(0.5, broadcast_dims=(-1,), rngs=nnx.Rngs(0))(X))
    assert (y == y[:, :1]).all() and 0 < (y == 0).mean() < 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_keeps_the_dtype(dtype: Any) -> None:
    assert nnx.Dropout(0.5, rngs=nnx.Rngs(0))(X.astype(dtype)).dtype == dtype


def test_gradient_is_the_mask() -> None:
    dropout = nnx.Dropout(0.5)
    key = jax.random.key(0)
    gradient = jax.grad(lambda x: dropout(x, rngs=key).sum())(X)
    assert (gradient == dropout(X, rngs=key)).all()


def test_without_randomness_or_flag_it_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="has no `rngs`"):
        nnx.Dropout(0.5)(X)
    with pytest.raises(ValueError, match="nothing says what `deterministic` is"):
        nnx.Dropout(0.5, deterministic=None, rngs=nnx.Rngs(0))(X)
    with pytest.raises(ValueError, match="rate=1.5"):
        nnx.Dropout(1.5)


def test_drops_the_same_elements_as_the_peer() -> None:
    peer = pytest.importorskip("flax.nnx")
    for options in ({}, {"broadcast_dims": (0,)}):
        mine = nnx.Dropout(0.3, rngs=nnx.Rngs(0, dropout=3), **options)
        its = peer.Dropout(0.3, rngs=peer.Rngs(0, dropout=3), **options)
        for _ in range(2):
            np.testing.assert_array_equal(mine(X), its(X))


def test_under_jit_the_stream_moves_on() -> None:
    dropout, eager = (nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    call = nnx.jit(lambda dropout, x: dropout(x))
    for _ in range(2):
        np.testing.assert_array_equal(call(dropout, X), eager(X))
