"""A program as it is written for every release of Flax since 0.10, and for refax.

`tools/make_flax_checkpoints.py` runs it with each Flax and saves what it made; the tests run it
with refax, and read that. So it imports nothing of either: it gets the namespace.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def model_of(nnx: Any, seed: int) -> Any:
    class Model(nnx.Module):
        def __init__(self, rngs: Any):
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.drop_again = nnx.Dropout(0.5, rngs=rngs)
            blocks = [nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(2)]
            self.blocks = nnx.List(blocks) if hasattr(nnx, "List") else blocks
            self.rngs = rngs

        def __call__(self, x: Any) -> Any:
            x = self.drop(nnx.relu(self.norm(self.first(x))))
            x = self.drop_again(self.attention(x))
            return self.blocks[1](self.blocks[0](x))

    return Model(nnx.Rngs(seed, dropout=seed + 1))


def optimizer_of(nnx: Any, model: Any) -> Any:
    """One that holds its model, as Flax 0.10's do, where there is such a one."""
    kind = getattr(nnx, "ModelAndOptimizer", nnx.Optimizer)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1)))
    return kind(model, tx)


def optimizer_beside(nnx: Any, model: Any) -> Any:
    return nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)


def metrics_of(nnx: Any) -> Any:
    return nnx.MultiMetric(
        loss=nnx.metrics.Average("loss"),
        accuracy=nnx.metrics.Accuracy(),
        spread=nnx.metrics.Welford("loss"),
    )


def inputs() -> Any:
    return jnp.asarray(np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 4, 3))


def gradients(nnx: Any, model: Any) -> Any:
    return nnx.grad(lambda model: (model(inputs()) ** 2).mean())(model)


def train(nnx: Any, model: Any, optimizer: Any, beside: Any, metrics: Any, steps: int) -> None:
    """Steps of `optimizer`, which holds its model; `beside` follows a model of its own."""
    for step in range(steps):
        optimizer.update(gradients(nnx, model))
        if beside is not None:
            beside[1].update(beside[0], gradients(nnx, beside[0]))
        logits, labels = jnp.eye(3), jnp.array([0, 1, step % 3])
        metrics.update(loss=jnp.array([1.0 + step, 2.0]), logits=logits, labels=labels)


def results(nnx: Any, model: Any, metrics: Any) -> dict[str, Any]:
    """What the program computes: of the model when it does not draw, and of the metrics."""
    model.eval()
    found = {"output": model(inputs())}
    model.train()
    computed = metrics.compute()
    found |= {"loss": computed["loss"], "accuracy": computed["accuracy"]}
    found |= {f"spread.{n}": x for n, x in zip(("mean", "sem", "std"), _spread(computed))}
    return {name: np.asarray(x) for name, x in found.items()}


def _spread(computed: dict[str, Any]) -> tuple:
    spread = computed["spread"]
    return spread.mean, spread.standard_error_of_mean, spread.standard_deviation


def named(nnx: Any, state: Any) -> dict[str, np.ndarray]:
    """The arrays of a State by dotted names, keys as their data."""
    found = {}
    flat = state.flat_state() if hasattr(state, "flat_state") else nnx.to_flat_state(state)
    for path, x in dict(flat).items():
        x = x.value if hasattr(x, "value") else x
        if x is None:  # a bias that is left out, in Flax 0.10
            continue
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        found[".".join(map(str, path))] = np.asarray(x)
    return found
