"""What may not leave a trace: tracers in static content, and objects that came in by closure.

Values leave a trace through JAX. What an object holds besides (functions, configurations, metadata)
is static data, which stays as it is; a tracer in there would be of no use outside. An object that
was captured, not passed, would come out as another one.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.core import Tracer
from jax.tree_util import keystr

from .._jax_compat import TRACE, is_of_current_trace
from ..graph.graphdef import PYTREE, TUPLE, GraphDef
from ..graph.walk import Walk
from ..objects.errors import TraceContextError, describe_value
from ..objects.node import Node
from ..objects.trace_errors import where
from ..objects.variable import Variable, trace_of
from .arguments import slot_places
from .closures import reached
from .errors import place_under

_MANY = 2000  # parts of one static value; beyond, one cannot tell in reasonable time


def check_border(
    function: Callable,
    names: Sequence[str],
    before: tuple[GraphDef, dict[int, int]],
    tree: Any,
    now: Walk,
    captured: bool,
) -> None:
    """Raise if what `now` describes may not leave the trace.

    Args:
        function: the user's.
        names: of the roots that came in.
        before: the GraphDef of what came in, and its objects by id.
        tree: the result, with slots for what is new among the roots of `now`.
        now: the structure that leaves.
        captured: whether objects that the function captured may leave, as copies.
    """
    graphdef, known = before
    function, after = inspect.unwrap(function), now.graphdef
    results = slot_places(tree, lambda path: "result" + keystr(path))
    roots = [*names, *(results[i] for i in range(len(results)))]
    roots += ["an object taken out"] * (len(after.roots) - len(roots))
    for i, obj in enumerate(() if captured else now.objects):
        if id(obj) not in known and is_of_another_trace(obj):
            raise _captured(function, obj, place_under(after.paths.nodes[i], roots))
    old = {id(value) for _, _, value in graphdef.statics()}
    for path, _, value in after.statics():
        if id(value) not in old and (tracer := tracer_in(value, is_of_current_trace)) is not None:
            raise _held(function, place_under(_attribute(after, path), roots), value, tracer)


def is_of_another_trace(obj: Any) -> bool:
    """Whether an object of a graph belongs to another trace than the current one."""
    if isinstance(obj, Variable):
        return trace_of(obj) is not TRACE.value
    return isinstance(obj, Node) and obj._refax_trace is not TRACE.value


def _attribute(graphdef: GraphDef, path: tuple) -> tuple:
    """The path of the attribute or entry that a static belongs to, above tuples around it."""
    kinds = dict(zip(graphdef.paths.nodes, graphdef.records, strict=True))
    while path and kinds.get(path[:-1], (None,))[0] in (TUPLE, PYTREE):
        path = path[:-1]
    return path


def tracer_in(value: Any, counts: Callable[[Any], bool] = lambda tracer: True) -> Any:
    """A tracer (that counts) in a static value, if there is one."""
    pending, seen = [value], set()
    while pending and len(seen) < _MANY:
        value = pending.pop()
        if isinstance(value, Tracer) and counts(value):
            return value
        if id(value) not in seen and not isinstance(value, (Node, Tracer)):
            seen.add(id(value))
            pending.extend(_parts(value))
    return None


def _parts(value: Any) -> Iterator[Any]:
    if not isinstance(value, types.FunctionType):
        yield from reached(value)
        return
    yield from value.__defaults__ or ()
    yield from (value.__kwdefaults__ or {}).values()
    for cell in value.__closure__ or ():
        yield from reached(cell)


def _held(function: Callable, place: str, value: Any, tracer: Any) -> TraceContextError:
    return TraceContextError(
        f"`{place}` holds a tracer ({describe_value(tracer)}) when {where(function)} is left: "
        f"it is static, a {type(value).__name__}, and is not traced; outside, the tracer in it "
        "has no value.\n"
        "Cure: keep the array where it is traced, as data: in an nnx.Variable or an attribute. For "
        "an optimizer, optax.inject_hyperparams(optax.adamw)(learning_rate=…) keeps it in its "
        "state. Or make the object outside of the transform."
    )


def _captured(function: Callable, obj: Any, place: str) -> TraceContextError:
    try:
        variables = inspect.getclosurevars(function)
        names = {**variables.globals, **variables.nonlocals}.items()
    except (TypeError, ValueError):  # no plain function
        names = {}.items()
    name = next((name for name, value in names if value is obj), None)
    return TraceContextError(
        f"`{place}` is {f'`{name}`, ' if name else ''}a {type(obj).__name__} that "
        f"{where(function)} got from the surrounding code, not as an argument: outside it would "
        "be another object, a copy.\n"
        "Cure: pass it as an argument; what is returned is then the object itself. For a copy, "
        "return nnx.clone(object); for its arrays, nnx.state(object)."
    )
