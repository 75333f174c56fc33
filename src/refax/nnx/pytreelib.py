"""`nnx.pytreelib`: names only."""

from ..objects.marks import (
    Data as Data, data as data, dataclass as dataclass, Static as Static, static as static)
from ..objects.type_names import A as A, P as P, T as T
from ..objects.variable import Variable as Variable
from ..objects.node import has_data as has_data, is_data as is_data
from ..verbs.data import (
    check_pytree as check_pytree, is_data_type as is_data_type,
    register_data_type as register_data_type)
from ..verbs.pytree import Object as Object, Pytree as Pytree
