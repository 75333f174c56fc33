"""`nnx.module`: names only."""

from ..graph.state import split_state as split_state, State as State
from ..inspect.capture import capture as capture
from ..layers.options import first_from as first_from
from ..objects.type_names import (
    A as A, B as B, F as F, Key as Key, M as M, P as P, Path as Path, PathParts as PathParts,
    R as R, S as S, StateMapping as StateMapping, V as V)
from ..verbs.module import (
    iter_children as iter_children, iter_module_children as iter_module_children,
    iter_modules as iter_modules, Module as Module,
    tuple_init as tuple_init, tuple_reduce as tuple_reduce)
from ..verbs.pytree import Pytree as Pytree
from ..verbs.views import (
    view as view, view_info as view_info, with_attributes as with_attributes)
