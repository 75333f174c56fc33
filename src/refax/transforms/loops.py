"""`while_loop` and `fori_loop`: everything in the loop's value is carried."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ..lift.arguments import Slot, named_like, put_back
from ..lift.call import Call, CallForm, enter, group_by_prefix, leave, pure_function
from ..lift.errors import PrefixError
from ..lift.faults import execute
from ..lift.inside import Change
from ..lift.places import place_of_leaf
from ..lift.prefix import OutputRules
from ..lift.programs import eager_program
from ..objects.modes import Switch
from ..objects.statics import static_key
from .bound import Together
from .carry import Carry, check_carry, is_carry
from .scan import input_slots

T = TypeVar("T")


def while_loop(
    cond_fun: Callable[[T], Any],
    body_fun: Callable[[T], T],
    init_val: T,
    *,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> T:
    """`jax.lax.while_loop` with objects in the value.

    Args:
        cond_fun: value → bool; it must not change the objects.
        body_fun: value → value of the same form; the objects in it are the same ones.
        init_val: any pytree with objects.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> count = nnx.Variable(jnp.array(0))
        >>> def body(v):
        ...     v += 2
        ...     return v
        >>> nnx.while_loop(lambda v: v < 5, body, count) is count, int(count)
        (True, 6)
    """
    together = Together({"body_fun": body_fun, "cond_fun": cond_fun})
    call, rules = _enter(body_fun, init_val, together)

    def make(functions: tuple[Callable, ...]) -> Callable:
        form, (body, go_on) = call.form(body_fun), together.arranged(functions)
        cond = pure_function(go_on, form, returned=_only_result(form, rules))

        def run(grouped: Any, tree: Any) -> Any:
            (value,), objects = tree
            step = _step(body, form, rules, "while_loop", objects)
            grouped, value = jax.lax.while_loop(
                lambda carry: cond(carry[0], ((carry[1],), objects)), step, (grouped, value)
            )
            return _result(form, grouped, value)

        return run

    key = ("while_loop", call.plan.graphdef, tuple(together.names))
    program = eager_program(together.functions, key, make)
    return leave(call, execute(call, body_fun, program, call.grouped, call.tree))


def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, T], T],
    init_val: T,
    *,
    unroll: int | bool | None = None,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> T:
    """`jax.lax.fori_loop` with objects in the value.

    Args:
        lower, upper: the bounds of the index, ints or integer scalars.
        body_fun: (index, value) → value of the same form.
        init_val: any pytree with objects.
        unroll: as in `jax.lax.fori_loop`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> total = nnx.Variable(jnp.array(0))
        >>> def body(i, v):
        ...     v += i
        ...     return v
        >>> int(nnx.fori_loop(0, 5, body, total))
        10
    """
    # For names: without the index.
    of_value = named_like(body_fun, functools.partial(body_fun, 0))
    together = Together({"body_fun": body_fun})
    call, rules = _enter(of_value, init_val, together)
    static_bounds = isinstance(lower, int) and isinstance(upper, int)
    bounds = (lower, upper)

    def make(functions: tuple[Callable, ...]) -> Callable:
        form, (body,) = call.form(of_value), together.arranged(functions)

        def run(grouped: Any, tree_and_bounds: Any) -> Any:
            ((value,), objects), given = tree_and_bounds
            low, high = bounds if static_bounds else given

            def step(i: Any, carry: Any) -> Any:
                of_value = named_like(body, lambda v, **objects: body(i, v, **objects))
                return _step(of_value, form, rules, "fori_loop", objects)(carry)

            step = named_like(body, step)
            grouped, value = jax.lax.fori_loop(low, high, step, (grouped, value), unroll=unroll)
            return _result(form, grouped, value)

        return run

    key = ("fori_loop", call.plan.graphdef, bounds if static_bounds else None, static_key(unroll),
           tuple(together.names))  # fmt: skip
    given = None if static_bounds else bounds
    program = eager_program(together.functions, key, make)
    return leave(call, execute(call, of_value, program, call.grouped, (call.tree, given)))


def _enter(function: Callable, value: Any, together: Together) -> tuple[Call, OutputRules]:
    call = enter((value,), together.objects)
    rules = group_by_prefix(
        call, function, Carry, Carry, "init_val", keywords=Carry, is_leaf=is_carry
    )
    return call, rules


def _only_result(form: CallForm, rules: OutputRules) -> Callable[..., Any]:
    """What the condition returns, after a check that it changed nothing."""

    def returned(result: Any, grouped: Any, change: Change) -> Any:
        dirty = [leaf for group in change.dirty for leaf in group]
        if dirty or change.graph is not None:
            place = "an object"
            if dirty:
                place = place_of_leaf(form.graphdef, rules.arguments, dirty[0])
            raise PrefixError(
                f"while_loop: cond_fun changes `{place}`, but it only decides whether to go on.\n"
                "Cure: make the change in body_fun."
            )
        return result

    return returned


def _step(
    function: Callable, form: CallForm, rules: OutputRules, loop: str, objects: Any
) -> Callable:
    """(values by group, value) → the same, one step on; `objects`: slots of keyword arguments."""
    always = (True,) * len(rules.entries)
    pure = pure_function(function, form, always=always, rules=rules)

    def step(carry: Any) -> Any:
        grouped, value = carry
        result, out, change = pure(grouped, ((value,), objects))
        result = input_slots(result, form.graphdef.roots)
        before = (grouped, value, jax.tree.leaves(value))
        check_carry(form, rules, loop, before, out, result, change)
        return [list(o) for o in out], result

    return named_like(function, step)


def _result(form: CallForm, grouped: Any, value: Any) -> Any:
    """What `leave` takes: every leaf is written, nothing else changed."""
    slots = [Slot(r) for r in form.graphdef.roots]
    return put_back(value, slots), grouped, Change(form.groups.members, None)
