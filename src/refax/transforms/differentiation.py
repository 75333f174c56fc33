"""What the derivatives share: which leaves of which arguments are differentiated, and their trees.

JAX differentiates one pair (values by argument, trees of arrays); everything else is passed beside
it. Of an object, the Variables that a filter matches are differentiated, and their gradients come
back as a State of the same tree as `nnx.state(object, filter)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..graph.plan import plan_for
from ..graph.state import State, iter_leaves
from ..lift.arguments import is_slot, named_like, put_back, slot_numbers, unbind
from ..lift.call import Call, enter, occurrences_in, pure_function, root_places
from ..lift.errors import PrefixError, argument_names, place_under
from ..lift.places import inputs_of, shown
from ..lift.prefix import FilterPrefix, group_leaves
from ..objects.errors import describe_value, path_string, suggest
from ..objects.variable import Variable, make_variable, raw
from ..verbs.layouts import layout_of
from ..verbs.pytree import Pytree
from ..verbs.splitting import state
from .bound import positions
from .prefixes import DiffState


def normalize_argnums(argnums: Any) -> list[tuple[int, Any]]:
    """The (position, filter) of each."""
    several = isinstance(argnums, Sequence) and not isinstance(argnums, str)
    result = []
    entry: Any
    for entry in argnums if several else [argnums]:
        entry = entry if isinstance(entry, DiffState) else DiffState(entry)
        result.append((entry.argnum, entry.filter))
    return result


def wrt_positions(differentiated: list, count: int, shift: int) -> list[tuple[int, Any]]:
    """`differentiated` by position among `count` arguments, a bound object's in front."""
    wrt = []
    for number, filter in differentiated:
        found = positions(number, count, shift)
        if not found:
            raise ValueError(
                f"argnums names argument {number}, but the function was called with "
                f"{count - shift} positional arguments.\nCure: pass that argument by position."
            )
        wrt.append((found[0], filter))
    if len({n for n, _ in wrt}) != len(wrt):
        raise ValueError(
            f"argnums names an argument twice: {[n for n, _ in wrt]}.\nCure: one DiffState per "
            "argument, with a tuple of filters."
        )
    return wrt


def group_by_argument(call: Call, f: Callable, args: tuple, wrt: list) -> None:
    """Group the leaves by the argument that they are differentiated in, or None."""
    prefixes: list[Any] = [None] * len(args)
    for number, filter in wrt:
        prefixes[number] = FilterPrefix([(filter, number), (..., None)])
    places = occurrences_in(call, f, tuple(prefixes), "argnums")
    call.groups = group_leaves(call.plan, places, [None, *(n for n, _ in wrt)])


def prepare(
    f: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    differentiated: list,
    has_aux: bool,
    number: bool = False,
) -> tuple[Call, list[tuple[int, Any]], Any, Callable]:
    """(call, what is differentiated, its values and trees, the function of these).

    The function returns (value, what `leave` takes), for JAX an aux; that returns the user's aux.

    Args:
        f: the user's function or method, of `args` and `kwargs`.
        differentiated: as `normalize_argnums` gives it.
        has_aux: whether it returns (value, aux).
        number: whether the value has to be one number.
    """
    function, bound = unbind(f)
    args = args if bound is None else (bound, *args)
    wrt = wrt_positions(differentiated, len(args), 0 if bound is None else 1)
    call = enter(args, kwargs)
    group_by_argument(call, function, args, wrt)
    diff, rest = separate(call, wrt)

    def arrange(result: Any, grouped: list, static: Any) -> Any:
        value, aux = _pair(result) if has_aux else (result, None)
        if slot_numbers(value):
            raise TypeError(
                "The value of a differentiated function must be arrays, but it has an object in "
                "it.\nCure: return the object's arrays (nnx.state), or the object as aux."
            )
        if number and (not jax.tree_util.all_leaves([value]) or np.shape(value)):
            raise TypeError(
                "Gradient only defined for scalar-output functions. The value of this one is "
                f"{describe_value(value).partition(' ')[0]}.\n"
                "Cure: return the loss alone, such as its .mean(); with has_aux=True, (loss, aux)."
            )
        return value, (aux, grouped, static)

    pure = pure_function(function, call, returned=arrange)

    def of_diff(diff: Any) -> Any:
        return pure(*join(diff, rest, wrt))

    return call, wrt, diff, named_like(function, of_diff)


