"""`nnx.training`: what trains a model, by subject."""

from . import ema as ema, metrics as metrics, optimizer as optimizer
