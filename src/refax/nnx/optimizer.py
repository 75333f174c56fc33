"""`nnx.optimizer`, `nnx.training.optimizer`: names only."""

from .training.optimizer import *
