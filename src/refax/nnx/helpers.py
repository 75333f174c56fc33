"""`nnx.helpers`: names only."""

from ..graph.graphdef import GraphDef as GraphDef
from ..graph.state import State as State
from ..layers.sequential import Sequential as Sequential
from ..verbs.containers import Dict as Dict, List as List
from ..objects.extras import has_keyword_arg as has_keyword_arg
from ..objects.type_names import A as A, M as M
from ..objects.variable import Variable as Variable
from ..training.train_state import TrainState as TrainState
from ..verbs.module import Module as Module
from ..verbs.rngs import Rngs as Rngs
