"""Derivatives that users give, tangents to `jvp` and gradients from a `bwd` rule, laid out for JAX.

For an object they come as a State of the same tree as `nnx.state(object, filter)`, or as an object
of the same structure. JAX gets them as what is differentiated: values by argument, and trees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..graph.state import State, iter_leaves
from ..lift.arguments import is_slot
from ..lift.call import Call, root_places
from ..lift.errors import PrefixError, argument_names, place_under
from ..objects.errors import describe_value, path_string, suggest
from ..objects.variable import Variable, raw
from ..verbs.pytree import Pytree
from ..verbs.splitting import state
from .forms import shown


class Given(NamedTuple):
    """Who gives derivatives, and for what: the parts of a message."""

    giver: str  # "jvp: the tangent", "custom_vjp: the gradient from bwd"
    call: Call
    function: Callable
    zero_if_missing: bool

    def argument(self, number: int) -> str:
        return argument_names(self.function, number + 1)[number]

    def leaf(self, leaf: int) -> str:
        path = self.call.plan.graphdef.paths.leaves[leaf]
        return place_under(path, root_places(self.call.tree, self.function))


def laid_out(wrt: list, given: Sequence[Any], types: Any, how: Given) -> Any:
    """(values by argument, trees) of one given derivative per differentiated argument.

    Args:
        wrt: (argument, filter) of what is differentiated.
        given: the derivatives.
        types: of what is differentiated: (types by argument, trees of types with slots).
        how: who gives them, for what.

    Raises:
        PrefixError: one that does not have the tree or shape of its argument; names the place.
    """
    of_leaf: dict[int, Any] = {}
    trees = []
    for (number, _), derivative, wanted in zip(wrt, given, types[1], strict=True):
        slots, structure = jax.tree.flatten(wanted, is_leaf=is_slot)
        if not any(map(is_slot, slots)):
            trees.append(derivative)
            continue
        try:
            left_out = derivative is None and how.zero_if_missing
            pieces = [None] * len(slots) if left_out else structure.flatten_up_to(derivative)
        except ValueError:
            kinds = [type(root).__name__ for root in how.call.roots]
            raise _wrong(how, number, derivative, shown(wanted, kinds)) from None
        for slot, piece in zip(slots, pieces, strict=True):
            if is_slot(slot) and piece is not None:
                _collect(slot.number, piece, of_leaf, number, how)
        pairs = zip(slots, pieces, strict=True)
        trees.append(structure.unflatten([s if is_slot(s) else p for s, p in pairs]))
    members = how.call.groups.members[1:]
    grouped = [
        [_value(leaf, aval, of_leaf, how) for leaf, aval in zip(leaves, avals, strict=True)]
        for leaves, avals in zip(members, types[0], strict=True)
    ]
    return grouped, trees


def _collect(
    number: int, derivative: Any, of_leaf: dict[int, Any], argument: int, how: Given
) -> None:
    """Note the values of the derivative of root `number` by leaf."""
    root, graphdef = how.call.roots[number], how.call.plan.graphdef
    leaves = dict(graphdef.all_paths(graphdef.roots[number]))
    if isinstance(root, Variable):
        of_leaf[leaves[()]] = raw(derivative)
        return
    if isinstance(derivative, Pytree):
        derivative = state(derivative)
    if not isinstance(derivative, Mapping):
        raise _wrong(how, argument, derivative, f"a {type(root).__name__}")
    for path, value in iter_leaves(State(derivative)):
        if path not in leaves:
            near = suggest(path[-1], [p[-1] for p in leaves])
            raise PrefixError(
                f"{how.giver} of `{how.argument(argument)}` has a value at `{path_string(path)}`, "
                f"where the object has no Variable.{near}\n{_CURE}"
            )
        of_leaf[leaves[path]] = raw(value)


def _value(leaf: int, aval: Any, of_leaf: dict[int, Any], how: Given) -> Any:
    """The derivative of one leaf, checked."""
    if leaf not in of_leaf:
        if how.zero_if_missing:
            return None  # so JAX calls zero
        raise PrefixError(f"{how.giver} has no value for `{how.leaf(leaf)}`.\n{_CURE}")
    value = of_leaf[leaf]
    if jax.tree.map(_form, value) != jax.tree.map(_form, zeros(aval)):
        raise PrefixError(
            f"{how.giver} is {shown(value)} for `{how.leaf(leaf)}`, which is {shown(aval)}.\n"
            "Cure: give it the shape and dtype of the Variable."
        )
    return value


def _form(x: Any) -> str:
    return f"{x.dtype if hasattr(x, 'dtype') else jnp.result_type(x)}{jnp.shape(x)}"


def zeros(avals: Any) -> Any:
    """Zero derivatives: of float0 for what is not differentiable, such as integers."""

    def zero(aval: Any) -> Any:
        if jnp.issubdtype(aval.dtype, jnp.inexact):
            return jnp.zeros(aval.shape, aval.dtype)
        return np.zeros(aval.shape, jax.dtypes.float0)

    return jax.tree.map(zero, avals)


_CURE = (
    "Cure: give a State of the same tree as nnx.state(object, nnx.Param), or an object of the same "
    "structure."
)


def _wrong(how: Given, argument: int, derivative: Any, wanted: str) -> PrefixError:
    given, place = describe_value(derivative), how.argument(argument)
    return PrefixError(f"{how.giver} of `{place}` is {given}, but `{place}` is {wanted}.\n{_CURE}")