def integers(call: Call, function: Callable, wrt: list) -> list[str]:
    """The places of what is differentiated and has no derivative: integers, booleans, keys."""
    numbers = [number for number, _ in wrt]
    at = [group > 0 for group in call.groups.of_leaf]
    for path, _ in jax.tree_util.tree_leaves_with_path(call.tree):
        at.append(path[0].idx == 0 and path[1].idx in numbers)
    return [
        f"{place} ({describe_value(value)})"
        for chosen, (place, value) in zip(at, inputs_of(call, function), strict=True)
        if chosen and not jax.numpy.issubdtype(jax.numpy.result_type(value), jax.numpy.inexact)
    ]


def _pair(result: Any) -> Any:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"has_aux=True, but the function returned {describe_value(result)}.\n"
            "Cure: return (loss, aux)."
        )
    return result


def separate(call: Call, wrt: list) -> tuple[Any, Any]:
    """(what is differentiated, the rest), both (values by group, arguments)."""
    args, kwargs = call.tree
    numbers = [n for n, _ in wrt]
    grouped = call.grouped
    rest = (grouped[0], tuple(None if i in numbers else a for i, a in enumerate(args)), kwargs)
    return (grouped[1:], [args[n] for n in numbers]), rest


def join(diff: Any, rest: Any, wrt: list) -> tuple[list, Any]:
    """(values by group, tree) of what `separate` gave."""
    kept, args, kwargs = rest
    full = list(args)
    for (number, _), value in zip(wrt, diff[1], strict=True):
        full[number] = value
    return [kept, *diff[0]], (tuple(full), kwargs)


def gradient_builder(call: Call, wrt: list, argnums: Any = ()) -> Callable[[Any], Any]:
    """How the derivatives of a call become what users get: one State for each object.

    That is a tuple with one for each argument, or only one where `argnums` is not several.

    To be made before the call is left: gradients are of the objects as they came in.

    Returns:
        A function of (derivatives by argument, trees of them with slots).
    """
    frames = {
        i: _frame(call, i, filter)
        for number, filter in wrt
        for i in slot_numbers(call.tree[0][number])
    }

    def build(grads: Any) -> Any:
        by_argument, trees = grads
        of_leaf: dict[int, Any] = {}
        for leaves, values in zip(call.groups.members[1:], by_argument, strict=True):
            of_leaf.update(zip(leaves, values, strict=True))
        objects = [frames[i](of_leaf) if i in frames else None for i in range(len(call.roots))]
        results = tuple(put_back(tree, objects) for tree in trees)
        return results if isinstance(argnums, Sequence) else results[0]

    return build


def _frame(call: Call, number: int, filter: Any) -> Callable[[dict[int, Any]], Any]:
    """(derivatives by leaf of the call) → the State of a root, or a Variable for a Variable.

    None for a Variable that the filter does not match.
    """
    root, graphdef = call.roots[number], call.plan.graphdef
    if isinstance(root, Variable):
        (_, leaf), *_ = graphdef.all_paths(graphdef.roots[number])
        kind, metadata = type(root), root._metadata
        return lambda of: make_variable(kind, of[leaf], metadata) if leaf in of else None
    plan = plan_for((root,))
    layout = layout_of(plan, filter)
    of_path = dict(graphdef.all_paths(graphdef.roots[number]))
    cells = [(i, of_path[plan.graphdef.paths.leaves[i]]) for i in layout.leaves]
    kinds = [(type(v), v._metadata) for v in plan.variables]
    total = len(kinds) + len(plan.arrays)

    def state(of_leaf: dict[int, Any]) -> Any:
        values: list[Any] = [None] * total
        for i, leaf in cells:
            value = of_leaf.get(leaf)
            values[i] = make_variable(kinds[i][0], value, kinds[i][1]) if i < len(kinds) else value
        return layout.build(values)

    return state


# -- derivatives that users give: tangents to `jvp`, gradients from a `bwd` rule ------------------
#
# For an object they come as a State of the same tree as `nnx.state(object, filter)`, or as an
# object of the same structure. JAX gets them as what is differentiated: values by argument, and
# trees.


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
