"""`nnx.compat`: names only."""

from ..transforms.cached_partial import cached_partial as cached_partial
from ..transforms.cond import cond as cond, switch as switch
from ..transforms.custom_vjp import custom_vjp as custom_vjp
from ..transforms.eval_shape import (
    eval_shape as eval_shape, get_abstract_model as get_abstract_model)
from ..transforms.grad import grad as grad, value_and_grad as value_and_grad
from ..transforms.eval_shape import checkify as checkify
from ..transforms.jit import jit as jit
from ..transforms.loops import fori_loop as fori_loop, while_loop as while_loop
from ..transforms.grad import remat as remat
from ..transforms.scan import scan as scan
from ..transforms.shard_map import shard_map as shard_map
from ..transforms.grad import jvp as jvp, vjp as vjp
from ..transforms.vmap import pmap as pmap, vmap as vmap
from ..verbs.copying import clone as clone
from ..verbs.iteration import iter_graph as iter_graph
from ..verbs.mapping import recursive_map as recursive_map
from ..verbs.module import iter_children as iter_children, iter_modules as iter_modules
from ..verbs.rngs import (
    backup_keys as backup_keys, fork_rngs as fork_rngs, reseed as reseed, split_rngs as split_rngs)
from ..verbs.splitting import (
    flatten as flatten, graphdef as graphdef, split as split, state as state)
from ..verbs.views import view as view, view_info as view_info
