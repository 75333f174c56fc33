"""`find_nonfinite`: the Module, method and operation that made the first NaN or infinity."""

from __future__ import annotations

import contextlib
import inspect
import linecache
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ..lift.arguments import is_object, unbind
from ..lift.call import Call, occurrences_in, root_places
from ..lift.closures import closed_over
from ..lift.places import inputs_of, outputs_of
from ..objects.arguments import checked
from ..objects.errors import path_string
from ..objects.modes import use_scopes
from ..objects.representation import as_html, shortened, wrapped
from ..objects.variable import Variable, raw
from ..objects.watch import is_array
from ..transforms.bound import enter_unbound
from ..verbs.iteration import iter_graph
from ..verbs.pytree import Pytree
from ..verbs.scopes import Running, watching
from .hooks import methods_of
from .interpreter import Cause, Interpreter, Operation, Range, innermost


class NonfiniteReport(NamedTuple):
    """What `nnx.find_nonfinite` found; false if everything is finite. `print` it.

    Args:
        kind: `nan` or `inf`; empty if nothing was found.
        path: of the Module that the operation belongs to, or the place of an input.
        method: the Module's method that made the operation, such as `Norm.__call__`.
        operation: its name in JAX, such as `log`; empty for an input.
        source: the line that made it, `file.py:12`.
        phase: `forward`, or `backward` in a gradient.
        loops: the loops that it is in, each with its step.
        inputs, outputs: what went into the operation and came out of it; of an input, what it is.
        becomes: of an infinity, the report of the operation that made a NaN of it.
        results: which results and which written Variables are not finite.
        count: how many operations ran.
    """

    kind: str = ""
    path: str = ""
    method: str = ""
    operation: str = ""
    source: str = ""
    phase: str = ""
    loops: tuple[tuple[str, int], ...] = ()
    inputs: tuple[Range, ...] = ()
    outputs: tuple[Range, ...] = ()
    becomes: NonfiniteReport | None = None
    results: tuple[str, ...] = ()
    count: int = 0

    def __bool__(self) -> bool:
        return bool(self.kind)

    def __repr__(self) -> str:
        if not self:
            return f"All is finite: the inputs, and {self.count:,} operations."
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        name = {"nan": "NaN", "inf": "Infinity"}[self.kind]
        if self.operation:
            yield f"{name} out of `{self.operation}`, {self.phase}"
        else:
            yield f"{name} in an input"
        yield from self._at()
        if self.becomes is not None:
            yield f"  becomes NaN in `{self.becomes.operation}`, {self.becomes.phase}"
            yield from (f"  {line}" for line in self.becomes._at())
        if self.results:
            more = f" and {len(self.results) - 3} more" if len(self.results) > 3 else ""
            places = ", ".join(shortened(place, 50) for place in self.results[:3])
            yield wrapped(f"  reaches: {places}{more}", indent="    ")
        else:
            yield "  does not reach the results, which are finite"

    def _at(self) -> Iterator[str]:
        if self.path:
            path = shortened(self.path, 72 - len(self.method))
            yield f"  of {path}, {self.method}" if self.method else f"  of {path}"
        if self.source:
            file, _, line = self.source.rpartition(":")
            code = linecache.getline(file, int(line)).strip()
            text = f"  at {Path(file).name}:{line}: {code}"
            yield text if len(text) <= 78 else f"{text[:77]}…"  # it may be indented
        for loop, step in self.loops:
            yield f"  in step {step} of a {loop}"
        for name, ranges in (("in ", self.inputs), ("out", self.outputs)):
            yield from (f"  {name} {range}" for range in ranges)

    def _repr_html_(self) -> str:
        return as_html(repr(self))


