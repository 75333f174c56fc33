"""`nnx.transforms.general`: names only."""

from ...objects.type_names import A as A, F as F
