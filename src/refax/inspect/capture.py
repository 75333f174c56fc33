"""`capture`: run a model, or a function of one, and get what it sowed on the way, by path."""

from __future__ import annotations

import functools
from typing import Any

import jax

from ..graph.filters import Filter
from ..graph.state import State, iter_leaves, nest, state_over
from ..lift.arguments import take_apart, unbind
from ..objects.variable import Variable, make_variable
from ..objects.variable_types import Intermediate, Perturbation
from ..objects.watch import is_array
from ..verbs.iteration import iter_graph
from ..verbs.module import Module
from ..verbs.popping import sown_attribute, sown_path
from ..verbs.pytree import Pytree
from .hooks import Hook, callable_modules, hooked

_Cell = tuple[tuple, Any, str, Variable]  # (path, the object, the name in it, what stands there)


def capture(
    fn: Any,
    *var_types: type[Variable],
    init: State | None = None,
    method_outputs: type[Variable] | None = None,
    filter: Filter = ...,
) -> Any:
    """Wrap a Module, a method or a function of Modules to return (result, state, …).

    Each State has, by path, the Variables of exactly one type that `sow` and `perturb` made during
    the call. They do not stay on the Modules, nor do other Intermediates of the call, and what was
    sown before is put aside for it; so Modules are afterwards as they were. Works inside and around
    every transform that `sow` works under. `@nnx.capture(nnx.Intermediate)` decorates.

    Args:
        fn: what to call. The Modules are its arguments, or what it is or is a method of.
        *var_types: the types to collect, a State each; by default `method_outputs`, else
            `nnx.Intermediate`.
        init: Variables to begin with, by path: perturbations, to differentiate with respect to.
        method_outputs: sow the output of each `__call__` of a Module, as this type, under the name
            `__call__`; no change to the Modules' code is needed. Outputs that are not made of
            arrays are left out.
        filter: of which Modules `method_outputs` are sown: a type, `nnx.PathContains`, a function
            (path, module) → bool ….

    Raises:
        ValueError: no Module to capture from; a path of `init` that no Module has; two objects
            that sow under the same path.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> y, state = nnx.capture(model, method_outputs=nnx.Intermediate, filter=nnx.Linear)(
        ...     jnp.ones(2)
        ... )
        >>> state["layers"][0]["__call__"].value[0].shape
        (3,)
    """
    if isinstance(fn, type) and issubclass(fn, Variable):
        options = {"init": init, "method_outputs": method_outputs, "filter": filter}
        return lambda function: capture(function, fn, *var_types, **options)
    types = var_types or (method_outputs or Intermediate,)
    function: Any = fn

    @functools.wraps(type(function).__call__ if isinstance(fn, Module) else function, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        roots: list[Any] = []
        take_apart((unbind(function)[1], args, kwargs), roots, {})
        if not any(isinstance(root, Pytree) for root in roots):
            name = getattr(fn, "__qualname__", type(fn).__name__)
            raise ValueError(
                f"nnx.capture: no Module among the arguments of `{name}`.\n"
                "Cure: pass the model as an argument, or capture the model itself."
            )
        before = [cell for cell in _cells(roots) if isinstance(cell[3], Intermediate)]
        for _, module, name, _ in before:
            delattr(module, name)
        known = {id(v): v for root in roots for _, v in iter_graph(root) if isinstance(v, Variable)}
        taken: list[_Cell] = []
        try:
            _begin_with(init, roots)
            with hooked(_output_hooks(roots, method_outputs, filter)):
                result = function(*args, **kwargs)
        finally:
            for cell in _cells(roots):
                is_sown = isinstance(cell[3], (Intermediate, *types))
                if is_sown and id(cell[3]) not in known:
                    taken.append(cell)
                    delattr(cell[1], cell[2])
            for _, module, name, variable in before:
                setattr(module, name, variable)
        return result, *(_state_of(taken, kind) for kind in types)

    return wrapped


def _cells(roots: list[Any]) -> list[_Cell]:
    """The Variables that are attributes of an object, each object by its path in the first root."""
    visited = [pair for root in reversed(roots) for pair in iter_graph(root)]
    nodes = {id(node): (path, node) for path, node in visited if isinstance(node, Pytree)}
    return [
        ((*path, name), node, name, value)
        for path, node in nodes.values()
        for name, value in vars(node).items()
        if isinstance(value, Variable)
    ]


def _begin_with(init: State | None, roots: list[Any]) -> None:
    if init is None:
        return
    modules = {p: n for r in roots for p, n in iter_graph(r) if isinstance(n, Pytree)}
    for path, leaf in iter_leaves(init):
        module = modules.get(path[:-1])
        if module is None:
            raise ValueError(
                f"nnx.capture: `init` has the path {path}, but no Module is at {path[:-1]}.\n"
                "Cure: give a State that nnx.capture returned for the same model."
            )
        if isinstance(leaf, Variable):
            cell = make_variable(type(leaf), leaf._value, leaf._metadata)
        else:
            cell = Perturbation(leaf)
        setattr(module, sown_attribute(module, path[-1]), cell)


def _output_hooks(roots: list[Any], kind: type[Variable] | None, filter: Filter) -> Any:
    if kind is None:
        return []
    modules = {id(m): m for root in roots for _, m in callable_modules(root, filter)}
    return [(module, _sow_outputs(kind)) for module in modules.values()]


@functools.cache  # one hook for each type, so that capturing again traces nothing again
def _sow_outputs(kind: type[Variable]) -> Hook:
    def sow(module: Module, args: tuple, kwargs: dict, output: Any) -> None:
        if all(
            is_array(x) or isinstance(x, (int, float, complex)) for x in jax.tree.leaves(output)
        ):
            module.sow(kind, "__call__", output)

    return Hook(sow, before=False)


def _state_of(cells: list[_Cell], kind: type[Variable]) -> State:
    found: dict[tuple, Variable] = {}
    for path, module, _, variable in cells:
        if type(variable) is kind:
            path = sown_path(path)
            if path in found:
                raise ValueError(
                    f"nnx.capture: two arguments sow {kind.__name__} under the path {path}; the "
                    f"second is a {type(module).__name__}.\n"
                    "Cure: pass them in one dict or Module, whose keys tell them apart."
                )
            found[path] = variable
    return state_over(nest(found.items()))
