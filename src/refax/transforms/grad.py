"""`grad` and `value_and_grad`: JAX differentiates one flat list per differentiated argument.

Of an object, the Variables that the filter matches are differentiated (`nnx.Param` by default) and
come back as a State of the same tree as `nnx.state(object, filter)`. What the function does to its
objects on the way (statistics, random counts) is carried out, once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..graph.errors import describe_value
from ..graph.plan import Plan, plan_for
from ..graph.variable import Param, Variable, make_variable
from ..graph.verbs import layout_of
from ..lift import errors
from ..lift.arguments import Slot, put_back, unbind
from ..lift.call import Call, enter, leave, pure_function
from ..lift.prefix import FilterPrefix, broadcast, group_leaves, occurrences
from .bound import decorator_or_function
from .prefixes import DiffState

__all__ = ["grad", "value_and_grad"]


class _Wrt(FilterPrefix):
    """The prefix of a differentiated argument: its matching leaves take the argument's number."""

    __slots__ = ()

    def __init__(self, argnum: int, filter: Any):
        super().__init__([(filter, argnum), (..., None)])


@decorator_or_function
def value_and_grad(
    f: Callable,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable:
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
    differentiated = _normalize(argnums)
    options: dict[str, Any] = {"holomorphic": holomorphic, "allow_int": allow_int}
    if reduce_axes:
        options["reduce_axes"] = reduce_axes
    function, bound = unbind(f)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if bound is not None:
            args = (bound, *args)
        wrt = _positions(differentiated, len(args), 0 if bound is None else 1)
        call = enter(args, kwargs)
        _group(call, function, args, kwargs, wrt)
        diff, rest = _separate(call, wrt)

        def arrange(result: Any, grouped: list, static: Any) -> Any:
            if has_aux:
                _check_aux(result)
                loss, aux = result
                return loss, (aux, grouped, static)
            return result, (None, grouped, static)

        pure = pure_function(function, call, returned=arrange)

        def of_diff(diff: Any, rest: Any) -> Any:
            return pure(*_join(diff, rest))

        _name_like(of_diff, function)
        (loss, (aux, grouped, static)), grads = jax.value_and_grad(
            of_diff, has_aux=True, **options
        )(diff, rest)
        aux = leave(call, (aux, grouped, static))
        results = [_as_tree(call, g, tree, wrt[i]) for i, (g, tree) in _by_argument(grads, wrt)]
        gradients = results[0] if not isinstance(argnums, Sequence) else tuple(results)
        return ((loss, aux) if has_aux else loss), gradients

    return wrapped


@decorator_or_function
def grad(
    f: Callable,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Callable:
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
    with_value = value_and_grad(f, argnums, has_aux, holomorphic, allow_int, reduce_axes)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, gradients = with_value(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return wrapped


def _normalize(argnums: Any) -> list[tuple[int, Any]]:
    given = list(argnums) if isinstance(argnums, Sequence) else [argnums]
    result = []
    for entry in given:
        if isinstance(entry, DiffState):
            result.append((entry.argnum, entry.filter))
        elif isinstance(entry, int):
            result.append((entry, Param))
        else:
            raise TypeError(f"argnums takes ints and nnx.DiffState, got {describe_value(entry)}.")
    return result


def _positions(differentiated: list, count: int, shift: int) -> list[tuple[int, Any]]:
    wrt = []
    for number, filter in differentiated:
        given = count - shift
        if not -given <= number < given:
            raise ValueError(
                f"argnums names argument {number}, but the function was called with {given} "
                "positional arguments. Cure: pass that argument by position."
            )
        wrt.append((shift + (number if number >= 0 else given + number), filter))
    if len({n for n, _ in wrt}) != len(wrt):
        raise ValueError(
            f"argnums names an argument twice: {[n for n, _ in wrt]}. Cure: one DiffState per "
            "argument, with a tuple of filters."
        )
    return wrt


def _group(call: Call, f: Callable, args: tuple, kwargs: dict, wrt: list) -> None:
    """Group the leaves by the argument that they are differentiated in, or None."""
    prefixes: list[Any] = [None] * len(args)
    for number, filter in wrt:
        prefixes[number] = _Wrt(number, filter)
    found = broadcast((tuple(prefixes), None), (args, kwargs), "argnums")
    labels = errors.argument_names(f, len(args))
    places = []
    for path, obj, entry in found:
        first, *below = path
        if first.idx == 0:
            places += occurrences([(tuple(below), obj, entry)], call.numbers, labels)
        else:
            places += occurrences([(tuple(below), obj, entry)], call.numbers, ())
    call.groups = group_leaves(call.plan, places, [None, *(n for n, _ in wrt)])


def _separate(call: Call, wrt: list) -> tuple[Any, Any]:
    """(what is differentiated, the rest), both (values by group, arguments)."""
    args, kwargs = call.tree
    numbers = [n for n, _ in wrt]
    grouped = call.grouped
    diff = (grouped[1:], [args[n] for n in numbers])
    rest = (grouped[0], tuple(None if i in numbers else a for i, a in enumerate(args)), kwargs)
    return diff, (rest, _Numbers(tuple(numbers)))


@jax.tree_util.register_static
class _Numbers:
    """The positions of the differentiated arguments, as static data."""

    def __init__(self, numbers: tuple[int, ...]):
        self.numbers = numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and other.numbers == self.numbers

    def __hash__(self) -> int:
        return hash(self.numbers)


def _join(diff: Any, rest: Any) -> tuple[list, Any]:
    (kept, args, kwargs), numbers = rest
    full = list(args)
    for number, value in zip(numbers.numbers, diff[1], strict=True):
        full[number] = value
    return [kept, *diff[0]], (tuple(full), kwargs)


def _by_argument(grads: Any, wrt: list) -> Any:
    return enumerate(zip(grads[0], grads[1], strict=True))


def _as_tree(call: Call, grads: list, tree: Any, wrt: tuple[int, Any]) -> Any:
    """The gradient of one argument: arrays as they are, a State for each object."""
    number, filter = wrt
    assert call.groups is not None
    group = call.groups.entries.index(number)
    plan = call.plan
    of_leaf: dict[Any, Any] = {}
    for leaf, g in zip(call.groups.members[group], grads, strict=True):
        of_leaf[_identity(plan, leaf)] = g
    states = [_state_of(root, filter, of_leaf) if _used(tree, i) else None
              for i, root in enumerate(call.roots)]  # fmt: skip
    return put_back(tree, states)


def _used(tree: Any, number: int) -> bool:
    slots = jax.tree.leaves(tree, is_leaf=lambda x: type(x) is Slot)
    return any(type(x) is Slot and x.number == number for x in slots)


def _identity(plan: Plan, leaf: int) -> Any:
    """What tells a leaf from the others, in whatever plan it is seen."""
    if leaf < len(plan.variables):
        return id(plan.variables[leaf])
    container, key = plan.arrays[leaf - len(plan.variables)]
    return (id(container), key)


def _state_of(root: Any, filter: Any, of_leaf: dict[Any, Any]) -> Any:
    plan = plan_for((root,))
    if isinstance(root, Variable):
        return make_variable(type(root), of_leaf[id(root)], root._metadata)
    values: list[Any] = [
        make_variable(type(v), of_leaf.get(id(v)), v._metadata) for v in plan.variables
    ]
    count = len(values)
    values += [of_leaf.get(_identity(plan, count + i)) for i in range(len(plan.arrays))]
    return layout_of(plan, filter).build(values)


def _check_aux(result: Any) -> None:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            "has_aux=True, but the function returned "
            f"{describe_value(result)}: it must return (loss, aux)."
        )


def _name_like(inner: Any, function: Callable) -> None:
    inner.__name__ = getattr(function, "__name__", "function")
    inner.__qualname__ = getattr(function, "__qualname__", inner.__name__)
