"""`nnx.transforms.autodiff`: names only."""

from ...graph.state import State as State
from ...objects.type_names import A as A, AxisName as AxisName, F as F
from ...transforms.bound import resolve_kwargs as resolve_kwargs
from ...transforms.custom_vjp import custom_vjp as custom_vjp, CustomVjp as CustomVjp
from ...transforms.grad import grad as grad, value_and_grad as value_and_grad
from ...transforms.prefixes import DiffState as DiffState
from ...transforms.grad import remat as remat
from ...transforms.grad import jvp as jvp, vjp as vjp
