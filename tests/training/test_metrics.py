"""Metrics: against float64 NumPy and the peer, with masks, over many values, in transforms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

RNG = np.random.default_rng(0)
VALUES = RNG.normal(3.0, 2.0, size=(5, 4, 3)).astype(np.float32)
FLOAT32: dict[str, Any] = {"rtol": 2e-6}  # sums of 60 numbers in float32

MASKS = {
    "none": None,
    "boolean": RNG.random((5, 4, 3)) < 0.5,
    "fewer axes": RNG.random((5, 4)) < 0.5,
    "one for all": np.ones((5, 1), bool),
    "integers": RNG.integers(0, 3, size=(5, 4, 3)),
    "weights": RNG.random((5, 4, 3)).astype(np.float32) / 8,
    "one batch is empty": np.arange(5)[:, None, None] * np.ones((5, 4, 3), int) != 0,
}


def fed(metric: Any, mask: Any, jit: bool = False) -> Any:
    def update(metric: Any, values: Any, mask: Any) -> None:
        metric.update(values=values, mask=mask)

    run = nnx.jit(update) if jit else update
    for i, values in enumerate(VALUES):
        run(metric, values, None if mask is None else mask[i])
    return metric.compute()


def weights_of(mask: Any) -> np.ndarray:
    if mask is None:
        return np.ones(VALUES.shape)
    mask = np.asarray(mask, np.float64)
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (3 - mask.ndim)), VALUES.shape)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_against_float64(name: str, jit: bool) -> None:
    mask = MASKS[name]
    weights, values = weights_of(mask), VALUES.astype(np.float64)
    mean = np.average(values, weights=weights)
    deviation = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    np.testing.assert_allclose(fed(nnx.metrics.Average(), mask, jit), mean, **FLOAT32)
    statistics = fed(nnx.metrics.Welford(), mask, jit)
    expected = (mean, deviation / np.sqrt(weights.sum()), deviation)
    np.testing.assert_allclose(statistics, expected, **FLOAT32)


def test_against_the_peer() -> None:
    peer = pytest.importorskip("flax.nnx").metrics
    for mask in (None, MASKS["boolean"]):
        np.testing.assert_allclose(
            fed(nnx.metrics.Average(), mask), fed(peer.Average(), mask), **FLOAT32
        )
    ours, theirs = nnx.metrics.Welford(), peer.Welford()
    assert ours.compute().mean == theirs.compute().mean == 0
    for values in VALUES:
        ours.update(values=jnp.asarray(values))
        theirs.update(values=jnp.asarray(values))
    for name in ("mean", "standard_error_of_mean", "standard_deviation"):
        one, other = getattr(ours.compute(), name), getattr(theirs.compute(), name)
        np.testing.assert_allclose(one, other, **FLOAT32)


def test_accuracy() -> None:
    logits = RNG.normal(size=(6, 5, 4))
    labels = RNG.integers(0, 4, size=(6, 5))
    mask = np.array([True, False, True, True, False, True])
    accuracy = nnx.metrics.Accuracy()
    accuracy.update(logits=logits, labels=labels, mask=mask)
    right = (logits.argmax(-1) == labels)[mask]
    np.testing.assert_allclose(accuracy.compute(), right.mean(), rtol=1e-7)  # one division
    binary = nnx.metrics.Accuracy(threshold=0.5)
    binary.update(logits=logits[..., 0], labels=labels % 2)
    expected = ((logits[..., 0] >= 0.5) == labels % 2).mean()
    np.testing.assert_allclose(binary.compute(), expected, rtol=1e-7)  # one division


def test_empty_reset_and_nan_under_the_mask() -> None:
    average, welford = nnx.metrics.Average(), nnx.metrics.Welford()
    for _ in range(2):
        for metric in (average, welford):
            metric.update(values=jnp.ones(3), mask=jnp.zeros(3, bool))
        assert np.isnan(average.compute())
        assert welford.compute().mean == 0 and np.isnan(welford.compute().standard_deviation)
        for metric in (average, welford):
            metric.update(values=jnp.array([2.0, jnp.nan]), mask=jnp.array([True, False]))
        assert average.compute() == welford.compute().mean == 2
        assert welford.compute().standard_deviation == 0
        average.reset()
        welford.reset()
    average.update(values=jnp.inf)
    assert average.compute() == jnp.inf


@pytest.mark.parametrize("kind", [nnx.metrics.Average, nnx.metrics.Welford])
def test_counts_beyond_what_float32_counts(kind: Any) -> None:
    metric = kind()
    many = 2**24
    metric.update(values=jnp.zeros(()), mask=jnp.array(float(many)))

    @nnx.jit
    def ones(metric: Any) -> None:
        nnx.fori_loop(0, 1001, lambda i, metric: (metric.update(values=1.0), metric)[1], metric)

    ones(metric)
    exact = 1001 / (many + 1001)
    if kind is nnx.metrics.Average:
        np.testing.assert_allclose(metric.compute(), exact, rtol=2e-7)  # one division
    else:
        deviation = np.sqrt(exact * (1 - exact))
        # The mean takes 1001 steps of float32.
        np.testing.assert_allclose(metric.compute().mean, exact, rtol=1e-4)
        np.testing.assert_allclose(metric.compute().standard_deviation, deviation, rtol=1e-4)


def test_in_scan_and_as_one_for_each_member() -> None:
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), stats=nnx.metrics.Welford("loss"))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(metrics: nnx.MultiMetric, loss: jax.Array) -> Any:
        metrics.update(loss=loss)
        return metrics, loss.sum()

    run(metrics, jnp.asarray(VALUES))
    np.testing.assert_allclose(metrics.compute()["loss"], VALUES.mean(dtype=float), **FLOAT32)
    deviation = VALUES.std(dtype=float)
    np.testing.assert_allclose(metrics.compute()["stats"].standard_deviation, deviation, **FLOAT32)

    @nnx.vmap(in_axes=0, out_axes=0)
    def member(loss: jax.Array) -> jax.Array:
        average = nnx.metrics.Average("loss")
        average.update(loss=loss)
        return average.compute()

    np.testing.assert_allclose(member(jnp.asarray(VALUES)), VALUES.mean((1, 2)), **FLOAT32)


def test_one_metric_over_the_members_of_an_axis() -> None:
    metric = nnx.metrics.Average()

    def gathered(metric: nnx.metrics.Average, values: jax.Array) -> None:
        metric.update(values=jax.lax.all_gather(values, "batch"))

    nnx.vmap(gathered, in_axes=(None, 0), axis_name="batch")(metric, jnp.asarray(VALUES))
    np.testing.assert_allclose(metric.compute(), VALUES.mean(dtype=float), **FLOAT32)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda a: a.update(loss=1.0),
            TypeError,
            r"needs the keyword argument 'values'.*\['loss'\]",
        ),
        (
            lambda a: a.update(values=jnp.ones((2, 3)), mask=jnp.ones(3)),
            ValueError,
            r"Average.update: the mask has shape \(3,\), the values have \(2, 3\)",
        ),
        (
            lambda a: nnx.metrics.Accuracy().update(
                logits=jnp.ones((2, 3)), labels=jnp.ones(3, int)
            ),
            ValueError,
            r"logits have shape \(2, 3\) and labels \(3,\); labels must have shape \(2,\)",
        ),
    ],
)
def test_errors(call: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        call(nnx.metrics.Average())
    assert nnx.metrics.Average().split()[0] == nnx.graphdef(nnx.metrics.Average())


@pytest.mark.parametrize("both", [False, True])
def test_a_keyword_that_is_nearly_one_of_a_metric(both: bool) -> None:
    one = nnx.metrics.Average("loss")
    metric: Any = nnx.MultiMetric(loss=one, right=nnx.metrics.Accuracy()) if both else one
    batch = {"logits": jnp.eye(2), "labels": jnp.arange(2)} if both else {}
    with pytest.raises(TypeError, match="'msk'.*Did you mean 'mask'"):
        metric.update(loss=jnp.ones(2), msk=jnp.zeros(2), **batch)
    metric.update(loss=jnp.ones(2), images=1, tasks=2, **batch)  # more than it takes
    assert float(one.compute()) == 1.0
    if both:
        with pytest.raises(TypeError, match="'label'.*Did you mean 'labels'"):
            metric.update(loss=jnp.ones(2), logits=jnp.eye(2), label=jnp.arange(2))
