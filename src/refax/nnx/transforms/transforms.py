"""`nnx.transforms.transforms`: names only."""

from ...objects.type_names import (
    A as A, AxisName as AxisName, B as B, C as C, F as F, G as G, Index as Index, Leaf as Leaf,
    Leaves as Leaves, M as M)
from ...transforms.bound import resolve_kwargs as resolve_kwargs
from ...transforms.cond import cond as cond, switch as switch
from ...transforms.eval_shape import eval_shape as eval_shape
from ...transforms.eval_shape import checkify as checkify, make_jaxpr as make_jaxpr
from ...verbs.module import Module as Module
