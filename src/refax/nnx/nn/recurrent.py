"""`nnx.nn.recurrent`: names only."""

from ...layers.linear import (
    default_bias_init as default_bias_init, default_kernel_init as default_kernel_init,
    Linear as Linear)
from ...layers.recurrent import (
    Bidirectional as Bidirectional, flip_sequences as flip_sequences, RNN as RNN)
from ...layers.recurrent_cells import (
    GRUCell as GRUCell, LSTMCell as LSTMCell, modified_orthogonal as modified_orthogonal,
    OptimizedLSTMCell as OptimizedLSTMCell, RNNCellBase as RNNCellBase, SimpleCell as SimpleCell)
from ...objects.type_names import (
    A as A, Carry as Carry, Dtype as Dtype, Initializer as Initializer, Output as Output,
    PromoteDtypeFn as PromoteDtypeFn, Shape as Shape)
from ...verbs.module import Module as Module
