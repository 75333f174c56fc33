"""`nnx.training.optimizer`: names only."""

from ...objects.type_names import F as F, M as M
from ...objects.variable import Variable as Variable
from ...objects.variable_types import (
    OptArray as OptArray, OptState as OptState, OptVariable as OptVariable, Param as Param)
from ...training.optimizer import (
    ModelAndOptimizer as ModelAndOptimizer, Optimizer as Optimizer, to_opt_state as to_opt_state)
from ...verbs.pytree import Pytree as Pytree
