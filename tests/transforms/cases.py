"""The rows of the conformance table: every transform as a function of `body(objects, x)`.

A `Case` says how to make, from a body that changes objects and returns something, a callable of the
same arguments; what the transform cannot do; and how it is spelled for a method. To add a transform
is to add one entry to `CASES`. Every leaf of the test's objects has two leading axes of 3, and
bodies work elementwise: they do the same eagerly, mapped over an axis, and split over devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from refax import nnx

Body = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Body], Callable[[Any, Any], Any]]
    decorate: Callable[[Callable], Callable] | None = None  # for a method (self, x)
    propagates: bool = True  # changes reach the caller's objects
    structure: bool = True  # the body may change the structure of the objects
    returns: bool = True  # what the body returns comes back
    caches: bool = False  # a second eager call does not run the body again
    arrays_only: bool = True  # what the body returns must be arrays and objects
    alias: Callable[[Any], Any] | None = None  # passes an object under two prefixes
    keyword: bool = True  # `x` may be given by keyword
    plain: tuple[Callable[[], Any], Callable[[], Any]] | None = None  # refax's and JAX's

    def __str__(self) -> str:
        return self.name


def mesh_of(count: int) -> jax.sharding.Mesh:
    auto = jax.sharding.AxisType.Auto
    return jax.make_mesh((count,), ("data",), axis_types=(auto,), devices=jax.devices()[:count])


def loss_and_aux(body: Body) -> Callable:
    """A function to differentiate, whose value is a scalar and which returns what `body` does."""

    def f(objects, x):
        result = body(objects, x)
        return (x * 2.0).sum(), result

    return f


def differentiated(body: Body) -> Callable:
    return lambda objects, x: nnx.grad(loss_and_aux(body), has_aux=True)(objects, x)[1]


def with_value(body: Body) -> Callable:
    f = nnx.value_and_grad(loss_and_aux(body), argnums=1, has_aux=True)
    return lambda objects, x: f(objects, x)[0][1]


def pulled_back(body: Body) -> Callable:
    return lambda objects, x: nnx.vjp(loss_and_aux(body), objects, x, has_aux=True)[2]


def pushed_forward(body: Body) -> Callable:
    def call(objects, x):
        tangents = jax.tree.map(
            lambda o: jax.tree.map(jnp.zeros_like, nnx.state(o, nnx.Param)),
            objects,
            is_leaf=lambda o: isinstance(o, nnx.Pytree),
        )
        return nnx.jvp(loss_and_aux(body), (objects, x), (tangents, x), has_aux=True)[2]

    return call


def custom(body: Body) -> Callable:
    f = nnx.custom_vjp(body)
    f.defvjp(lambda objects, x: (body(objects, x), ()), lambda residuals, g: (None, None))
    return f


def while_once(body: Body) -> Callable:
    def step(value):
        objects, x, i = value
        body(objects, x)
        return objects, x, i + 1

    go_on = lambda value: value[2] < 1  # noqa: E731

    def call(objects, x):
        nnx.while_loop(go_on, step, (objects, x, 0))

    return call


def for_once(body: Body) -> Callable:
    def step(i, value):
        body(*value)
        return value

    def call(objects, x):
        nnx.fori_loop(0, 1, step, (objects, x))

    return call


def carried_once(body: Body) -> Callable:
    def step(value):
        body(*value)
        return value

    loop = nnx.scan(step, in_axes=(nnx.Carry,), out_axes=nnx.Carry, length=1)

    def call(objects, x):
        loop((objects, x))

    return call


def always_first(body: Body) -> Callable:
    pred = jnp.array(True)
    return lambda objects, x: nnx.cond(pred, body, body, objects, x)


def always_last(body: Body) -> Callable:
    index = jnp.array(5)
    return lambda objects, x: nnx.switch(index, [body, body, body], objects, x)


def checked(body: Body) -> Callable:
    f = nnx.checkify(body)

    def call(objects, x):
        error, result = f(objects, x)
        error.throw()
        return result

    return call


def sharded(body: Body) -> Callable:
    specs = P("data")
    return nnx.shard_map(body, mesh=mesh_of(3), in_specs=specs, out_specs=specs)


def jaxpr_of(body: Body) -> Callable:
    return lambda objects, x: nnx.make_jaxpr(body, return_shape=True)(objects, x)[1]


def sum_of(m: Any, *rest: Any) -> jax.Array:
    return m.w.value.sum()


def f(tree: Any, x: Any) -> Any:
    return {"y": tree["a"] * x, "z": (tree["b"][0], x)}


TREE = {"a": jnp.arange(3.0), "b": [jnp.ones(3)]}
X = jnp.arange(3.0)


def carry_and_add(c, x):
    return c + x, c * x


CASES = [
    Case(
        "jit",
        nnx.jit,
        nnx.jit,
        caches=True,
        alias=lambda m: nnx.jit(
            sum_of,
            in_shardings=(
                jax.NamedSharding(mesh_of(1), P()),
                jax.NamedSharding(mesh_of(1), P("data")),
            ),
        )(m, m),
        plain=(lambda: nnx.jit(f)(TREE, X), lambda: jax.jit(f)(TREE, X)),
    ),
    Case(
        "grad",
        differentiated,
        arrays_only=False,
        alias=lambda m: nnx.grad(sum_of)(m, m),
        keyword=False,
        plain=(
            lambda: nnx.grad(lambda t, x: (t["a"] * x).sum() + t["b"][0].sum())(TREE, X),
            lambda: jax.grad(lambda t, x: (t["a"] * x).sum() + t["b"][0].sum())(TREE, X),
        ),
    ),
    Case(
        "value_and_grad",
        with_value,
        arrays_only=False,
        alias=lambda m: nnx.value_and_grad(sum_of, argnums=(0, 1))(m, m),
        keyword=False,
        plain=(
            lambda: nnx.value_and_grad(lambda t, x: (t["a"] * x).sum(), (0, 1))(TREE, X),
            lambda: jax.value_and_grad(lambda t, x: (t["a"] * x).sum(), (0, 1))(TREE, X),
        ),
    ),
    Case(
        "eval_shape",
        lambda body: lambda objects, x: nnx.eval_shape(body, objects, x),
        propagates=False,
        plain=(lambda: nnx.eval_shape(f, TREE, X), lambda: jax.eval_shape(f, TREE, X)),
    ),
    Case(
        "remat",
        nnx.remat,
        nnx.remat,
        plain=(lambda: nnx.remat(f)(TREE, X), lambda: jax.checkpoint(f)(TREE, X)),
    ),
    Case(
        "vmap",
        nnx.vmap,
        nnx.vmap,
        alias=lambda m: nnx.vmap(sum_of, in_axes=(0, 1))(m, m),
        plain=(
            lambda: nnx.vmap(f, out_axes={"y": 0, "z": 0})(TREE, X),
            lambda: jax.vmap(f, out_axes={"y": 0, "z": 0})(TREE, X),
        ),
    ),
    Case(
        "pmap",
        nnx.pmap,
        nnx.pmap,
        caches=True,
        alias=lambda m: nnx.pmap(sum_of, in_axes=(0, 1))(m, m),
        plain=(lambda: nnx.pmap(f)(TREE, X), lambda: jax.pmap(f)(TREE, X)),
    ),
    Case(
        "shard_map",
        sharded,
        lambda f: nnx.shard_map(f, mesh=mesh_of(3), in_specs=P("data"), out_specs=P("data")),
        caches=True,
        alias=lambda m: nnx.shard_map(
            sum_of, mesh=mesh_of(3), in_specs=(P(), P("data")), out_specs=P()
        )(m, m),
        plain=(
            lambda: sharded(f)(TREE, X),
            lambda: jax.shard_map(f, mesh=mesh_of(3), in_specs=P("data"), out_specs=P("data"))(
                TREE, X
            ),
        ),
    ),
    Case(
        "scan",
        lambda body: nnx.scan(body, in_axes=(0, 0), out_axes=0),
        lambda f: nnx.scan(f, in_axes=(0, 0), out_axes=0),
        caches=True,
        alias=lambda m: nnx.scan(sum_of, in_axes=(0, None), out_axes=0)(m, m),
        plain=(
            lambda: nnx.scan(carry_and_add)(jnp.array(1.0), X),
            lambda: jax.lax.scan(carry_and_add, jnp.array(1.0), X),
        ),
    ),
    Case("scan with a carry", carried_once, structure=False, returns=False, caches=True),
    Case(
        "while_loop",
        while_once,
        structure=False,
        returns=False,
        caches=True,
        plain=(
            lambda: nnx.while_loop(lambda v: v["a"] < 5, lambda v: {"a": v["a"] * 2}, {"a": 1.0}),
            lambda: jax.lax.while_loop(
                lambda v: v["a"] < 5, lambda v: {"a": v["a"] * 2}, {"a": 1.0}
            ),
        ),
    ),
    Case(
        "fori_loop",
        for_once,
        structure=False,
        returns=False,
        caches=True,
        plain=(
            lambda: nnx.fori_loop(0, 5, lambda i, v: (v[0] + i, v[1]), (0, X)),
            lambda: jax.lax.fori_loop(0, 5, lambda i, v: (v[0] + i, v[1]), (0, X)),
        ),
    ),
    Case(
        "cond",
        always_first,
        caches=True,
        plain=(
            lambda: nnx.cond(True, f, lambda t, x: f(t, x * 2), TREE, X),
            lambda: jax.lax.cond(True, f, lambda t, x: f(t, x * 2), TREE, X),
        ),
    ),
    Case(
        "switch",
        always_last,
        caches=True,
        plain=(
            lambda: nnx.switch(1, [f, lambda t, x: f(t, x * 2)], TREE, X),
            lambda: jax.lax.switch(1, [f, lambda t, x: f(t, x * 2)], TREE, X),
        ),
    ),
    Case(
        "vjp",
        pulled_back,
        arrays_only=False,
        keyword=False,
        plain=(
            lambda: nnx.vjp(f, TREE, X)[1](f(TREE, X)),
            lambda: jax.vjp(f, TREE, X)[1](f(TREE, X)),
        ),
    ),
    Case(
        "jvp",
        pushed_forward,
        arrays_only=False,
        keyword=False,
        plain=(lambda: nnx.jvp(f, (TREE, X), (TREE, X)), lambda: jax.jvp(f, (TREE, X), (TREE, X))),
    ),
    Case("custom_vjp", custom),
    Case("checkify", checked),
    Case("make_jaxpr", jaxpr_of, propagates=False),
]
