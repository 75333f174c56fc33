"""`nnx.nn.dtypes`: names only."""

from ...layers.dtypes import (
    canonicalize_dtype as canonicalize_dtype, promote_dtype as promote_dtype)
from ...objects.type_names import Dtype as Dtype, T as T
