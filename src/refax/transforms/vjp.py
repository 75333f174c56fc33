"""`vjp` and `jvp`: the function at a point, and its derivative in reverse or forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack, overload

import jax

from ..lift.arguments import unbind
from ..lift.call import leave
from ..lift.faults import execute
from ..objects.modes import Modes, Switch, checked
from ..objects.type_names import P, R, S, Ts
from .bound import lifted
from .differentiation import gradient_builder, normalize_argnums, prepare
from .given_derivatives import Given
from .prefixes import Argnums
from .signatures import No, Reduced, Yes

Pullback = Callable[[Any], tuple[Any, ...]]


# fmt: off
@overload
def vjp(f: Callable[P, R], **more: Unpack[Reduced]) -> Callable[P, tuple[R, Pullback]]: ...
@overload
def vjp(f: Callable[P, tuple[R, S]], *, has_aux: Yes,
        **more: Unpack[Reduced]) -> Callable[P, tuple[R, Pullback, S]]: ...
@overload
def vjp(f: Callable[P, Any], *, argnums: Argnums, has_aux: bool = False,
        **more: Unpack[Reduced]) -> Callable[P, Any]: ...
@overload
def vjp(f: Callable[[*Ts], R], *primals: *Ts, has_aux: No = False,
        **more: Unpack[Reduced]) -> tuple[R, Pullback]: ...
@overload
def vjp(f: Callable[[*Ts], tuple[R, S]], *primals: *Ts, has_aux: Yes,
        **more: Unpack[Reduced]) -> tuple[R, Pullback, S]: ...
@overload
def vjp(f: Callable[[*Ts], Any], *primals: *Ts, argnums: Argnums, has_aux: bool = False,
        **more: Unpack[Reduced]) -> Any: ...
@overload
def vjp(*, argnums: Argnums | None = None, has_aux: bool = False,
        **more: Unpack[Reduced]) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
# fmt: on
@checked
def vjp(
    f: Callable[..., Any] | None = None,
    *primals: Any,
    argnums: Argnums | None = None,
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
        given = range(len(args)) if argnums is None else argnums
        call, wrt, diff, of_diff = prepare(f, args, kwargs, normalize_argnums(given), has_aux)
        as_users_get_them = gradient_builder(call, wrt, given)
        program = functools.partial(jax.vjp, of_diff, has_aux=True, **options)
        value, pullback, out = execute(call, f, program, diff)
        aux = leave(call, out)

        def cotangents(ct: Any) -> Any:
            return as_users_get_them(pullback(ct)[0])

        return (value, cotangents, aux) if has_aux else (value, cotangents)

    if f is None:
        return lambda f: lifted(f, run)
    return run(f, primals, {}) if primals else lifted(f, run)


# fmt: off
@overload
def jvp(f: Callable[[*Ts], R], primals: tuple[*Ts] | list[Any], tangents: Sequence[Any],
        has_aux: No = False, **modes: Unpack[Modes]) -> tuple[R, R]: ...
@overload
def jvp(f: Callable[[*Ts], tuple[R, S]], primals: tuple[*Ts] | list[Any], tangents: Sequence[Any],
        has_aux: Yes, **modes: Unpack[Modes]) -> tuple[R, R, S]: ...
@overload
def jvp(f: Callable[..., Any] | None = None, *, has_aux: bool = False,
        **modes: Unpack[Modes]) -> Callable[..., Any]: ...
# fmt: on
@checked
def jvp(
    f: Callable[..., Any] | None = None,
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

    def at(f: Callable, primals: Any, tangents: Any) -> Any:
        if len(primals) != len(tangents):
            raise ValueError(
                f"jvp got {len(primals)} primals, but {len(tangents)} tangents.\n"
                "Cure: give one tangent for each primal."
            )
        differentiated = normalize_argnums(range(len(primals)))
        call, wrt, diff, of_diff = prepare(f, tuple(primals), {}, differentiated, has_aux)
        how = Given("jvp: the tangent", call, unbind(f)[0], zero_if_missing=False)
        moving = how.laid_out(wrt, tangents, jax.tree.map(jax.typeof, diff))
        program = functools.partial(jax.jvp, of_diff, has_aux=True)
        value, moved, out = execute(call, f, program, (diff,), (moving,))
        aux = leave(call, out)
        return (value, moved, aux) if has_aux else (value, moved)

    if f is None:
        return lambda f: jvp(f, primals, tangents, has_aux)  # type: ignore[call-overload]
    if primals is None:
        return lifted(f, lambda f, args, kwargs: at(f, *args, **kwargs))
    return at(f, primals, tangents)
