"""Pictures: figures without a display, curves, and rows of digits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Curve = Sequence[tuple[float, float]]  # (x, y)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure  # not pyplot: that looks for a display

    return Figure(figsize=(width, height), layout="constrained")


def split(figure: "Figure | SubFigure", rows: int, columns: int) -> "list[SubFigure]":
    """Parts of one size, row by row, to be drawn in like figures."""
    return list(figure.subfigures(rows, columns, squeeze=False).ravel())


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, and say so."""
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


def draw_curves(
    axes: "Axes",
    curves: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Curves by name, and as dashed lines what they are to be compared with."""
    for name, points in curves.items():
        marker = "o" if len(points) <= 25 else ""
        axes.plot(*zip(*points), label=name, marker=marker, markersize=3, linewidth=1.3)
    for (name, level), style in zip((levels or {}).items(), ("--", ":", "-.")):
        axes.axhline(level, label=name, color="tab:gray", linestyle=style)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_images(
    figure: "Figure | SubFigure",
    images: np.ndarray,
    titles: Sequence[str] = (),
    *,
    columns: int,
    title: str = "",
) -> None:
    """Gray images in rows of so many."""
    rows = max(1, -(-len(images) // columns))
    figure.suptitle(title, fontsize="medium")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.set_axis_off()
        if i < len(images):
            axes.imshow(images[i], cmap="gray_r", vmin=0, vmax=images.max())
        if i < len(titles):
            axes.set_title(titles[i], fontsize="x-small")
