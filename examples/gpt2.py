"""A decoder with a cache: GPT-2, with the names and files of the checkpoints at Hugging Face.

A small one learns to sort: it is given digits and writes them in order, one after the other. It is
compared with always writing the digit that is most frequent at that place, and the time for a token
with that of a model that reads all it has written again. At the end it is written as a folder that
`transformers.GPT2LMHeadModel.from_pretrained` opens, and read from it.

`gpt2.read(folder)` reads a published one in the same way (`gpt2`, `distilgpt2`, …), from its
`config.json` and `model.safetensors`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, positive

from refax import nnx

Array = jax.Array | np.ndarray  # what JAX takes for an array

# -- the model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """The sizes, by the names in `config.json`; by default those of `gpt2`."""

    vocab_size: int = 50_257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5


class Block(nnx.Module):
    """Attention, then a two-layer perceptron, each on a normalized input and added to it."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        size, epsilon = config.n_embd, config.layer_norm_epsilon
        self.attention_norm = nnx.LayerNorm(size, epsilon=epsilon, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(config.n_head, size, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(size, epsilon=epsilon, rngs=rngs)
        self.up = nnx.Linear(size, 4 * size, rngs=rngs)
        self.down = nnx.Linear(4 * size, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), is_causal=True)
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class GPT2(nnx.Module):
    """Tokens (batch, length) → logits of the next one at each place (batch, length, vocab_size).

    `model.decoder(batch_size, max_length)` is the same model, with the same weights, that goes on
    with each call from the tokens of the calls before.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.normal(0.02)
        self.words = nnx.Embed(config.vocab_size, config.n_embd, embedding_init=init, rngs=rngs)
        self.places = nnx.Embed(config.n_positions, config.n_embd, embedding_init=init, rngs=rngs)
        self.blocks = nnx.Stack(lambda rngs: Block(config, rngs=rngs), config.n_layer, rngs=rngs)
        self.norm = nnx.LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon, rngs=rngs)
        self.seen: nnx.Cache[jax.Array] | None = None  # how many tokens are in the caches

    def __call__(self, tokens: Array) -> jax.Array:
        places = jnp.arange(tokens.shape[1])
        if self.seen is not None:
            places += self.seen
            self.seen += tokens.shape[1]
        x = self.blocks(self.words(tokens) + self.places(places))
        return self.words.attend(self.norm(x))  # the output has the weights of the input

    def decoder(self, batch_size: int, max_length: int) -> "GPT2":
        """With empty caches, for so many tokens in each row."""
        if max_length > self.config.n_positions:
            raise ValueError(f"{max_length} tokens, but the model has {self.config.n_positions}.")
        view = nnx.view(self, decode=True, batch_size=batch_size, max_length=max_length)
        view.seen = nnx.Cache(jnp.array(0))
        return view


# -- writing -------------------------------------------------------------------------------------


def draw(
    key: jax.Array, logits: jax.Array, temperature: float, top_k: int, top_p: float
) -> jax.Array:
    """A token for each row: of the `top_k` likeliest, of the likeliest that make up `top_p`.

    At temperature 0, the likeliest.
    """
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    ordered = jnp.where(jnp.arange(logits.shape[-1]) < top_k, ordered, -jnp.inf)
    p = nnx.softmax(ordered)
    likelier = jnp.cumsum(p, axis=-1) - p  # the probability of all that come before in the order
    least = jnp.where(likelier < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
    drawn = jax.random.categorical(key, jnp.where(scaled < least, -jnp.inf, scaled))
    return jnp.where(temperature > 0, drawn, logits.argmax(axis=-1))


@nnx.jit(static_argnames="count")
def generate(
    model: GPT2,
    prompt: Array,
    count: int,
    rngs: nnx.Rngs | None = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> jax.Array:
    """Go on from prompts (batch, length) of one length, by so many tokens: (batch, count).

    The prompt is read at once, and then each new token by itself, in one compiled program.
    """
    rngs = nnx.Rngs(0) if rngs is None else rngs
    top_k = model.config.vocab_size if top_k is None else top_k
    decoder = model.decoder(len(prompt), prompt.shape[1] + count)

    cached = nnx.StateAxes({nnx.Cache: nnx.Carry, ...: None})  # the weights are one for all steps

    @nnx.scan(length=count, in_axes=(nnx.Carry, cached, None), out_axes=(nnx.Carry, 1))
    def step(logits, decoder, rngs):
        token = draw(rngs.sample(), logits, temperature, top_k, top_p)
        return decoder(token[:, None])[:, -1], token

    return step(decoder(prompt)[:, -1], decoder, rngs)[1]


# -- files ---------------------------------------------------------------------------------------

# From the names at Hugging Face to those that PyTorch would have for the attributes above. Some
# files have the first part of the names, and some not; some have the causal masks.
OURS = {
    r"^transformer\.": "",
    r"^lm_head\.": "wte.",  # tied
    r"\.attn\.(masked_)?bias$": None,
    r"^wte\.": "words.",
    r"^wpe\.": "places.",
    r"^ln_f\.": "norm.",
    r"^h\.": "blocks.",
    r"\.ln_1\.": ".attention_norm.",
    r"\.ln_2\.": ".mlp_norm.",
    r"\.attn\.c_attn\.": ".attention.in_proj_",  # queries, keys and values in one
    r"\.attn\.c_proj\.": ".attention.out_proj.",
    r"\.mlp\.c_fc\.": ".up.",
    r"\.mlp\.c_proj\.": ".down.",
}
THEIRS = {
    r"^words\.": "wte.",
    r"^places\.": "wpe.",
    r"^norm\.": "ln_f.",
    r"^blocks\.": "h.",
    r"\.attention_norm\.": ".ln_1.",
    r"\.mlp_norm\.": ".ln_2.",
    r"\.attention\.in_proj_": ".attn.c_attn.",
    r"\.attention\.out_proj\.": ".attn.c_proj.",
    r"\.up\.": ".mlp.c_fc.",
    r"\.down\.": ".mlp.c_proj.",
    r"^": "transformer.",
}


def turned(name: str, array: np.ndarray) -> np.ndarray:
    """The linear layers of GPT-2 are stored as (in, out), other than PyTorch's, and named alike."""
    is_linear = array.ndim == 2 and not name.startswith(("words.", "places."))
    return array.T if is_linear else array


def read(folder: str | Path) -> GPT2:
    """A model from `config.json` and `model.safetensors` (or the several files of an index)."""
    given = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = Config(**{f.name: given[f.name] for f in fields(Config) if f.name in given})
    model = nnx.eval_shape(lambda: GPT2(config, rngs=nnx.Rngs(0)))  # nothing is drawn or allocated
    nnx.from_torch(model, folder, rename=OURS, transform=turned)
    return model


def write(folder: str | Path, model: GPT2) -> None:
    """Both files, for `read` and for `GPT2LMHeadModel.from_pretrained` of transformers."""
    weights = nnx.to_torch(model, rename=THEIRS, transform=turned)
    file = Path(folder) / "model.safetensors"
    nnx.save(file, weights, metadata={"format": "pt"}, overwrite=True)
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **asdict(model.config)}
    (Path(folder) / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


# -- an exercise ---------------------------------------------------------------------------------

SORT = 10  # the token between the digits as they come and as they are to be written


def exercises(random: np.random.Generator, n: int, digits: int) -> np.ndarray:
    """(n, 2 · digits + 1): some digits, SORT, the same digits in order."""
    given = random.integers(0, 10, (n, digits))
    return np.concatenate([given, np.full((n, 1), SORT), np.sort(given)], axis=1)


@nnx.jit
def train_step(model: GPT2, optimizer: nnx.Optimizer, tokens: Array) -> jax.Array:
    digits = tokens.shape[1] // 2

    def loss_of(model):
        logits = model(tokens[:, :-1])[:, digits:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, digits + 1 :])
        return losses.mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


