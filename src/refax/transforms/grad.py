"""Derivatives: `grad` and `value_and_grad`, `vjp` and `jvp`, and `remat`.

JAX differentiates one flat list per differentiated argument.

Of an object, the Variables that the filter matches are differentiated (`nnx.Param` by default) and
come back as a State of the same tree as `nnx.state(object, filter)`. What the function does to its
objects on the way (statistics, random counts) is carried out, once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack, cast, overload

import jax

from ..lift.arguments import unbind
from ..lift.call import leave
from ..lift.faults import execute
from ..objects.modes import Modes, Switch, checked
from ..objects.type_names import P, R, S, Ts
from .bound import decorator_or_function, enter_unbound, lifted
from .differentiation import Given, gradient_builder, integers, normalize_argnums, prepare
from .jit_options import as_tuple, resolved
from .prefixes import Argnums
from .signatures import GradTransform, No, Reduced, ValueAndGradTransform, Yes


@cast(Callable[[Any], ValueAndGradTransform], decorator_or_function)
def value_and_grad(
    f: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[..., Any]:
    """`jax.value_and_grad` for functions of objects: (value, gradients).

    See `nnx.grad`, which returns the gradients only.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> loss, grads = nnx.value_and_grad(lambda m, x: (m(x) ** 2).mean())(
        ...     model, jnp.ones((4, 2))
        ... )
        >>> loss.shape, grads.kernel.shape
        ((), (2, 1))
    """
    return lifted(f, _runner(argnums, has_aux, holomorphic, allow_int, reduce_axes))


def _runner(
    argnums: Any, has_aux: bool, holomorphic: bool, allow_int: bool, reduce_axes: Sequence[Any]
) -> Callable[[Callable, tuple, dict[str, Any]], Any]:
    """What a call does: (function, args, kwargs) → (value, gradients)."""
    differentiated = normalize_argnums(argnums)
    options: dict[str, Any] = {"holomorphic": holomorphic, "allow_int": allow_int}
    if reduce_axes:
        options["reduce_axes"] = reduce_axes

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        call, wrt, diff, of_diff = prepare(f, args, kwargs, differentiated, has_aux, True)
        as_users_get_them = gradient_builder(call, wrt, argnums)
        program = jax.value_and_grad(of_diff, has_aux=True, **options)
        try:
            (loss, out), grads = execute(call, f, program, diff)
        except TypeError as error:
            found = [] if allow_int or "\nIn the" not in str(error) else integers(call, f, wrt)
            if found:
                told = f"These have no derivative: {', '.join(found[:5])}."
                error.args = (str(error).replace("\nIn the", f"\n{told}\nIn the", 1),)
            raise
        aux = leave(call, out)
        return ((loss, aux) if has_aux else loss), as_users_get_them(grads)

    return run


@cast(Callable[[Any], GradTransform], decorator_or_function)
def grad(
    f: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable[..., Any]:
    """`jax.grad` for functions of objects.

    Args:
        f: a function whose value is a scalar, or (scalar, aux) with `has_aux`.
        argnums: which argument(s), as ints or `nnx.DiffState(argnum, filter)`; of an object, its
            `nnx.Param`s by default.
        has_aux, holomorphic, allow_int, reduce_axes: as in `jax.grad`.

    Returns:
        A function that returns the gradients (with `has_aux`: (gradients, aux)). For an object that
        is a State of the same tree as `nnx.state(object, filter)`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> grads = nnx.grad(lambda m, x: m(x).sum())(model, jnp.ones((4, 2)))
        >>> grads.kernel.value
        Array([[4.],
               [4.]], dtype=float32)
    """
    with_value = _runner(argnums, has_aux, holomorphic, allow_int, reduce_axes)

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        value, gradients = with_value(f, args, kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return lifted(f, run)


# -- `vjp` and `jvp`: the function at a point, and its derivative in reverse or forward -----------

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


# -- `remat`: compute again on the way back instead of keeping intermediates ----------------------


@decorator_or_function
def remat(
    f: Callable[..., Any],
    *,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    static_argnames: str | Sequence[str] = (),
    **options: Unpack[Modes],
) -> Callable[..., Any]:
    """`jax.checkpoint` for functions of objects: what they do to the objects happens once.

    Args:
        f: the function or method.
        prevent_cse, policy: as in `jax.checkpoint`.
        static_argnums: arguments that are not traced, counted with `self` for a method in a class
            body, without it for a bound method.
        static_argnames: the same by name.
        **options: other keywords of the installed `jax.checkpoint`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> class Block(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.linear = nnx.Linear(2, 2, rngs=rngs)
        ...
        ...     @nnx.remat
        ...     def __call__(self, x):
        ...         return jnp.sin(self.linear(x))
        >>> grads = nnx.grad(lambda m, x: m(x).sum())(Block(nnx.Rngs(0)), jnp.ones((1, 2)))
        >>> grads.linear.kernel.shape
        (2, 2)
    """

    numbers, names = as_tuple(static_argnums) or None, as_tuple(static_argnames) or None
    static, more = resolved(f, numbers, names), cast(Any, options)

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        call, pure = enter_unbound(f, args, kwargs, *static)
        inner = jax.checkpoint(pure, prevent_cse=prevent_cse, policy=policy, **more)
        return leave(call, execute(call, f, inner, call.grouped, call.tree))

    return lifted(f, run)


checkpoint = remat
