"""Looking at a function without running it: `eval_shape`, `make_jaxpr`; `checkify` beside them.

`eval_shape` gives what a function of objects would return, as shapes and dtypes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax

from ..graph.graphdef import GraphDef
from ..graph.plan import Plan
from ..graph.rebuild import rebuild
from ..graph.state import State
from ..graph.walk import walk
from ..lift.call import Call, leave
from ..lift.faults import execute
from ..lift.inside import Change
from ..lift.write_back import write_back
from ..objects import arguments as fit
from ..objects.modes import Switch
from ..objects.type_names import M, R
from ..verbs.splitting import split
from ..verbs.spmd import get_named_sharding
from .bound import decorator_or_function, enter_unbound, lifted
from .jit_options import as_tuple, resolved
from .signatures import CheckifyTransform, JaxprTransform


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


# -- `make_jaxpr` and `checkify`: looking at what is traced, and errors inside of it --------------


@cast(Callable[[Any], JaxprTransform], decorator_or_function)
def make_jaxpr(
    f: Callable[..., Any],
    static_argnums: int | Sequence[int] = (),
    axis_env: Any = None,
    return_shape: bool = False,
    **options: Any,
) -> Callable[..., Any]:
    """`jax.make_jaxpr` for functions of objects: the jaxpr of a call; nothing is computed.

    The inputs are the values of the objects and the arrays of the arguments; the outputs are the
    arrays of the result and the values that the function wrote. The objects stay as they are.

    Args:
        f: the function.
        static_argnums: arguments that are not traced.
        axis_env: names and sizes of axes that the function's collectives use.
        return_shape: return (jaxpr, shapes of the result).
        **options: other keywords of the installed `jax.make_jaxpr`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
        >>> jaxpr = nnx.make_jaxpr(lambda m, x: m(x))(model, jnp.ones((1, 2)))
        >>> "dot_general" in str(jaxpr)
        True
    """

    static, _ = resolved(f, as_tuple(static_argnums), None)

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        call, pure = enter_unbound(f, args, kwargs, static, captured=True)
        program = jax.make_jaxpr(pure, axis_env=axis_env, return_shape=True, **options)
        jaxpr, out = execute(call, f, program, call.grouped, call.tree)
        return (jaxpr, leave_abstract(call, out)) if return_shape else jaxpr

    return lifted(f, run)


@cast(Callable[[Any], CheckifyTransform], decorator_or_function)
def checkify(f: Callable[..., Any], errors: Any = None) -> Callable[..., Any]:
    """`jax.experimental.checkify.checkify` for functions of objects: (error, result).

    Args:
        f: the function.
        errors: which checks to make; user checks (`checkify.check`) by default.

    What the function does to its objects is carried out whether or not a check failed, as its value
    is returned whether or not a check failed: `error.throw()` decides.

    Example:
        >>> from refax import nnx
        >>> from jax.experimental import checkify
        >>> import jax.numpy as jnp
        >>> def f(v):
        ...     checkify.check(v.value > 0, "must be positive")
        ...     return jnp.log(v)
        >>> error, _ = nnx.checkify(f)(nnx.Variable(jnp.array(-1.0)))
        >>> "must be positive" in str(error.get())
        True
    """
    from .._jax_compat import load_checkify

    library = load_checkify()
    options = {} if errors is None else {"errors": errors}

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        call, pure = enter_unbound(f, args, kwargs)
        program = library.checkify(pure, **options)
        error, out = execute(call, f, program, call.grouped, call.tree)
        return error, leave(call, out)

    return lifted(f, run)