def most_frequent(answers: np.ndarray) -> np.ndarray:
    """The digit that is most frequent at each place."""
    return np.array([np.bincount(column).argmax() for column in answers.T])


# -- the end -------------------------------------------------------------------------------------

LENGTHS = (32, 64, 128, 256, 512)


@nnx.jit
def next_without_cache(model: GPT2, text: Array, end: int) -> jax.Array:
    """What comes after `text[:, :end]`; what stands there yet is not looked at."""
    return model(text)[:, end - 1].argmax(axis=-1)


def generate_without_cache(model: GPT2, prompt: Array, count: int) -> np.ndarray:
    """Each token by reading everything before it again."""
    text = np.pad(prompt, [(0, 0), (0, count)])
    for end in range(prompt.shape[1], text.shape[1]):
        text[:, end] = next_without_cache(model, text, end)
    return text[:, prompt.shape[1] :]


def milliseconds(write: Callable[[], Array], tokens: int) -> float:
    """For each token; of the best of five times, since other programs may be running."""
    np.asarray(write())  # compiles
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.asarray(write())
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / tokens


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_number("--steps", count, 500, "batches of 64 exercises to learn from")
    parser.add_number("--digits", count, 16, "to be sorted")
    parser.add_number("--learning-rate", positive, 2e-3, "at its highest, for AdamW")
    options = parser.parse(arguments)
    if 2 * options.digits + 1 > LENGTHS[-1]:
        parser.error(f"--digits {options.digits}: the model has {LENGTHS[-1]} places")

    random = np.random.default_rng(options.seed)
    config = Config(vocab_size=11, n_positions=LENGTHS[-1], n_embd=64, n_layer=2, n_head=4)
    model = GPT2(config, rngs=nnx.Rngs(options.seed))
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    optimizer = nnx.Optimizer(model, optax.adamw(rate), wrt=nnx.Param)
    print("step    loss")
    for step in range(1, options.steps + 1):
        loss = train_step(model, optimizer, exercises(random, 64, options.digits))
        if step % max(1, options.steps // 5) == 0:
            print(f"{step:>4}{loss:>8.3f}")

    test = exercises(random, 1000, options.digits)
    prompts, answers = np.split(test, [options.digits + 1], axis=1)
    written = np.asarray(generate(model, prompts, options.digits))
    frequent = most_frequent(exercises(random, 10_000, options.digits)[:, options.digits + 1 :])
    print(f"\n{'1000 other exercises':<22}{'digits right':>13}{'all right':>11}")
    for name, given in {"GPT-2": written, "the most frequent": frequent}.items():
        right = answers == given
        print(f"{name:<22}{right.mean():>13.1%}{right.all(axis=1).mean():>11.1%}")
    same = (generate_without_cache(model, prompts, options.digits) == written).mean()
    print(f"\nThe same without the cache: {same:.1%} of the digits.")

    print(f"\n{'length':>6}   ms a token: with the cache   without")
    times: dict[str, list[tuple[float, float]]] = {"with the cache": [], "without": []}
    for length in LENGTHS:
        first, most = np.zeros((1, 1), int), np.zeros((1, length - 8), int)
        ms = milliseconds(partial(generate, model, first, length - 1), length - 1)
        times["with the cache"].append((length, ms))
        ms = milliseconds(partial(generate_without_cache, model, most, 8), 8)
        times["without"].append((length, ms))
        row = "".join(f"{points[-1][1]:>{w}.2f}" for points, w in zip(times.values(), (29, 10)))
        print(f"{length:>6}{row}")

    write(options.out, model)
    again = read(options.out)
    equal = bool((again(prompts) == model(prompts)).all())
    print(f"\nWritten to {options.out}, and read: {'the same' if equal else 'NOT the same'}.")

    figure = plots.new_figure(6, 3.6)
    plots.draw_curves(figure.subplots(), times, x="tokens of a text", y="ms a token")
    plots.save(figure, options.out / "cache.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
