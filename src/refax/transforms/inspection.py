"""`make_jaxpr` and `checkify`: looking at what is traced, and errors inside of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax

from ..lift.call import leave
from ..lift.faults import execute
from .bound import decorator_or_function, enter_unbound, lifted
from .eval_shape import leave_abstract
from .jit_options import as_tuple, resolved
from .signatures import CheckifyTransform, JaxprTransform


@cast(Callable[[Any], JaxprTransform], decorator_or_function)
def make_jaxpr(
    f: Callable[..., Any],
    static_argnums: int | Sequence[int] = (),
    axis_env: Any = None,
    return_shape: bool = False,
    **options: Any,
) -> Callable[..., Any]:
    """`jax.make_jaxpr` for functions of objects: the jaxpr of a call; nothing is computed.

    The inputs are the values of the objects and the arrays of the arguments; the outputs are the
    arrays of the result and the values that the function wrote. The objects stay as they are.

    Args:
        f: the function.
        static_argnums: arguments that are not traced.
        axis_env: names and sizes of axes that the function's collectives use.
        return_shape: return (jaxpr, shapes of the result).
        **options: other keywords of the installed `jax.make_jaxpr`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
        >>> jaxpr = nnx.make_jaxpr(lambda m, x: m(x))(model, jnp.ones((1, 2)))
        >>> "dot_general" in str(jaxpr)
        True
    """

    static, _ = resolved(f, as_tuple(static_argnums), None)

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        call, pure = enter_unbound(f, args, kwargs, static, captured=True)
        program = jax.make_jaxpr(pure, axis_env=axis_env, return_shape=True, **options)
        jaxpr, out = execute(call, f, program, call.grouped, call.tree)
        return (jaxpr, leave_abstract(call, out)) if return_shape else jaxpr

    return lifted(f, run)


@cast(Callable[[Any], CheckifyTransform], decorator_or_function)
def checkify(f: Callable[..., Any], errors: Any = None) -> Callable[..., Any]:
    """`jax.experimental.checkify.checkify` for functions of objects: (error, result).

    Args:
        f: the function.
        errors: which checks to make; user checks (`checkify.check`) by default.

    What the function does to its objects is carried out whether or not a check failed, as its value
    is returned whether or not a check failed: `error.throw()` decides.

    Example:
        >>> from refax import nnx
        >>> from jax.experimental import checkify
        >>> import jax.numpy as jnp
        >>> def f(v):
        ...     checkify.check(v.value > 0, "must be positive")
        ...     return jnp.log(v)
        >>> error, _ = nnx.checkify(f)(nnx.Variable(jnp.array(-1.0)))
        >>> "must be positive" in str(error.get())
        True
    """
    from .._jax_compat import load_checkify

    library = load_checkify()
    options = {} if errors is None else {"errors": errors}

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        call, pure = enter_unbound(f, args, kwargs)
        program = library.checkify(pure, **options)
        error, out = execute(call, f, program, call.grouped, call.tree)
        return error, leave(call, out)

    return lifted(f, run)
