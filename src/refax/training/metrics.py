"""Metrics: running statistics of values, kept in Variables, so they work inside transforms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..graph.module import Pytree
from ..graph.variable import Variable


class MetricState(Variable):
    """A running value of a metric."""

    __slots__ = ()


class Metric(Pytree):
    """Base of metrics: `reset()`, `update(**values)`, `compute()`."""

    def reset(self) -> None:
        """Start anew."""
        raise NotImplementedError(f"{type(self).__name__} does not define reset().")

    def update(self, **values: Any) -> None:
        """Take in a batch."""
        raise NotImplementedError(f"{type(self).__name__} does not define update().")

    def compute(self) -> Any:
        """The value so far."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute().")


def _argument(metric: Metric, name: str, values: dict[str, Any]) -> Any:
    if name not in values:
        raise TypeError(
            f"{type(metric).__name__}.update needs the keyword argument {name!r}; "
            f"it got {sorted(values) or 'none'}."
        )
    return values[name]


def _weights(values: jax.Array, mask: Any) -> jax.Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.ndim > values.ndim:
        raise ValueError(f"The mask has shape {mask.shape}, the values have {values.shape}.")
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return jnp.broadcast_to(mask, values.shape).astype(jnp.float32)


class Average(Metric):
    """The mean of all values given so far: Σ values / count.

    Args:
        argname: the keyword of `update` that holds the values, any shape, or a scalar.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> loss = nnx.metrics.Average("loss")
        >>> loss.update(loss=jnp.array([1.0, 2.0]))
        >>> loss.update(loss=jnp.array(6.0))
        >>> float(loss.compute())
        3.0
    """

    def __init__(self, argname: str = "values"):
        self.argname = argname
        self.total = MetricState(jnp.array(0, jnp.float32))
        self.count = MetricState(jnp.array(0, jnp.float32))

    def reset(self) -> None:
        self.total.value = jnp.array(0, jnp.float32)
        self.count.value = jnp.array(0, jnp.float32)

    def update(self, *, mask: Any = None, **values: Any) -> None:
        """Take in `values[argname]`; where `mask` is given, only where it is nonzero."""
        given = jnp.asarray(_argument(self, self.argname, values), jnp.float32)
        weights = _weights(given, mask)
        if weights is None:
            self.total += given.sum()
            self.count += jnp.float32(given.size)
        else:
            self.total += jnp.where(weights > 0, given * weights, 0.0).sum()
            self.count += weights.sum()

    def compute(self) -> jax.Array:
        """The mean; nan before the first value."""
        return self.total.value / self.count.value


class Accuracy(Average):
    """The share of right predictions.

    Args:
        threshold: for binary labels, logits at or above it count as class 1; None (default) for
            classes, where the largest logit of the last axis counts.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> accuracy = nnx.metrics.Accuracy()
        >>> accuracy.update(logits=jnp.array([[2.0, 1.0], [0.0, 3.0]]), labels=jnp.array([0, 0]))
        >>> float(accuracy.compute())
        0.5
    """

    def __init__(self, threshold: float | None = None, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if threshold is not None and not isinstance(threshold, (float, int)):
            raise TypeError(f"Accuracy: threshold must be a float, got {threshold!r}.")
        self.threshold = threshold

    def update(self, *, logits: Any, labels: Any, mask: Any = None, **_: Any) -> None:  # type: ignore[override]
        """Take in logits (…, classes), or of the labels' shape with a threshold, and labels (…)."""
        logits, labels = jnp.asarray(logits), jnp.asarray(labels)
        expected = logits.shape if self.threshold is not None else logits.shape[:-1]
        if expected != labels.shape:
            raise ValueError(
                f"Accuracy: logits have shape {logits.shape} and labels {labels.shape}; "
                f"labels must have shape {expected}."
            )
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"Accuracy: labels must be integers, got {labels.dtype}.")
        if self.threshold is not None:
            predicted = (logits >= self.threshold).astype(labels.dtype)
        else:
            predicted = logits.argmax(-1).astype(labels.dtype)
        super().update(mask=mask, **{self.argname: (predicted == labels).astype(jnp.float32)})


class Statistics(NamedTuple):
    """Mean, standard error of the mean, and standard deviation, each a float32 scalar."""

    mean: jax.Array
    standard_error_of_mean: jax.Array
    standard_deviation: jax.Array


class Welford(Metric):
    """Mean and variance in one pass, without cancellation (Welford 1962; Chan et al. 1979).

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> stats = nnx.metrics.Welford()
        >>> stats.update(values=jnp.array([1.0, 2.0]))
        >>> stats.update(values=jnp.array([3.0, 4.0]))
        >>> float(stats.compute().mean)
        2.5
    """

    def __init__(self, argname: str = "values"):
        self.argname = argname
        self.count = MetricState(jnp.array(0, jnp.float32))
        self.mean = MetricState(jnp.array(0, jnp.float32))
        self.m2 = MetricState(jnp.array(0, jnp.float32))

    def reset(self) -> None:
        for cell in (self.count, self.mean, self.m2):
            cell.value = jnp.array(0, jnp.float32)

    def update(self, *, mask: Any = None, **values: Any) -> None:
        """Take in `values[argname]`; where `mask` is given, only where it is nonzero."""
        given = jnp.asarray(_argument(self, self.argname, values), jnp.float32)
        weights = _weights(given, mask)
        weights = jnp.ones_like(given) if weights is None else weights
        count = weights.sum()
        safe = jnp.maximum(count, 1.0)
        mean = (given * weights).sum() / safe
        m2 = (weights * (given - mean) ** 2).sum()
        total = self.count.value + count
        delta = mean - self.mean.value
        share = count / jnp.maximum(total, 1.0)
        self.m2.value = self.m2.value + m2 + delta**2 * self.count.value * share
        self.mean.value = self.mean.value + delta * share
        self.count.value = total

    def compute(self) -> Statistics:
        """Population statistics of all values so far."""
        deviation = jnp.sqrt(self.m2.value / self.count.value)
        return Statistics(self.mean.value, deviation / jnp.sqrt(self.count.value), deviation)


class MultiMetric(Metric):
    """Several metrics under names; `update` gives every keyword to each, `compute` a dict.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> metrics = nnx.MultiMetric(
        ...     loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy()
        ... )
        >>> metrics.update(loss=1.0, logits=jnp.eye(2), labels=jnp.array([0, 1]))
        >>> {name: float(value) for name, value in metrics.compute().items()}
        {'loss': 1.0, 'accuracy': 1.0}
    """

    def __init__(self, **metrics: Metric):
        reserved = {"reset", "update", "compute", "split"} & set(metrics)
        if reserved:
            raise ValueError(f"MultiMetric: {sorted(reserved)} are names of methods, not metrics.")
        for name, metric in metrics.items():
            setattr(self, name, metric)

    def _metrics(self) -> dict[str, Metric]:
        return {k: v for k, v in vars(self).items() if isinstance(v, Metric)}

    def reset(self) -> None:
        for metric in self._metrics().values():
            metric.reset()

    def update(self, **values: Any) -> None:
        for metric in self._metrics().values():
            metric.update(**values)

    def compute(self) -> dict[str, Any]:
        return {name: metric.compute() for name, metric in self._metrics().items()}
