"""Where the arrays of a training state live: beside the parameters that they serve.

A step compiled for inputs of one placement is compiled again for another. Outputs of a program
over committed arrays (sharded, or restored by a checkpoint library) are committed, so a step count
that starts uncommitted, or a weakly typed number, would cost one more compilation at the second
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ..graph.state import State, iter_leaves, map_state
from ..objects.entering import replicated
from ..objects.errors import path_string
from ..objects.placing import placed_by_annotation
from ..objects.variable import Variable, make_variable


def beside(params: Any, tree: Any) -> Any:
    """`tree` with its arrays on the devices of `params`: replicated, if they have no own place.

    Arrays that are committed already stay where they are; inside a trace nothing is moved.
    """
    arrays = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
    place: Any = None
    if arrays and not any(isinstance(x, Tracer) or not x.committed for x in arrays):
        place = replicated(arrays[0].sharding)

    def settle(x: Any) -> Any:
        if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        x = jnp.asarray(x, x.dtype)  # no longer weakly typed
        if place is None or isinstance(x, Tracer) or x.committed:
            return x
        return jax.device_put(x, place)

    return jax.tree.map(settle, tree)


def map_beside(f: Callable[[tuple, Any, Any], Any], tree: Any, params: State) -> Any:
    """A tree of optax, of `f(path, parameter, leaf)` for all in it that is made like `params`.

    Of a leaf that belongs to no parameter, such as a step count, the parameter is None.
    """
    by_path = dict(iter_leaves(params))

    def of_part(part: Any) -> Any:
        if not isinstance(part, State):
            return f((), None, part)
        return map_state(lambda path, leaf: f(path, by_path.get(path), leaf), part)

    return jax.tree.map(of_part, tree, is_leaf=lambda x: isinstance(x, (Variable, State)))


def _is_spread(x: Any) -> bool:
    """Whether an array, and no tracer, is divided over several devices."""
    place = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    return place is not None and place.num_devices > 1 and not place.is_fully_replicated


def annotated_like(tree: Any, params: State) -> Any:
    """The same state of an optimizer: what belongs to a parameter lies as that, or as it says.

    The entry `optimizer_sharding` of a parameter's metadata goes before its own annotation, and so
    does the place of one that is divided already. What has another shape than its parameter, as in
    factored states, has no annotation.
    """

    def placed(path: tuple, param: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Variable) or not isinstance(param, Variable):
            return leaf
        value, metadata = leaf._value, leaf._metadata
        if "optimizer_sharding" in metadata:
            own = metadata["optimizer_sharding"]
            metadata = metadata.without("sharding").with_items(out_sharding=own)
        elif _is_spread(param._value) and jnp.shape(value) == jnp.shape(param._value):
            return make_variable(type(leaf), jax.device_put(value, param._value.sharding), metadata)
        if "sharding" not in metadata:
            return leaf
        if jnp.shape(value) == jnp.shape(param._value):
            name = f"the optimizer's state for `{path_string(path)}`"
            value = placed_by_annotation(value, metadata, name)
        else:
            metadata = metadata.without("sharding")
        return make_variable(type(leaf), value, metadata)

    return map_beside(placed, tree, params)
