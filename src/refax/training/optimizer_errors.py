"""What an optimizer says when it is given the wrong things."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax

from ..graph.state import State, iter_leaves
from ..objects.errors import path_string
from ..objects.variable import Variable, raw
from ..verbs.splitting import state as state_of

GRADIENTS_ONLY = (
    "Optimizer.update takes the model and the gradients, and got one of them.\n"
    "Cure: optimizer.update(model, grads); an optimizer that holds its model, and is updated with "
    "the gradients only, is nnx.ModelAndOptimizer."
)
MODEL_IS_HELD = (
    "ModelAndOptimizer.update takes the gradients only, since it holds its model.\n"
    "Cure: optimizer.update(grads); an optimizer that is updated with the model and the gradients "
    "is nnx.Optimizer."
)

WRT_IS_REQUIRED = (
    "nnx.Optimizer: `wrt` is required: which Variables of the model are optimized.\n"
    "Cure: nnx.Optimizer(model, tx, wrt=nnx.Param). An optimizer that holds its model, and is "
    "updated with the gradients alone, is nnx.ModelAndOptimizer(model, tx)."
)
SWAPPED = (
    "Optimizer.update got a State as the model and a Module as the gradients.\n"
    "Cure: the model comes first: optimizer.update(model, grads)."
)


def init_was_traced(params: Any) -> Any:
    """In the place of a transformation's `init` that would use a traced value again."""
    raise TypeError(
        "optimizer.tx.init: the transformation was made of a traced value, such as a learning rate "
        "that nnx.vmap maps; that value is in optimizer.opt_state and has gone from here.\n"
        "Cure: make another transformation for a new state."
    )


def no_parameters(model: Any, wrt: Any) -> ValueError:
    types = Counter(type(leaf).__name__ for _, leaf in iter_leaves(state_of(model)))
    found = ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "nothing"
    return ValueError(
        f"nnx.Optimizer: wrt={wrt!r} matches nothing in the {type(model).__name__}, which has "
        f"{found}; so there is nothing to optimize.\n"
        "Cure: give a filter that matches some of these, or make the optimizer after the layers "
        "that it is for were added."
    )


def explain(error: Exception, opt_state: Any, params: State, extra: dict) -> None:
    """Tell an error of the transformation as one of the update: what is needed or unfit."""
    if " keyword-only argument" in str(error) and " missing " in str(error):
        names = re.findall(r"'(\w+)'", str(error))
        call = ", ".join(f"{name}=..." for name in [*extra, *names])
        raise TypeError(
            f"Optimizer.update: the transformation needs {' and '.join(names)} besides the "
            f"gradients.\nCure: optimizer.update(model, grads, {call}), with the loss as `value`, "
            "the gradients again as `grad`, and the loss as a function of the model as `value_fn`."
        ) from error
    if where := next(_misfits(opt_state, dict(iter_leaves(params))), None):
        error.add_note(
            f"Optimizer.update: the optimizer {where}.\nCure: make a new optimizer when parameters "
            "were added, removed or resized, and update the model that it was made for."
        )


def _misfits(opt_state: Any, wanted: dict[tuple, Any]) -> Iterator[str]:
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, State))
    for state in (s for s in states if isinstance(s, State)):
        kept = dict(iter_leaves(state))
        for path, cell in kept.items():
            name, shape = path_string(path), _shape(cell)
            if not isinstance(cell, Variable):
                pass  # it stands for a part that is masked
            elif path not in wanted:
                yield f"keeps a state for `{name}`, which the model does not have"
            elif shape != _shape(wanted[path]):
                yield f"keeps {shape} for `{name}`, which is {_shape(wanted[path])}"
        for path in wanted:
            if not any(path[: i + 1] in kept for i in range(len(path))):
                yield f"keeps nothing for `{path_string(path)}`, which the model has"


def _shape(leaf: Any) -> str:
    return str(getattr(raw(leaf), "shape", None))
