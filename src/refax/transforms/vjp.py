"""`vjp` and `jvp`: the function at a point, and its derivative in reverse or forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..lift.arguments import slot_numbers, unbind
from ..lift.call import leave
from ..lift.faults import execute
from ..objects.modes import Switch
from .bound import lifted
from .differentiation import gradient_builder, normalize_argnums, prepare
from .given_derivatives import Given, laid_out
from .prefixes import DiffState


def vjp(
    f: Callable | None = None,
    *primals: Any,
    argnums: int | DiffState | Sequence[int | DiffState] | None = None,
    has_aux: bool = False,
    reduce_axes: Sequence[Any] = (),
    graph: Switch = None,
    graph_updates: Switch = None,
    **options: Any,
) -> Any:
    """`jax.vjp` for functions of objects: (value, cotangent function[, aux]).

    Args:
        f: the function, or a method.
        *primals: its arguments; objects are differentiated in their `nnx.Param`s. With none,
            `vjp` is a decorator: the function of the primals that gives the above.
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
    if reduce_axes:
        options["reduce_axes"] = reduce_axes

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        return _vjp(f, args, kwargs, argnums, has_aux, options)

    if f is None:
        return lambda f: lifted(f, run)
    return run(f, primals, {}) if primals else lifted(f, run)


def _vjp(
    f: Callable,
    primals: tuple,
    kwargs: dict[str, Any],
    argnums: Any,
    has_aux: bool,
    options: dict[str, Any],
) -> Any:
    given = range(len(primals)) if argnums is None else argnums
    call, wrt, diff, of_diff = _prepare(f, primals, kwargs, given, has_aux)
    as_users_get_them = gradient_builder(call, wrt)
    program = functools.partial(jax.vjp, of_diff, has_aux=True, **options)
    value, pullback, out = execute(call, f, program, diff)
    aux = leave(call, out)

    def cotangents(ct: Any) -> Any:
        results = as_users_get_them(pullback(ct)[0])
        single = argnums is not None and not isinstance(argnums, Sequence)
        return results[0] if single else tuple(results)

    return (value, cotangents, aux) if has_aux else (value, cotangents)


def jvp(
    f: Callable | None = None,
    primals: Sequence[Any] | None = None,
    tangents: Sequence[Any] | None = None,
    has_aux: bool = False,
    *,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> Any:
    """`jax.jvp` for functions of objects: (value, tangent of the value[, aux]).

    Args:
        f: the function, or a method.
        primals: its arguments. Without them `jvp` is a decorator: the function of (primals,
            tangents) that gives the above.
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

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        return _jvp(f, *args, **kwargs, has_aux=has_aux)

    if f is None:
        return lambda f: jvp(f, primals, tangents, has_aux)
    if primals is None:
        return lifted(f, run)
    return run(f, (primals, tangents), {})


def _jvp(f: Callable, primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: bool) -> Any:
    if len(primals) != len(tangents):
        raise ValueError(
            f"jvp got {len(primals)} primals, but {len(tangents)} tangents.\n"
            "Cure: give one tangent for each primal."
        )
    call, wrt, diff, of_diff = _prepare(f, tuple(primals), {}, range(len(primals)), has_aux)
    how = Given("jvp: the tangent", call, unbind(f)[0], zero_if_missing=False)
    moving = laid_out(wrt, list(tangents), jax.tree.map(jax.typeof, diff), how)
    program = functools.partial(jax.jvp, of_diff, has_aux=True)
    value, moved, out = execute(call, f, program, (diff,), (moving,))
    aux = leave(call, out)
    return (value, moved, aux) if has_aux else (value, moved)


def _prepare(
    f: Callable, primals: tuple, kwargs: dict[str, Any], argnums: Any, has_aux: bool
) -> Any:
    """`prepare`, for a function whose value must be arrays."""

    def arrange(result: Any, grouped: list, static: Any) -> Any:
        value, aux = result if has_aux else (result, None)
        if slot_numbers(value):
            raise TypeError(
                "The value of a differentiated function must be arrays, but it has an object in "
                "it.\nCure: return the object's arrays (nnx.state), or the object as aux."
            )
        return value, (aux, grouped, static)

    return prepare(f, primals, kwargs, normalize_argnums(argnums), arrange)
