"""`nnx.rnglib`: names only."""

from ..objects.type_names import (
    A as A, AxesValue as AxesValue, Counts as Counts, F as F, Key as Key,
    KeylessInitializer as KeylessInitializer, OutShardingType as OutShardingType,
    RngValue as RngValue, SplitPattern as SplitPattern)
from ..objects.variable import Variable as Variable
from ..objects.variable_types import RngCount as RngCount, RngKey as RngKey, RngState as RngState
from ..verbs.pytree import Pytree as Pytree
from ..verbs.rngs import (
    backup_keys as backup_keys, fork_rngs as fork_rngs, reseed as reseed,
    restore_rngs as restore_rngs, Rngs as Rngs, RngStream as RngStream, split_rngs as split_rngs,
    SplitBackups as SplitBackups, with_rngs as with_rngs)
