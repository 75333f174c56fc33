"""`nnx.traversals`: names only."""

from ..graph.traversals import (
    empty_node as empty_node, flatten_mapping as flatten_mapping,
    flatten_to_sequence as flatten_to_sequence, unflatten_mapping as unflatten_mapping)
from ..objects.type_names import IsLeafCallable as IsLeafCallable
