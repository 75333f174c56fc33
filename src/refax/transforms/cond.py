"""`cond` and `switch`: branches over the same operands that leave them in the same form.

Each branch is traced once, to a jaxpr, which tells what it writes. The conditional is made of the
jaxprs, each returning the union of what any of them writes: a program has one form whatever branch
runs, read-only leaves stay inputs, and the Python of a branch runs once, however deep it is nested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Unpack, overload

import jax

from .._jax_compat import jaxpr_as_fun
from ..graph.graphdef import PYTREE, TUPLE
from ..lift.arguments import is_slot, slot_places
from ..lift.call import CallForm, enter, leave, pure_function
from ..lift.errors import PrefixError, place_under
from ..lift.faults import execute
from ..lift.inside import Change, values_out
from ..lift.places import outline, references, shown, type_of_record
from ..lift.programs import eager_program
from ..objects.modes import Modes, Switch, checked
from ..objects.node import Node
from ..objects.type_names import B, R, Ts
from ..objects.variable import Variable
from .bound import Together

_NO_OPERAND = object()


# fmt: off
@overload
def cond(pred: Any, true_fun: Callable[[*Ts], R], false_fun: Callable[[*Ts], R], *operands: *Ts,
         **modes: Unpack[Modes]) -> R: ...
@overload
def cond(pred: Any, true_fun: Callable[[B], R], false_fun: Callable[[B], R], *, operand: B,
         **modes: Unpack[Modes]) -> R: ...
# fmt: on
@checked
def cond(
    pred: Any,
    true_fun: Callable[..., R],
    false_fun: Callable[..., R],
    *operands: Any,
    operand: Any = _NO_OPERAND,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> R:
    """`jax.lax.cond` with objects in the operands.

    Both branches must leave the objects with the same structure; values may be written by either.

    Args:
        pred: which branch, a boolean scalar.
        true_fun, false_fun: the branches, functions of the operands.
        *operands: any pytrees with objects.
        operand: the only operand, by keyword.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> count = nnx.Variable(jnp.array(0))
        >>> def add(v):
        ...     v += 1
        >>> nnx.cond(True, add, lambda v: None, count)
        >>> int(count)
        1
    """
    branches = {"true_fun": true_fun, "false_fun": false_fun}

    def choose(pred: Any, branches: Sequence[Callable], *inputs: Any) -> Any:
        return jax.lax.cond(pred, *branches, *inputs)

    return _branch("cond", choose, pred, branches, operands, operand)


# fmt: off
@overload
def switch(index: Any, branches: Sequence[Callable[[*Ts], R]], *operands: *Ts,
           **modes: Unpack[Modes]) -> R: ...
@overload
def switch(index: Any, branches: Sequence[Callable[[B], R]], *, operand: B,
           **modes: Unpack[Modes]) -> R: ...
@overload  # where a checker sees of a list of objects what they have in common only
def switch(index: Any, branches: Sequence[Node], *operands: Any, operand: Any = ...,
           **modes: Unpack[Modes]) -> Any: ...
# fmt: on
@checked
def switch(  # type: ignore[misc]
    index: Any,
    branches: Sequence[Callable[..., R]],
    *operands: Any,
    operand: Any = _NO_OPERAND,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> R:
    """`jax.lax.switch` with objects in the operands; `index` is clamped to the branches.

    All branches must leave the objects with the same structure; `operand` as in `nnx.cond`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> v = nnx.Variable(jnp.array(3))
        >>> int(nnx.switch(1, [lambda v: v + 1, lambda v: v * 2], v))
        6
    """
    if not branches:
        raise ValueError("switch: there are no branches.\nCure: give at least one function.")

    named = {f"branches[{i}]": branch for i, branch in enumerate(branches)}
    return _branch("switch", jax.lax.switch, index, named, operands, operand)


def _branch(
    name: str,
    choose: Callable,
    selector: Any,
    branches: Mapping[str, Callable],
    operands: tuple,
    operand: Any,
) -> Any:
    """`choose(selector, branches, *inputs)` of functions of the operands."""
    together, first = Together(branches), next(iter(branches.values()))
    operands = operands if operand is _NO_OPERAND else (*operands, operand)
    call = enter(operands, together.objects)

    def make(functions: tuple[Callable, ...]) -> Callable:
        form, given = call.form(first), together.arranged(functions)

        def run(grouped: Any, tree: Any, selector: Any) -> Any:
            pures = [pure_function(f, form, explicit=True) for f in given]
            traced = [jax.make_jaxpr(f, return_shape=True)(grouped, tree) for f in pures]
            looks = [Look(*out) for _, out in traced]
            written = sorted(check_structures(name, form, given, looks))
            parts = [_of_jaxpr(jaxpr, out, written) for jaxpr, out in traced]
            try:
                result, out = choose(selector, parts, grouped, tree)
            except TypeError:
                check_values(name, form, given, looks)
                raise
            graph = looks[0].change.graph
            dirty = (tuple(written),) if graph is None else ()
            return result, out, Change(dirty, graph)

        return run

    selector = selector.value if isinstance(selector, Variable) else selector
    key = (name, call.plan.graphdef, tuple(together.names))
    program = eager_program(together.functions, key, make)
    return leave(call, execute(call, first, program, call.grouped, call.tree, selector))


def _of_jaxpr(jaxpr: Any, out: Any, written: Sequence[int]) -> Callable:
    """A traced branch, as a function of its inputs that gives out all that is written."""
    structure = jax.tree.structure(out)
    function = jaxpr_as_fun(jaxpr)

    def branch(grouped: Any, tree: Any) -> Any:
        outputs = function(*jax.tree.leaves((grouped, tree)))
        result, groups, change = structure.unflatten(outputs)
        if change.graph is None:
            (before,), (changed,), (leaves,) = grouped, groups, change.dirty
            of_leaf = dict(zip(leaves, changed, strict=True))
            groups = [[of_leaf.get(leaf, before[leaf]) for leaf in written]]
        return result, groups

    return branch


# -- What branches leave differently, in the caller's words: attributes, objects, values ----------


class Look(NamedTuple):
    """What one branch leaves, seen abstractly."""

    result: Any  # with slots
    grouped: Sequence[Sequence[Any]]
    change: Change


def check_structures(
    name: str,
    form: CallForm,
    branches: Sequence[Callable],
    looks: Sequence[Look],
    called: str = "the branches",
) -> frozenset[int]:
    """The leaves that any branch writes; raises if the branches leave different structures."""
    for look, branch in zip(looks[1:], branches[1:], strict=True):
        if look.change.graph != looks[0].change.graph:
            found = _difference(form, (branches[0], branch), (looks[0], look), _structure)
            raise PrefixError(
                f"{name}: {called} leave different structures.\n"
                f"{found or 'They refer to different objects in the same places.'}\n"
                "Cure: make the same attributes, of the same objects, in all of them, or before "
                "the call."
            )
    return frozenset(leaf for look in looks for group in look.change.dirty for leaf in group)


def check_values(
    name: str, form: CallForm, branches: Sequence[Callable], looks: Sequence[Look]
) -> None:
    """Raise if the results of two branches, or the values that they write, differ in form."""
    for look, branch in zip(looks[1:], branches[1:], strict=True):
        found = _difference(form, (branches[0], branch), (looks[0], look), _values)
        if found:
            raise PrefixError(
                f"{name}: the branches leave different values.\n{found}\n"
                "Cure: give them the same containers, shapes and dtypes in every branch."
            ) from None


def _difference(
    form: CallForm,
    branches: Sequence[Callable],
    looks: Sequence[Look],
    describe: Callable[[CallForm, Look], dict[str, str]],
) -> str:
    names = [f"`{getattr(f, '__name__', f)}`" for f in branches]
    if names[0] == names[1]:
        names = ["the first branch", "the other"]
    left, right = (describe(form, look) for look in looks)
    different = [
        p for p in [*left, *right] if left.get(p) != right.get(p) and not p.startswith(_LOST)
    ]
    if not different:
        return ""
    place = min(different, key=lambda p: (len(p), p))
    a, b = (lines.get(place, "nothing") for lines in (left, right))
    return f"`{place}` is {a} after {names[0]}, but {b} after {names[1]}."


def _structure(form: CallForm, look: Look) -> dict[str, str]:
    """{place: type, static value, or the place of the object that stands there}."""
    before, inputs, graph = form.graphdef, list(form.places), look.change.graph
    came_in = [place_under(path, inputs) for path in before.paths.nodes]
    graphdef = before if graph is None else graph.graphdef
    origins = range(len(before.records)) if graph is None else graph.origins
    roots = inputs + _result_places(look, graphdef.roots[len(inputs) :])
    lines = {place: fact.text for place, fact in outline(graphdef, roots).items()}
    for place, number in [*references(graphdef, roots), *_result_slots(look.result)]:
        origin, record = origins[number], graphdef.records[number]
        if origin is not None:
            known = came_in[origin]
            lines[place] = type_of_record(record) if place == known else f"`{known}`"
        elif record[0] not in (TUPLE, PYTREE):
            lines[place] = f"a new {type_of_record(record)}"
    return lines


_LOST = "<lost>"  # the place of input objects that nothing refers to any more


def _result_slots(result: Any) -> Iterator[tuple[str, int]]:
    """(place, record) of every object in a result."""
    for path, x in jax.tree_util.tree_leaves_with_path(result, is_leaf=is_slot):
        if is_slot(x):
            yield "result" + jax.tree_util.keystr(path), x.number


def _result_places(look: Look, records: Sequence[int]) -> list[str]:
    """The places of the objects of a result that are roots."""
    places = slot_places(look.result, lambda path: "result" + jax.tree_util.keystr(path))
    return [places.get(r, _LOST) for r in records]


def _values(form: CallForm, look: Look) -> dict[str, str]:
    """{place: form} of the result, as a whole and each array of it, and of every leaf."""
    graphdef, inputs, graph = form.graphdef, list(form.places), look.change.graph
    containers = jax.tree.map(lambda _: 0, look.result, is_leaf=is_slot)
    lines = {"result": shown(look.result)} if containers != 0 else {}
    for path, x in jax.tree_util.tree_leaves_with_path(look.result, is_leaf=is_slot):
        lines["result" + jax.tree_util.keystr(path)] = shown(x)
    if graph is None:
        after, written = graphdef, values_out(look.change, graphdef, look.grouped)
        values = {i: written.get(i, old) for i, old in enumerate(form.types)}
    else:  # all explicit
        after = graph.graphdef
        values = {i: look.grouped[group][j] for i, (group, j) in enumerate(graph.sources)}
    roots = inputs + _result_places(look, after.roots[len(inputs) :])
    for leaf, path in enumerate(after.paths.leaves):
        lines[place_under(path, roots)] = shown(values[leaf])
    return lines
