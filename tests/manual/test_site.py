"""The manual as it was built, page by page: `make test-docs`."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="the manual has an environment of its own: make test-docs")

from tools.manual import recipes, reference
from tools.manual.definitions import ROOT, all_classes

SITE = ROOT / "build" / "site"
PAGES = sorted(SITE.rglob("*.html"))


class Page(HTMLParser):
    """The anchors of a page, the links, what it loads, and its paragraphs outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self.inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"] or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loaded.append(given["href"] or "")
        if tag == "p":
            self.paragraphs.append("")
        if tag in ("p", "pre", "code"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            del self.inside[len(self.inside) - 1 - self.inside[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if self.inside == ["p"]:
            self.paragraphs[-1] += data


@cache
def read(path: Path) -> Page:
    return Page(path)


def shown(path: Path) -> str:
    return path.relative_to(SITE).as_posix()


def test_the_site_is_built():
    assert len(PAGES) > 50, "make docs"


def test_every_link_and_anchor_leads_somewhere():
    dead = []
    for path in PAGES:
        for link in {*read(path).links, *read(path).loaded}:
            if urlsplit(link).scheme or (path.name == "404.html" and link.startswith("/")):
                continue
            target, anchor = urldefrag(link)
            there = (path.parent / unquote(target)).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(anchor)
            if not there.is_file() or (anchor and anchor not in read(there).anchors | {"__top"}):
                dead.append(f"{shown(path)}: {link}")
    assert not dead, "\n".join(dead[:50])


def test_nothing_is_loaded_from_elsewhere():
    for path in PAGES:
        assert not [place for place in read(path).loaded if urlsplit(place).netloc], shown(path)


def test_links_to_other_places_are_to_documents_of_libraries():
    hosts = {urlsplit(link).netloc for path in PAGES for link in read(path).links}
    known = ("docs.jax.dev", "squidfunk.github.io", "github.io", "readthedocs.io", "arxiv.org",
             "keepachangelog.com", "semver.org", "docs.kidger.site")  # fmt: skip
    assert not [host for host in hosts if host and not host.endswith(known)]


def test_every_public_name_has_its_entry():
    for name, place in reference.page_of_each_name().items():
        page, _, anchor = place.partition("#")
        assert anchor == name
        assert name in read(SITE / page.replace(".md", ".html")).anchors, name


def test_every_error_has_an_anchor():
    anchors = read(SITE / "errors.html").anchors
    for _, name, _ in all_classes():
        if name.endswith(("Error", "Warning")) and name[0] != "_":
            assert name in anchors


def test_each_recipe_shows_a_run():
    for path in recipes.recipes():
        assert recipes.results_of(path.stem), f"make recipes ARGS={path.stem}"


def test_markdown_came_through():
    """No list, table, heading, link or doctest was taken for text."""
    for path in PAGES:
        if not shown(path).startswith("source/"):
            for text in read(path).paragraphs:
                assert not re.search(r"^(- |\* |\| |#+ |>>> |```|::: )|\]\(", text, re.M), (
                    f"{shown(path)}: {text}"
                )


def test_examples_of_docstrings_are_shown():
    html = (SITE / "reference" / "layers.html").read_text(encoding="utf-8")
    entry = html.partition('id="refax.nnx.Linear"')[2].partition('id="refax.nnx.LinearGeneral"')[0]
    assert "&gt;&gt;&gt;" in entry
    assert 'class="source" href="../source/refax/layers/linear.html#__codelineno-0-' in entry
