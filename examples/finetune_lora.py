"""Fine-tune a language model by few parameters: LoRA on the demo's transformer.

A small model learns to write Python from the standard library's source. Then it is to write what
`help("topics")` prints, the language reference in plain text, of which it gets 100 kB: once by
training adapters of low rank beside its frozen weights, and once, to compare, by training all of
them. At the end it prints how many parameters each trained, and the loss on new and on old text.

With `--base`, a run of `train_language_model.py` is the model to begin with.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), arXiv:2106.09685.
"""

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, positive
from language_model import data, generation, training
from language_model.errors import DemoError
from language_model.model import LanguageModel, ModelConfig

from refax import nnx

BATCH_SIZE, CONTEXT = 16, 64
Batches = list[data.Batch]

# -- surgery -------------------------------------------------------------------------------------


class AdaptedHeads(nnx.Module):
    """The projection of an attention to its heads, with an adapter beside it.

    `nnx.LoRALinear` does this for a Linear; here the result has two axes, heads and features.
    """

    def __init__(self, base: nnx.LinearGeneral, rank: int, *, rngs: nnx.Rngs):
        in_features, *heads = base.kernel.shape
        self.base = base
        self.lora = nnx.LoRA(in_features, rank, math.prod(heads), rngs=rngs)

    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        y = self.base(x, **kwargs)  # attention passes on its `out_sharding`
        return y + self.lora(x).reshape(y.shape)


def add_adapters(model: LanguageModel, rank: int, *, rngs: nnx.Rngs) -> None:
    """Give every Linear, and every attention's query, key and value, an adapter: by assignment.

    The base weights stay the same Variables, and adapters begin at zero: the model's output does
    not change.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nnx.MultiHeadAttention):
            for part in ("query", "key", "value"):
                setattr(module, part, AdaptedHeads(getattr(module, part), rank, rngs=rngs))
        elif type(module) is nnx.Linear:
            nnx.set_path(model, name, nnx.LoRALinear(module, rank=rank, rngs=rngs))


BASE_WEIGHTS = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))


def size(model: LanguageModel, which: nnx.Filter) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, which)))


def same_values(one: nnx.State, other: nnx.State) -> bool:
    """Whether all arrays are equal, bit for bit."""
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), one, other)
    return all(jax.tree.leaves(equal))


# -- training ------------------------------------------------------------------------------------


@nnx.jit
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, batch: data.Batch) -> jax.Array:
    """One update of what the optimizer is for: gradients are computed of nothing else."""
    trained = nnx.DiffState(0, optimizer.wrt)
    compute = nnx.value_and_grad(training.loss_and_logits, argnums=trained, has_aux=True)
    (loss, _), grads = compute(model, batch)
    optimizer.update(model, grads)
    return loss


def train(
    name: str,
    model: LanguageModel,
    wrt: nnx.Filter,
    learning_rate: float,
    steps: int,
    batches: data.Batches,
    held_out: Batches,
) -> list[tuple[float, float]]:
    """Train what `wrt` matches; the held-out losses."""
    warmup_steps = min(50, steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0, learning_rate, warmup_steps, max(steps, 2))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)
    curve = [(0.0, training.evaluate(model, held_out)["loss"])]
    every = -(-steps // 6)
    for step in range(1, steps + 1):
        train_step(model, optimizer, next(batches))
        if step % every == 0 or step == steps:
            curve.append((step, training.evaluate(model, held_out)["loss"]))
            print(f"{name:<18}step {step:>4}/{steps}   held-out loss {curve[-1][1]:.3f}")
    return curve


# -- texts and the base model --------------------------------------------------------------------


def reference_text() -> bytes:
    """What `help` knows of topics such as "FUNCTIONS": the language reference, in plain text."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def batches_of(
    train: np.ndarray, held_out: np.ndarray, context: int, seed: int
) -> tuple[data.Batches, Batches]:
    evaluated = data.held_out_batches(held_out, BATCH_SIZE, context, 24)
    return data.Batches(train, BATCH_SIZE, context, seed), evaluated


def train_base(steps: int, seed: int) -> tuple[LanguageModel, Batches]:
    """A small model of the standard library's source, and batches of such text held out."""
    corpus = data.read_corpus(None, 3_000_000)
    print(f"Old text: {corpus}")
    config = ModelConfig(data.VOCAB_SIZE, CONTEXT, n_layers=3, n_heads=4, d_model=96, dropout=0.0)
    model = LanguageModel(config, rngs=nnx.Rngs(seed))
    model.train()  # says so to each layer, as after an evaluation: nothing compiles twice
    batches, held_out = batches_of(corpus.train, corpus.held_out, CONTEXT, seed)
    train("base model", model, nnx.Param, 5e-3, steps, batches, held_out)
    return model, held_out


