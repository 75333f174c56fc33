"""`nnx.bridge`: names only."""

from ..bridge.linen_names import __dir__ as __dir__, __getattr__ as __getattr__
from ..bridge.to_nnx import ToNNX as ToNNX, lazy_init as lazy_init
