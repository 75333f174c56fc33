"""Gradients as an optimizer is given them, checked against its parameters and brought to one form.

A State as `nnx.grad` returns it is passed on as it is. A Module, a State of plain arrays and a pure
dict are matched by path, so metadata that has changed since the gradients were made does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol, runtime_checkable

import jax

from ..graph.filters import Filter
from ..graph.state import State, iter_leaves, map_state
from ..objects.arguments import Fits, unfit
from ..objects.errors import describe_value, path_string
from ..objects.variable import Variable, make_variable, raw
from ..verbs.pytree import Pytree
from ..verbs.splitting import state as state_of

_CURE = (
    "Cure: differentiate with the filter that the optimizer was made with: "
    "nnx.grad(loss, argnums=nnx.DiffState(0, wrt)) and nnx.Optimizer(model, tx, wrt=wrt)."
)


@runtime_checkable
class _HasUpdate(Protocol):
    """What optax's transformations and wrappers such as `optax.MultiSteps` have in common."""

    init: Callable
    update: Callable


_TX_CURE = "nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)."
_IS_ONE = Fits("an optax gradient transformation", lambda x: isinstance(x, _HasUpdate), _TX_CURE)
Transformation = Annotated[Any, _IS_ONE]


def gradients_like(params: State, grads: Any, wrt: Filter, model: Any = None) -> State:
    """The gradients as a State of the very structure of `params`; others of the model are left out.

    Raises:
        TypeError: not a State, a Module or a nested dict.
        ValueError: a path is missing, or not of the model; or another shape; the path is named.
    """
    if isinstance(grads, Pytree):
        grads = state_of(grads, wrt)
    if not isinstance(grads, Mapping):
        cure = "what nnx.grad(loss)(model) returns; nnx.value_and_grad returns (loss, grads)."
        raise unfit(grads, "a State", cure)
    if isinstance(grads, State) and jax.tree.structure(grads) == jax.tree.structure(params):
        if all(map(_same_shape, jax.tree.leaves(params), jax.tree.leaves(grads))):
            return grads
    given = {path: leaf for path, leaf in iter_leaves(grads) if leaf is not None}
    wanted = dict(iter_leaves(params))
    if given.keys() != wanted.keys():
        others = {} if model is None else dict(iter_leaves(state_of(model)))
        if wrong := _other_paths(wanted, given, {**wanted, **others}):
            raise ValueError(wrong)
    for path, param in wanted.items():
        if not _same_shape(raw(param), raw(given[path])):
            raise ValueError(
                f"The parameter `{path_string(path)}` is "
                f"{describe_value(raw(param))}, its gradient {describe_value(raw(given[path]))}."
                "\nCure: pass the gradients of this very model, at its present sizes."
            )
    return map_state(lambda path, param: with_value(param, raw(given[path])), params)


def _same_shape(a: Any, b: Any) -> bool:
    return getattr(a, "shape", None) == getattr(b, "shape", None)


def with_value(param: Any, value: Any) -> Any:
    """`value` in a cell like `param`, or bare if that is a bare array."""
    if not isinstance(param, Variable):
        return value
    return make_variable(type(param), value, param._metadata)


def _other_paths(wanted: dict, given: dict, known: dict) -> str:
    parts = []
    if missing := [p for p in wanted if p not in given]:
        parts.append(f"has no gradient for {_first(missing)}")
    if unknown := [p for p in given if p not in known]:
        parts.append(f"has a gradient for {_first(unknown)}, which the model does not have")
    return f"The State of gradients {' and '.join(parts)}.\n{_CURE}" if parts else ""


def _first(paths: list[tuple]) -> str:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return f"`{path_string(paths[0])}`{more}"
