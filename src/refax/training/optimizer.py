"""Optimizers: an optax transformation with its state as Variables, next to a model.

optax works on the model's State as a pytree, so it sees plain arrays, and masks, labels and
partitions given as trees of that State fit. The optimizer's own state is made of Variables: one
`OptVariable` for every array that belongs to a parameter, with that parameter's metadata (so also
its sharding annotation), and an `OptArray` for anything else, such as a step count.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..graph.errors import describe_value, path_string
from ..graph.filters import Filter
from ..graph.metadata import Metadata
from ..graph.module import Pytree
from ..graph.state import State, iter_leaves
from ..graph.variable import OptArray, OptState, OptVariable, Param, Variable, make_variable
from ..graph.verbs import state as state_of
from ..graph.verbs import update as update_node

_TYPE = "parameter_type"


def _is_variable(x: Any) -> bool:
    return isinstance(x, Variable)


def _wrap(x: Any) -> Variable:
    if isinstance(x, Variable):
        return make_variable(OptVariable, x._value, x._metadata.with_items(**{_TYPE: type(x)}))
    return OptArray(x)


def _unwrap(x: Any) -> Any:
    if isinstance(x, OptVariable):
        metadata: Metadata = x._metadata
        return make_variable(metadata[_TYPE], x._value, metadata.without(_TYPE))
    return x._value if isinstance(x, Variable) else x


class Optimizer(Pytree):
    """An optax optimizer for the Variables of a model that a filter matches.

    Args:
        model: the model (or any object graph); it is read, not kept.
        tx: an optax gradient transformation.
        wrt: which Variables are optimized: any filter. `nnx.Param` by default.

    Attributes:
        step: how many updates were made, a uint32 scalar in an `nnx.OptState`.
        opt_state: the state of `tx`, with Variables for its arrays.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp, optax
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        >>> @nnx.jit
        ... def step(model, optimizer, x):
        ...     grads = nnx.grad(lambda m: (m(x) ** 2).mean())(model)
        ...     optimizer.update(model, grads)
        >>> step(model, optimizer, jnp.ones((4, 2)))
        >>> int(optimizer.step.value)
        1
    """

    def __init__(self, model: Any, tx: Any, *, wrt: Filter = Param):
        self.step = OptState(jnp.array(0, jnp.uint32))
        self.tx = tx
        self.wrt = tuple(wrt) if isinstance(wrt, list) else wrt
        opt_state = tx.init(state_of(model, wrt))
        self.opt_state = jax.tree.map(_wrap, opt_state, is_leaf=_is_variable)

    def update(self, model: Any, grads: Any = None, /, **extra: Any) -> None:
        """Update the model's Variables and the optimizer's state, in place.

        Args:
            model: the model that the optimizer was made for (or one of the same structure).
            grads: the gradients, a State as `nnx.grad` returns it.
            **extra: passed on to the transformation's `update`, such as `value=loss`.

        Raises:
            TypeError: called as `update(grads)`, the way of Flax 0.10.
            ValueError: gradients of another structure than the parameters; the path is named.
        """
        if grads is None:
            raise TypeError(
                "Optimizer.update takes the model and the gradients: "
                "optimizer.update(model, grads).\n"
                "An optimizer that holds its model, and is updated with the gradients only, is "
                "nnx.ModelAndOptimizer."
            )
        params = state_of(model, self.wrt)
        if not isinstance(grads, State) and isinstance(grads, Pytree):
            grads = state_of(grads, self.wrt)
        _check_structure(params, grads)
        tx = self.tx
        if extra and isinstance(tx, optax.GradientTransformation):
            tx = optax.with_extra_args_support(tx)
        before = jax.tree.map(_unwrap, self.opt_state, is_leaf=_is_variable)
        updates, after = tx.update(grads, before, params, **extra)
        new_params = optax.apply_updates(params, updates)
        update_node(model, new_params)
        self._set_opt_state(after)
        self.step.value = self.step.value + jnp.uint32(1)

    def _set_opt_state(self, after: Any) -> None:
        cells, structure = jax.tree.flatten(self.opt_state, is_leaf=_is_variable)
        values, new_structure = jax.tree.flatten(after, is_leaf=_is_variable)
        if structure == new_structure:
            for cell, value in zip(cells, values, strict=True):
                cell.value = value._value if isinstance(value, Variable) else value
        else:  # a transformation whose state changes its form
            self.opt_state = jax.tree.map(_wrap, after, is_leaf=_is_variable)


def _check_structure(params: Any, grads: Any) -> None:
    if jax.tree.structure(params) == jax.tree.structure(grads):
        return
    if not isinstance(grads, State):
        raise ValueError(
            f"Optimizer.update takes gradients as a State, got {describe_value(grads)}: pass what "
            "nnx.grad(loss)(model) returns."
        )
    wanted, given = dict(iter_leaves(params)), dict(iter_leaves(grads))
    missing = [p for p in wanted if p not in given]
    unknown = [p for p in given if p not in wanted]
    if missing or unknown:
        what = (
            f"has no gradient for `{path_string(missing[0])}`"
            if missing
            else f"has a gradient for `{path_string(unknown[0])}`, which is not optimized"
        )
        count = len(missing) + len(unknown)
        more = f" (and {count - 1} more such paths)" if count > 1 else ""
        raise ValueError(
            f"Optimizer.update: the State of gradients {what}{more}.\n"
            "Cure: differentiate with the filter that the optimizer was made with: "
            "nnx.grad(loss, argnums=nnx.DiffState(0, wrt)) and nnx.Optimizer(model, tx, wrt=wrt)."
        )


class ModelAndOptimizer(Optimizer):
    """An optimizer that holds its model: `update(grads)` updates `self.model`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp, optax
        >>> state = nnx.ModelAndOptimizer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), optax.sgd(0.1))
        >>> grads = nnx.grad(lambda m: m(jnp.ones((1, 2))).sum())(state.model)
        >>> state.update(grads)
        >>> int(state.step.value)
        1
    """

    def __init__(self, model: Any, tx: Any, *, wrt: Filter = Param):
        super().__init__(model, tx, wrt=wrt)
        self.model = model

    def update(self, grads: Any, /, **extra: Any) -> None:  # type: ignore[override]
        """Update `self.model` and the optimizer's state with these gradients."""
        super().update(self.model, grads, **extra)
