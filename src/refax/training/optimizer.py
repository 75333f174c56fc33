"""Optimizers: an optax transformation with its state as Variables, next to a model.

optax works on the model's State as a pytree, so it sees plain arrays, and masks, labels and
partitions given as trees of that State fit. The optimizer's own state is made of Variables: one
`OptVariable` for every array that belongs to a parameter, with that parameter's metadata (so also
its sharding annotation), and an `OptArray` for anything else, such as a step count.

optax works on values as they are stored: the hooks of a Variable do not run in an update.
"""

from __future__ import annotations

from functools import partial
from itertools import repeat
from operator import is_
from typing import Any, Generic

import jax
import jax.numpy as jnp
import optax

from .._jax_compat import TRACE
from ..graph.filters import Filter, checked
from ..graph.state import State
from ..lift.borders import tracer_in
from ..objects.entering import entered, placed
from ..objects.modes import Switch
from ..objects.statics import frozen
from ..objects.type_names import M
from ..objects.variable import Variable, check_write, make_variable, raw, set_raw_value
from ..objects.variable_types import OptArray, OptState, OptVariable, Param, without_hooks
from ..verbs.copying import clone
from ..verbs.mapping import pure
from ..verbs.pytree import Pytree
from ..verbs.splitting import state as state_of
from ..verbs.updating import update_with
from . import optimizer_errors as errors
from .gradients import Transformation, gradients_like, with_value
from .placement import annotated_like, beside, map_beside

_REQUIRED: Any = object()


