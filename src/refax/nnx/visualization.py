"""`nnx.visualization`: names only."""

from ..inspect.display import display as display
