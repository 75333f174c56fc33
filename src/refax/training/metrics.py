"""Metrics: running statistics of values, kept in Variables, so they work inside transforms.

Sums are float32, but with what each addition loses kept beside them: a plain float32 sum of ones
stands still at 2²⁴, which an evaluation over tokens reaches soon.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from ..graph.filters import Filter
from ..objects.arguments import Array, checked, misfit
from ..objects.errors import suggest
from ..objects.variable import Variable, all_or_none
from ..objects.variable_types import Correction
from ..verbs.layouts import plan_of
from ..verbs.pytree import Pytree
from ..verbs.splitting import split


class MetricState(Variable):
    """A running value of a metric."""

    __slots__ = ()


class MetricCorrection(MetricState, Correction):
    """What the sums of a metric lose by rounding; other libraries' metrics have none."""

    __slots__ = ()


class Metric(Pytree):
    """Base of metrics: `reset()`, `update(**values)`, `compute()`."""

    _refax_phase = "forward"

    def reset(self) -> None:
        """Start anew."""
        raise NotImplementedError(f"{type(self).__name__} does not define reset().")

    def update(self, **values: Any) -> None:
        """Take in a batch."""
        raise NotImplementedError(f"{type(self).__name__} does not define update().")

    def compute(self) -> Any:
        """The value so far."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute().")

    def split(self, *filters: Filter) -> Any:
        """`nnx.split(self, *filters)`."""
        return split(self, *filters)


F = TypeVar("F", bound=Callable[..., None])


def _at_once(method: F) -> F:
    """A method that writes all of a metric or, on an error or Ctrl-C, nothing."""

    @functools.wraps(method)
    def whole(self: Metric, *args: Any, **kwargs: Any) -> None:
        with all_or_none(plan_of(self).variables):
            method(self, *args, **kwargs)

    return whole  # type: ignore[return-value]


def _check_names(metrics: Mapping[str, Metric], given: Mapping[str, Any]) -> None:
    """Raise for a keyword that no metric takes and that is nearly one that was not given.

    Other keywords that no metric takes are passed over, since a loop may give all that it has.
    """
    known = {"mask"}
    for metric in metrics.values():
        known.add(getattr(metric, "argname", "mask"))
        code = getattr(inspect.unwrap(type(metric).update), "__code__", None)
        if code is not None:
            known.update(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])
    for name in given.keys() - known:
        near = difflib.get_close_matches(name, known - given.keys(), 1, 0.8)
        if near:
            names = ", ".join(f"{k} ({type(m).__name__})" for k, m in metrics.items())
            raise TypeError(
                f"update: no metric takes {name!r}. Did you mean {near[0]!r}? The metrics: {names}."
            )


def _masked(
    metric: Metric, name: str, given: dict[str, Any], mask: Any
) -> tuple[jax.Array, jax.Array | None]:
    """The values as float32, zero where the mask is, and the mask as weights of their shape."""
    if name not in given:
        raise TypeError(
            f"{type(metric).__name__}.update needs the keyword argument {name!r}; "
            f"it got {sorted(given) or 'none'}."
        )
    values = jnp.asarray(given[name], jnp.float32)
    if mask is None:
        _check_names({"": metric}, given)
        return values, None
    mask = jnp.asarray(mask, jnp.float32)
    leading = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    try:
        weights = jnp.broadcast_to(leading, values.shape)
    except ValueError:
        raise ValueError(
            f"{type(metric).__name__}.update: the mask has shape {mask.shape}, the values have "
            f"{values.shape}.\nCure: the axes of a mask are the leading axes of the values, such "
            "as the batch."
        ) from None
    return jnp.where(weights != 0, values, 0), weights  # what is masked may be nan


def _add(high: MetricState, low: MetricCorrection, amount: Any) -> None:
    """high + low += amount, with what float32 rounds off kept in `low` (Knuth's two-sum)."""
    old: Any = high.value
    new = old + amount
    added = new - old
    lost = (old - (new - added)) + (amount - added)
    low.value = low.value + jnp.where(jnp.isfinite(new), lost, 0)  # inf - inf is nan
    high.value = new


def _zeros(*kinds: type[Variable]) -> list[Any]:
    return [kind(jnp.array(0, jnp.float32)) for kind in kinds]


def _reset(*cells: MetricState) -> None:
    for cell in cells:
        cell.value = jnp.array(0, jnp.float32)


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

    @checked
    def __init__(self, argname: str = "values"):
        self.argname = argname
        self.total, self.count = _zeros(MetricState, MetricState)
        self._total_low, self._count_low = _zeros(MetricCorrection, MetricCorrection)

    @_at_once
    def reset(self) -> None:
        _reset(self.total, self._total_low, self.count, self._count_low)

    @_at_once
    @checked
    def update(self, *, mask: Array | None = None, **values: Any) -> None:
        """Take in `values[argname]`.

        Args:
            mask: weights of the values, or booleans: of their shape, or of their leading axes.
                What is zero is left out, also if the value there is nan.
        """
        given, weights = _masked(self, self.argname, values, mask)
        _add(self.total, self._total_low, (given if weights is None else given * weights).sum())
        _add(self.count, self._count_low, given.size if weights is None else weights.sum())

    def compute(self) -> jax.Array:
        """The mean, a float32 scalar; nan before the first value."""
        total = self.total.value + self._total_low.value
        return total / (self.count.value + self._count_low.value)


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

    @checked
    def __init__(self, threshold: float | None = None, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.threshold = threshold

    @_at_once
    def update(self, *, logits: Any, labels: Any, mask: Any = None, **_: Any) -> None:  # type: ignore[override]
        """Take in logits (…, classes), or of the labels' shape with a threshold, and labels (…)."""
        logits, labels = jnp.asarray(logits), jnp.asarray(labels)
        predicted = logits.argmax(-1) if self.threshold is None else logits >= self.threshold
        if predicted.shape != labels.shape:
            raise ValueError(
                f"Accuracy: logits have shape {logits.shape} and labels {labels.shape}; "
                f"labels must have shape {predicted.shape}."
            )
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"Accuracy: labels must be integers, got {labels.dtype}.")
        right = predicted.astype(labels.dtype) == labels
        super().update(mask=mask, **{self.argname: right.astype(jnp.float32)})


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

    @checked
    def __init__(self, argname: str = "values"):
        self.argname = argname
        self.count, self.mean, self.m2 = _zeros(MetricState, MetricState, MetricState)
        self._count_low, self._m2_low = _zeros(MetricCorrection, MetricCorrection)

    @_at_once
    def reset(self) -> None:
        _reset(self.count, self._count_low, self.mean, self.m2, self._m2_low)

    @_at_once
    @checked
    def update(self, *, mask: Array | None = None, **values: Any) -> None:
        """Take in `values[argname]`, with a `mask` as in `Average.update`."""
        given, weights = _masked(self, self.argname, values, mask)
        weights = jnp.ones_like(given) if weights is None else weights
        count, before = weights.sum(), self._count()
        mean = (given * weights).sum() / jnp.where(count == 0, 1, count)
        delta = mean - self.mean.value
        total = before + count
        share = count / jnp.where(total == 0, 1, total)
        _add(self.m2, self._m2_low, (weights * (given - mean) ** 2).sum())
        _add(self.m2, self._m2_low, delta**2 * before * share)
        self.mean.value = self.mean.value + delta * share
        _add(self.count, self._count_low, count)

    def _count(self) -> jax.Array:
        return self.count.value + self._count_low.value

    def compute(self) -> Statistics:
        """Population statistics of all values so far.

        Before the first value the mean is 0 and the others are nan.
        """
        deviation = jnp.sqrt((self.m2.value + self._m2_low.value) / self._count())
        return Statistics(self.mean.value, deviation / jnp.sqrt(self._count()), deviation)


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
            raise ValueError(
                f"MultiMetric: {sorted(reserved)} are names of methods, not of metrics.\n"
                "Cure: other names."
            )
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                raise misfit("MultiMetric", f"metrics: {name}", metric, "an nnx.Metric")
            setattr(self, name, metric)

    def _metrics(self) -> dict[str, Metric]:
        return {k: v for k, v in vars(self).items() if isinstance(v, Metric)}

    @_at_once
    def reset(self) -> None:
        for metric in self._metrics().values():
            metric.reset()

    @_at_once
    def update(self, **values: Any) -> None:
        """Give every metric the keywords; `mask={name: mask}` gives each a mask of its own."""
        metrics = self._metrics()
        masks = values.pop("mask") if isinstance(values.get("mask"), Mapping) else {}
        _check_names(metrics, values)
        for name in masks:
            if name not in metrics:
                raise ValueError(
                    f"MultiMetric.update: there is a mask for {name!r}, which is none of the "
                    f"metrics {list(metrics)}.{suggest(name, metrics)}\n"
                    "Cure: mask={name of a metric: mask}, or one mask for all."
                )
        for name, metric in metrics.items():
            metric.update(**values, **({"mask": masks[name]} if name in masks else {}))

    def compute(self) -> dict[str, Any]:
        return {name: metric.compute() for name, metric in self._metrics().items()}
