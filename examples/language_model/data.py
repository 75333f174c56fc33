"""The text: reading a corpus, holding a part of it out, seeded batches, and the unigram model.

The tokens are bytes, so any text will do and a loss in bits per byte can be compared with that of
any other model.
"""

import codecs
import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import DemoError

VOCAB_SIZE = 256
HELD_OUT_SHARE = 10  # one file in ten, or the last tenth of the text
FEWEST_FILES = 20  # with fewer files, single ones would weigh too much

# Packages of the standard library that are read besides its top-level modules. Its tests, and the
# tables of `encodings` and `pydoc_data`, would teach little.
PACKAGES = (
    "asyncio collections concurrent email html http importlib json logging multiprocessing re "
    "tomllib unittest urllib wsgiref xml zoneinfo"
).split()

Batch = tuple[np.ndarray, np.ndarray]


def encode(text: str) -> np.ndarray:
    """The tokens of a text: its bytes in UTF-8, as uint8 of shape (bytes,)."""
    return np.frombuffer(text.encode("utf-8", errors="surrogateescape"), np.uint8)


def decode(tokens: np.ndarray) -> str:
    """The text of some tokens; bytes that are not UTF-8 become �."""
    return np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")


# -- the corpus ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text in two parts that share no file (or, of few files, no region)."""

    name: str
    train: np.ndarray
    held_out: np.ndarray
    files: int
    skipped: int

    @property
    def fingerprint(self) -> str:
        """Changes with every byte; a run is resumed only on the text that it began with."""
        digest = hashlib.sha256(self.train.tobytes())
        digest.update(self.held_out.tobytes())
        return digest.hexdigest()

    def __str__(self) -> str:
        skipped = f" ({self.skipped} unreadable or not text: skipped)" if self.skipped else ""
        return (
            f"{self.name}: {self.files:,} files{skipped}, {self.train.size:,} bytes to train on, "
            f"{self.held_out.size:,} held out"
        )


def read_corpus(path: str | None, max_bytes: int) -> Corpus:
    """Read a file, a folder (all its text files, sorted), or by default Python's own source.

    Reading ends after `max_bytes`, be it in the middle of a file.

    Raises:
        DemoError: there is no such path, or no text in it.
    """
    if path is None:
        name, candidates = "Python's standard library", standard_library_files()
    else:
        name, candidates = path, files_below(Path(path))
    texts, skipped = read_texts(candidates, max_bytes)
    if not texts:
        raise DemoError(f"no text to train on in {name} ({skipped} files unreadable or not text)")
    train, held_out = hold_out(texts)
    return Corpus(name, train, held_out, len(texts), skipped)


def standard_library_files() -> list[Path]:
    """The modules of Python's standard library in a fixed order, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(root.glob("*.py"))
    for package in PACKAGES:
        files += sorted((root / package).rglob("*.py"))
    return [file for file in files if not {"test", "tests"} & set(file.relative_to(root).parts)]


def files_below(path: Path) -> list[Path]:
    """The file itself, or every file in the folder that is not hidden, in a fixed order."""
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise DemoError(f"--corpus: there is no file or folder {path}")
        below = [p for p in path.rglob("*") if p.is_file()]
    except OSError as error:
        raise DemoError(f"--corpus: cannot read {path}: {error.strerror}") from error
    hidden = {p for p in below if any(x.startswith(".") for x in p.relative_to(path).parts)}
    return sorted(set(below) - hidden)


def read_texts(files: Iterable[Path], max_bytes: int) -> tuple[list[bytes], int]:
    """The different texts in these files, up to `max_bytes`, and how many files were skipped."""
    texts: dict[bytes, None] = {}  # a second copy could be held out, and would be known by heart
    left, skipped = max_bytes, 0
    for file in files:
        text = read_text(file, left)
        if text is None:
            skipped += 1
        elif text and text not in texts:
            texts[text] = None
            left -= len(text)
            if not left:
                break
    return list(texts), skipped


def read_text(file: Path, max_bytes: int) -> bytes | None:
    """The beginning of a file; None if it cannot be read or is not text."""
    try:
        with file.open("rb") as opened:
            text = opened.read(max_bytes)
        codecs.getincrementaldecoder("utf-8")().decode(text)  # the end may cut a character in two
    except (OSError, UnicodeDecodeError):
        return None
    return None if b"\0" in text else text


def hold_out(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(train, held out): every tenth text is held out, or the last tenth of a few texts."""
    if len(texts) >= FEWEST_FILES:
        held_out = texts[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE]
        train = [t for i, t in enumerate(texts) if i % HELD_OUT_SHARE != HELD_OUT_SHARE - 1]
        return _tokens(b"\n".join(train)), _tokens(b"\n".join(held_out))
    text = b"\n".join(texts)
    cut = len(text) - len(text) // HELD_OUT_SHARE
    return _tokens(text[:cut]), _tokens(text[cut:])


def _tokens(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


# -- batches -------------------------------------------------------------------------------------


def check_size(corpus: Corpus, batch_size: int, context: int) -> None:
    """Raise a `DemoError` unless each part of the corpus fills a batch."""
    needed = context * (batch_size + 1)
    for name, tokens, fewest in [
        ("train on", corpus.train, needed),
        ("hold out", corpus.held_out, context + 1),
    ]:
        if tokens.size < fewest:
            raise DemoError(
                f"{corpus.name} has {tokens.size:,} bytes to {name}, and batches of {batch_size} × "
                f"{context} need {fewest:,}: take more text, or smaller --batch-size or --context"
            )


def windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    """(inputs, targets), both int32 of shape (starts, context); a target is the next byte."""
    window = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int32)
    return window[:, :-1], window[:, 1:]


class Batches:
    """Endless batches of windows of a text, the same ones for the same seed.

    Each epoch cuts the text into windows from an offset of its own and shuffles them. All that
    there is to remember is `position`, the number of batches given so far.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, context: int, seed: int):
        self.tokens = tokens
        self.batch_size = batch_size
        self.context = context
        self.seed = seed
        self.position = 0
        self.per_epoch = (tokens.size - context) // context // batch_size
        self._epoch = -1
        self._starts = np.empty(0, np.int64)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        epoch, index = divmod(self.position, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._starts = epoch, self._shuffled_starts(epoch)
        self.position += 1
        starts = self._starts[index * self.batch_size : (index + 1) * self.batch_size]
        return windows(self.tokens, starts, self.context)

    def _shuffled_starts(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, epoch])
        offset = random.integers(self.context)
        count = (self.tokens.size - self.context) // self.context
        return offset + self.context * random.permutation(count)


def held_out_batches(tokens: np.ndarray, batch_size: int, context: int, count: int) -> list[Batch]:
    """At most `count` batches of windows that lie evenly in the text and do not overlap."""
    available = (tokens.size - 1) // context
    wanted = min(count * batch_size, available)
    starts = np.arange(wanted) * available // wanted * context
    return [
        windows(tokens, starts[i : i + batch_size], context) for i in range(0, wanted, batch_size)
    ]


# -- the unigram model ---------------------------------------------------------------------------


def unigram_loss(train: np.ndarray, batches: Iterable[Batch]) -> float:
    """Nats per byte of a model that knows only how frequent each byte is (counts plus one)."""
    counts = np.bincount(train, minlength=VOCAB_SIZE) + 1
    negative_log = -np.log(counts / counts.sum())
    return float(np.concatenate([negative_log[targets].ravel() for _, targets in batches]).mean())
