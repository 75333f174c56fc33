"""`nnx.summary`: names only."""

from ..inspect.tabulate import tabulate as tabulate
