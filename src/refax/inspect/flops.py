"""Floating-point operations and bytes of a recorded call, as XLA's cost analysis counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..lift.arguments import is_object
from ..objects.variable_types import Param
from ..objects.watch import is_array
from ..transforms.jit import jit
from ..verbs.copying import clone
from ..verbs.merging import merge
from ..verbs.splitting import graphdef, split, state
from .calls import Call, describe, traceable


class FlopCounter(dict[Any, dict[str, float]]):
    """Counts each distinct call once: 200 equal blocks are lowered as one."""

    def count(self, call: Call, *, vjp: bool, of: str = "flops") -> int | None:
        """The operations of the call (and of its vjp, if asked); None where XLA does not tell.

        Or its "bytes accessed", read and written, before XLA fuses operations.
        """
        shapes = tuple(map(describe, jax.tree.leaves(state(call.module))))
        key = (graphdef(call.module), shapes, describe((call.args, call.kwargs)), call.method, vjp)
        if key not in self:
            self[key] = _count(call, vjp)
        found = self[key].get(of, -1)
        return int(found) if found >= 0 else None


def _count(call: Call, vjp: bool) -> dict[str, float]:
    values, put = traceable((call.args, call.kwargs))

    def forward(module: Any, values: list[Any]) -> Any:
        args, kwargs = put(values)
        output = getattr(module, call.method)(*args, **kwargs)
        return [x for x in jax.tree.leaves(output) if is_array(x)]

    function = _with_vjp(forward) if vjp else forward
    try:
        cost: Any = jit(function).lower(call.module, values).cost_analysis()
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return {}  # there is no reverse mode of it, or no analysis on this platform
    return cost or {}


def _is_float(x: Any) -> bool:
    return is_array(x) and jnp.issubdtype(x.dtype, jnp.inexact)


def _is_float_param(path: tuple, x: Any) -> bool:
    return isinstance(x, Param) and all(map(_is_float, jax.tree.leaves(x._value)))


def _with_vjp(forward: Callable) -> Callable:
    """`forward`, and its vjp with respect to Params and floating-point inputs."""

    def function(module: Any, values: list[Any]) -> Any:
        definition, params, rest = split(module, _is_float_param, ...)
        floats = {i: x for i, x in enumerate(values) if _is_float(x)}

        def of_floats(params: Any, floats: dict[int, Any]) -> tuple[list[Any], Any]:
            # Objects are copied: here is another trace level, where they may be written.
            copied = dict(enumerate(clone(x) if is_object(x) else x for x in values))
            inputs = list((copied | floats).values())
            module = merge(definition, params, rest)
            outputs = [x for x in forward(module, inputs) if _is_float(x)]
            return outputs, jax.tree.leaves(state(module))

        outputs, backward, after = jax.vjp(of_floats, params, floats, has_aux=True)
        return outputs, backward([jnp.ones_like(x) for x in outputs]), after

    return function
