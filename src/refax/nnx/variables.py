"""`nnx.variables`: names only."""

from ..objects.type_names import A as A
from ..objects.variable import Variable as Variable
from ..objects.metadata import (
    VariableMetadata as VariableMetadata, with_metadata as with_metadata)
from ..objects.variable_types import (
    BatchStat as BatchStat, Cache as Cache, Intermediate as Intermediate, Param as Param,
    VariableState as VariableState)
