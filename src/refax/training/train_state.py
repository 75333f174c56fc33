"""TrainState: what a step of training in plain JAX takes and returns, as one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Generic, Self

import jax
import jax.numpy as jnp
import optax
from typing_extensions import dataclass_transform

from ..graph.graphdef import GraphDef
from ..graph.state import State, merge_state
from ..objects.arguments import Count, checked, unfit
from ..objects.errors import suggest
from ..objects.marks import dataclass as pytree_dataclass
from ..objects.type_names import M
from ..verbs.merging import call
from ..verbs.pytree import Pytree
from .gradients import Transformation, gradients_like
from .placement import beside


@dataclass_transform()
@pytree_dataclass
class TrainState(Pytree, Generic[M]):
    """A GraphDef, parameters and an optimizer's state, for steps written as pure functions.

    It is a JAX pytree: pass it to plain `jax.jit` and return the new one. A subclass adds fields by
    annotations, with no decorator.

    Attributes:
        graphdef: the structure of the model.
        params: the State that is optimized.
        opt_state: the state of `tx`.
        step: how many gradients were applied, an integer scalar.
        tx: an optax gradient transformation.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp, optax
        >>> graphdef, params = nnx.split(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), nnx.Param)
        >>> state = nnx.TrainState.create(graphdef, params=params, tx=optax.adam(1e-3))
        >>> @jax.jit
        ... def step(state, x):
        ...     def loss(params):
        ...         y, _ = state.apply(params)(x)
        ...         return (y**2).mean()
        ...
        ...     return state.apply_gradients(jax.grad(loss)(state.params))
        >>> int(step(state, jnp.ones((4, 2))).step)
        1
    """

    _refax_phase: ClassVar[str] = "update"
    graphdef: GraphDef[M]
    params: State
    opt_state: Any
    step: jax.Array
    tx: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        pytree_dataclass(cls)

    @classmethod
    @checked
    def create(
        cls,
        graphdef: GraphDef[M],
        *,
        params: State,
        tx: Transformation,
        step: Count = 0,
        **fields: Any,
    ) -> Self:
        """A new state with `opt_state = tx.init(params)`; `fields` are those of a subclass."""
        opt_state, count = beside(params, (tx.init(params), jnp.asarray(step)))
        return cls(
            graphdef=graphdef, params=params, opt_state=opt_state, step=count, tx=tx, **fields
        )

    @checked
    def apply(self, state: State | str, *states: State | str) -> Any:
        """Call the model: `y, (graphdef, state) = train_state.apply("params", batch_stats)(x)`.

        Args:
            state, *states: together the State of the model: States, or names of fields.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in (x for x in (state, *states) if isinstance(x, str) and x not in names):
            raise unfit(name, f"a State, or the name of a field: {names}", suggest(name, names))
        given = [getattr(self, s) if isinstance(s, str) else s for s in (state, *states)]
        return call((self.graphdef, merge_state(*given)))

    def apply_gradients(self, grads: State, **kwargs: Any) -> Self:
        """The state after one update of the parameters.

        Args:
            grads: gradients of the structure of `params`.
            **kwargs: new values of fields (`batch_stats=…`); others go to the transformation
                (`value=loss`), if it takes any.

        Raises:
            ValueError: gradients of another structure or shape; the path is named.
        """
        names = {field.name for field in dataclasses.fields(self)}
        extra = {name: kwargs.pop(name) for name in [*kwargs] if name not in names}
        grads = gradients_like(self.params, grads, ...)
        tx: Any = optax.with_extra_args_support(self.tx) if extra else self.tx
        updates, opt_state = tx.update(grads, self.opt_state, self.params, **extra)
        new = {"params": optax.apply_updates(self.params, updates), "opt_state": opt_state}
        return self.replace(**{**new, "step": self.step + 1, **kwargs})

    def replace(self, **fields: Any) -> Self:
        """The same state with other values of some fields."""
        return dataclasses.replace(self, **fields)
