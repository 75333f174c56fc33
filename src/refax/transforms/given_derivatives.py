"""Derivatives that users give, tangents to `jvp` and gradients from a `bwd` rule, laid out for JAX.

For an object they come as a State of the same tree as `nnx.state(object, filter)`, or as an object
of the same structure. JAX gets them as what is differentiated: values by argument, and trees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..graph.errors import describe_value, path_string, suggest
from ..graph.module import Pytree
from ..graph.state import State, iter_leaves
from ..graph.variable import Variable
from ..graph.verbs import state, variables
from ..lift.call import Call
from ..lift.errors import PrefixError
from ..lift.places import place_of_root_leaf
from .forms import is_slot, shown


class Given(NamedTuple):
    """Who gives derivatives, for what: the parts of a message, and whether some may be missing."""

    giver: str  # "jvp: the tangent", "custom_vjp: the gradient that bwd returned"
    labels: Sequence[str]  # the names of the arguments
    zero_if_missing: bool


def laid_out(call: Call, wrt: list, given: Sequence[Any], types: Any, how: Given) -> Any:
    """(values by argument, trees) of one given derivative per differentiated argument.

    Args:
        call: of the function.
        wrt: (argument, filter) of what is differentiated.
        given: the derivatives.
        types: of what is differentiated: (types by argument, trees of types with slots).
        how: for messages.

    Raises:
        PrefixError: one that does not have the tree or shape of its argument; names the place.
    """
    of_variable: dict[int, Any] = {}
    trees = []
    for (number, _), derivative, wanted in zip(wrt, given, types[1], strict=True):
        label = how.labels[number]
        slots, structure = jax.tree.flatten(wanted, is_leaf=is_slot)
        if not any(map(is_slot, slots)):
            trees.append(derivative)
            continue
        if derivative is None and how.zero_if_missing:
            pieces = [None if is_slot(s) else zeros(s) for s in slots]
        else:
            pieces = _pieces(call, structure, derivative, wanted, label, how)
        for slot, piece in zip(slots, pieces, strict=True):
            if is_slot(slot) and piece is not None:
                _collect(call.roots[slot.number], piece, of_variable, label, how)
        trees.append(structure.unflatten(
            [s if is_slot(s) else p for s, p in zip(slots, pieces, strict=True)]
        ))  # fmt: skip
    assert call.groups is not None
    grouped = [
        [_value(call, leaf, aval, of_variable, how.labels[number], how)
         for leaf, aval in zip(leaves, avals, strict=True)]
        for (number, _), leaves, avals in zip(wrt, call.groups.members[1:], types[0], strict=True)
    ]  # fmt: skip
    return grouped, trees


def _pieces(
    call: Call, structure: Any, derivative: Any, wanted: Any, label: str, how: Given
) -> list[Any]:
    try:
        return structure.flatten_up_to(derivative)
    except ValueError:
        raise _wrong(how, label, derivative, shown(wanted, call.roots)) from None


def _collect(
    root: Any, derivative: Any, of_variable: dict[int, Any], label: str, how: Given
) -> None:
    """Note the values of the derivative of one object by the Variable that each is for."""
    if isinstance(root, Variable):
        value = derivative.value if isinstance(derivative, Variable) else derivative
        of_variable[id(root)] = value
        return
    if isinstance(derivative, Pytree):
        derivative = state(derivative)
    elif isinstance(derivative, Mapping) and not isinstance(derivative, State):
        derivative = State(derivative)
    if not isinstance(derivative, State):
        raise _wrong(how, label, derivative, type(root).__name__)
    cells = dict(iter_leaves(variables(root)))
    for path, value in iter_leaves(derivative):
        if path not in cells:
            near = suggest(path[-1], [p[-1] for p in cells])
            raise PrefixError(
                f"{how.giver} of `{label}` has a value at `{path_string(path)}`, where the object "
                f"has no Variable.{near}\n{_CURE}"
            )
        of_variable[id(cells[path])] = value.value if isinstance(value, Variable) else value


def _value(
    call: Call, leaf: int, aval: Any, of_variable: dict[int, Any], label: str, how: Given
) -> Any:
    """The derivative of one leaf, checked."""
    cell = call.plan.variables[leaf] if leaf < len(call.plan.variables) else None
    place = place_of_root_leaf(call, leaf, label)
    if id(cell) not in of_variable:
        if how.zero_if_missing:
            return zeros(aval)
        raise PrefixError(f"{how.giver} of `{label}` has no value for `{place}`.\n{_CURE}")
    value = of_variable[id(cell)]
    if jax.tree.map(_form, value) != jax.tree.map(_form, zeros(aval)):
        raise PrefixError(
            f"{how.giver} is {shown(value)} for `{place}`, which is {shown(aval)}.\n"
            "Cure: give it the shape and dtype of the Variable."
        )
    return value


def _form(x: Any) -> str:
    return f"{jnp.result_type(x) if not hasattr(x, 'dtype') else x.dtype}{jnp.shape(x)}"


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


def _wrong(how: Given, label: str, derivative: Any, wanted: str) -> PrefixError:
    given = describe_value(derivative)
    return PrefixError(f"{how.giver} of `{label}` is {given}, but `{label}` is {wanted}.\n{_CURE}")
