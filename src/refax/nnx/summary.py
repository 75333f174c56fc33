"""`nnx.summary`: names only."""

from ..inspect.tabulate import filter_rng_streams as filter_rng_streams, tabulate as tabulate
