"""`nnx.bridge`: names only; those that need Flax import it when they are asked for."""

from ...bridge.linen_names import __dir__ as __dir__, __getattr__ as __getattr__
from ...bridge.to_nnx import ToNNX as ToNNX, lazy_init as lazy_init
from . import variables as variables, wrappers as wrappers
