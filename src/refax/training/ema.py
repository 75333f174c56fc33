"""EMA: an exponential moving average of a model's Variables, kept beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .._jax_compat import TRACE
from ..graph.filters import Filter
from ..graph.state import State, iter_leaves, map_state
from ..objects.arguments import Rate, checked
from ..objects.at_once import set_each
from ..objects.errors import describe_value, path_string
from ..objects.modes import Switch
from ..objects.variable import Variable, check_write, make_variable, set_raw_value
from ..objects.variable_types import OptState
from ..verbs.merging import merge
from ..verbs.pytree import Pytree
from ..verbs.splitting import split
from ..verbs.splitting import state as state_of
from ..verbs.updating import update as update_node
from .placement import beside

M = TypeVar("M")


def is_floating(path: tuple, value: Any) -> bool:
    """The filter of Variables with floating-point numbers."""
    dtype = getattr(value._value, "dtype", None) if isinstance(value, Variable) else None
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


class EMA(Pytree):
    """An exponential moving average of Variables: average ← decay · average + (1 − decay) · value.

    It starts from the present values, with the full weight of an average. With `zero_debias` they
    have no weight, and the average is Σ wₜ valueₜ / Σ wₜ over the updates alone: what an average
    that starts at zero is after the bias correction of Kingma & Ba (2015), also for a `decay` that
    changes. What is no floating-point number, such as a count, takes the newest value, if `only`
    matches it.

    Args:
        params: the model (or a State of it) whose Variables are averaged; read, not kept.
        decay: a number in [0, 1], or a schedule: a function of the count of updates made so far.
        only: which Variables: any filter. By default those that hold floating-point numbers: the
            parameters and the running statistics of normalization layers.
        zero_debias: see above.
        dtype: of the averages; None for that of each Variable. With a decay near 1 an average in
            bfloat16 stands still, since a step is less than half a unit in its last place:
            give jnp.float32.

    Attributes:
        params: the averages, a State of Variables of the same types and metadata.
        step: how many updates were made, a uint32 scalar.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> ema = nnx.EMA(model, decay=0.9)
        >>> model.bias += 1.0
        >>> ema.update(model)
        >>> with ema.swap(model):
        ...     averaged = float(model.bias[0])
        >>> round(averaged, 4), float(model.bias[0])
        (0.1, 1.0)
    """

    _refax_phase = "update"

    @checked
    def __init__(
        self,
        params: Any,
        decay: Rate | Callable[[jax.Array], Any],
        *,
        only: Filter = is_floating,
        zero_debias: bool = False,
        dtype: DTypeLike | None = None,
        graph: Switch = None,
    ):

        def start(path: tuple, leaf: Any) -> Variable:
            if not isinstance(leaf, Variable):
                raise TypeError(
                    f"nnx.EMA averages Variables; `{path_string(path)}` is "
                    f"{describe_value(leaf)}.\nCure: keep it in a Variable, or leave it out with "
                    "`only`."
                )
            kind = dtype if is_floating(path, leaf) else None  # a copy: the model may be donated
            value = jax.tree.map(lambda x: jnp.array(x, kind, copy=True), leaf._value)
            return make_variable(type(leaf), value, leaf._metadata)

        self.decay = decay
        self.only: Filter = tuple(only) if isinstance(only, list) else only
        self.params: State = map_state(start, state_of(params, self.only))
        if next(iter_leaves(self.params), None) is None:
            raise ValueError(
                f"nnx.EMA: no Variable of the {type(params).__name__} matches only={self.only!r}: "
                "nothing would be averaged.\nCure: nnx.Param, or `...` for all Variables."
            )
        step, weight = jnp.array(0, jnp.uint32), jnp.array(0.0 if zero_debias else 1.0, float)
        self.step, self._weight = map(OptState, beside(self.params, (step, weight)))

    def update(self, updates: Any) -> None:
        """Take in the present values of the model (or of a State of it).

        Raises:
            ValueError: a path that only one of the two has, or another shape.
        """
        cells, given = self._pairs(updates)
        decay = self.decay(self.step.value) if callable(self.decay) else self.decay
        rate = 1 - decay  # of a Python float: exact to float64
        weight: Any = self._weight.value
        weight = weight + rate * (1 - weight)
        share = rate / weight
        written: list[Any] = [self.step, self._weight]
        values: list[Any] = [self.step.value + jnp.uint32(1), weight]
        for path, cell in cells.items():
            new = given[path]._value
            if is_floating(path, cell):
                wide = jnp.promote_types(cell._value.dtype, jnp.float32)
                average = cell._value.astype(wide)
                average += share.astype(wide) * (new.astype(wide) - average)
                new = average.astype(cell._value.dtype)
            written.append(cell)
            values.append(new)
        for cell in written:
            if cell._trace is not TRACE.value:
                check_write(cell, "write the value of")
        set_each(set_raw_value, written, values)

    def apply_to(self, model: M) -> M:
        """A model like this one that has the averages as its Variables, now and after updates.

        It shares everything else with `model`: what is not averaged is the same Variable.
        """
        cells, _ = self._pairs(model)
        graphdef, own = split(model, copy=False)
        return merge(graphdef, map_state(cells.get, own), copy=False)

    @contextmanager
    def swap(self, model: M) -> Iterator[M]:
        """Within the `with` block the model itself has the averages, in its own dtypes.

        On leaving it, also by an error, what is averaged gets its values from before back; all
        else that the block changed stays.
        """
        cells, _ = self._pairs(model)
        before = state_of(model, self.only)

        def averaged(path: tuple, leaf: Any) -> Variable:
            cast = jax.tree.map(lambda a, x: a.astype(x.dtype), cells[path]._value, leaf._value)
            return make_variable(type(leaf), cast, leaf._metadata)

        update_node(model, map_state(averaged, before))
        try:
            yield model
        finally:
            update_node(model, before)

    def _pairs(self, model: Any) -> tuple[dict, dict]:
        """The averages and what they are averages of, by path."""
        cells = dict(iter_leaves(self.params))
        given = dict(iter_leaves(state_of(model, self.only)))
        for path in cells | given:
            if path not in cells or path not in given:
                who, not_who = ("EMA", "model") if path in cells else ("model", "EMA")
                raise ValueError(
                    f"nnx.EMA: the {who} has `{path_string(path)}`, the {not_who} has not.\n"
                    "Cure: make a new EMA when parameters were added or removed."
                )
            ours, theirs = (describe_value(of[path]._value) for of in (cells, given))
            if ours.partition("[")[2] != theirs.partition("[")[2]:
                raise ValueError(
                    f"nnx.EMA: the average of `{path_string(path)}` is {ours}, the model has "
                    f"{theirs}.\nCure: make a new EMA when parameters were resized."
                )
        return cells, given
