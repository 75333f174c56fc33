"""What may not leave a trace: tracers in static content, and objects that came in by closure.

Values leave a trace through JAX. What an object holds besides (functions, configurations, metadata)
is static data, which stays as it is; a tracer in there would be of no use outside. An object that
was captured, not passed, would come out as another one.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jax.core import Tracer
from jax.tree_util import keystr

from .._jax_compat import TRACE, is_of_current_trace, is_top
from ..graph.graphdef import PYTREE, TUPLE, GraphDef
from ..graph.state import State
from ..graph.walk import Walk
from ..objects.errors import TraceContextError, describe_value, path_string
from ..objects.node import Node
from ..objects.trace_errors import where
from ..objects.variable import Variable, raw, trace_of
from ..objects.watch import is_array
from ..verbs.iteration import iter_graph
from .arguments import slot_places
from .closures import PLAIN, closed_over, content, held_by, reached
from .errors import place_under

_CONTAINERS = (list, dict, set, deque)
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
            # What is made under `jax.ensure_compile_time_eval` has no trace either.
            if not is_top(_home(obj)) or id(obj) in map(id, _below(_captured_by(function))):
                raise _captured(function, obj, place_under(after.paths.nodes[i], roots))
    old = {id(value) for _, _, value in graphdef.statics()}
    for path, _, value in after.statics():
        if id(value) not in old and (tracer := tracer_in(value, is_of_current_trace)) is not None:
            raise _held(function, place_under(_attribute(after, path), roots), value, tracer)


def is_of_another_trace(obj: Any) -> bool:
    """Whether an object of a graph belongs to another trace than the current one."""
    return _home(obj) not in (None, TRACE.value)


@contextlib.contextmanager
def containers_kept(function: Callable) -> Iterator[None]:
    """Raise if the block leaves something of this trace in containers that `function` captured.

    Lists and dicts have no hook that could refuse a write, nor has `vars(obj)`, which a
    `functools.cached_property` writes to. They are put back as they were.
    """
    function = inspect.unwrap(function)
    captured = _captured_by(function)
    kept: list[tuple[Any, Any]] = [
        (x, copy.copy(x)) for x in _below(captured) if isinstance(x, _CONTAINERS)
    ]
    left = None
    try:
        yield
    finally:
        for container, before in kept:
            old = set(map(id, _items(before)))
            if any(id(x) not in old and _is_of_this_trace(x) for x in _items(container)):
                left = left or _left(function, captured, container)
                container.clear()
                (container.extend if hasattr(container, "extend") else container.update)(before)
    if left is not None:
        raise left


def _items(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _captured_by(function: Callable) -> list[Any]:
    return [x for x in closed_over(function) if isinstance(x, (Node, Variable, State))]


def _below(objects: Sequence[Any]) -> list[Any]:
    """The objects and everything in them, through containers; some of it several times."""
    seen, found = set(), list(objects)
    for value in found:  # which grows
        if isinstance(value, Variable) and is_array(value._value) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Node):
            found.append(vars(value))
        elif isinstance(value, (Variable, State)):
            found.append(value._value if isinstance(value, Variable) else value._tree)
        elif isinstance(value, (tuple, *_CONTAINERS)):
            found += [x for x in _items(value) if type(x) not in PLAIN]
    return found


def _home(value: Any) -> Any:
    """The trace that an object belongs to; None for what belongs to none."""
    return trace_of(value) if isinstance(value, Variable) else getattr(value, "_refax_trace", None)


def _is_of_this_trace(value: Any) -> bool:
    """Whether it was made in the trace that runs, or holds a tracer of it."""
    return _home(value) is TRACE.value or tracer_in(value, is_of_current_trace) is not None


def _left(function: Callable, captured: list[Any], container: Any) -> TraceContextError:
    found = ((p, vars(x) if isinstance(x, Node) else raw(x)) for p, x in iter_graph(captured))
    path = next((p for p, x in found if getattr(x, "_tree", x) is container), (0,))
    owner, kind = captured[path[0]], f"a {type(container).__name__}"
    if any(isinstance(x, Node) and vars(x) is container for x in _below(captured)):
        kind = "an attribute"
        path += tuple(name for name, x in container.items() if _is_of_this_trace(x))[:1]
    place = path_string(path[1:], type(owner).__name__)
    return TraceContextError(
        f"{where(function)} leaves a value of its trace in `{place}`, {kind} of an object that it "
        "got from the surrounding code, not as an argument: outside, the value is a tracer that "
        "stands for nothing. What held it is as it was before.\n"
        "Cure: pass the object as an argument; what is put into it then comes back."
    )


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
            # Of a function of a library too: an optimizer of optax is one.
            is_function = isinstance(value, types.FunctionType)
            pending.extend(held_by(value) if is_function else reached(value))
    return None


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
    known = dict(getattr(function, "__globals__", {}))
    if isinstance(function, types.FunctionType):
        known.update(zip(function.__code__.co_freevars, map(content, function.__closure__ or ())))
    name = next((name for name, value in known.items() if value is obj), None)
    return TraceContextError(
        f"`{place}` is {f'`{name}`, ' if name else ''}a {type(obj).__name__} that "
        f"{where(function)} got from the surrounding code, not as an argument: outside it would "
        "be another object, a copy.\n"
        "Cure: pass it as an argument; what is returned is then the object itself. For a copy, "
        "return nnx.clone(object); for its arrays, nnx.state(object)."
    )
