"""A small model and its data, shared by the tests of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import jax
import jax.monitoring
import jax.numpy as jnp

from refax import nnx

X = jax.random.normal(jax.random.key(1), (8, 3))
Y = jnp.linspace(-1.0, 1.0, 16).reshape(8, 2)


class Net(nnx.Module):
    def __init__(
        self, rngs: nnx.Rngs | None = None, hidden: int = 4, param_dtype: Any = jnp.float32
    ):
        rngs = rngs or nnx.Rngs(0)
        self.encoder = nnx.Linear(3, hidden, param_dtype=param_dtype, rngs=rngs)
        self.head = nnx.Linear(hidden, 2, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.encoder(x)))


def loss_of(model: Any, x: jax.Array = X, y: jax.Array = Y) -> jax.Array:
    return ((model(x) - y) ** 2).mean()


def plain_params() -> dict[str, dict[str, jax.Array]]:
    """The parameters of `Net()` as a plain dict."""
    return nnx.to_pure_dict(nnx.state(Net(), nnx.Param))


def plain_loss(params: Any, x: jax.Array = X, y: jax.Array = Y) -> jax.Array:
    """`loss_of` written on that dict."""
    hidden = jnp.tanh(x @ params["encoder"]["kernel"] + params["encoder"]["bias"])
    return ((hidden @ params["head"]["kernel"] + params["head"]["bias"] - y) ** 2).mean()


@contextmanager
def count_compilations() -> Iterator[list[str]]:
    """A list that grows by one entry for each program that XLA compiles."""
    names: list[str] = []
    active = True

    def listen(event: str, _duration: float, **_: Any) -> None:
        if active and event.endswith("backend_compile_duration"):
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(cast(Any, listen))
    try:
        yield names
    finally:
        active = False
