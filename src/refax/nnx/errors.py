"""`nnx.errors`: what is raised."""

from ..objects.arguments import ArgumentError as ArgumentError
from ..lift.errors import AliasError as AliasError, PrefixError as PrefixError
from ..objects.errors import (
    GraphError as GraphError, StructureError as StructureError,
    TraceContextError as TraceContextError, UnhashableStaticError as UnhashableStaticError)
from ..verbs.names import PathError as PathError
