"""The tables of the benchmarks as pictures: SVG in the page, drawn when the site is built.

A plot has a line for each row of the table, with a mark for each library at its multiple of the
floor, on a logarithmic axis: 1 is hand-written JAX.
"""

import html
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Title, and what the names of the rows begin with.
PLOTS = (
    ("Calls of compiled functions", ("warm", "donating", "jitted", "jit(f)")),
    ("Without compiling", ("eager",)),
    ("Tracing, compiling, making", ("trace", "compile", "construct", "import")),
    ("Verbs on objects", ("split", "state", "update", "merge", "clone", "tree", "read", "write")),
    ("What XLA makes of it", ("instructions", "temporary", "peak")),
)
SIDES = ("refax", "flax", "equinox")  # in the order of the legend
NAMES = {"refax": "refax", "flax": "Flax NNX", "equinox": "Equinox"}
BEGIN, END = "<!-- table: written by --markdown -->", "<!-- end of table -->"
LEFT, RIGHT, WIDTH, LINE, TOP = 30, 40, 560, 40, 34  # in units of the picture


class Row(NamedTuple):
    name: str
    times: dict[str, float]  # side → multiple of the floor


def rows_of(page: str) -> list[Row]:
    """The rows of the first table that have a floor, and so multiples of it."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    lines = [cells for cells in lines if len(cells) > 5 and not cells[0].startswith(("row", "-"))]
    found = []
    for name, _, _, ratio, flax, equinox, *_ in lines:
        texts = {"refax": ratio.split(" ")[0], "flax": flax, "equinox": equinox}
        times = {s: number(t) for s, t in texts.items() if re.match(r"×?[\d.]", t) and number(t)}
        if "refax" in times:
            found.append(Row(name, times))
    return found


def number(text: str) -> float:
    found = re.fullmatch(r"×?([\d.,]+(?:e[+-]?\d+)?)", text)
    return float(found[1].replace(",", "")) if found else 0.0


def with_plots(page: str) -> str:
    """The page with a picture for each kind of row before its first table."""
    rows = rows_of(page)
    drawn = [
        plot(title, [row for row in rows if row.name.startswith(starts)]) for title, starts in PLOTS
    ]
    intro = (
        "Times, and in the last plot sizes, in multiples of hand-written JAX: further left is "
        "less. The numbers are those of the table after the plots.\n\n"
    )
    return page.replace(BEGIN, intro + "\n\n".join(drawn) + f"\n\n{BEGIN}")


def plot(title: str, rows: list[Row]) -> str:
    assert rows, title
    values = [value for row in rows for value in row.times.values()]
    low = min(-1, math.floor(math.log10(min(values))))
    high = max(1, math.ceil(math.log10(max(values))))
    height = TOP + LINE * len(rows) + 30

    def at(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low)

    parts = [*axis(at, low, high, height)]
    for i, row in enumerate(rows):
        y = TOP + LINE * i + 30  # of the marks, below the name
        parts.append(f'<text x="0" y="{y - 14}">{html.escape(row.name)}</text>')
        for side in reversed(SIDES):  # refax on top of the others
            if side in row.times:
                said = f"{row.name}: {NAMES[side]} ×{row.times[side]:g}"
                parts.append(mark(side, at(row.times[side]), y, said))
    legend = "".join(
        mark(side, 10 + 130 * i, 12, NAMES[side])
        + f'<text x="{22 + 130 * i}" y="17">{NAMES[side]}</text>'
        for i, side in enumerate(SIDES)
    )
    summary = f"{title}: {len(rows)} rows of the table, in multiples of hand-written JAX"
    return (
        f'<figure class="plot"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{summary}">'
        f"{legend}{''.join(parts)}</svg></figure>"
    )


def axis(at: Callable[[float], float], low: int, high: int, height: int) -> Iterator[str]:
    for power in range(low, high + 1):
        x, kind = at(10.0**power), "one" if power == 0 else "grid"
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{height - 24}" class="{kind}"/>'
        label = "floor" if power == 0 else f"×{10.0**power:g}"
        yield f'<text x="{x:.1f}" y="{height - 8}" class="tick">{label}</text>'


def mark(side: str, x: float, y: float, said: str) -> str:
    """A full circle, a square, a triangle, with what it says when it is pointed at."""
    shape = {
        "refax": f'circle cx="{x:.1f}" cy="{y}" r="5.5"',
        "flax": f'rect x="{x - 4.5:.1f}" y="{y - 4.5}" width="9" height="9"',
        "equinox": f'path d="M{x:.1f} {y - 5.5}l6 10h-12z"',
    }[side]
    kind = shape.partition(" ")[0]
    return f'<{shape} class="{side}"><title>{html.escape(said)}</title></{kind}>'
