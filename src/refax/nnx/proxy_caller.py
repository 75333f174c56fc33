"""`nnx.proxy_caller`: names only."""

from ..objects.type_names import A as A
from ..verbs.merging import ApplyCaller as ApplyCaller
