"""The README and the pages of docs/: their Python runs and prints what they say; links lead on."""

import re
from pathlib import Path

import pytest

from refax import nnx
from tests.pages import (
    DOCS,
    LIBRARIES,
    anchors_of,
    lacking,
    libraries_of,
    links_of,
    run_from_top_to_bottom,
)

ROOT = DOCS.parent
README = ROOT / "README.md"
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))]
# What the snippets of these show is tested in another way, each in a test of its own.
OTHERWISE = {"docs/errors.md", "docs/mistakes.md", "docs/types.md"}
LONG = {
    f"docs/recipes/{name}.md"
    for name in (
        "deep_q_learning",
        "diffusion",
        "gan",
        "gated_recurrence",
        "meta_learning",
        "neural_ode",
        "routed_experts",
        "second_order",
    )
}
# Pages that are made when the site is built, which checks the links to them.
MADE = ("changelog.md", "reference/", "source/", "design/benchmarks.md", "design/contributing.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in LONG else [])
        for page in PAGES
        if page not in OTHERWISE
    ],
)
def test_python_of_a_page_prints_what_it_says(page):
    if library := lacking(ROOT / page):
        pytest.skip(f"{library} is not installed: make test-torch")
    run_from_top_to_bottom(ROOT / page)


@pytest.mark.parametrize(
    ("page", "library"),
    [(page, name) for page in PAGES for name in sorted(libraries_of(ROOT / page))],
)
def test_code_of_another_library_on_a_page_runs(page, library):
    """PyTorch and Haiku: `make test-torch` installs them."""
    pytest.importorskip(LIBRARIES[library], reason=f"{library} is not installed: make test-torch")
    run_from_top_to_bottom(ROOT / page, library)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    for link in links_of(ROOT / page):
        target, _, anchor = link.partition("#")
        path: Path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        if path.is_relative_to(DOCS) and str(path.relative_to(DOCS)).startswith(MADE):
            continue
        assert path.exists(), link
        assert not anchor or anchor in anchors_of(path), link


def test_names_of_the_readme_are_there():
    rows = re.findall(
        r"^\| (objects|transforms|layers|training|weights|devices|looking) \|(.*)\|$",
        README.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 7
    for _, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert name == "repr" or hasattr(nnx, name), f"the README says that {name} is there"
