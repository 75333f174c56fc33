"""The manual as a reader meets it, in Chromium: searched, copied from, dark, narrow.

`make test-docs`. Pictures of what was seen are left in build/pictures.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the manual has an environment of its own: make test-docs"
)

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
PICTURES = ROOT / "build" / "pictures"
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("no Chromium here: install Debian's package chromium, or set CHROMIUM=path",
                allow_module_level=True)  # fmt: skip

# It looks up nobody's host when it starts.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
NARROW, WIDE = {"width": 400, "height": 800}, {"width": 1280, "height": 900}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=60_000)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A tab in which a request to another place than the site, or an error, fails the test."""
    wrong: list[str] = []
    context = browser.new_context(viewport=WIDE, permissions=["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    tab.on(
        "request", lambda r: r.url.startswith((address, "data:", "blob:")) or wrong.append(r.url)
    )
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    yield tab
    context.close()
    assert not wrong


def search(page: Any, words: str) -> list[str]:
    """The addresses of what a search finds, the best first."""
    page.click("input.md-search__input")
    page.keyboard.type(words)
    page.wait_for_selector(
        f".md-search-result__link[href*='h={words.split()[0]}' i]", state="attached"
    )
    page.wait_for_timeout(500)
    links = page.query_selector_all(".md-search-result__link")
    return [link.evaluate("link => link.href") for link in links]


# What a person may type, and the page that must come first.
SOUGHT = [
    ("checkpoint", r"weights\.html"),
    ("dropout in scan", r"guides/randomness\.html"),
    ("TraceContextError", r"errors\.html"),
    ("sharding", r"devices\.html"),
    ("from_torch", r"weights\.html|from_pytorch\.html"),
    ("learning rate", r"guides/training\.html"),
    ("typing", r"types\.html"),
    ("BatchNorm", r"reference/layers\.html"),
    ("migrate from flax", r"moving/from_flax_nnx\.html"),
    ("nan", r"seeing_inside\.html"),
    ("fsdp", r"devices\.html"),
    ("mixed precision", r"guides/training\.html"),
    ("zero_grad", r"moving/from_pytorch\.html"),
]


@pytest.mark.parametrize(("words", "place"), SOUGHT)
def test_a_search_finds_the_page(page: Any, address: str, words: str, place: str):
    page.goto(address + "index.html")
    found = search(page, words)
    assert re.match(place, found[0].removeprefix(address)), found[:5]


def test_a_block_of_code_is_copied(page: Any, address: str):
    page.goto(address + "index.html")
    page.hover("pre >> nth=0")
    page.click("button[data-md-type=copy] >> nth=0")
    page.wait_for_timeout(300)
    copied = page.evaluate("navigator.clipboard.readText()")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)
    assert code is not None and copied.strip() == code[1].strip()


def test_what_is_copied_from_a_docstring_runs(page: Any, address: str):
    """Without prompts and without what is printed."""
    page.goto(address + "reference/layers.html#refax.nnx.Linear")
    entry = page.locator("div.doc-object:has(> h2[id='refax.nnx.Linear'])")
    block = entry.locator(".highlight:not(.doc-signature)").first
    block.hover()
    block.locator("button[data-md-type=copy]").click()
    page.wait_for_timeout(300)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "from refax import nnx" in copied
    compile(copied, "copied", "exec")


def test_dark_and_back(page: Any, address: str):
    page.goto(address + "errors.html")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    assert page.evaluate("document.body.dataset.mdColorScheme") == "default"
    page.click("label[title='Switch to dark']")
    assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
    assert brightness(page.evaluate(colour)) < 0.3 < 0.7 < brightness(light)
    take(page, "errors-dark")
    page.goto(address + "types.html")  # it stays so
    assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
    page.click("label[title='Switch to light']")
    assert page.evaluate(colour) == light


def brightness(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / (3 * 255)


def narrow_pages() -> list[str]:
    pages = [path.relative_to(SITE).as_posix() for path in sorted(SITE.rglob("*.html"))]
    return [page for page in pages if not page.startswith("source/")]


def test_every_page_reads_well_in_400_pixels(page: Any, address: str):
    """Nothing but code and tables, which scroll within themselves, is wider than the window."""
    page.set_viewport_size(NARROW)
    wide = {}
    for place in narrow_pages():
        page.goto(address + place)
        width = page.evaluate("document.documentElement.scrollWidth")
        size = page.evaluate("parseFloat(getComputedStyle(document.querySelector("
                             "'article p, article li, article') ).fontSize)")  # fmt: skip
        if width > NARROW["width"] or size < 14:
            wide[place] = (width, size)
    assert not wide
    page.goto(address + "moving/from_pytorch.html")
    take(page, "moving-narrow")


def test_navigation_of_a_narrow_window_opens(page: Any, address: str):
    page.set_viewport_size(NARROW)
    page.goto(address + "index.html")
    page.click("label.md-header__button[for=__drawer]")
    page.wait_for_timeout(400)
    assert page.is_visible("nav.md-nav--primary >> text=Reference")


def test_pictures_to_look_at(page: Any, address: str):
    for name in ("index", "guides/transforms", "reference/layers", "recipes/vae_digits"):
        page.goto(f"{address}{name}.html")
        take(page, name.replace("/", "-"))
    found = search(page, "checkpoint")
    assert found
    take(page, "search")


def take(page: Any, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(200)
    page.screenshot(path=str(PICTURES / f"{name}.png"))
