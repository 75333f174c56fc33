"""Train a recurrent network to colour Python code, one character at a time.

What each character is (part of a comment, a string, a keyword, a name that is being defined, …) the
network learns from the standard library's source, which Python's own `tokenize` has labelled. It
sees only 128 characters at once, often from the middle of a string or comment, and reads them from
both sides. At the end it is compared, on files that it has not seen, with a table of three
characters; `code.png` shows such a file in its colours.
"""

import io
import keyword
import sys
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from common import plots
from common.command_line import ExampleParser, count, length, positive
from language_model.data import read_texts, standard_library_files

from refax import nnx

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = ("space", "comment", "string", "number", "keyword", "name", "definition", "operator")
COLOURS = (
    "black",
    "tab:gray",
    "tab:green",
    "tab:purple",
    "tab:blue",
    "black",
    "tab:red",
    "darkcyan",
)
VOCAB_SIZE = 128  # ASCII

Array = jax.Array | np.ndarray  # what JAX takes for an array

# -- the data ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Code:
    """Characters (n,) and what each is, an index into `CLASSES` (n,); both uint8."""

    characters: np.ndarray
    classes: np.ndarray

    def windows(self, starts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Both from each start on, int32 (starts, size)."""
        places = starts[:, None] + np.arange(size)
        return self.characters[places].astype(np.int32), self.classes[places].astype(np.int32)


def label(text: str) -> Code:
    """Ask `tokenize` what each character is."""
    classes = np.zeros(len(text), np.uint8)
    line_starts = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True))])
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first, last = (line_starts[row - 1] + column for row, column in (token.start, token.end))
        kind = tokenize.tok_name[token.type]
        if kind == "NAME":
            if keyword.iskeyword(token.string):
                kind = "KEYWORD"
            elif before in ("def", "class"):
                kind = "DEFINITION"
        named = {"OP": "operator", **{name.upper(): name for name in CLASSES}}
        named |= dict.fromkeys(("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"), "string")
        if kind in named:
            classes[first:last] = CLASSES.index(named[kind])
        before = token.string
    return Code(np.frombuffer(text.encode("ascii"), np.uint8), classes)


def read_code(max_bytes: int) -> tuple[Code, Code]:
    """(to train on, held out): every tenth file of the standard library is held out."""
    texts, _ = read_texts(standard_library_files(), max_bytes)
    whole_files = [text.decode() for text in texts[:-1]]  # the last one is cut off
    files = [label(text) for text in whole_files if text.isascii() and "\f" not in text]
    parts = [f for i, f in enumerate(files) if i % 10 != 9], files[9::10]
    train, held_out = (
        Code(
            np.concatenate([f.characters for f in part]), np.concatenate([f.classes for f in part])
        )
        for part in parts
    )
    return train, held_out


# -- the model -----------------------------------------------------------------------------------


class Highlighter(nnx.Module):
    """Characters (batch, length) → logits (batch, length, classes)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(VOCAB_SIZE, 32, rngs=rngs)
        self.layers = [
            nnx.Bidirectional(
                nnx.RNN(nnx.GRUCell(in_features, features, rngs=rngs)),
                nnx.RNN(nnx.GRUCell(in_features, features, rngs=rngs)),
            )
            for in_features in (32, 2 * features)
        ]
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.linear = nnx.Linear(2 * features, len(CLASSES), rngs=rngs)

    def __call__(self, characters: Array) -> jax.Array:
        x = self.embedding(characters)
        for layer in self.layers:
            x = self.dropout(layer(x))
        return self.linear(x)


# -- training ------------------------------------------------------------------------------------


def loss_and_logits(
    model: Highlighter, characters: Array, classes: Array
) -> tuple[jax.Array, jax.Array]:
    logits = model(characters)
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean(), logits


@nnx.jit
def train_step(
    model: Highlighter,
    optimizer: nnx.Optimizer,
    metrics: nnx.MultiMetric,
    characters: Array,
    classes: Array,
) -> None:
    compute = nnx.value_and_grad(loss_and_logits, has_aux=True)
    (loss, logits), grads = compute(model, characters, classes)
    optimizer.update(model, grads)
    metrics.update(loss=loss, logits=logits, labels=classes)


@nnx.jit
def most_likely(model: Highlighter, characters: Array) -> jax.Array:
    return model(characters).argmax(-1)


def predict(model: Highlighter, characters: np.ndarray) -> np.ndarray:
    """The classes of characters (batch, length), in evaluation."""
    model.eval()
    classes = np.asarray(most_likely(model, characters))
    model.train()
    return classes


# -- the end -------------------------------------------------------------------------------------


def from_a_table(train: Code, characters: np.ndarray, *, context: int) -> np.ndarray:
    """For each character, the class most frequent in training with the same neighbours.

    Args:
        characters: (batch, length).
        context: how many neighbours on each side; where such a group was never seen, one fewer.
    """
    base = VOCAB_SIZE ** np.arange(2 * context + 1)

    def groups(x: np.ndarray) -> np.ndarray:  # (batch, length) → one number for each group
        padded = np.pad(x.astype(np.int64), ((0, 0), (context, context)))
        return np.lib.stride_tricks.sliding_window_view(padded, 2 * context + 1, axis=1) @ base

    counts = np.zeros((base[-1] * VOCAB_SIZE, len(CLASSES)), np.int32)
    np.add.at(counts, (groups(train.characters[None])[0], train.classes), 1)
    found = counts[groups(characters)]
    best = found.argmax(-1)
    if context == 0:
        return best
    fewer = from_a_table(train, characters, context=context - 1)
    return np.where(found.sum(-1) > 0, best, fewer)


def comparison(classes: np.ndarray, answers: dict[str, np.ndarray]) -> str:
    """The share of right answers, of all characters and of those of each class."""
    lines = [f"{'held-out characters':<22}{'':>8}" + "".join(f"{name:>18}" for name in answers)]
    rows = [("all", np.full(classes.shape, True))]
    rows += [(name, classes == i) for i, name in enumerate(CLASSES)]
    for name, rows_of in rows:
        right = [f"{(a == classes)[rows_of].mean():.1%}" for a in answers.values()]
        lines.append(f"{name:<22}{rows_of.mean():>8.1%}" + "".join(f"{r:>18}" for r in right))
    return "\n".join(lines)


def draw_code(code: Code, predicted: np.ndarray) -> "Figure":
    """The text in the colours of what it was taken for; where that is wrong, on yellow."""
    lines = code.characters.tobytes().decode("ascii").splitlines(keepends=True)
    figure = plots.new_figure(8.5, 0.19 * len(lines) + 0.6)
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(len(lines), -1.5))
    axes.set_axis_off()
    place = 0
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            answer, wrong = predicted[place], predicted[place] != code.classes[place]
            place += 1
            back = {"facecolor": "gold", "edgecolor": "none", "pad": 0.5} if wrong else None
            if wrong or not character.isspace():
                style: dict[str, Any] = {
                    "family": "monospace",
                    "fontsize": 9,
                    "ha": "center",
                    "va": "center",
                }
                shown = "·" if character.isspace() else character
                axes.text(column, row, shown, color=COLOURS[answer], bbox=back, **style)
    legend = [i for i, name in enumerate(CLASSES) if name != "space"]
    for column, i in enumerate(legend):
        axes.text(12 * column, -1.2, CLASSES[i], color=COLOURS[i], fontsize=9, weight="bold")
    axes.text(12 * len(legend), -1.2, "wrong", fontsize=9, bbox={"facecolor": "gold", "lw": 0})
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ExampleParser(__file__, __doc__)
    parser.add_number("--steps", count, 400, "training steps")
    parser.add_number("--learning-rate", positive, 5e-3, "at its highest, for Adam")
    parser.add_number("--features", count, 64, "of each recurrent layer in each direction")
    parser.add_number("--context", length, 128, "characters that are read at once")
    parser.add_number("--max-bytes", count, 1_500_000, "read at most so much of the library")
    options = parser.parse(arguments)

    size, batch_size = options.context, 32
    train, held_out = read_code(options.max_bytes)
    print(f"Characters: {train.classes.size:,} to train on, {held_out.classes.size:,} held out")
    starts = np.arange(0, held_out.classes.size - size, size)
    # At most so many windows, evenly over the text.
    starts = starts[:: max(1, len(starts) // 400)]
    characters, classes = held_out.windows(starts, size)

    model = Highlighter(options.features, rngs=nnx.Rngs(options.seed))
    print(f"Parameters: {sum(p.value.size for _, p in model.named_parameters()):,}")
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy())
    random = np.random.default_rng(options.seed)
    model.train()  # says so to each layer, as after an evaluation: nothing compiles twice
    history: dict[str, list[tuple[float, float]]] = {"training": [], "held-out": []}
    print(" step   training: loss  accuracy   held out: accuracy")
    for step in range(1, options.steps + 1):
        places = random.integers(0, train.classes.size - size, batch_size)
        train_step(model, optimizer, metrics, *train.windows(places, size))
        if step % 50 == 0 or step == options.steps:
            seen = {name: float(value) for name, value in metrics.compute().items()}
            metrics.reset()
            unseen = float((predict(model, characters) == classes).mean())
            history["training"].append((step, seen["accuracy"]))
            history["held-out"].append((step, unseen))
            print(f"{step:>5}{seen['loss']:>17.3f}{seen['accuracy']:>10.1%}{unseen:>21.1%}")

    answers = {
        "this network": predict(model, characters),
        "three characters": from_a_table(train, characters, context=1),
        "one character": from_a_table(train, characters, context=0),
    }
    print(f"\n{comparison(classes, answers)}\n")

    figure = plots.new_figure(6, 3.6)
    levels = {name: float((a == classes).mean()) for name, a in list(answers.items())[1:]}
    plots.draw_curves(figure.subplots(), history, x="step", y="accuracy", levels=levels)
    plots.save(figure, options.out / "accuracy.png")
    # A recurrent network takes a text of any length: here a whole page at once.
    end = held_out.characters[:2500].tobytes().rindex(b"\n")
    page = Code(held_out.characters[:end], held_out.classes[:end])
    plots.save(draw_code(page, predict(model, page.characters[None])[0]), options.out / "code.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
