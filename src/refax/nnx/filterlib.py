"""`nnx.filterlib`: names only."""

from ..graph.filters import (
    All as All, Any as Any, Everything as Everything, Filter as Filter,
    FilterLiteral as FilterLiteral, filters_to_predicates as filters_to_predicates,
    HasTag as HasTag, Not as Not, Nothing as Nothing, OfType as OfType,
    PathContains as PathContains, PathIn as PathIn, Predicate as Predicate,
    to_predicate as to_predicate, WithTag as WithTag)
from ..objects.type_names import Key as Key, PathParts as PathParts
