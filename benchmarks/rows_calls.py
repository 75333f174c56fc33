"""Rows for warm calls: what a compiled function costs from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from .harness import Bound, Row, Work
from .models import (
    ADAM,
    GPT,
    MLP,
    REAL,
    REAL_24,
    REAL_DROPOUT,
    Flat,
    Size,
    dropout_keys,
    equinox_model,
    inputs,
    loss_of,
    nnx_model,
)


def rows() -> Iterator[Row]:
    yield from (NoOp(MLP(10), 1.3), NoOp(GPT(12), 1.3), NoOp(GPT(48), 1.3))
    yield from (Eval(MLP(30), 1.5), Eval(GPT(12), 1.15), Eval(GPT(48), 1.15))
    for size in (MLP(10), GPT(12), MLP(400)):
        yield from (Train(size, donate=False), Train(size, donate=True))
    yield from (Eval(SCANNED, 1.5), Train(SCANNED, donate=False))
    yield from (Train(size, donate=False, slow=True) for size in (REAL, REAL_DROPOUT, REAL_24))
    yield JitAgain()


SCANNED = GPT(12, scanned=True)


class Call(Row):
    """Base: a compiled function that changes nothing."""

    def __init__(self, size: Size, bound: float):
        self.size, self.bound, self.slow = size, Bound(bound), size.layers > 30
        self.x = inputs(size)[0]

    def result(self, model: Callable, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def state(self, state: Callable[[], Any]) -> Any:
        """What the function gets beside the model and `x`; `state()` makes adam's."""
        return None

    def floor(self) -> Work:
        flat, x = Flat(self.size), self.x
        params, state = flat.params, self.state(lambda: flat.state)
        f = jax.jit(lambda params, state, x: self.result(lambda x: flat.apply(params, x), x))
        return lambda: f(params, state, x).block_until_ready()

    def nnx(self, nnx: Any) -> Work:
        model, x = nnx_model(nnx, self.size), self.x
        optimizer = self.state(lambda: nnx.Optimizer(model, ADAM, wrt=nnx.Param))
        f = nnx.jit(lambda model, optimizer, x: self.result(model, x))
        return lambda: f(model, optimizer, x).block_until_ready()

    def equinox(self) -> Work:
        import equinox as eqx

        model, x = equinox_model(self.size), self.x
        state = self.state(lambda: adam_of_equinox(model))
        f = eqx.filter_jit(lambda model, state, x: self.result(model, x))
        return lambda: f(model, state, x).block_until_ready()


class NoOp(Call):
    """Takes the model and the optimizer and touches neither: dispatch alone."""

    def __init__(self, size: Size, bound: float):
        super().__init__(size, bound)
        self.name = f"warm no-op call, {size.name} + adam, {3 * size.leaves + 1} leaves"

    def result(self, model: Callable, x: jax.Array) -> jax.Array:
        return x + 1

    def state(self, state: Callable[[], Any]) -> Any:
        return state()


class Eval(Call):
    """A forward pass."""

    def __init__(self, size: Size, bound: float):
        super().__init__(size, bound)
        self.name = f"warm eval call, {size.name}, {size.leaves} leaves"

    def result(self, model: Callable, x: jax.Array) -> jax.Array:
        return model(x)


# -- the train step ------------------------------------------------------------------------------


def train_step_of_nnx(nnx: Any, size: Size) -> Callable:
    """(model, optimizer, x, y) → loss, as a user of the NNX API writes it."""
    loss_function = loss_of(size)

    def train_step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda m: loss_function(m(x), y))(model)
        optimizer.update(model, grads)
        return loss

    return train_step


def train_step_of_equinox(size: Size) -> Callable:
    """((x, y), model, state) → (loss, model, state)."""
    import equinox as eqx

    loss_function = loss_of(size)

    def train_step(batch: tuple, model: Any, state: Any) -> tuple[jax.Array, Any, Any]:
        x, y = batch
        keys = dropout_keys(size, state[0].count)
        loss, grads = eqx.filter_value_and_grad(lambda m: loss_function(m(x, *keys), y))(model)
        updates, state = ADAM.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return loss, eqx.apply_updates(model, updates), state

    return train_step


def adam_of_equinox(model: Any) -> Any:
    import equinox as eqx

    return ADAM.init(eqx.filter(model, eqx.is_inexact_array))


class Train(Row):
    """Forward, backward and adam; the state goes on from step to step."""

    bound = Bound(1.05)  # donating: of the donating floor
    checked = 4
    tolerance = 2e-3  # adam divides by small numbers: four steps of rounding

    def __init__(self, size: Size, donate: bool, slow: bool = False):
        self.size, self.donate, self.slow = size, donate, slow or size.layers > 30
        kind = "donating" if donate else "warm"
        self.name = f"{kind} train step, {size.name} + adam, {3 * size.leaves + 1} leaves"
        self.batch = inputs(size)

    def floor(self) -> Work:
        flat, (x, y) = Flat(self.size), self.batch
        step = jax.jit(flat.train_step, donate_argnums=(0, 1) if self.donate else ())
        params, state = flat.params, flat.state

        def work() -> jax.Array:
            nonlocal params, state
            loss, params, state = step(params, state, x, y)
            return loss.block_until_ready()

        return work

    def nnx(self, nnx: Any) -> Work:
        model, (x, y) = nnx_model(nnx, self.size), self.batch
        optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
        options = {"donate_argnums": (0, 1)} if self.donate else {}
        step = nnx.jit(train_step_of_nnx(nnx, self.size), **options)
        return lambda: step(model, optimizer, x, y).block_until_ready()

    def equinox(self) -> Work:
        import equinox as eqx

        model, batch = equinox_model(self.size), self.batch
        state = adam_of_equinox(model)
        donate = "all-except-first" if self.donate else "none"
        step = eqx.filter_jit(train_step_of_equinox(self.size), donate=donate)

        def work() -> jax.Array:
            nonlocal model, state
            loss, model, state = step(batch, model, state)
            return loss.block_until_ready()

        return work


class JitAgain(Row):
    """`jit(f)` made anew for an `f` that was compiled before, and called: no compilation."""

    name = "jit(f) made again for the same f, and called"
    bound = Bound(2.0)
    size = MLP(2)

    def floor(self) -> Work:
        flat, x = Flat(self.size), inputs(self.size)[0]
        apply = flat.apply
        return lambda: jax.jit(apply)(flat.params, x).block_until_ready()

    def nnx(self, nnx: Any) -> Work:
        return self._work(nnx.jit, nnx_model(nnx, self.size))

    def equinox(self) -> Work:
        import equinox as eqx

        return self._work(eqx.filter_jit, equinox_model(self.size))

    def _work(self, jit: Callable, model: Any) -> Work:
        x = inputs(self.size)[0]

        def apply(model: Any, x: jax.Array) -> jax.Array:
            return model(x)

        return lambda: jit(apply)(model, x).block_until_ready()
