"""`grad` and `value_and_grad`: JAX differentiates one flat list per differentiated argument.

Of an object, the Variables that the filter matches are differentiated (`nnx.Param` by default) and
come back as a State of the same tree as `nnx.state(object, filter)`. What the function does to its
objects on the way (statistics, random counts) is carried out, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax

from ..lift.call import leave
from ..lift.faults import execute
from .bound import decorator_or_function, lifted
from .differentiation import gradient_builder, integers, normalize_argnums, prepare
from .prefixes import Argnums
from .signatures import GradTransform, ValueAndGradTransform


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
            if (found := integers(call, f, wrt)) and not allow_int:
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
