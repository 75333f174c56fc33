"""`nnx.transforms`: the transforms, by subject."""

from . import (
    autodiff as autodiff, compilation as compilation, general as general, iteration as iteration,
    parallelization as parallelization, transforms as transforms)
