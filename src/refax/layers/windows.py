"""The arguments that say how a window slides over a grid: those of convolution and of pooling."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..objects import arguments as fit

PerAxis = fit.Sizes | None
Pads = tuple[tuple[int, int], ...]
Window = Sequence[fit.Size]
Padding = str | fit.Axis | Sequence[fit.Axis | Sequence[fit.Axis]]

NAMED = ("SAME", "VALID", "SAME_LOWER")  # those that `jax.lax` itself knows


def per_axis(owner: str, name: str, value: PerAxis, axes: int) -> tuple[int, ...]:
    """One integer for each spatial axis: an int is that for all of them, None is 1."""
    value = 1 if value is None else value
    values = tuple(value) if isinstance(value, Collection) else (value,) * axes
    if len(values) != axes:
        raise fit.ArgumentError(
            f"{owner}: {name}={value} has {len(values)} entries for {axes} spatial axes."
        )
    return values


def canonical_padding(
    owner: str, padding: Padding, axes: int, named: tuple[str, ...] = NAMED
) -> str | Pads:
    """A name among `named`, or a pair (low, high) for each spatial axis.

    Raises:
        ValueError: it is neither of them, nor an int, nor as many ints or pairs as axes.
    """
    if isinstance(padding, str):
        if padding.upper() not in named:
            raise fit.ArgumentError(
                f"{owner}: padding={padding!r} is none of {', '.join(map(repr, named))}."
            )
        return padding.upper()
    entries = tuple(padding) if isinstance(padding, Collection) else (padding,) * axes
    pairs = [tuple(p) if isinstance(p, Collection) else (p, p) for p in entries]
    if len(pairs) != axes or any(len(pair) != 2 for pair in pairs):
        raise fit.ArgumentError(
            f"{owner}: padding={padding} does not fit {axes} spatial axes.\nCure: one of "
            f"{', '.join(map(repr, named))}, an int, or {axes} ints or pairs (low, high)."
        )
    return tuple((low, high) for low, high in pairs)


def canonicalize_padding(padding: Padding, rank: int) -> str | Pads:
    """`canonical_padding` for `rank` spatial axes, with the names that a convolution knows."""
    named = (*NAMED, "CIRCULAR", "REFLECT", "CAUSAL")
    return canonical_padding("canonicalize_padding", padding, rank, named)
