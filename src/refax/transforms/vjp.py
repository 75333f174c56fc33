"""`vjp` and `jvp`: the function at a point, and its derivative in reverse or forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..graph.errors import describe_value
from ..graph.module import Pytree
from ..graph.state import State
from ..graph.variable import Param, Variable
from ..graph.verbs import state as state_of
from ..lift.arguments import Slot, is_object, unbind
from ..lift.call import Call, enter, leave, pure_function
from ..lift.errors import PrefixError
from .differentiation import (
    gradients_of,
    group_by_argument,
    join,
    name_like,
    normalize_argnums,
    separate,
    wrt_positions,
)
from .prefixes import DiffState


def vjp(
    f: Callable,
    *primals: Any,
    argnums: int | DiffState | Sequence[int | DiffState] | None = None,
    has_aux: bool = False,
    reduce_axes: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """`jax.vjp` for functions of objects: (value, cotangent function[, aux]).

    Args:
        f: the function.
        *primals: its arguments; objects are differentiated in their `nnx.Param`s.
        argnums: differentiate these arguments only, by ints or `nnx.DiffState`; the cotangent
            function then returns theirs. All, by default.
        has_aux: whether `f` returns (value, aux).
        reduce_axes, **options: other keywords of the installed `jax.vjp`.

    What `f` does to its objects happens once, when the value is computed.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> y, pullback = nnx.vjp(lambda m, x: m(x), model, jnp.ones((1, 2)))
        >>> grads, x_bar = pullback(jnp.ones_like(y))
        >>> grads.bias.value, x_bar.shape
        (Array([1., 1., 1.], dtype=float32), (1, 2))
    """
    given = range(len(primals)) if argnums is None else argnums
    call, wrt, (diff, rest), of_diff = _prepare(f, primals, given, has_aux)
    if reduce_axes:
        options["reduce_axes"] = reduce_axes
    value, pullback, (aux, grouped, static) = jax.vjp(
        lambda d: of_diff(d, rest), diff, has_aux=True, **options
    )
    aux = leave(call, (aux, grouped, static))

    def cotangents(ct: Any) -> Any:
        results = gradients_of(call, pullback(ct)[0], wrt)
        single = argnums is not None and not isinstance(argnums, Sequence)
        return results[0] if single else tuple(results)

    return (value, cotangents, aux) if has_aux else (value, cotangents)


def jvp(f: Callable, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False) -> Any:
    """`jax.jvp` for functions of objects: (value, tangent of the value[, aux]).

    Args:
        f: the function.
        primals: its arguments.
        tangents: one per argument; for an object a State of the same tree as
            `nnx.state(object, nnx.Param)`, or an object of the same structure.
        has_aux: whether `f` returns (value, aux).

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> ones = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
        >>> y, dy = nnx.jvp(lambda m: m(jnp.ones((1, 2))), (model,), (ones,))
        >>> dy
        Array([[3.]], dtype=float32)
    """
    if len(primals) != len(tangents):
        raise ValueError(f"jvp got {len(primals)} primals, but {len(tangents)} tangents.")
    call, wrt, (diff, rest), of_diff = _prepare(f, tuple(primals), range(len(primals)), has_aux)
    given = list(tangents)
    if call.roots and len(given) < len(call.tree[0]):
        given = [_zero_state(call.roots[0]), *given]
    moving = _tangents(call, diff, given)
    value, out, (aux, grouped, static) = jax.jvp(
        lambda d: of_diff(d, rest), (diff,), (moving,), has_aux=True
    )
    aux = leave(call, (aux, grouped, static))
    return (value, out, aux) if has_aux else (value, out)


def _prepare(f: Callable, primals: tuple, argnums: Any, has_aux: bool) -> Any:
    """(call, what is differentiated, its inputs, the function of them)."""
    function, bound = unbind(f)
    args, shift = ((bound, *primals), 1) if bound is not None else (primals, 0)
    given = list(argnums) if isinstance(argnums, (Sequence, range)) else argnums
    wrt = wrt_positions(normalize_argnums(given), len(args), shift)
    call = enter(args, {})
    group_by_argument(call, function, args, {}, wrt)

    def arrange(result: Any, grouped: list, static: Any) -> Any:
        value, aux = result if has_aux else (result, None)
        if any(type(x) is Slot for x in jax.tree.leaves(value, is_leaf=lambda x: type(x) is Slot)):
            raise TypeError(
                "The value of a differentiated function must be arrays, but it has an object in "
                "it.\nCure: return the object's arrays (nnx.state), or the object as aux."
            )
        return value, (aux, grouped, static)

    pure = pure_function(function, call, returned=arrange)

    def of_diff(diff: Any, rest: Any) -> Any:
        return pure(*join(diff, rest))

    name_like(of_diff, function)
    return call, wrt, separate(call, wrt), of_diff


def _zero_state(root: Any) -> Any:
    return jax.tree.map(lambda x: x * 0, state_of(root, Param))


def _tangents(call: Call, diff: Any, tangents: list[Any]) -> Any:
    """The tangents arranged like what is differentiated: (values by argument, trees)."""
    assert call.groups is not None
    plan = call.plan
    of_variable: dict[int, Any] = {}
    trees = []
    for number, (tree, tangent) in enumerate(zip(diff[1], tangents, strict=True)):
        slots = jax.tree.leaves(tree, is_leaf=lambda x: type(x) is Slot)
        if not any(type(x) is Slot for x in slots):
            trees.append(tangent)
            continue
        pieces, structure = jax.tree.flatten(
            tangent, is_leaf=lambda x: isinstance(x, State) or is_object(x)
        )
        wanted = jax.tree.structure(tree, is_leaf=lambda x: type(x) is Slot)
        if structure != wanted:
            raise PrefixError(
                f"jvp: the tangent of argument {number} is {describe_value(tangent)}.\nCure: give "
                "a State of the same tree as nnx.state(object, nnx.Param) for every object."
            )
        arrays = []
        for piece, slot in zip(pieces, slots, strict=True):
            if type(slot) is not Slot:
                arrays.append(piece)
                continue
            root = call.roots[slot.number]
            _match_tangent(root, piece, of_variable)
            arrays.append(slot)
        trees.append(wanted.unflatten(arrays))
    grouped = []
    for group in call.groups.members[1:]:
        grouped.append([of_variable[id(plan.variables[leaf])] for leaf in group])
    return grouped, trees


def _match_tangent(root: Any, tangent: Any, of_variable: dict[int, Any]) -> None:
    from ..graph.verbs import variables

    if isinstance(root, Variable):
        of_variable[id(root)] = tangent.value if isinstance(tangent, Variable) else tangent
        return
    if isinstance(tangent, Pytree):
        tangent = state_of(tangent, Param)
    cells = jax.tree.leaves(variables(root, Param), is_leaf=lambda x: isinstance(x, Variable))
    values = jax.tree.leaves(tangent, is_leaf=lambda x: isinstance(x, Variable))
    if len(cells) != len(values):
        raise PrefixError(
            f"jvp: the tangent of a {type(root).__name__} has {len(values)} values, but the object "
            f"has {len(cells)} Params.\nCure: give a State of the same tree as nnx.state(object, "
            "nnx.Param)."
        )
    for cell, value in zip(cells, values, strict=True):
        of_variable[id(cell)] = value.value if isinstance(value, Variable) else value
