"""`nnx.nn.stochastic`: names only."""

from ...layers.dropout import Dropout as Dropout
from ...layers.options import first_from as first_from
from ...verbs.module import Module as Module
