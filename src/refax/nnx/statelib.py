"""`nnx.statelib`: names only."""

from ..graph.state import (
    create_path_filters as create_path_filters,
    diff as diff, filter_state as filter_state, FlatState as FlatState,
    from_flat_state as from_flat_state,
    map_state as map_state, merge_state as merge_state,
    replace_by_pure_dict as replace_by_pure_dict, restore_int_paths as restore_int_paths,
    split_state as split_state, State as State, to_flat_state as to_flat_state,
    to_pure_dict as to_pure_dict)
from ..objects.type_names import (
    A as A, ExtractValueFn as ExtractValueFn, K as K, Key as Key, PathParts as PathParts, S as S,
    SetValueFn as SetValueFn, V as V)
