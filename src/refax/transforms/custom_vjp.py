"""`custom_vjp`: a function of objects with a backward rule of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, Unpack, cast, overload

import jax

from ..lift.arguments import set_unbound, unbind
from ..lift.call import Call, enter, leave, pure_function
from ..lift.errors import PrefixError
from ..lift.inside import Change, values_out
from ..objects.errors import describe_value
from ..objects.modes import Modes
from ..objects.type_names import P, R
from ..objects.variable_types import Param
from ..objects.watch import is_array
from .bound import Bindable, by_position, decorator_or_function, positions
from .cond import Look, check_structures
from .differentiation import Given, gradient_builder, group_by_argument, join, separate, zeros
from .jit_options import as_tuple, resolved
from .prefixes import Argnums, DiffState

Names = str | Sequence[str]


class _Maker(Protocol):
    # fmt: off
    @overload
    def __call__(self, fun: Callable[P, R], nondiff_argnums: Argnums = (),
                 nondiff_argnames: Names = (), **modes: Unpack[Modes]) -> CustomVjp[P, R]: ...
    @overload
    def __call__(
        self, *, nondiff_argnums: Argnums = (), nondiff_argnames: Names = (), **m: Unpack[Modes]
    ) -> Callable[[Callable[P, R]], CustomVjp[P, R]]: ...
    # fmt: on


@cast(Callable[[Any], _Maker], decorator_or_function)
def custom_vjp(
    fun: Callable[..., Any], nondiff_argnums: Argnums = (), nondiff_argnames: Names = ()
) -> CustomVjp:
    """`jax.custom_vjp` for functions of objects.

    Args:
        fun: the function.
        nondiff_argnums: arguments that are not differentiated: an int for a whole argument, which
            must be static (hashable) unless it holds objects; `nnx.DiffState(argnum, filter)` to
            differentiate only what the filter matches of an object. An object is differentiated in
            its `nnx.Param`s otherwise.
        nondiff_argnames: the same by name.

    `defvjp(fwd, bwd)`: `fwd` takes the arguments of `fun` and returns (value, residuals); what it
    does to the objects is carried out. `bwd` takes the ints of `nondiff_argnums`, the residuals
    (which may hold objects) and the cotangent of the value, and returns a tuple with one gradient
    per differentiated argument: a State (or an object of the same structure) for an object, of
    which what is left out counts as zero. If an argument holds objects, the cotangent comes as
    (inputs_g, value_g), where inputs_g has for each differentiated argument the cotangent of what
    it was left as: a State for an object, zeros for arrays.

    `fun`, `fwd` and `bwd` may be methods of one object: it is the first argument then, positions
    are counted without it, and `bwd` may leave its gradient out, which is zero.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> class Scale(nnx.Module):
        ...     def __init__(self):
        ...         self.factor = nnx.Param(jnp.array(2.0))
        >>> @nnx.custom_vjp
        ... def f(m, x):
        ...     return jnp.sin(m.factor * x)
        >>> def fwd(m, x):
        ...     return f(m, x), (jnp.cos(m.factor * x), m, x)
        >>> def bwd(residuals, g):
        ...     inputs_g, y_g = g
        ...     cos, m, x = residuals
        ...     return nnx.State({"factor": y_g * cos * x}), y_g * cos * m.factor
        >>> f.defvjp(fwd, bwd)
        >>> float(nnx.grad(f)(Scale(), 0.0).factor.value)
        0.0
    """
    return CustomVjp(fun, nondiff_argnums, nondiff_argnames)


class CustomVjp(Bindable[P, R]):
    """What `nnx.custom_vjp` returns: callable once `defvjp(fwd, bwd)` was called."""

    def __init__(self, fun: Callable[..., Any], nondiff_argnums: Any, nondiff_argnames: Any = ()):
        functools.update_wrapper(self, fun)
        self._function, self._bound = unbind(fun)
        given = nondiff_argnums if isinstance(nondiff_argnums, Sequence) else [nondiff_argnums]
        self._filters = {d.argnum: d.filter for d in given if isinstance(d, DiffState)}
        self._nondiff = [d for d in given if not isinstance(d, DiffState)]
        resolved(fun, tuple(self._nondiff), None)  # which says if there is no such position
        self._nondiff += resolved(fun, None, as_tuple(nondiff_argnames))[0]
        self._options: dict[str, Any] = {}
        self._rules: tuple[Callable, Callable] | None = None
        if self._bound is not None:
            set_unbound(self, lambda obj, /, *args, **kw: self._call(obj, args, kw), self._bound)

    def defvjp(
        self,
        fwd: Callable[..., tuple[R, Any]],
        bwd: Callable[..., Any],
        symbolic_zeros: bool = False,
        **options: bool,
    ) -> None:
        """Set the forward and the backward rule.

        `**options`: `optimize_remat` and other keywords of the installed `jax.custom_vjp.defvjp`.
        """
        if symbolic_zeros:
            raise ValueError(
                "nnx.custom_vjp has no symbolic_zeros.\n"
                "Cure: use jax.custom_vjp, on nnx.split and nnx.merge."
            )
        self._rules, self._options = (fwd, bwd), options

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._call(self._bound, args, kwargs)

    def _call(self, bound: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._rules is None:
            raise AttributeError(
                f"No derivative is defined for {self._function.__name__}.\n"
                f"Cure: call {self._function.__name__}.defvjp(fwd, bwd) first."
            )
        shift = 0 if bound is None else 1
        args = by_position(self._function, (bound, *args) if shift else args, kwargs)
        if id(self) in _LOOKING.get():
            return self._function(*args)
        fwd, bwd = self._of_arguments(*self._rules)
        nondiff = set(positions(self._nondiff, len(args), shift))
        filters = {shift + n: filter for n, filter in self._filters.items()}
        wrt = [(i, filters.get(i, Param)) for i in range(len(args)) if i not in nondiff]
        call = enter(args, {})
        group_by_argument(call, self._function, args, wrt)
        diff, rest = separate(call, wrt)
        # What is static among the arguments (flags, numbers, functions) is closed over, not passed.
        kept, given, _ = rest
        inputs = kept, jax.tree.map(lambda x: x if is_array(x) else None, given)

        def pure(function: Callable, **options: Any) -> Callable:
            inner = pure_function(function, call, explicit=True, **options)

            def of_inputs(diff: Any, inputs: Any) -> Any:
                kept, arrays = inputs
                full = jax.tree.map(lambda x, array: x if array is None else array, given, arrays)
                return inner(*join(diff, (kept, full, {}), wrt))

            return of_inputs

        def apart(result: Any, grouped: list, change: Change) -> Any:
            value, residuals = result
            return (value, grouped, change), residuals

        written = self._written(call, pure, fwd, diff, inputs)
        as_users_get_them = gradient_builder(call, wrt)
        types = jax.tree.map(jax.typeof, diff)

        def backward(residuals: Any, cotangent: Any) -> Any:
            value_g, grouped_g, change = cotangent
            if call.roots:
                inputs_g = _cotangents(call, grouped_g, change, types)
                value_g = (as_users_get_them(inputs_g), value_g)
            out = bwd([args[n] for n in sorted(nondiff)], residuals, value_g)
            return self._gradients(call, out, wrt, types, shift), None

        transformed = jax.custom_vjp(pure(self._function, force=written))
        forward = pure(fwd, force=written, returned=apart)
        transformed.defvjp(forward, backward, **self._options)
        return leave(call, transformed(diff, inputs))

    def _written(
        self, call: Call, pure: Callable, fwd: Callable, diff: Any, inputs: Any
    ) -> frozenset[int]:
        """The leaves that the function or its fwd writes: JAX wants one form from both."""
        if not call.roots:
            return frozenset()
        functions = (self._function, functools.wraps(fwd)(lambda *args: fwd(*args)[0]))
        token = _LOOKING.set(_LOOKING.get() | {id(self)})
        try:
            looks = [Look(*jax.eval_shape(pure(f), diff, inputs)) for f in functions]
        finally:
            _LOOKING.reset(token)
        both, form = (self._function, fwd), call.form(self._function)
        return check_structures("custom_vjp", form, both, looks, "the function and its fwd")

    def _of_arguments(self, fwd: Callable, bwd: Callable) -> tuple[Callable, Callable]:
        """The rules as JAX calls them: fwd of all arguments, residuals in a form for the border.

        A method's object is the first argument, and goes to a bwd that is a method too.
        """
        (of_fwd, fwd_object), (of_bwd, bwd_object) = unbind(fwd), unbind(bwd)
        bound = self._bound is not None

        @functools.wraps(fwd)
        def forward(*args: Any) -> Any:
            pair = of_fwd(*args) if bound and fwd_object is not None else fwd(*args[bound:])
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(
                    f"custom_vjp: fwd must return (value, residuals), got {describe_value(pair)}.\n"
                    "Cure: return a tuple of two."
                )
            kept = args[:1] if bound and bwd_object is not None else ()
            # Objects go through to the backward rule by value.
            flat, structure = jax.tree.flatten((kept, pair[1]))
            return pair[0], jax.tree_util.Partial(structure.unflatten, flat)

        def backward(statics: list[Any], residuals: Any, cotangent: Any) -> Any:
            kept, residuals = residuals()
            return (of_bwd if kept else bwd)(*kept, *statics, residuals, cotangent)

        return forward, backward

    def _gradients(self, call: Call, out: Any, wrt: list, types: Any, shift: int) -> Any:
        """What bwd returned, as JAX wants it."""
        out = out if isinstance(out, tuple) else (out,)
        if len(out) == len(wrt) - shift:  # without that of a method's object
            out = (*([None] * shift), *out)
        if len(out) != len(wrt):
            raise PrefixError(
                f"custom_vjp: bwd returned {len(out)} gradients for {len(wrt)} differentiable "
                "arguments.\nCure: return a tuple with one gradient for each argument that is not "
                "in nondiff_argnums."
            )
        how = Given("custom_vjp: the gradient from bwd", call, self._function, zero_if_missing=True)
        return how.laid_out(wrt, out, types)


# The functions at which a look is being taken: they need no derivative then.
_LOOKING: ContextVar[frozenset[int]] = ContextVar("looking", default=frozenset())


def _cotangents(call: Call, grouped: list, change: Change, types: Any) -> Any:
    """The cotangents of what the differentiated inputs were left as; zero where left alone."""
    of_leaf = values_out(change, call.plan.graphdef, grouped)
    by_argument = [
        [zeros(t) if (x := of_leaf.get(leaf)) is None else x for leaf, t in zip(group, avals)]
        for group, avals in zip(call.groups.members[1:], types[0], strict=True)
    ]
    return by_argument, zeros(types[1])
