"""GroupNorm and InstanceNorm: what they are beside each other, masks, mapped axes, errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 5, 6)).astype(np.float32)
MASK = np.random.default_rng(1).uniform(size=X.shape) < 0.6
# Some ten roundings, of numbers of size one.
CLOSE: Any = {"rtol": 1e-5, "atol": 1e-5}


def over_groups(x: np.ndarray, size: int, axes: tuple[int, ...], mask: Any = None) -> np.ndarray:
    """The formula in float64 with a group axis, 3 or later; `axes` besides that axis."""
    shape = (*x.shape[:-1], x.shape[-1] // size, size)
    where = np.broadcast_to(True if mask is None else mask, x.shape).reshape(shape)
    grouped, over = x.astype(np.float64).reshape(shape), (*axes, x.ndim)
    centered = grouped - grouped.mean(over, keepdims=True, where=where)
    var = (centered**2).mean(over, keepdims=True, where=where)
    return (centered / np.sqrt(var + 1e-6)).reshape(x.shape)


def test_one_group_is_layer_norm_over_all_but_the_batch() -> None:
    group = nnx.GroupNorm(6, num_groups=1, rngs=nnx.Rngs(0))
    layer = nnx.LayerNorm(6, reduction_axes=(1, 2), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(group(X), layer(X), **CLOSE)


def test_groups_of_one_feature_are_instance_norm() -> None:
    group = nnx.GroupNorm(6, num_groups=None, group_size=1, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(group(X), nnx.InstanceNorm(6, rngs=nnx.Rngs(0))(X), **CLOSE)


def test_number_or_size_of_the_groups() -> None:
    by_number = nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))
    by_size = nnx.GroupNorm(6, num_groups=None, group_size=3, rngs=nnx.Rngs(0))
    assert nnx.graphdef(by_number) == nnx.graphdef(by_size)
    assert (by_size.num_groups, by_size.group_size) == (2, 3)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "num_groups=32 does not divide num_features=6"),
        ({"num_groups": 0}, "num_groups=0 does not divide num_features=6"),
        ({"num_groups": None, "group_size": 4}, "group_size=4 does not divide num_features=6"),
        ({"num_groups": None}, "got num_groups=None and group_size=None"),
        ({"group_size": 3}, r"num_groups=32 and group_size=3.\nCure: GroupNorm\(6, num_groups=Non"),
    ],
    ids=str,
)
def test_groups_that_do_not_fit(groups: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nnx.GroupNorm(6, **groups, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(4, 5, 6), (5, 1), (6,), (4, 1, 1)], ids=str)
def test_mask_says_which_elements_count(shape: tuple[int, ...]) -> None:
    mask = MASK[tuple(slice(n) for n in shape)] if len(shape) == 3 else MASK[0][: shape[0], :1]
    mask = np.ones(6, bool) if shape == (6,) else np.array(mask)
    if shape == (6,):
        mask[::3] = False
    elif shape == (4, 1, 1):
        mask[:] = True  # an example without elements would have no mean
    for size, layer in (
        (3, nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))),
        (6, nnx.GroupNorm(6, num_groups=1, rngs=nnx.Rngs(0))),
    ):
        expected = over_groups(X, size, (1,), mask)
        np.testing.assert_allclose(layer(X, mask=jnp.asarray(mask)), expected, **CLOSE)
    if shape[-1] == 1:  # else a feature may have no elements
        expected = over_groups(X, 1, (1,), mask)
        layer = nnx.InstanceNorm(6, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(layer(X, mask=jnp.asarray(mask)), expected, **CLOSE)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_axis_name_extends_the_average_over_a_mapped_axis(size: int, masked: bool) -> None:
    """Positions on two shards: the statistics are those of the whole, masks and gradients too."""
    x = np.random.default_rng(2).normal(size=(3, 4, 6)).astype(np.float32)
    mask = np.random.default_rng(3).uniform(size=x.shape) < 0.7

    def make(**options: Any) -> Any:
        if size == 1:
            return nnx.InstanceNorm(6, rngs=nnx.Rngs(0), **options)
        return nnx.GroupNorm(6, None, size, rngs=nnx.Rngs(0), **options)

    def sharded(a: Any) -> jax.Array:
        return jnp.asarray(a).reshape(3, 2, 2, 6).swapaxes(0, 1)

    def apply(norm: Any, x: jax.Array, mask: Any) -> jax.Array:
        return norm(x, mask=mask)

    def parts(x: Any) -> jax.Array:
        mapped = jax.vmap(apply, (None, 0, 0 if masked else None), axis_name="shards")
        y = mapped(make(axis_name="shards"), sharded(x), sharded(mask) if masked else None)
        return y.swapaxes(0, 1).reshape(x.shape)

    def whole(x: jax.Array) -> jax.Array:
        return make()(x, mask=jnp.asarray(mask) if masked else None)

    np.testing.assert_allclose(
        parts(x), over_groups(x, size, (1,), mask if masked else None), **CLOSE
    )
    gradients = [
        jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(jnp.asarray(x)) for f in (parts, whole)
    ]
    np.testing.assert_allclose(*gradients, **CLOSE)


def test_reduction_axes_for_several_batch_axes() -> None:
    norm = nnx.GroupNorm(6, num_groups=2, reduction_axes=(-2, -1), rngs=nnx.Rngs(0))
    x = np.stack([X, X + 1, 2 * X])
    expected = np.stack([over_groups(part, 3, (1,)) for part in x])
    np.testing.assert_allclose(norm(x), expected, **CLOSE)
    with_batch = nnx.GroupNorm(6, num_groups=2, reduction_axes=(2, 0), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(with_batch(X), over_groups(X, 3, (0,)), **CLOSE)
    for axes, message in (((0, 1), "lacks the last axis"), (3, "no axis 3 in an input of 3 axes")):
        with pytest.raises(ValueError, match=message):
            nnx.GroupNorm(6, 2, reduction_axes=axes, rngs=nnx.Rngs(0))(X)


def test_without_a_batch_axis() -> None:
    norm = nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))
    flat = X[:, 0]
    np.testing.assert_allclose(jax.vmap(norm)(jnp.asarray(flat)), over_groups(flat, 3, ()), **CLOSE)
    with pytest.raises(
        ValueError, match=r"feature_axes=-1 has the first axis .*\nCure: .* x\[None\]"
    ):
        nnx.InstanceNorm(6, rngs=nnx.Rngs(0))(flat[0])


def test_far_from_zero_no_digits_are_lost() -> None:
    x = np.float32(1e4) + X
    # The mean is right up to its own rounding, 1e4·ε, and the deviations are about 3.
    atol = 1e4 * float(np.finfo(np.float32).eps)
    norm = nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(x), over_groups(x, 3, (1,)), rtol=0, atol=atol)


def test_metadata_is_that_of_the_parameters() -> None:
    for make in (lambda **o: nnx.GroupNorm(6, 2, **o), lambda **o: nnx.InstanceNorm(6, **o)):
        norm = make(
            scale_metadata={"sharding": ("features",)}, bias_metadata={"tag": "b"}, rngs=nnx.Rngs(0)
        )
        assert norm.scale.sharding == ("features",) and norm.bias.tag == "b"
