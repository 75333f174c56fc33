"""What checkers know of the options of transforms: those that there are, and no others.

Read by pyright and mypy (`make types`), never run. A comment names the error that each must find.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: warn-unused-ignores

from typing import Any, assert_type

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as Spec

from refax import nnx


def forward(model: nnx.Linear, x: jax.Array) -> jax.Array:
    return model(x)


def step(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, y


def all_of_them(model: nnx.Linear, x: jax.Array) -> None:
    nnx.jit(forward, static_argnums=(), static_argnames="x", donate_argnums=0, donate_argnames="x")
    nnx.jit(forward, in_shardings=None, out_shardings=None, inline=True, keep_unused=True)
    nnx.jit(forward, compiler_options={"xla_embed_ir_in_executable": True}, graph=True)
    nnx.vmap(forward, in_axes=(None, 0), out_axes=0, axis_name="b", axis_size=3)
    nnx.vmap(forward, (None, 0), 0, "b", 3, None, transform_metadata={nnx.PARTITION_NAME: "b"})
    nnx.vmap(forward, in_axes=(nnx.StateAxes({nnx.Param: 0, ...: None}), 0), graph_updates=True)
    nnx.pmap(forward, "b", in_axes=(None, 0), out_axes=0, axis_size=1, donate_argnums=0)
    nnx.scan(step, length=3, reverse=True, unroll=2, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    nnx.remat(forward, prevent_cse=False, static_argnums=1, policy=None, graph=None)
    nnx.checkpoint(forward, policy=jax.checkpoint_policies.everything_saveable)
    nnx.grad(forward, argnums=0, has_aux=False, holomorphic=False, allow_int=True, reduce_axes=())
    nnx.value_and_grad(forward, argnums=(0, 1), holomorphic=True, graph=True, graph_updates=False)
    nnx.shard_map(forward, mesh=None, in_specs=(Spec(), Spec("b")), out_specs=Spec("b"))
    nnx.shard_map(forward, out_specs=Spec(), axis_names={"b"}, check_vma=False)
    nnx.transform_metadata(forward, in_axes=(None, 0), out_axes=0, partition="layers")
    nnx.make_jaxpr(forward, static_argnums=1, axis_env=[("b", 3)], return_shape=True)
    nnx.checkify(forward, errors=None)
    nnx.custom_vjp(forward, nondiff_argnums=(), nondiff_argnames="x")


def of_functions() -> None:
    nnx.jit(forward, static_argnum=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.vmap(forward, in_axs=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.vmap(forward, (None, 0), ax_name="b")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.pmap(forward, out_axs=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.scan(forward, lenght=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.remat(forward, prevent_cs=False)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.checkpoint(forward, polcy=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.grad(forward, argnum=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.value_and_grad(forward, hasaux=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.shard_map(forward, out_specs=Spec(), in_spec=Spec())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.transform_metadata(forward, partition="layers", axes=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.make_jaxpr(forward, return_shapes=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.checkify(forward, error=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.custom_vjp(forward, nondiff=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.split_rngs(nnx.Rngs(0), split=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.fork_rngs(nnx.Rngs(0), splits=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def of_decorators() -> None:
    nnx.jit(static_argnum=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.vmap(in_axs=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.pmap(out_axs=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.scan(lenght=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.remat(prevent_cs=False)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.checkpoint(polcy=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.grad(argnum=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.value_and_grad(hasaux=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.shard_map(out_specs=Spec(), in_spec=Spec())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.transform_metadata(partition="layers", axes=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.make_jaxpr(return_shapes=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.checkify(error=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.custom_vjp(nondiff=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.split_rngs(split=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.fork_rngs(splits=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def of_wrong_types() -> None:
    nnx.jit(forward, static_argnums="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.jit(donate_argnames=0)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    nnx.vmap(forward, axis_size="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.vmap(axis_size="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    nnx.scan(step, length="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.scan(reverse="no")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    nnx.remat(forward, policy=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.remat(static_argnums="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.grad(forward, argnums="model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.grad(argnums="model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.value_and_grad(forward, has_aux="yes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    nnx.shard_map(forward)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.shard_map(out_specs=Spec(), mesh="mesh")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    nnx.grad(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def as_methods_have_them() -> None:
    class Model(nnx.Module):
        @nnx.jit(static_argnames="times")
        def repeated(self, x: jax.Array, times: int = 1) -> jax.Array:
            return x * times

        @nnx.vmap(in_axes=(None, 0), out_axes=1)
        def mapped(self, x: jax.Array) -> jax.Array:
            return x

        @nnx.jit(static_argname="times")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
        def jitted(self, x: jax.Array) -> jax.Array:
            return x

        @nnx.vmap(in_axs=(None, 0))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
        def vmapped(self, x: jax.Array) -> jax.Array:
            return x

    assert_type(Model().repeated(jnp.ones(2), times=2), jax.Array)
    assert_type(Model().mapped(jnp.ones(2)), jax.Array)
    more: dict[str, Any] = {"in_axes": 0}
    nnx.vmap(forward, **more)(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), jnp.ones(1))
