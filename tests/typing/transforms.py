"""What checkers know of transforms: the signature of the function goes through.

Read by pyright and mypy (`make types`), never run. A line with `type: ignore` must be an error.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: warn-unused-ignores

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax

from refax import nnx


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    @nnx.jit
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)

    @nnx.jit(static_argnames="times")
    def repeated(self, x: jax.Array, times: int = 1) -> jax.Array:
        return x * times

    @nnx.vmap
    def mapped(self, x: jax.Array) -> jax.Array:
        return x

    @nnx.vmap(in_axes=(None, 0))
    def mapped_over(self, x: jax.Array) -> jax.Array:
        return x

    @nnx.remat
    def again(self, x: jax.Array) -> jax.Array:
        return x

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def through(self, x: jax.Array) -> jax.Array:
        return x

    @nnx.grad
    def gradient(self, x: jax.Array) -> jax.Array:
        return x.sum()

    @nnx.value_and_grad(has_aux=True)
    def gradient_and_more(self, x: jax.Array) -> tuple[jax.Array, int]:
        return x.sum(), 1


def loss(model: Model, x: jax.Array) -> jax.Array:
    return model(x).sum()


def loss_and_count(model: Model, x: jax.Array) -> tuple[jax.Array, int]:
    return model(x).sum(), 3


def loss_of_array(w: jax.Array, x: jax.Array) -> jax.Array:
    return (w * x).sum()


def loss_of_array_and_count(w: jax.Array, x: jax.Array) -> tuple[jax.Array, int]:
    return (w * x).sum(), 3


def methods(model: Model, x: jax.Array) -> None:
    assert_type(model(x), jax.Array)
    assert_type(model.repeated(x, times=3), jax.Array)
    assert_type(model.mapped(x), jax.Array)
    assert_type(model.mapped_over(x), jax.Array)
    assert_type(model.again(x), jax.Array)
    assert_type(model.through(x), jax.Array)
    assert_type(model.gradient(x), nnx.State)
    assert_type(model.gradient_and_more(x), tuple[tuple[jax.Array, int], nnx.State])
    model()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    model.repeated(x, tims=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    model.mapped(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    model.mapped_over()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    model.again(x, x)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    model.through("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    model.gradient(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    model.gradient_and_more()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@nnx.jit
def step(model: Model, x: jax.Array, *, scale: float = 1.0) -> tuple[jax.Array, int]:
    return scale * model(x), 3


@nnx.jit(donate_argnums=0, graph=True)
def donating(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


def jit(model: Model, x: jax.Array) -> None:
    assert_type(step(model, x), tuple[jax.Array, int])
    assert_type(step(model, x=x, scale=2.0), tuple[jax.Array, int])
    assert_type(step.eval_shape(model, x), tuple[jax.Array, int])
    assert_type(step.explain(), str)
    assert_type(donating(model, x), jax.Array)
    assert_type(nnx.jit(loss)(model, x), jax.Array)
    assert_type(nnx.jit(loss, donate_argnums=0)(model, x), jax.Array)
    assert_type(nnx.jit(Model)(nnx.Rngs(0)), Model)
    assert_type(nnx.jit(lambda rngs: Model(rngs))(nnx.Rngs(0)), Model)
    assert_type(nnx.jit_partial(loss, model)(x), jax.Array)
    step(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    step(x, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    step(model, x, scal=2.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    step.lower(model, jax.ShapeDtypeStruct((1, 2), jnp.float32)).compile()
    step.typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    donating(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.jit(loss)(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.jit(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


@nnx.vmap
def mapped(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.vmap(in_axes=(None, 0), out_axes=1)
def mapped_over(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.split_rngs(splits=5)
@nnx.vmap(axis_size=5)
def several(rngs: nnx.Rngs) -> Model:
    return Model(rngs)


def maps(model: Model, x: jax.Array) -> None:
    assert_type(mapped(model, x), jax.Array)
    assert_type(mapped_over(model, x), jax.Array)
    assert_type(several(nnx.Rngs(0)), Model)
    assert_type(nnx.vmap(loss)(model, x), jax.Array)
    assert_type(nnx.vmap(loss, in_axes=(None, 0))(model, x), jax.Array)
    assert_type(nnx.vmap(loss, (None, 0), graph=True)(model, x), jax.Array)
    assert_type(nnx.vmap(Model)(nnx.Rngs(0)), Model)
    assert_type(nnx.pmap(loss, in_axes=(None, 0), graph=True)(model, x), jax.Array)
    assert_type(nnx.shard_map(loss, in_specs=None, out_specs=None)(model, x), jax.Array)
    mapped(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    mapped_over(x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    several(0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.vmap(loss)(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.vmap(loss, in_axes=(None, 0))(x, model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.pmap(loss, in_axs=0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


@nnx.remat
def again(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.checkpoint(prevent_cse=False)
def checkpointed(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), length=3)
def body(carry: int, x: jax.Array) -> tuple[int, jax.Array]:
    return carry + 1, x


def loops(model: Model, x: jax.Array) -> None:
    assert_type(again(model, x), jax.Array)
    assert_type(checkpointed(model, x), jax.Array)
    assert_type(body(0, x), tuple[int, jax.Array])
    assert_type(nnx.scan(body, length=3, graph_updates=True)(0, x), tuple[int, jax.Array])
    assert_type(nnx.remat(loss)(model, x), jax.Array)
    assert_type(nnx.while_loop(lambda m: True, lambda m: m, model), Model)
    assert_type(nnx.fori_loop(0, 3, lambda i, m: m, model), Model)
    assert_type(nnx.cond(True, loss, loss, model, x), jax.Array)
    assert_type(nnx.switch(0, [loss, loss], model, x), jax.Array)
    again(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    checkpointed(x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    body(0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.scan(body, lenght=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.scan(loss)("a")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]


@nnx.grad
def gradient(model: Model, x: jax.Array) -> jax.Array:
    return model(x).sum()


@nnx.grad(has_aux=True)
def gradient_and_count(model: Model, x: jax.Array) -> tuple[jax.Array, int]:
    return model(x).sum(), 3


@nnx.value_and_grad(has_aux=True, graph=True)
def all_of_it(model: Model, x: jax.Array) -> tuple[jax.Array, int]:
    return model(x).sum(), 3


def gradients(model: Model, x: jax.Array) -> None:
    assert_type(gradient(model, x), nnx.State)
    assert_type(gradient_and_count(model, x), tuple[nnx.State, int])
    assert_type(all_of_it(model, x), tuple[tuple[jax.Array, int], nnx.State])
    assert_type(nnx.grad(loss)(model, x), nnx.State)
    assert_type(nnx.grad(loss)(model, x=x), nnx.State)
    assert_type(nnx.grad(loss, 0, graph=False)(model, x), nnx.State)
    assert_type(nnx.grad(loss_and_count, has_aux=True)(model, x), tuple[nnx.State, int])
    assert_type(nnx.grad(lambda m: m(x).sum())(model), nnx.State)
    assert_type(nnx.value_and_grad(loss)(model, x), tuple[jax.Array, nnx.State])
    assert_type(
        nnx.value_and_grad(loss_and_count, has_aux=True)(model, x),
        tuple[tuple[jax.Array, int], nnx.State],
    )
    gradient(model)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    gradient_and_count(x)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.grad(loss)(model)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.grad(loss)(model, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.grad(loss, has_axu=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.grad(loss, has_aux=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.value_and_grad(loss)(model)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def gradients_of_arrays(x: jax.Array) -> None:
    assert_type(nnx.grad(loss_of_array)(x, x), jax.Array)
    assert_type(nnx.grad(loss_of_array_and_count, has_aux=True)(x, x), tuple[jax.Array, int])
    assert_type(nnx.value_and_grad(loss_of_array)(x, x), tuple[jax.Array, jax.Array])
    assert_type(nnx.grad(lambda w: w**2)(x), jax.Array)
    assert_type(nnx.grad(lambda w: w**2)(2.0), jax.Array)
    nnx.grad(loss_of_array)(x, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.grad(loss_of_array)(x)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def of_dict(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return (w["a"] * x).sum()


def of_state(state: nnx.State, x: jax.Array) -> jax.Array:
    return state["a"].value.sum()


def gradients_of_trees(model: Model, x: jax.Array, param: nnx.Param[jax.Array]) -> None:
    """Of a container it is the same container, of a Variable a Variable: that stays open."""
    assert_type(nnx.grad(of_state)(nnx.state(model), x), nnx.State)
    assert_type(nnx.grad(of_dict)({"a": x}, x), Any)
    assert_type(nnx.value_and_grad(of_dict)({"a": x}, x), tuple[jax.Array, Any])
    nnx.grad(of_dict)({"a": "x"}, x)  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    nnx.grad(of_state)(model, x)  # pyright: ignore[reportArgumentType, reportCallIssue]


def gradients_of_other_arguments(model: Model, x: jax.Array) -> None:
    of = nnx.DiffState(0, nnx.LoRAParam)
    assert_type(nnx.grad(loss, of)(model, x), nnx.State)
    assert_type(nnx.grad(loss, argnums=of)(model, x), nnx.State)
    assert_type(nnx.value_and_grad(loss, argnums=of)(model, x), tuple[jax.Array, nnx.State])
    assert_type(
        nnx.value_and_grad(loss_and_count, argnums=of, has_aux=True)(model, x),
        tuple[tuple[jax.Array, int], nnx.State],
    )
    assert_type(nnx.grad(loss, argnums=(0, 1))(model, x), tuple[Any, ...])
    assert_type(nnx.grad(loss_and_count, argnums=(0, 1), has_aux=True)(model, x), tuple[Any, int])
    assert_type(nnx.grad(loss, argnums=1)(model, x), Any)
    assert_type(nnx.grad(loss, 1)(model, x), Any)
    assert_type(nnx.value_and_grad(loss, argnums=1)(model, x), tuple[jax.Array, Any])
    assert_type(
        nnx.value_and_grad(loss, argnums=(of, 1))(model, x), tuple[jax.Array, tuple[Any, ...]]
    )
    assert_type(nnx.grad(argnums=of)(loss)(model, x), nnx.State)
    assert_type(nnx.value_and_grad(argnums=of)(loss)(model, x), tuple[jax.Array, nnx.State])
    assert_type(nnx.grad(loss_and_count, argnums=of, has_aux=True)(model, x), tuple[nnx.State, int])
    nnx.grad(loss, argnums=of, has_aux=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.grad(argnums=of)(loss)(x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    nnx.grad(loss, of)(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.value_and_grad(loss, argnums=1)(model)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@nnx.custom_vjp
def custom(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


custom.defvjp(lambda model, x: (model(x), x), lambda x, g: g)


@nnx.custom_vjp(nondiff_argnums=1)
def custom_of(model: Model, count: int) -> int:
    return count


def other_transforms(model: Model, x: jax.Array) -> None:
    assert_type(custom(model, x), jax.Array)
    assert_type(custom_of(model, 3), int)
    assert_type(nnx.eval_shape(lambda: Model(nnx.Rngs(0))), Model)
    assert_type(nnx.cached_partial(loss, model)(x), jax.Array)
    nnx.make_jaxpr(loss)(model, x).jaxpr
    error, out = nnx.checkify(loss)(model, x)


def training(model: Model, x: jax.Array) -> jax.Array:
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def train(
        model: Model, optimizer: nnx.Optimizer, x: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        def of(model: Model):
            out = model(x)
            return jnp.mean((out - x) ** 2), {"out": out}

        (loss, more), grads = nnx.value_and_grad(of, has_aux=True)(model)
        optimizer.update(model, grads)
        return loss, more

    loss, more = train(model, optimizer, x)
    assert_type(more, dict[str, jax.Array])
    return loss
