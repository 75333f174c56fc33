"""Which methods of Modules a call of a model calls, with which shapes: one abstract trace.

The Modules inside the trace get hooks, each of which knows the path of its Module, so that they are
also met inside scan, vmap, jit, remat and cond. What such a transform traces twice is recorded
twice; calls that look alike are one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ..graph.rebuild import rebuild
from ..lift.arguments import is_object
from ..objects.variable import Variable, make_variable
from ..objects.watch import is_array
from ..transforms.eval_shape import eval_shape
from ..verbs.layouts import leaves_of
from ..verbs.module import Module
from .hooks import Hook, hooked, methods_of, modules_of, remove_hooks


@dataclass(eq=False)
class Call:
    """One call of a method, with a `jax.ShapeDtypeStruct` in the place of every array."""

    path: tuple
    type: str
    method: str
    args: tuple
    kwargs: dict[str, Any]
    outputs: Any = None
    module: Any = None  # an abstract copy, without hooks, where asked for


class _Recorder:
    def __init__(self, keep_modules: bool):
        self.calls: list[Call] = []
        self.keep_modules = keep_modules
        self._open: list[Call] = []

    def before(self, path: tuple, method: str, module: Module, args: tuple, kwargs: dict) -> None:
        call = Call(path, type(module).__name__, method, *abstract((args, kwargs)))
        if self.keep_modules:
            call.module = abstract(module)
            remove_hooks(call.module)
        self.calls.append(call)
        self._open.append(call)

    def after(self, method: str, module: Module, args: tuple, kwargs: dict, output: Any) -> None:
        self._open.pop().outputs = abstract(output)

    def hooks(self, path: tuple) -> list[Hook]:
        return [
            Hook(functools.partial(self.before, path), before=True, method=...),
            Hook(self.after, before=False, method=...),
        ]


def abstract(tree: Any) -> Any:
    """A copy of `tree` with a `jax.ShapeDtypeStruct` in the place of every array."""

    def of_leaf(x: Any) -> Any:
        if isinstance(x, Variable):
            return make_variable(type(x), abstract(x._value), x._metadata)
        if is_object(x):
            graphdef, leaves = leaves_of(x)
            return rebuild(graphdef, [of_leaf(leaf) for leaf in leaves])[0]
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if is_array(x) else x

    return jax.tree.map(of_leaf, tree, is_leaf=is_object)


def traceable(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays and objects of `tree`, and the function that puts others in their places.

    What is left, such as a string or a Python number, stays as it is: it is not traced.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_object)
    places = [i for i, x in enumerate(leaves) if is_array(x) or is_object(x)]

    def put(values: list[Any]) -> Any:
        filled = dict(enumerate(leaves)) | dict(zip(places, values, strict=True))
        return treedef.unflatten(filled.values())

    return [leaves[i] for i in places], put


def trace_calls(
    model: Module, method: str, args: tuple, kwargs: dict[str, Any], *, keep_modules: bool = False
) -> list[Call]:
    """The calls below `model.<method>(*args, **kwargs)`, that one first; `model` stays as it is."""
    recorder = _Recorder(keep_modules)
    values, put = traceable((args, kwargs))

    def run(model: Any, values: list[Any]) -> None:
        args, kwargs = put(values)
        modules = modules_of(model)
        with hooked((m, hook) for path, m in modules for hook in recorder.hooks(path)):
            has_hooks = method in methods_of(type(model).__base__ or type(model))
            if not has_hooks:  # a private method
                recorder.before((), method, model, args, kwargs)
            output = getattr(model, method)(*args, **kwargs)
            if not has_hooks:
                recorder.after(method, model, args, kwargs, output)

    eval_shape(run, model, values)
    distinct: dict[Any, Call] = {}
    for call in recorder.calls:
        looks = map(describe, (call.args, call.kwargs, call.outputs))
        distinct.setdefault((call.path, call.method, *looks), call)
    return list(distinct.values())


def describe(value: Any) -> str:
    """A value by its dtypes and shapes: `{'x': float32[2,3]}`."""
    if isinstance(value, Variable):
        return describe(value._value)
    if is_object(value):
        return type(value).__name__
    if is_array(value):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {describe(x)}" for k, x in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        brackets = "[]" if isinstance(value, list) else "()"
        return brackets[0] + ", ".join(map(describe, value)) + brackets[1]
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
