"""Handwritten digits of 8×8 pixels, which come with scikit-learn, and shuffled batches of them.

A pixel is a count from 0 to 16: how many points are inked in a block of 4×4 of the scan (Alpaydin
and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

SIDE = 8
LARGEST = 16  # value of a pixel
HELD_OUT = 360  # a fifth


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (n, 8, 8), float32 from 0 to 16, and labels (n,), int32 from 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: np.ndarray) -> "Digits":
        return Digits(self.images[index], self.labels[index])

    def batches(self, size: int, random: np.random.Generator) -> Iterator["Digits"]:
        """The digits once, shuffled, in batches of one size, so that nothing compiles twice.

        What is left over, fewer than `size`, is for another time.
        """
        order = random.permutation(len(self))
        for start in range(0, len(self) - size + 1, size):
            yield self[order[start : start + size]]

    def steps(self, n: int, size: int, random: np.random.Generator) -> Iterator["Digits"]:
        """So many batches, of the digits again and again."""
        epochs = iter(lambda: self.batches(size, random), None)
        return islice(chain.from_iterable(epochs), n)


def read_digits() -> tuple[Digits, Digits]:
    """(to train on, held out): always the same split, so that figures can be compared.

    It is a random one: writers of held-out digits have written others that are trained on.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float32).reshape(-1, SIDE, SIDE)
    digits = Digits(images, np.asarray(labels, np.int32))
    order = np.random.default_rng(0).permutation(len(digits))
    return digits[order[HELD_OUT:]], digits[order[:HELD_OUT]]


def logistic_regression(train: Digits, held_out: Digits) -> float:
    """The share of the held-out digits that it gets right: a baseline."""
    from sklearn.linear_model import LogisticRegression

    flat, flat_held_out = (d.images.reshape(len(d), -1) / LARGEST for d in (train, held_out))
    method = LogisticRegression(max_iter=5_000).fit(flat, train.labels)
    return float(method.score(flat_held_out, held_out.labels))
