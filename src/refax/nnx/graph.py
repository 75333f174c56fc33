"""`nnx.graph`: what `nnx.graphlib` is called in older programs."""

from .graphlib import *
