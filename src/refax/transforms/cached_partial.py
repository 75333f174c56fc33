"""`cached_partial`: a function with its objects fixed, of one structure at every call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import is_
from typing import Any, Concatenate, Unpack, overload

from ..graph.graphdef import GraphDef
from ..graph.plan import Plan
from ..graph.rebuild import rebuild
from ..lift.errors import argument_names
from ..lift.places import outline
from ..objects.at_once import set_each
from ..objects.errors import StructureError, path_string
from ..objects.modes import Modes, Switch, checked
from ..objects.node import new_pytree
from ..objects.type_names import B, C, P, R, S
from ..objects.variable import replace_metadata, set_raw_value
from ..verbs.copying import clone
from ..verbs.layouts import plan_of
from ..verbs.pytree import Pytree
from .differences import differences_between


# fmt: off
@overload
def cached_partial(f: Callable[Concatenate[B, P], R], a: B, /,
                   **modes: Unpack[Modes]) -> Callable[P, R]: ...
@overload
def cached_partial(f: Callable[Concatenate[B, C, P], R], a: B, b: C, /,
                   **modes: Unpack[Modes]) -> Callable[P, R]: ...
@overload
def cached_partial(f: Callable[Concatenate[B, C, S, P], R], a: B, b: C, c: S, /, *more: Any,
                   **modes: Unpack[Modes]) -> Callable[..., R]: ...
# fmt: on
@checked
def cached_partial(
    f: Callable[..., R], *cached_args: Any, graph: Switch = None, graph_updates: Switch = None
) -> Callable[..., R]:
    """`functools.partial(f, *objects)` of copies of the objects, which share their Variables.

    So a jitted step meets the same structure at every call: what is changed in the originals later
    does not reach it, and it may write Variables, which the originals see, and nothing else.

    Args:
        f: the function, most often a jitted one.
        *cached_args: its first arguments.

    Returns:
        The function of the other arguments. It raises StructureError (a ValueError) if a call
        changes the structure of the objects, which are then as they were before the call.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> count = nnx.Variable(jnp.array(0))
        >>> def add(count, x):
        ...     count += x
        >>> step = nnx.cached_partial(nnx.jit(add), count)
        >>> step(2), step(3), int(count)
        (None, None, 5)
    """
    held = new_pytree(Pytree)  # a Pytree owns its plan, so that a warm call walks nothing
    vars(held).update(zip(argument_names(f, len(cached_args)), cached_args, strict=True))
    held = clone(held, variables=False)
    plan = plan_of(held)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal held, plan
        before, values, bare = plan, plan.gather(), plan.bare()
        out = f(*vars(held).values(), *args, **kwargs)
        plan = plan_of(held)
        if before is plan and all(map(is_, bare, plan.bare())):
            return out
        leaves = [*before.variables, *bare]
        changes = _changes(before.graphdef, leaves, plan)
        if not changes:
            return out
        held = rebuild(before.graphdef, leaves)[0]
        set_each(replace_metadata, before.variables, [r[2] for r in before.graphdef.variables])
        set_each(set_raw_value, before.variables, values)
        plan = plan_of(held)
        raise StructureError(
            "nnx.cached_partial: the call changes more than the values of Variables in the cached "
            "objects:\n" + "\n".join(f"  {change}" for change in changes) + "\n"
            "Cure: keep what changes in a Variable, or call the function without cached_partial."
        )

    return call


cache_args = cached_partial  # its first name


def _changes(before: GraphDef, leaves: list[Any], after: Plan) -> list[str]:
    """The places that are not as they were, in words."""
    if before != after.graphdef:
        old, new = outline(before, ()), outline(after.graphdef, ())
        found = differences_between(old, new)
        return [str(difference).removeprefix("the root.") for difference in found]
    triples = zip(before.paths.leaves, leaves, after.leaves(), strict=True)
    return [
        f"{path_string(path)}: another {type(new).__name__}"
        for path, old, new in triples
        if old is not new
    ]
