"""`nnx.bridge.variables`: names only."""

from ...bridge.linen_names import __dir__ as __dir__, __getattr__ as __getattr__
from ...objects.type_names import A as A, B as B
