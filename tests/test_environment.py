"""The settings of `conftest.py` reach the tests."""

import warnings

import hypothesis
import jax
import jax.numpy as jnp
import pytest


def test_eight_devices():
    assert len(jax.devices()) == 8


def test_warnings_are_errors():
    with pytest.raises(UserWarning, match="a warning"):
        warnings.warn("a warning", stacklevel=1)


def test_hypothesis_profile():
    settings = hypothesis.settings.default
    assert settings is not None
    assert settings.deadline is None
    assert settings.max_examples == 50


def test_strict_numerics_forbids_dtype_promotion(strict_numerics):
    with pytest.raises(ValueError, match="dtype promotion"):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.int32)


def test_strict_numerics_forbids_rank_promotion(strict_numerics):
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_numerics_are_free_without_the_fixture():
    total = jnp.ones((2, 3), jnp.float32) + jnp.ones(3, jnp.int32)
    assert total.shape == (2, 3)
    assert total.dtype == jnp.float32