class _MultiSteps:
    """An `optax.MultiSteps` compared by its settings: equal ones are one static, so no retrace."""

    def __init__(self, tx: optax.MultiSteps):
        self._tx = tx
        self._key = frozen(tuple(vars(tx).values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _MultiSteps) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is being unpickled
            raise AttributeError(name)
        return getattr(self._tx, name)


def _is_kept(x: Any) -> bool:
    return isinstance(x, OptState) and entered(x._value) is x._value


def _wrap(x: Any) -> Any:
    if _is_kept(x):
        return x
    if isinstance(x, Variable):
        kind = type(x) if isinstance(x, OptState) else OptVariable
        return make_variable(kind, entered(x._value), x._metadata)
    return to_opt_state(state_of(x)) if isinstance(x, Pytree) else OptArray(x)


def _is_part(x: Any) -> bool:
    return isinstance(x, (Variable, Pytree))


def to_opt_state(tree: Any) -> Any:
    """A state of optax with Variables for its arrays and numbers; what has them is kept.

    Example:
        >>> from refax import nnx
        >>> import optax
        >>> nnx.optimizer.to_opt_state(optax.ScaleByScheduleState(count=3)).count.value.dtype
        dtype('int32')
    """
    return jax.tree.map(_wrap, tree, is_leaf=_is_part)


def _fill_in(tree: Any) -> Any:
    """`to_opt_state` within the dicts that are there, to which a user may hold a reference."""
    if isinstance(tree, (dict, State)):
        for key, item in list(tree.items()):
            if (new := _fill_in(item)) is not item:
                tree[key] = new
        return tree
    if _is_part(tree) or jax.tree_util.all_leaves((tree,)):
        return _wrap(tree)
    parts, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    new = list(map(_fill_in, parts))
    return tree if all(map(is_, new, parts)) else structure.unflatten(new)


def _like_before(new: Any, old: Any) -> Any:
    """What is put in the place of an optimizer's state, made like what was there."""
    before, structure = jax.tree.flatten(old, is_leaf=_is_part)
    after, new_structure = jax.tree.flatten(new, is_leaf=_is_part)
    if structure != new_structure:
        return new
    for i, (x, cell) in enumerate(zip(after, before, strict=True)):
        if isinstance(cell, OptState) and not (_is_kept(x) or isinstance(x, Pytree)):
            value = entered(raw(x), cell._value, ("opt_state",))
            after[i] = with_value(cell, placed(value, cell._value))
    return structure.unflatten(after)


def _parameters(model: Any, wrt: Filter) -> tuple[State, State]:
    """The State of what is optimized, as it is and as optax sees it: the same, or without hooks."""
    stored = state_of(model, wrt)
    cells = jax.tree.leaves(stored, is_leaf=_is_part)
    if not any(isinstance(cell, Variable) and cell._hooked for cell in cells):
        return stored, stored
    return stored, jax.tree.map(without_hooks, stored, is_leaf=_is_part)


def _like_parameters(tree: Any, params: State) -> Any:
    """The same tree with the Variables in its States made like those of `params`, by path."""

    def unwrap(path: tuple, param: Any, leaf: Any) -> Any:
        return with_value(param, leaf._value) if isinstance(leaf, Variable) else leaf

    return map_beside(unwrap, tree, params)


def _of_parameters(value_fn: Any, model: Any, params: State) -> Any:
    """A function of the State of parameters from one of it, or of the model."""

    def of_either(state: State, *args: Any, **kwargs: Any) -> Any:
        try:
            return value_fn(state, *args, **kwargs)
        except (TypeError, AttributeError) as error:
            try:
                at = clone(model)
                update_with(at, (state,), ())
                return value_fn(at, *args, **kwargs)
            except Exception:
                raise error from None

    return of_either


class Optimizer(Pytree, Generic[M]):
    """An optax optimizer for the Variables of a model that a filter matches.

    Args:
        model: the model (or any object graph); it is read, not kept.
        tx: an optax gradient transformation.
        wrt: which Variables are optimized: any filter, such as `nnx.Param`.

    Attributes:
        step: how many updates were made, a uint32 scalar in an `nnx.OptState`.
        opt_state: the state of `tx`, with Variables for its arrays. It lives where the parameters
            live: what belongs to one has its sharding (or the annotation `optimizer_sharding` of
            its metadata), the rest is replicated.

    Raises:
        TypeError: `tx` is no transformation, or `wrt` is not given.
        ValueError: `wrt` matches nothing.

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

    _refax_phase = "update"

    @checked
    def __init__(
        self, model: M, tx: Transformation, *, wrt: Filter = _REQUIRED, graph: Switch = None
    ):
        if wrt is _REQUIRED:
            raise TypeError(errors.WRT_IS_REQUIRED)
        tx = _MultiSteps(tx) if isinstance(tx, optax.MultiSteps) else tx
        self.wrt: Filter = tuple(wrt) if isinstance(wrt, list) else wrt
        _, params = _parameters(model, self.wrt)
        if not params:
            raise errors.no_parameters(model, wrt)
        step, opt_state = beside(params, (jnp.array(0, jnp.uint32), tx.init(params)))
        opt_state = annotated_like(opt_state, params)
        self.step: OptState[jax.Array] = OptState(step)
        if isinstance(tx, optax.GradientTransformation) and tracer_in(tx.init) is not None:
            # optax.inject_hyperparams(…)(traced rate): the rate is in the state now.
            tx = tx._replace(init=errors.init_was_traced)
        self.tx = tx
        self.opt_state = opt_state

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "opt_state":  # also by a user, with anything that optax makes
            value = to_opt_state(_like_before(value, vars(self).get("opt_state")))
        super().__setattr__(name, value)

    def update(self, model: Any, grads: Any = None, **extra: Any) -> Any:
        """Update the model's Variables and the optimizer's state, in place.

        Args:
            model: the model that the optimizer was made for (or one of the same structure).
            grads: the gradients: a State as `nnx.grad` returns it, a Module, or a pure dict. What
                of the model is not optimized is left out.
            **extra: passed on to the transformation's `update`, such as `value=loss`; left out
                where it takes none. A `value_fn` may take the model or the State of parameters.

        Returns:
            What was added to the parameters: a State of arrays.

        Raises:
            TypeError: called as `update(grads)`, the way of Flax 0.10; or the transformation needs
                more arguments.
            ValueError: a gradient is missing or has another shape than the parameter, or an
                optimizer of another model; the path is named.
        """
        if grads is None:
            raise TypeError(errors.GRADIENTS_ONLY)
        if isinstance(model, State) and isinstance(grads, Pytree):
            raise TypeError(errors.SWAPPED)
        stored, params = _parameters(model, self.wrt)
        grads = gradients_like(params, grads, self.wrt, model)
        if isinstance(extra.get("grad"), (State, Pytree)):
            extra["grad"] = gradients_like(params, extra["grad"], self.wrt, model)
        if "value_fn" in extra:
            extra["value_fn"] = _of_parameters(extra["value_fn"], model, params)
        if (filled := _fill_in(self.opt_state)) is not self.opt_state:
            super().__setattr__("opt_state", filled)
        tx = self.tx
        if extra and isinstance(tx, optax.GradientTransformation):
            tx = optax.with_extra_args_support(tx)
        before = _like_parameters(self.opt_state, params)
        try:
            updates, after = tx.update(grads, before, params, **extra)
        except (TypeError, ValueError) as error:
            errors.explain(error, self.opt_state, params, extra)
            raise
        new = optax.apply_updates(params, updates)
        if params is not stored:  # give the cells their hooks back
            new = _like_parameters(new, stored)
        cells, structure = jax.tree.flatten(self.opt_state, is_leaf=_is_part)
        values, new_structure = jax.tree.flatten(after, is_leaf=_is_part)
        same = structure == new_structure  # or a transformation whose state changes its form
        cells = [*(cells if same else ()), self.step]
        values = [*map(raw, values if same else ()), self.step.value + jnp.uint32(1)]
        for cell in cells:
            if cell._trace is not TRACE.value:
                check_write(cell, "write the value of")
        writes = list(map(partial, repeat(set_raw_value), cells, values))
        if not same:
            state = self._refax_prepare("opt_state", to_opt_state(after))
            writes.append(partial(object.__setattr__, self, "opt_state", state))
        update_with(model, (new,), writes)
        return pure(updates)


class ModelAndOptimizer(Optimizer[M]):
    """An optimizer that holds its model: `update(grads)` updates `self.model`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp, optax
        >>> state = nnx.ModelAndOptimizer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), optax.sgd(0.1))
        >>> grads = nnx.grad(lambda m: m(jnp.ones((1, 2))).sum())(state.model)
        >>> updates = state.update(grads)
        >>> int(state.step.value)
        1
    """

    @checked
    def __init__(self, model: M, tx: Transformation, *, wrt: Filter = Param, graph: Switch = None):
        super().__init__(model, tx, wrt=wrt)
        self.model = model

    def update(self, grads: Any, *more: Any, **extra: Any) -> Any:  # type: ignore[override]
        """Update `self.model` and the optimizer's state with these gradients."""
        if more:
            raise TypeError(errors.MODEL_IS_HELD)
        return super().update(self.model, grads, **extra)
