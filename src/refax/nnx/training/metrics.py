"""`nnx.training.metrics`: names only."""

from ...objects.variable import Variable as Variable
from ...training.metrics import (
    Accuracy as Accuracy, Average as Average, Metric as Metric, MetricState as MetricState,
    MultiMetric as MultiMetric, Statistics as Statistics, Welford as Welford)
from ...verbs.pytree import Pytree as Pytree