def load_base(run: Path) -> tuple[LanguageModel, Batches]:
    """The model of a run of `train_language_model.py`, and the text that it held out."""
    from language_model import runs
    from language_model.options import Settings
    from train_language_model import Trainer

    for library in ("absl", "jax", "orbax"):  # they warn of what the user cannot change
        logging.getLogger(library).setLevel(logging.ERROR)
    settings = Settings(**runs.read_description(run)["settings"])
    trainer = Trainer(settings, data.read_corpus(settings.corpus, settings.max_bytes))
    with runs.checkpoints_of(run) as checkpoints:
        trainer.restore(checkpoints)
    print(f"Base model: step {trainer.step} of {run}")
    return trainer.model, trainer.held_out


# -- the program ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_argument(
        "--base",
        type=lambda text: Path(text).expanduser(),
        metavar="RUN",
        help="folder of a run of train_language_model.py to begin with, such as "
        "out/language_model/001 (default: train a small one)",
    )
    parser.add_number("--base-steps", count, 1000, "to train the small one")
    parser.add_number("--steps", count, 300, "of each fine-tuning")
    parser.add_number("--rank", count, 8, "of the adapters")
    parser.add_number("--lora-rate", positive, 15e-3, "highest learning rate of the adapters")
    parser.add_number("--full-rate", positive, 2e-3, "the same, where all weights are trained")
    parser.add_number("--max-bytes", count, 100_000, "new text to learn from")
    options = parser.parse(arguments)
    try:
        if options.base is None:
            base, old = train_base(options.base_steps, options.seed)
        else:
            base, old = load_base(options.base)
        text = np.frombuffer(reference_text(), np.uint8)
        context = base.config.context
        corpus = data.Corpus(
            "New text, Python's topics of help", text[: options.max_bytes], text[-100_000:], 1, 0
        )
        data.check_size(corpus, BATCH_SIZE, context)
    except DemoError as error:
        parser.error(str(error))
    print(
        f"New text: {corpus.train.size:,} bytes of the language reference, "
        f"{corpus.held_out.size:,} held out"
    )

    with_lora, in_full = nnx.clone(base), nnx.clone(base)
    add_adapters(with_lora, options.rank, rngs=nnx.Rngs(options.seed))
    before = nnx.state(with_lora, BASE_WEIGHTS)
    adapters, all_weights = size(with_lora, nnx.LoRAParam), size(base, nnx.Param)

    curves, new = {}, list[Any]()
    for name, model, wrt, rate in [
        ("LoRA", with_lora, nnx.LoRAParam, options.lora_rate),
        ("full fine-tuning", in_full, nnx.Param, options.full_rate),
    ]:
        batches, new = batches_of(corpus.train, corpus.held_out, context, options.seed)
        curves[name] = train(name, model, wrt, rate, options.steps, batches, new)

    unchanged = same_values(before, nnx.state(with_lora, BASE_WEIGHTS))
    columns = ("trained", "share", "new text", "old text")
    print(f"\n{'held-out nats per byte':<24}" + "".join(f"{name:>11}" for name in columns))
    for name, model, trained in [
        ("base model", base, 0),
        (f"LoRA, rank {options.rank}", with_lora, adapters),
        ("full fine-tuning", in_full, all_weights),
    ]:
        losses = [training.evaluate(model, batches)["loss"] for batches in (new, old)]
        print(
            f"{name:<24}{trained:>11,}{trained / all_weights:>11.1%}"
            f"{losses[0]:>11.3f}{losses[1]:>11.3f}"
        )
    print(f"Base weights of the LoRA model unchanged, bit for bit: {'yes' if unchanged else 'NO'}")

    prompt = "The following "
    for name, model in [("base model", base), ("LoRA", with_lora)]:
        written = generation.generate(
            model, data.encode(prompt), 200, temperature=0.8, top_k=40, seed=options.seed
        )
        print(f"\n{prompt!r} continued by the {name}:\n{prompt}{data.decode(written)}")
    print()

    figure = plots.new_figure(6.5, 4)
    axes = figure.subplots()
    plots.draw_curves(axes, curves, x="step", y="held-out loss on the new text (nats per byte)")
    plots.save(figure, options.out / "loss.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
