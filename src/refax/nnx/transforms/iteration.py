"""`nnx.transforms.iteration`: names only."""

from ...graph.state import State as State
from ...objects.type_names import (
    A as A, AxisName as AxisName, B as B, C as C, F as F, G as G, Index as Index, Leaf as Leaf,
    Leaves as Leaves, M as M, T as T)
from ...transforms.bound import resolve_kwargs as resolve_kwargs
from ...transforms.carry import Carry as Carry
from ...transforms.loops import fori_loop as fori_loop, while_loop as while_loop
from ...transforms.prefixes import StateAxes as StateAxes
from ...transforms.scan import scan as scan
from ...transforms.vmap import (
    pmap as pmap, transform_metadata as transform_metadata, vmap as vmap)
from ...verbs.module import Module as Module
