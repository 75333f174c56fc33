"""`custom_vjp`: a function of objects with a backward rule of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..graph.errors import describe_value
from ..graph.state import State
from ..graph.variable import Param, Variable
from ..lift.arguments import Slot
from ..lift.call import Call, enter, leave, pure_function
from ..lift.errors import PrefixError
from .bound import by_position, decorator_or_function, method_of
from .differentiation import gradients_of, group_by_argument, join, separate
from .prefixes import DiffState


@decorator_or_function
def custom_vjp(
    fun: Callable, *, nondiff_argnums: int | DiffState | Sequence[int | DiffState] = ()
) -> CustomVjp:
    """`jax.custom_vjp` for functions of objects.

    Args:
        fun: the function.
        nondiff_argnums: arguments that are not differentiated: an int for a whole argument, which
            must be static (hashable) unless it holds objects; `nnx.DiffState(argnum, filter)` to
            differentiate only what the filter matches of an object. An object is differentiated in
            its `nnx.Param`s otherwise.

    `defvjp(fwd, bwd)`: `fwd` takes the arguments of `fun` and returns (value, residuals); what it
    does to the objects is carried out. `bwd` takes the ints of `nondiff_argnums`, the residuals
    (which may hold objects) and the cotangent of the value, and returns a tuple with one gradient
    per differentiated argument: a State (or an object of the same structure) for an object, of
    which what is left out counts as zero. If an argument holds objects, the cotangent comes as
    (inputs_g, value_g), where inputs_g has for each differentiated argument the cotangent of what
    it was left as: a State for an object, zeros for arrays.

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
    return CustomVjp(fun, nondiff_argnums)


class CustomVjp:
    """What `nnx.custom_vjp` returns: callable once `defvjp(fwd, bwd)` was called."""

    def __init__(self, fun: Callable, nondiff_argnums: Any):
        functools.update_wrapper(self, fun)
        self._function = fun
        given = nondiff_argnums
        given = list(given) if isinstance(given, Sequence) else [given]
        self._filters = {d.argnum: d.filter for d in given if isinstance(d, DiffState)}
        self._nondiff = [d for d in given if not isinstance(d, DiffState)]
        self._rules: tuple[Callable, Callable] | None = None

    def __get__(self, obj: Any, objtype: Any = None) -> Any:
        return self if obj is None else method_of(self, obj)

    def defvjp(self, fwd: Callable, bwd: Callable, symbolic_zeros: bool = False) -> None:
        """Set the forward and the backward rule."""
        if symbolic_zeros:
            raise ValueError("nnx.custom_vjp does not support symbolic_zeros; use jax.custom_vjp.")
        self._rules = (fwd, bwd)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._rules is None:
            raise AttributeError(
                f"No derivative is defined for {self._function.__name__}: call "
                f"{self._function.__name__}.defvjp(fwd, bwd) first."
            )
        fwd, bwd = self._rules
        args = by_position(self._function, args, kwargs)
        nondiff = {n % len(args) for n in self._nondiff}
        wrt = [(i, self._filters.get(i, Param)) for i in range(len(args)) if i not in nondiff]
        call = enter(args, {})
        group_by_argument(call, self._function, args, {}, wrt)
        diff, rest = separate(call, wrt)
        dynamic, numbers = rest
        # What is static among the arguments (flags, functions) is closed over, not passed.
        leaves, treedef = jax.tree.flatten(dynamic)
        static = {i: x for i, x in enumerate(leaves) if not _is_numeric(x)}
        inputs = [x for i, x in enumerate(leaves) if i not in static]

        def rest_of(inputs: Sequence[Any]) -> Any:
            values = iter(inputs)
            full = [static[i] if i in static else next(values) for i in range(len(leaves))]
            return treedef.unflatten(full), numbers

        def primal(diff: Any, inputs: Any) -> Any:
            return pure_function(self._function, call, always=always)(*join(diff, rest_of(inputs)))

        def forward(diff: Any, inputs: Any) -> Any:
            def arrange(result: Any, grouped: list, change: Any) -> Any:
                value, residuals = result
                return (value, grouped, change), residuals

            def taken_apart(*args: Any) -> Any:
                if not isinstance(pair := fwd(*args), tuple) or len(pair) != 2:
                    raise TypeError(
                        "custom_vjp: fwd must return (value, residuals), got "
                        f"{describe_value(pair)}."
                    )
                value, residuals = pair
                leaves, treedef = jax.tree.flatten(residuals)  # objects too, by value
                return value, (leaves, _Structure(treedef))

            pure = pure_function(taken_apart, call, always=always, returned=arrange)
            return pure(*join(diff, rest_of(inputs)))

        def backward(residuals: Any, cotangent: Any) -> Any:
            value_g, grouped_g, _ = cotangent
            given = value_g
            if call.roots:
                ins = gradients_of(
                    call, (grouped_g[1:], jax.tree.map(jnp.zeros_like, diff_trees)), wrt
                )
                given = (tuple(ins), value_g)
            statics = [args[n] for n in sorted(nondiff)]
            leaves, structure = residuals
            out = bwd(*statics, structure.treedef.unflatten(leaves), given)
            return _checked(call, out, wrt, diff_shapes), _zeros(inputs)

        always = (False, *(True for _ in wrt))
        diff_trees = diff[1]
        diff_shapes = jax.tree.map(jax.typeof, diff)
        transformed = jax.custom_vjp(primal)
        transformed.defvjp(forward, backward)
        tree, grouped, change = transformed(diff, inputs)
        return leave(call, (tree, grouped, change))


