"""Variables and what is said about them: `nnx.variablelib`. No code."""

from ..objects.variable import Variable as Variable
from ..objects.variable_metadata import VariableMetadata as VariableMetadata
from ..objects.variable_metadata import with_metadata as with_metadata
from ..objects.variable_types import BatchStat as BatchStat
from ..objects.variable_types import Cache as Cache
from ..objects.variable_types import Intermediate as Intermediate
from ..objects.variable_types import LoRAParam as LoRAParam
from ..objects.variable_types import Param as Param
from ..objects.variable_types import Perturbation as Perturbation
from ..objects.variable_types import register_variable_name as register_variable_name
from ..objects.variable_types import variable_name_from_type as variable_name_from_type
from ..objects.variable_types import variable_type_from_name as variable_type_from_name
