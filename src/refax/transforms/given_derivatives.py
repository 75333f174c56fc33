"""Derivatives that users give, tangents to `jvp` and gradients from a `bwd` rule, laid out for JAX.

For an object they come as a State of the same tree as `nnx.state(object, filter)`, or as an object
of the same structure. JAX gets them as what is differentiated: values by argument, and trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Derivatives that a user gives: who, and for what."""

    giver: str  # for messages: "jvp: the tangent", "custom_vjp: the gradient from bwd"
    call: Call
    function: Callable
    zero_if_missing: bool

    def laid_out(self, wrt: list, given: Sequence[Any], types: Any) -> Any:
        """(values by argument, trees) of one given derivative per differentiated argument.

        Args:
            wrt: (argument, filter) of what is differentiated.
            given: the derivatives.
            types: of what is differentiated: (types by argument, trees of types with slots).

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
                left_out = derivative is None and self.zero_if_missing
                pieces = [None] * len(slots) if left_out else structure.flatten_up_to(derivative)
            except ValueError:
                kinds = [type(root).__name__ for root in self.call.roots]
                raise self._wrong(number, derivative, shown(wanted, kinds)) from None
            pairs = [*zip(slots, pieces, strict=True)]
            for slot, piece in pairs:
                if is_slot(slot) and piece is not None:
                    of_leaf.update(self._by_leaf(slot.number, piece, number))
            trees.append(structure.unflatten([s if is_slot(s) else p for s, p in pairs]))
        grouped = [
            [self._value(leaf, aval, of_leaf) for leaf, aval in zip(leaves, avals, strict=True)]
            for leaves, avals in zip(self.call.groups.members[1:], types[0], strict=True)
        ]
        return grouped, trees

    def _by_leaf(self, number: int, derivative: Any, argument: int) -> Iterator[tuple[int, Any]]:
        """(leaf, value) of the derivative of root `number`."""
        root, graphdef = self.call.roots[number], self.call.graphdef
        leaves = dict(graphdef.all_paths(graphdef.roots[number]))
        if isinstance(derivative, Pytree):
            derivative = state(derivative)
        if isinstance(root, Variable):
            yield leaves[()], raw(derivative)
            return
        if not isinstance(derivative, Mapping):
            raise self._wrong(argument, derivative, f"a {type(root).__name__}")
        for path, value in iter_leaves(State(derivative)):
            if path not in leaves:
                near = suggest(path[-1], [p[-1] for p in leaves])
                raise PrefixError(
                    f"{self.giver} of `{self._name(argument)}` has a value at "
                    f"`{path_string(path)}`, where the object has no Variable.{near}\n{_CURE}"
                )
            yield leaves[path], raw(value)

    def _value(self, leaf: int, aval: Any, of_leaf: dict[int, Any]) -> Any:
        """The derivative of one leaf, checked."""
        if leaf not in of_leaf and self.zero_if_missing:
            return None  # so JAX calls zero
        if leaf not in of_leaf:
            raise PrefixError(f"{self.giver} has no value for `{self._place(leaf)}`.\n{_CURE}")
        value = of_leaf[leaf]
        if jax.tree.map(_form, value) != jax.tree.map(_form_of_tangent, aval):
            raise PrefixError(
                f"{self.giver} is {shown(value)} for `{self._place(leaf)}`, which is "
                f"{shown(aval)}.\nCure: give it the shape and dtype of the Variable."
            )
        return value

    def _place(self, leaf: int) -> str:
        roots = root_places(self.call.tree, self.function)
        return place_under(self.call.graphdef.paths.leaves[leaf], roots)

    def _name(self, argument: int) -> str:
        return argument_names(self.function, argument + 1)[argument]

    def _wrong(self, argument: int, derivative: Any, wanted: str) -> PrefixError:
        given, place = describe_value(derivative), self._name(argument)
        return PrefixError(
            f"{self.giver} of `{place}` is {given}, but `{place}` is {wanted}.\n{_CURE}"
        )


def _form(x: Any) -> tuple:
    return jnp.shape(x), x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def _form_of_tangent(aval: Any) -> tuple:
    """That of a derivative: of float0 for what is not differentiable, such as integers."""
    inexact = jnp.issubdtype(aval.dtype, jnp.inexact)
    return aval.shape, aval.dtype if inexact else np.dtype(jax.dtypes.float0)


def zeros(avals: Any) -> Any:
    """Zero derivatives."""

    def zero(aval: Any) -> Any:
        shape, dtype = _form_of_tangent(aval)
        return np.zeros(shape, dtype) if dtype == jax.dtypes.float0 else jnp.zeros(shape, dtype)

    return jax.tree.map(zero, avals)


_CURE = (
    "Cure: give a State of the same tree as nnx.state(object, nnx.Param), or an object of the same "
    "structure."
)
