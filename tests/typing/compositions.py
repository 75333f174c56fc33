"""What checkers know of transforms of transforms: the signature goes through all of them.

Read by pyright and mypy (`make types`), never run. A comment names the error that each must find.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: warn-unused-ignores

import functools
from typing import Any, assert_type

import jax
import jax.numpy as jnp

from refax import nnx


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)

    @nnx.jit
    @nnx.remat(prevent_cse=False)
    def again(self, x: jax.Array) -> jax.Array:
        return x


def loss(model: Model, x: jax.Array) -> jax.Array:
    return model(x).sum()


def loss_and_count(model: Model, x: jax.Array) -> tuple[jax.Array, int]:
    return model(x).sum(), 3


def of_array(w: jax.Array, x: jax.Array) -> jax.Array:
    return (w * x).sum()


@nnx.jit
@nnx.vmap(in_axes=(None, 0))
def mapped(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.jit(donate_argnums=0)
@nnx.value_and_grad(has_aux=True)
def stepped(model: Model, x: jax.Array) -> tuple[jax.Array, int]:
    return model(x).sum(), 3


def that_keep(model: Model, x: jax.Array) -> None:
    assert_type(model.again(x), jax.Array)
    assert_type(mapped(model, x), jax.Array)
    assert_type(nnx.jit(nnx.vmap(loss))(model, x), jax.Array)
    assert_type(nnx.vmap(nnx.jit(loss))(model, x), jax.Array)
    assert_type(nnx.vmap(nnx.vmap(nnx.remat(loss)), in_axes=(None, 1))(model, x), jax.Array)
    assert_type(nnx.scan(nnx.remat(loss_and_count))(model, x), tuple[jax.Array, int])
    assert_type(nnx.jit(nnx.checkify(loss))(model, x)[1], jax.Array)
    assert_type(nnx.jit(nnx.shard_map(loss, out_specs=None)).eval_shape(model, x), jax.Array)
    model.again()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    mapped(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.jit(nnx.vmap(loss))(x, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.vmap(nnx.jit(loss))(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def of_gradients(model: Model, x: jax.Array) -> None:
    assert_type(stepped(model, x), tuple[tuple[jax.Array, int], nnx.State])
    assert_type(nnx.jit(nnx.grad(loss))(model, x), nnx.State)
    assert_type(nnx.jit(nnx.value_and_grad(loss))(model, x), tuple[jax.Array, nnx.State])
    assert_type(
        nnx.jit(nnx.grad(loss_and_count, has_aux=True), donate_argnums=0)(model, x),
        tuple[nnx.State, int],
    )
    assert_type(nnx.vmap(nnx.grad(loss), in_axes=(None, 0))(model, x), nnx.State)
    assert_type(nnx.vmap(in_axes=(None, 0))(nnx.grad(loss))(model, x), nnx.State)
    assert_type(nnx.jit(nnx.vmap(nnx.grad(loss)))(model, x), nnx.State)
    assert_type(nnx.remat(nnx.jit(nnx.grad(of_array)))(x, x), jax.Array)
    assert_type(nnx.jit(nnx.grad(of_array))(x, x), jax.Array)
    assert_type(nnx.jit(nnx.grad(lambda m: m(x).sum()))(model), nnx.State)
    assert_type(nnx.jit(nnx.grad(lambda w: w**2))(x), jax.Array)
    nnx.jit(nnx.value_and_grad(lambda m: m(x).sum()))(model)
    assert_type(nnx.jit(nnx.grad(loss, argnums=(0, 1)))(model, x), tuple[Any, ...])
    assert_type(nnx.grad(nnx.jit(loss))(model, x), nnx.State)
    assert_type(nnx.grad(nnx.jit(nnx.remat(loss)))(model, x), nnx.State)
    assert_type(nnx.value_and_grad(nnx.vmap(loss))(model, x), tuple[jax.Array, nnx.State])
    assert_type(nnx.grad(nnx.grad(lambda w: w**2))(x), jax.Array)
    assert_type(nnx.grad(nnx.grad(lambda w: w**3))(2.0), jax.Array)
    assert_type(nnx.cond(True, nnx.grad(loss), nnx.grad(loss), model, x), nnx.State)
    nnx.jit(nnx.grad(loss)).lower(model, x).compile()
    nnx.eval_shape(nnx.grad(loss), model, x)
    stepped(model)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.jit(nnx.grad(loss))(model)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.jit(nnx.grad(loss))(x, x)  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.vmap(nnx.grad(loss))(model, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.jit(nnx.grad(of_array))(model, x)  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.grad(nnx.jit(loss))(x, x)  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.jit(nnx.grad(loss), donate=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def with_plain_jax(model: Model, x: jax.Array) -> None:
    assert_type(jax.vmap(nnx.jit(of_array))(x, x), jax.Array)
    assert_type(jax.vmap(nnx.grad(of_array))(x, x), jax.Array)
    assert_type(nnx.jit(jax.vmap(of_array))(x, x), jax.Array)
    jax.jit(nnx.grad(loss))(model, x)
    jax.jit(nnx.jit(loss))(model, x)
    nnx.jit(jax.jit(of_array))(x, x)


@functools.partial(nnx.jit, static_argnums=1)
def sized(model: Model, size: int) -> jax.Array:
    return model(jnp.ones(size))


@functools.partial(nnx.vmap, in_axes=(None, 0))
def over(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@functools.partial(nnx.remat, prevent_cse=False)
def light(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


def as_partials(model: Model, x: jax.Array) -> None:
    print(sized(model, 3) + 1, over(model, x) + 1, light(model, x) + 1)
