"""`nnx.metrics`, `nnx.training.metrics`: names only."""

from .training.metrics import *
