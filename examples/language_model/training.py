"""The optimizer, one training step, and evaluation."""

from collections.abc import Iterable

import jax
import optax

from refax import nnx

from .data import Batch
from .model import LanguageModel


def make_optimizer(
    model: LanguageModel,
    *,
    steps: int,
    warmup_steps: int,
    learning_rate: float,
    weight_decay: float,
    clip_norm: float,
) -> nnx.Optimizer:
    """AdamW with clipped gradients; the rate warms up, then falls by a cosine to a tenth."""
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=learning_rate / 10,
    )
    transformation = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(rate, b2=0.99, weight_decay=weight_decay, mask=is_decayed),
    )
    return nnx.Optimizer(model, transformation, wrt=nnx.Param)


def is_decayed(params: nnx.State) -> nnx.State:
    """Which parameters the weight decay pulls to zero: matrices, not biases and norms."""
    return nnx.map_state(lambda path, _: path[-1] in ("kernel", "embedding"), params)


def make_metrics() -> nnx.MultiMetric:
    """Averages over the batches since the last reset."""
    return nnx.MultiMetric(loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy())


def loss_and_logits(model: LanguageModel, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The mean loss in nats per byte, and the logits."""
    inputs, targets = batch
    logits = model(inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), logits


@nnx.jit(donate_argnames=("model", "optimizer", "metrics"))
def train_step(
    model: LanguageModel, optimizer: nnx.Optimizer, metrics: nnx.MultiMetric, batch: Batch
) -> None:
    """One update of the model, the optimizer and the metrics, in place."""
    (loss, logits), grads = nnx.value_and_grad(loss_and_logits, has_aux=True)(model, batch)
    optimizer.update(model, grads)
    metrics.update(loss=loss, logits=logits, labels=batch[1])


@nnx.jit
def evaluation_step(model: LanguageModel, metrics: nnx.MultiMetric, batch: Batch) -> None:
    loss, logits = loss_and_logits(model, batch)
    metrics.update(loss=loss, logits=logits, labels=batch[1])


def evaluate(model: LanguageModel, batches: Iterable[Batch]) -> dict[str, float]:
    """The metrics over these batches, without dropout."""
    metrics = make_metrics()
    model.eval()
    for batch in batches:
        evaluation_step(model, metrics, batch)
    model.train()
    return {name: float(value) for name, value in metrics.compute().items()}
