"""`while_loop` and `fori_loop`: everything in the loop's value is carried."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from ..lift.arguments import Slot, is_captured, named_like, put_back
from ..lift.call import CallForm, enter, group_by_prefix, leave, pure_function
from ..lift.errors import PrefixError
from ..lift.faults import execute
from ..lift.inside import Change
from ..lift.places import place_of_leaf
from ..lift.prefix import OutputRules
from ..lift.programs import eager_program
from ..objects.arguments import Count, checked
from ..objects.modes import Switch
from ..objects.statics import static_key
from .bound import Together
from .carry import Carry, check_carry, is_carry
from .scan import input_slots, scan

T = TypeVar("T")


@checked
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

    def loop(carried: _Carried, functions: Sequence[Callable], start: Any, _: None) -> Any:
        body, go_on = functions
        return jax.lax.while_loop(carried.condition(go_on), carried.step(body), start)

    functions = {"body_fun": body_fun, "cond_fun": cond_fun}
    return _run("while_loop", body_fun, functions, init_val, loop)


@checked
def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, T], T],
    init_val: T,
    *,
    unroll: Count | bool | None = None,
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
    bounds = (lower, upper)
    static = isinstance(lower, int) and isinstance(upper, int)
    if static and is_captured():  # what the steps record is stacked
        step = named_like(body_fun, lambda value, i: body_fun(i, value))
        over = scan(step, in_axes=(Carry, 0), out_axes=Carry)
        return over(init_val, jnp.arange(lower, upper))

    def loop(carried: _Carried, functions: Sequence[Callable], start: Any, given: Any) -> Any:
        (body,), (low, high) = functions, given or bounds

        def step(i: Any, carry: Any) -> Any:
            return carried.step(named_like(body, functools.partial(body, i)))(carry)

        return jax.lax.fori_loop(low, high, named_like(body, step), start, unroll=unroll)

    key, given = (static_key(unroll), bounds if static else None), None if static else bounds
    return _run("fori_loop", of_value, {"body_fun": body_fun}, init_val, loop, key, given)


def _run(
    name: str,
    of_value: Callable,
    functions: dict[str, Callable],
    value: Any,
    loop: Callable[[_Carried, Sequence[Callable], Any, Any], Any],
    key: tuple = (),
    given: Any = None,
) -> Any:
    """The loop over a value; `loop(carried, functions, start, given)` is that of JAX.

    Args:
        name: of the loop.
        of_value: a function of the value, for names.
        functions: of the user, by the names of their parameters.
        key: what else the program depends on.
        given: traced arguments of it.
    """
    together = Together(functions)
    call = enter((value,), together.objects)
    rules = group_by_prefix(
        call, of_value, Carry, Carry, "init_val", keywords=Carry, is_leaf=is_carry
    )

    def make(functions: tuple[Callable, ...]) -> Callable:
        form, arranged = call.form(of_value), together.arranged(functions)

        def run(grouped: Any, tree: Any, given: Any) -> Any:
            (value,), objects = tree
            carried = _Carried(name, form, rules, objects)
            grouped, value = loop(carried, arranged, (grouped, value), given)
            # Every leaf is written, nothing else changed.
            slots = [Slot(r) for r in form.graphdef.roots]
            return put_back(value, slots), grouped, Change(form.groups.members, None)

        return run

    key = (name, call.plan.graphdef, tuple(together.names), *key)
    program = eager_program(together.functions, key, make)
    return leave(call, execute(call, of_value, program, call.grouped, call.tree, given))


class _Carried(NamedTuple):
    """What a loop carries, (values by group, value), and what is known of it."""

    loop: str
    form: CallForm
    rules: OutputRules
    objects: dict[str, Slot]  # keyword arguments of the functions

    def step(self, function: Callable) -> Callable:
        """The function as one step of the loop."""
        form, always = self.form, (True,) * len(self.rules.entries)
        pure = pure_function(function, form, always=always, rules=self.rules)

        def step(carry: Any) -> Any:
            grouped, value = carry
            result, out, change = pure(grouped, ((value,), self.objects))
            result = input_slots(result, form.graphdef.roots)
            check_carry(form, self.rules, self.loop, carry, out, result, change)
            return [list(o) for o in out], result

        return named_like(function, step)

    def condition(self, function: Callable) -> Callable:
        """The function, which decides whether to go on and must change nothing."""

        def returned(result: Any, grouped: Any, change: Change) -> Any:
            dirty = [leaf for group in change.dirty for leaf in group]
            if dirty or change.graph is not None:
                place = "an object"
                if dirty:
                    place = place_of_leaf(self.form.graphdef, self.rules.arguments, dirty[0])
                raise PrefixError(
                    f"{self.loop}: cond_fun changes `{place}`, but it only decides whether to go "
                    "on.\nCure: make the change in body_fun."
                )
            return result

        pure = pure_function(function, self.form, returned=returned)
        return lambda carry: pure(carry[0], ((carry[1],), self.objects))