@checked
def find_nonfinite(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> NonfiniteReport:
    """Run `f(*args, **kwargs)` once, and name what first made a NaN or an infinity.

    `f` is traced and run operation by operation, also inside of `nnx.jit`, `jax.jit`, `grad`,
    `remat`, `cond`, `shard_map` and loops, each step of a loop by itself (a loop in a `shard_map`
    is one operation). The
    objects stay as they are: of a train step, the update is looked at and dropped.

    A NaN is reported wherever it is made, and wherever an input has one. An infinity is reported if
    arithmetic made it of finite numbers (an overflow, a division by zero) and it comes to a NaN or
    to a result; one that is written down or filled in, as in a mask of `-inf`, if it comes to a
    NaN, or into a Variable.

    Args:
        f: a function, a Module, a method, a gradient, a train step; one that can be traced. Arrays
            and objects among its arguments are traced, all else is static.

    Returns:
        A report, false if all is finite.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> class Log(nnx.Module):
        ...     def __call__(self, x):
        ...         return jnp.log(x)
        >>> class Model(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.first, self.log = nnx.Linear(2, 3, rngs=rngs), Log()
        ...
        ...     def __call__(self, x):
        ...         return self.log(self.first(x))
        >>> report = nnx.find_nonfinite(lambda model, x: model(x), Model(nnx.Rngs(0)), jnp.ones(2))
        >>> report.kind, report.operation, report.path
        ('nan', 'log', 'model.log')
        >>> nnx.find_nonfinite(jnp.exp, jnp.ones(2))
        All is finite: the inputs, and 1 operations.
    """
    function, _ = unbind(f)
    static = [i for i, x in enumerate(args) if not _is_traced(x)]
    named = [name for name, x in kwargs.items() if not _is_traced(x)]
    call, pure = enter_unbound(f, args, kwargs, static, named, captured=True)
    names = _names(call, function)

    def note(running: Running, *_: Any) -> None:
        names[running.whole_name] = f"{type(running.module).__name__}.{running.method}"

    with watching(note), use_scopes(True):
        program, shapes = jax.make_jaxpr(pure, return_shape=True)(call.grouped, call.tree)
    run = Interpreter(_constants(function))
    with jax.debug_nans(False), jax.debug_infs(False):
        given = [(place, jax.tree.leaves(value)) for place, value in inputs_of(call, function)]
        inputs = [run.given(x, place) for place, arrays in given for x in arrays]
        outputs = run.run(program, inputs)
        found = list(_not_finite(call, function, shapes, outputs))
    written = [(p, c) for p, c, is_written in found if is_written or c.kind != "fill"]
    causes = [c for _, c in written]
    cause = min(causes, key=lambda c: c.order) if causes else run.first_nan
    if cause is None:
        return NonfiniteReport(count=run.count)
    report = _report(cause.operation, "inf" if cause.kind == "fill" else cause.kind, names)
    if cause.range is not None:
        report = report._replace(path=cause.place, inputs=(cause.range,))
    then = None if cause.then is None else _report(cause.then, "nan", names)
    return report._replace(becomes=then, results=tuple(p for p, _ in written), count=run.count)


def _constants(function: Callable) -> dict[int, str]:
    """By id of each array that a function reads from its surroundings, what it is called."""
    names: dict[int, str] = {}
    try:
        around = inspect.getclosurevars(inspect.unwrap(function))
    except TypeError:  # a partial or the like
        around = None
    found = {} if around is None else {**around.globals, **around.nonlocals}
    for name, value in found.items():
        with contextlib.suppress(Exception):  # a container that JAX cannot go into
            for path, x in jax.tree_util.tree_leaves_with_path(value, is_leaf=is_object):
                x = raw(x) if isinstance(x, Variable) else x
                names[id(x)] = name + jax.tree_util.keystr(path)
    for obj in closed_over(function):
        for path, x in iter_graph(obj) if is_object(obj) else ():
            for leaf in jax.tree.leaves(raw(x)) if isinstance(x, Variable) or is_array(x) else ():
                names.setdefault(id(leaf), path_string(path, type(obj).__name__))
    return names


def _names(call: Call, function: Callable) -> dict[str, str]:
    """The method that each scope stands for, as far as the arguments tell: `Norm.__call__`.

    The trace tells it too, but not of what `jit` has traced before.
    """
    names = {}
    for label, root in zip(root_places(call.tree, function), call.roots, strict=True):
        for path, node in iter_graph(root):
            for method in methods_of(type(node)) if isinstance(node, Pytree) else ():
                keys = (label, *path) if method == "__call__" else (label, *path, method)
                names[".".join(map(str, keys))] = f"{type(node).__name__}.{method}"
    return names


def _report(operation: Operation | None, kind: str, names: dict[str, str]) -> NonfiniteReport:
    if operation is None:
        return NonfiniteReport(kind)
    scope = innermost(operation.scopes, lambda name: name.replace("[*]", "") in names)
    method = names.get(scope.replace("[*]", ""), "")
    path = scope if method.endswith("__") or not method else scope.rpartition(".")[0]
    phase = "backward" if "transpose(" in operation.scopes else "forward"
    source = f"{operation.file}:{operation.line}" if operation.file else ""
    called = operation.name, source, phase, operation.loops
    return NonfiniteReport(kind, path, method, *called, operation.inputs, operation.outputs)


def _is_traced(argument: Any) -> bool:
    leaves = jax.tree.leaves(argument, is_leaf=is_object)
    return all(is_array(x) or is_object(x) for x in leaves)


def _not_finite(
    call: Call, function: Callable, shapes: Any, outputs: list[tuple[Any, Cause | None]]
) -> Iterator[tuple[str, Cause, bool]]:
    """(place, cause, whether a Variable was written) of each output that is not finite."""
    occurring = occurrences_in(call, function, None, "")
    places = outputs_of(call.graphdef, occurring, shapes)
    for (place, kind), (_, cause) in zip(places, outputs, strict=True):
        if cause is not None:
            yield place, cause, kind not in ("", "Intermediate", "Perturbation")
