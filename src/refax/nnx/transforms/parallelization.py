"""`nnx.transforms.parallelization`: names only."""

from ...transforms.vmap import pmap as pmap
