"""`nnx.bridge.wrappers`: names only."""

from ...bridge.linen_names import __dir__ as __dir__, __getattr__ as __getattr__
from ...bridge.to_nnx import ToNNX as ToNNX, lazy_init as lazy_init
from ...graph.state import State as State
from ...objects.type_names import M as M
from ...verbs.module import Module as Module
from ...verbs.pytree import Pytree as Pytree
from ...verbs.rngs import Rngs as Rngs
