"""`capture`: run a model, or a function of one, and get what it sowed on the way, by path.

For the time of the call every Module has the attribute `__captures__`: one Variable for each type
that is asked for, whose value is a dict from names to what was recorded. `sow` and `perturb` record
there. A transform carries them as it does any Variable; `split`, `merge` and `clone` hand them on
as they are, so that what is recorded through a copy of the model is recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from ..graph.filters import Filter, checked
from ..graph.state import State, iter_leaves, nest, state_over
from ..graph.walk import key_name
from ..lift.arguments import capturing, is_object, unbind
from ..objects.metadata import EMPTY, SHARED, Metadata
from ..objects.variable import Variable, make_variable, raw
from ..objects.variable_types import Intermediate, Perturbation
from ..objects.watch import is_array
from ..verbs.iteration import iter_graph
from ..verbs.module import CAPTURES, Module
from ..verbs.popping import sown_path
from ..verbs.pytree import Pytree
from .hooks import Hook, hooked, modules_of

_RECORDS = Metadata({SHARED: True})


@checked
def capture(
    fn: Callable[..., Any],
    *var_types: type[Variable],
    init: State | None = None,
    method_outputs: type[Variable] | None = None,
    filter: Filter = ...,
) -> Any:
    """Wrap a Module, a method or a function of Modules to return (result, state, …).

    Each State has, by path, what `sow` and `perturb` recorded with exactly one type during the
    call; what they record with another is dropped, and `sow` returns False. Nothing of it stays on
    the Modules, and what was sown before is put aside for the call; so Modules are afterwards as
    they were. Works inside and around every transform, and inside another `capture`: what a `vmap`
    or `scan` records is stacked along axis 0, whatever axis the Module has, unless
    `nnx.StateAxes` gives its type another one.
    `@nnx.capture(nnx.Intermediate)` decorates.

    Args:
        fn: what to call. The Modules are its arguments, or what it is or is a method of.
        *var_types: the types to collect, a State each; by default `method_outputs`, else
            `nnx.Intermediate`.
        init: Variables to begin with, by path: perturbations, to differentiate with respect to.
        method_outputs: sow what each public method of each Module returns, `__call__` among them,
            as this type, under the name of the method; no change to the Modules' code is needed.
            Outputs that are not made of arrays are left out.
        filter: of which Modules `method_outputs` are sown: a type, `nnx.PathContains`, a function
            (path, module) → bool ….

    Raises:
        TypeError: a type that is no type of Variables.
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
    outputs = Intermediate if method_outputs is None else method_outputs
    types = var_types or (outputs,)
    function: Any = fn

    @functools.wraps(type(function).__call__ if isinstance(fn, Module) else function, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = unbind(function)[1]
        roots = [((), bound)] if isinstance(bound, Pytree) else []
        roots += [pair for x in (*args, *kwargs.values()) for pair in _objects_of(x)]
        if not roots:
            name = getattr(fn, "__qualname__", type(fn).__name__)
            raise ValueError(
                f"nnx.capture: no Module among the arguments of `{name}`.\n"
                "Cure: pass the model as an argument, or capture the model itself."
            )
        recording = _Recording(roots, types)
        is_method = getattr(type(bound), getattr(fn, "__name__", ""), None) is not None
        try:
            recording.begin(init)
            with capturing(), hooked(_output_hooks(roots, method_outputs, filter)):
                # The method of an object that has hooks by now is another one.
                call = getattr(bound, fn.__name__) if is_method else function
                result = call(*args, **kwargs)
        finally:
            recording.end()
        recording.leave([node for _, node in _objects_of(result)])
        return result, *map(recording.state, types)

    return wrapped


def _objects_of(argument: Any) -> list[tuple[tuple, Any]]:
    """(path in the argument, object) of each object that an argument is or holds."""
    leaves = jax.tree_util.tree_leaves_with_path(argument, is_leaf=is_object)
    return [(tuple(map(key_name, path)), x) for path, x in leaves if isinstance(x, Pytree)]


class _Recording:
    """What is put on Modules for a call, and what is found there after it."""

    def __init__(self, roots: list[tuple[tuple, Any]], types: tuple[type[Variable], ...]):
        self.roots = roots
        self.types = types
        self.nodes = self._visit()
        self.aside = [
            (node, name, value)
            for _, node in self.nodes.values()
            for name, value in vars(node).items()
            if name == CAPTURES or isinstance(value, Intermediate)
        ]
        self.own: dict[int, tuple[Variable, ...]] = {}
        self.found: list[tuple[tuple, Any, Variable]] = []  # (path, whose it is, Variable)

    def _visit(self) -> dict[int, tuple[tuple, Any]]:
        """Each object with its first path."""
        visited = [
            ((*at, *path), node) for at, root in self.roots for path, node in iter_graph(root)
        ]
        return {id(n): (path, n) for path, n in reversed(visited) if isinstance(n, Pytree)}

    def begin(self, init: State | None) -> None:
        for node, name, _ in self.aside:
            if name != CAPTURES:
                delattr(node, name)
        cells = [v for at, root in self.roots for _, v in iter_graph(root)]
        self.known = {id(v): v for v in cells if isinstance(v, Variable)}
        modules = {path: m for path, m in self.nodes.values() if isinstance(m, Module)}
        given: dict[tuple, dict[type[Variable], dict[str, Any]]] = {}
        for path, leaf in iter_leaves(init or {}):
            if path[:-1] not in modules:
                raise ValueError(
                    f"nnx.capture: `init` has the path {path}, but no Module is at {path[:-1]}.\n"
                    "Cure: give a State that nnx.capture returned for the same model."
                )
            kind = leaf.type if isinstance(leaf, Variable) else Perturbation
            given.setdefault(path[:-1], {}).setdefault(kind, {})[path[-1]] = raw(leaf)
        kinds = dict.fromkeys((*self.types, *(kind for of in given.values() for kind in of)))
        for path, module in modules.items():
            starts = given.get(path, {})
            cells = tuple(make_variable(k, starts.get(k, {}), _RECORDS) for k in kinds)
            self.own[id(module)] = cells
            further = (c for c in vars(module).get(CAPTURES, ()) if type(c) not in kinds)
            setattr(module, CAPTURES, (*cells, *further))

    def end(self) -> None:
        """Take everything off the Modules again."""
        for key, cells in self.own.items():
            path, module = self.nodes[key]
            self.found += [
                ((*path, name), module, make_variable(type(cell), value, EMPTY))
                for cell in cells
                for name, value in cell._value.items()
            ]
        visited = self._visit()
        for path, node in {**visited, **self.nodes}.values():
            for name, value in list(vars(node).items()):  # of Modules that were made in the call
                is_sown = isinstance(value, (Intermediate, *self.types))
                if is_sown and id(value) not in self.known:
                    self.found.append((sown_path((*path, name)), node, value))
                    delattr(node, name)
                elif name == CAPTURES:
                    delattr(node, name)
        for node, name, value in self.aside:
            setattr(node, name, value)

    def leave(self, results: list[Any]) -> None:
        """Take it off the copies that the call returns, too."""
        for result in results:
            for _, node in iter_graph(result):
                is_copy = isinstance(node, Module) and id(node) not in self.nodes
                if is_copy and CAPTURES in vars(node):
                    delattr(node, CAPTURES)

    def state(self, kind: type[Variable]) -> State:
        found: dict[tuple, Variable] = {}
        for path, node, variable in self.found:
            if variable.type is kind:
                if path in found:
                    raise ValueError(
                        f"nnx.capture: two arguments sow {kind.__name__} under the path {path}; "
                        f"the second is a {type(node).__name__}.\n"
                        "Cure: pass them in one dict or Module, whose keys tell them apart."
                    )
                found[path] = variable
        return state_over(nest(found.items()))


def _output_hooks(roots: list, kind: type[Variable] | None, filter: Filter) -> list:
    if kind is None:
        return []
    modules = {id(m): m for _, root in roots for _, m in modules_of(root, filter)}
    return [(module, _sow_outputs(kind)) for module in modules.values()]


@functools.cache  # one hook for each type, so that capturing again traces nothing again
def _sow_outputs(kind: type[Variable]) -> Hook:
    def sow(method: str, module: Module, args: tuple, kwargs: dict, output: Any) -> None:
        leaves = jax.tree.leaves(output)
        if leaves and all(is_array(x) or isinstance(x, (int, float, complex)) for x in leaves):
            module.sow(kind, method, output)

    return Hook(sow, before=False, method=...)
