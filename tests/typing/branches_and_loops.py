"""What checkers know of functions that take functions and their operands: both have to fit.

Read by pyright and mypy (`make types`), never run. A comment names the error that each must find.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: warn-unused-ignores

from typing import Any, assert_type

import jax
import jax.numpy as jnp

from refax import nnx


class Base(nnx.Module):
    pass


class Model(Base):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)

    def reset(self) -> None: ...


def forward(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


def of_any_model(model: Base, x: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(x)


def scaled(model: Model, x: jax.Array, by: float = 1.0) -> jax.Array:
    return model(x) * by


def of_anything(*args: Any) -> jax.Array:
    return jnp.ones(2)


def reset(model: Model) -> None:
    model.reset()


def more(model: Model, x: jax.Array) -> tuple[jax.Array, int]:
    return model(x), 3


compiled = nnx.jit(forward)


def branches(model: Model, x: jax.Array) -> None:
    assert_type(nnx.cond(True, forward, forward, model, x), jax.Array)
    assert_type(nnx.cond(x.sum() > 0, forward, of_any_model, model, x), jax.Array)
    assert_type(nnx.cond(True, of_any_model, forward, model, x), jax.Array)
    assert_type(nnx.cond(True, of_any_model, of_any_model, model, 3.0), jax.Array)
    assert_type(nnx.cond(True, scaled, forward, model, x), jax.Array)
    assert_type(nnx.cond(True, forward, of_anything, model, x), jax.Array)
    assert_type(nnx.cond(True, compiled, forward, model, x), jax.Array)
    assert_type(nnx.cond(True, more, more, model, x), tuple[jax.Array, int])
    assert_type(nnx.cond(True, lambda m, x: m(x), forward, model, x), jax.Array)
    assert_type(nnx.cond(True, lambda m, x: m(x), lambda m, x: x, model, x), jax.Array)
    assert_type(nnx.cond(True, lambda: x, lambda: x + 1), jax.Array)
    assert_type(nnx.cond(True, model, model, x), jax.Array)
    assert_type(nnx.cond(True, model.__call__, jnp.sin, x, graph=True), jax.Array)
    assert_type(nnx.cond(True, model.linear, nnx.relu, operand=x), jax.Array)
    assert_type(nnx.switch(0, [forward, of_any_model, scaled], model, x), jax.Array)
    assert_type(nnx.switch(x[0], (forward, of_anything), model, x), jax.Array)
    assert_type(nnx.switch(0, [more, more], model, x), tuple[jax.Array, int])
    assert_type(nnx.switch(0, [model.linear, model.linear], operand=x), jax.Array)
    nnx.switch(0, [model, model.linear], x)
    nnx.switch(0, [model, model.linear], operand=x)
    nnx.cond(True, reset, lambda m: None, model)
    nnx.cond(True, lambda m: None, reset, model)
    nnx.cond(True, reset, reset, operand=model)
    nnx.switch(0, [reset, lambda m: None], model)
    nnx.switch(0, [jnp.sin, jnp.cos, lambda x: x], x)


def wrong_branches(model: Model, x: jax.Array) -> None:
    nnx.cond(True, forward, forward, x, model)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, forward, forward, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, forward, forward, model, x, x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, forward, forward, Base(), x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, of_any_model, forward, model, 3.0)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, forward, reset, model, x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, forward, 3, model, x)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, reset, reset, operand=x)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.cond(True, reset, reset, operands=model)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.cond(True, forward, forward, model, x, grap=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.cond(True, lambda m, x: m.typo(x), forward, model, x)  # type: ignore[attr-defined, call-arg]  # pyright: ignore[reportAttributeAccessIssue]
    nnx.cond(True, model.__call__, forward, x)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.switch(0, [forward, forward], x, model)  # type: ignore[call-arg, list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.switch(0, [forward, of_any_model], model)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.switch(0, [forward, reset], model, x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.switch(0, forward, model, x)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.switch(0, [reset, reset], operand=x)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]


def step(i: Any, model: Model) -> Model:
    return model


def loops(model: Model, x: jax.Array) -> None:
    assert_type(nnx.while_loop(lambda m: True, lambda m: m, model), Model)
    assert_type(
        nnx.while_loop(lambda p: p[1] < 3, lambda p: (p[0], p[1] + 1), (model, x))[0], Model
    )
    assert_type(nnx.fori_loop(0, 3, step, model), Model)
    assert_type(nnx.fori_loop(0, x[0], lambda i, m: m, model, unroll=2), Model)
    assert_type(nnx.fori_loop(0, 3, lambda i, x: x * 2, x), jax.Array)
    nnx.while_loop(lambda m: m.typo, lambda m: m, model)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    nnx.while_loop(lambda m: True, forward, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.while_loop(lambda m: True, lambda m: m, model, graf=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.while_loop(lambda m: True, model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.fori_loop(0, 3, step, x)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.fori_loop(0, 3, reset, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.fori_loop(0, 3, lambda m: m, model)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]
    nnx.fori_loop(0, 3, step, model, unrol=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def products(model: Model, x: jax.Array) -> None:
    y, pullback = nnx.vjp(forward, model, x)
    assert_type(y, jax.Array)
    assert_type(pullback(y), tuple[Any, ...])
    assert_type(nnx.vjp(more, model, x, has_aux=True)[2], int)
    assert_type(nnx.vjp(lambda m, x: m(x), model, x)[0], jax.Array)
    assert_type(nnx.vjp(model, x)[0], jax.Array)
    assert_type(nnx.vjp(forward)(model, x)[0], jax.Array)
    assert_type(nnx.vjp(more, has_aux=True)(model, x)[2], int)
    assert_type(nnx.vjp(forward, model, x, argnums=0), Any)
    assert_type(nnx.jvp(forward, (model, x), (model, x)), tuple[jax.Array, jax.Array])
    assert_type(nnx.jvp(model, [x], [x]), tuple[jax.Array, jax.Array])
    assert_type(nnx.jvp(lambda m: m(x), (model,), (model,)), tuple[jax.Array, jax.Array])
    assert_type(
        nnx.jvp(more, (model, x), (model, x), has_aux=True), tuple[jax.Array, jax.Array, int]
    )
    nnx.vjp(argnums=0)(forward)(model, x)
    nnx.jvp(forward)((model, x), (model, x))
    nnx.vjp(forward, x, model)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]
    nnx.vjp(forward, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.vjp(forward)(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.vjp(forward, model, x, has_aux=True)  # type: ignore[call-arg, call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.vjp(forward, model, x, has_axu=False)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.vjp(forward, model, argnums=0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.jvp(forward, (x, model), (x, model))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.jvp(forward, (model,), (model,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.jvp(forward, (model, x))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.jvp(forward, (model, x), (model, x), has_aux=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def partials(model: Model, x: jax.Array) -> None:
    assert_type(nnx.cached_partial(forward, model)(x), jax.Array)
    assert_type(nnx.cached_partial(scaled, model)(x, by=2.0), jax.Array)
    assert_type(nnx.cached_partial(compiled, model, x)(), jax.Array)
    assert_type(nnx.jit_partial(forward, model)(x), jax.Array)
    assert_type(nnx.jit_partial(scaled, model, x, donate_argnums=0)(by=2.0), jax.Array)
    assert_type(nnx.jit_partial(more, model).eval_shape(x), tuple[jax.Array, int])
    nnx.cached_partial(forward, x)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    nnx.cached_partial(forward, model)()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.cached_partial(forward, model)(model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.cached_partial(scaled, model)(x, bye=2.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.cached_partial(forward, model, grap=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.jit_partial(forward, x)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    nnx.jit_partial(forward, model)(model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.jit_partial(forward, model, donate_argnum=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


@nnx.custom_vjp
def custom(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.custom_vjp(nondiff_argnums=(1,))
def custom_of(model: Model, count: int) -> jax.Array:
    return jnp.ones(count)


def custom_forward(model: Model, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model(x), x


custom.defvjp(lambda m, x: (m(x), x), lambda x, g: g)
custom.defvjp(custom_forward, lambda x, g: g)
custom.defvjp(forward, lambda x, g: g)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class WithRule(nnx.Module):
    @nnx.custom_vjp
    def rule(self, x: jax.Array) -> jax.Array:
        return x


def derivatives_of_their_own(model: Model, x: jax.Array) -> None:
    assert_type(custom(model, x), jax.Array)
    assert_type(custom_of(model, 3), jax.Array)
    assert_type(WithRule().rule(x), jax.Array)
    assert_type(nnx.custom_vjp(forward, nondiff_argnums=nnx.DiffState(0, ...))(model, x), jax.Array)
    assert_type(nnx.grad(lambda m: custom(m, x).sum())(model), nnx.State)
    custom(x, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    custom_of(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    WithRule().rule()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.custom_vjp(forward, nondiff_argnum=(0,))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.custom_vjp(nondiff_argnum=(0,))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def looks(model: Model, x: jax.Array) -> None:
    assert_type(nnx.eval_shape(forward, model, x), jax.Array)
    assert_type(nnx.eval_shape(lambda: Model(nnx.Rngs(0))), Model)
    assert_type(nnx.eval_shape(forward, model, jax.ShapeDtypeStruct((2,), jnp.float32)), jax.Array)
    error, y = nnx.checkify(forward)(model, x)
    assert_type(y, jax.Array)
    error.throw()
    nnx.make_jaxpr(forward)(model, jax.ShapeDtypeStruct((2,), jnp.float32))
    nnx.make_jaxpr(static_argnums=1, return_shape=True)(forward)(model, 3)
    nnx.checkify(forward)(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.checkify(forward, erors=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.make_jaxpr(forward, static_argnum=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.make_jaxpr(static_argnum=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.eval_shape(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
