"""`remat`: compute again on the way back instead of keeping intermediates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack, cast

import jax

from ..lift.call import leave
from ..lift.faults import execute
from ..objects.modes import Modes
from .bound import decorator_or_function, enter_unbound, lifted
from .jit_options import as_tuple, resolved


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