def _is_numeric(x: Any) -> bool:
    return hasattr(x, "dtype") or isinstance(x, (int, float, complex))


@jax.tree_util.register_static
class _Structure:
    """A treedef on its way from the forward to the backward rule."""

    def __init__(self, treedef: Any):
        self.treedef = treedef

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and other.treedef == self.treedef

    def __hash__(self) -> int:
        return hash(self.treedef)


def _zeros(inputs: Sequence[Any]) -> list[Any]:
    """The gradient of what is not differentiated: zero, of the type that JAX wants."""

    def zero(x: Any) -> Any:
        aval = jax.typeof(x)
        if jnp.issubdtype(aval.dtype, jnp.inexact):
            return jnp.zeros(aval.shape, aval.dtype)
        return None

    return [zero(x) for x in inputs]


def _checked(call: Call, out: Any, wrt: list, shapes: Any) -> Any:
    """What bwd returned, as (values by argument, trees); what it left out is zero."""
    if not isinstance(out, tuple):
        out = (out,)
    if len(out) != len(wrt):
        raise PrefixError(
            f"custom_vjp: bwd returned {len(out)} gradients for {len(wrt)} differentiable "
            "arguments.\nCure: return a tuple with one gradient for each argument that is not in "
            "nondiff_argnums."
        )
    assert call.groups is not None
    of_variable: dict[int, Any] = {}
    trees = []
    for given, wanted in zip(out, shapes[1], strict=True):
        slots, structure = jax.tree.flatten(wanted, is_leaf=lambda x: type(x) is Slot)
        if not any(type(s) is Slot for s in slots):
            trees.append(given)
            continue
        pieces = jax.tree.leaves(
            given, is_leaf=lambda x: isinstance(x, (State, Variable)) or hasattr(x, "__dict__")
        )
        for piece, slot in zip(pieces, slots, strict=True):
            if type(slot) is Slot:
                _collect(call.roots[slot.number], piece, of_variable)
        trees.append(structure.unflatten(
            [s if type(s) is Slot else p for s, p in zip(slots, pieces, strict=True)]
        ))  # fmt: skip
    grouped = [
        [
            of_variable.get(id(call.plan.variables[leaf]), jnp.zeros(t.shape, t.dtype))
            for leaf, t in zip(group, types, strict=True)
        ]
        for group, types in zip(call.groups.members[1:], shapes[0], strict=True)
    ]
    return grouped, trees


def _collect(root: Any, gradient: Any, of_variable: dict[int, Any]) -> None:
    from ..graph.state import iter_leaves
    from ..graph.verbs import state, variables

    if isinstance(root, Variable):
        value = gradient.value if isinstance(gradient, Variable) else gradient
        of_variable[id(root)] = value
        return
    if not isinstance(gradient, State):
        gradient = state(gradient)
    cells = dict(iter_leaves(variables(root)))
    for path, value in iter_leaves(gradient):
        if path in cells:
            of_variable[id(cells[path])] = value.value if isinstance(value, Variable) else value
