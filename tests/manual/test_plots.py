"""The plots of the benchmarks say what the table says."""

import html
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from tools.manual import plots
from tools.manual.definitions import ROOT

PAGE = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
DRAWN = re.findall(r"<figure.*?</figure>", plots.with_plots(PAGE), re.DOTALL)


def test_every_row_with_a_floor_is_in_one_plot():
    said = [re.findall(r"<title>([^<]*): refax ×", figure) for figure in DRAWN]
    names = [name for figure in said for name in figure]
    assert sorted(names) == sorted(html.escape(row.name) for row in plots.rows_of(PAGE))
    assert len(set(names)) == len(names) > 50
    assert len(DRAWN) == len(plots.PLOTS) and all(said)


def test_a_mark_stands_at_its_number():
    """The distance between two marks of a plot is that of their logarithms."""
    for figure in DRAWN:
        svg = ElementTree.fromstring(figure).find("svg")
        assert svg is not None and svg.get("aria-label")
        found = []
        for circle in svg.iter("circle"):
            said = (circle.findtext("title") or "").rpartition("×")[2]
            if said and circle.get("cy") != "12":
                found.append((float(circle.get("cx") or 0), math.log10(float(said))))
        (x0, v0), (x1, v1) = min(found, key=lambda f: f[1]), max(found, key=lambda f: f[1])
        for x, v in found:
            assert v1 == v0 or x == pytest.approx(x0 + (x1 - x0) * (v - v0) / (v1 - v0), abs=0.3)


def test_numbers_of_a_row():
    table = f"{plots.BEGIN}\n| row | floor |\n|---|---|\n| split, 9 leaves | 1 µs | 2 µs | 3.71 ±24% | ×1204 | — | ≤ 1 | ok |\n| train | — | 1 | — | 5 ms | 2 ms | | |\n{plots.END}"  # noqa: E501
    assert plots.rows_of(table) == [("split, 9 leaves", {"refax": 3.71, "flax": 1204.0})]
