"""`eval_shape`: what a function of objects would return, as shapes and dtypes, without running."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from ..graph.graphdef import GraphDef
from ..graph.plan import Plan
from ..graph.rebuild import rebuild
from ..graph.state import State
from ..graph.walk import walk
from ..lift.call import Call
from ..lift.faults import execute
from ..lift.inside import Change
from ..lift.write_back import write_back
from ..objects import arguments as fit
from ..objects.modes import Switch
from ..objects.type_names import M, R
from ..verbs.splitting import split
from ..verbs.spmd import get_named_sharding
from .bound import enter_unbound


@fit.checked
def eval_shape(
    f: Callable[..., R],
    *args: Any,
    graph: Switch = None,
    graph_updates: Switch = None,
    **kwargs: Any,
) -> R:
    """The result of `f(*args, **kwargs)` with a `jax.ShapeDtypeStruct` for every array.

    Objects come back as objects, so `nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(0)))` is a model of
    which no array was ever made. Nothing is computed, so the arguments stay as they are, and an
    object that is returned from the arguments comes back as a new, abstract one.

    Example:
        >>> from refax import nnx
        >>> model = nnx.eval_shape(lambda: nnx.Linear(10_000, 10_000, rngs=nnx.Rngs(0)))
        >>> model.kernel.value
        ShapeDtypeStruct(shape=(10000, 10000), dtype=float32)
    """
    call, pure = enter_unbound(f, args, kwargs, captured=True)
    program = functools.partial(jax.eval_shape, pure)
    out = execute(call, f, program, call.grouped, call.tree)
    return leave_abstract(call, out)


def leave_abstract(call: Call, out: tuple[Any, Any, Change]) -> Any:
    """The result of a call that was only traced; its objects are left as they are."""
    tree, grouped, change = out
    values = _abstract(call.values)
    stand_ins = rebuild(call.plan.graphdef, values)
    roots = [stand_ins[i] for i in call.plan.graphdef.roots]
    plan = Plan(walk(tuple(roots)))
    return write_back(plan, roots, values, tree, grouped, change)


def _abstract(values: list[Any]) -> list[Any]:
    shapes = jax.eval_shape(lambda values: values, values)  # all at once: each call is a trace
    return jax.tree.map(
        lambda x, shape: x if isinstance(x, jax.ShapeDtypeStruct) else shape, values, shapes
    )


@fit.checked
def get_abstract_model(
    init_fn: Callable[[], M], mesh: fit.AnyMesh | None = None, *, graph: Switch = None
) -> tuple[GraphDef[M], State]:
    """(graphdef, abstract state) of the model that `init_fn()` would make, sharded over `mesh`.

    `init_fn` runs under the mesh, if it is given; also an abstract one, of more devices than here.
    """
    if mesh is None:
        return split(eval_shape(init_fn))
    abstract = mesh if isinstance(mesh, fit.AbstractMesh) else mesh.abstract_mesh
    with jax.sharding.use_abstract_mesh(abstract):  # which may be within a trace, too
        graphdef, state = split(eval_shape(init_fn))
    shardings = get_named_sharding(state, mesh)
    return graphdef, jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
