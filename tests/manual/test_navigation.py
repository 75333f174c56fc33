"""The manual before it is built: its navigation is whole, names and errors have their places."""

import doctest
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import refax
from refax import nnx
from tests.pages import DOCS
from tools.manual import recipes, reference
from tools.manual.definitions import ROOT, addresses, all_classes, docstring_of, public_names
from tools.manual.examples import examples

MADE = {*reference.pages(), *recipes.pages(), "changelog.md", "design/benchmarks.md",
        "design/contributing.md"}  # fmt: skip


def listed(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in listed(part)]


def navigation() -> list[str]:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads mkdocs.yml")
    return listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])


def test_every_page_is_in_the_navigation_once():
    pages = navigation()
    assert len(set(pages)) == len(pages)
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    folders = tuple(page[:-1] for page in pages if page.endswith("/*"))  # all that is in there
    missing = sorted(page for page in written - set(pages) if not page.startswith(folders))
    assert not missing, f"to be added to nav in mkdocs.yml: {missing}"
    for page in pages:
        assert page.endswith("/*") or page in written | MADE, f"mkdocs.yml lists {page}"


def test_every_public_name_is_in_the_reference_once():
    names = {
        name
        for name in dir(nnx)
        if name[0] != "_" and not isinstance(getattr(nnx, name), ModuleType)
    }
    assert names == set(public_names())
    entries = [full for names in reference.contents().values() for full in names]
    assert len(set(entries)) == len(entries)
    assert {f"refax.nnx.{name}" for name in names} <= set(entries)


@pytest.mark.parametrize("full_name", [n for names in reference.contents().values() for n in names])
def test_every_public_name_has_a_source_and_an_example(full_name: str):
    """JAX's own lead to its pages, errors to the page of errors with code for each."""
    definition = next(d[full_name] for d in reference.contents().values() if full_name in d)
    text = "\n".join(reference.entry(full_name, definition))
    if "docs.jax.dev" in text:
        return
    assert "[source](<source:src/refax/" in text
    assert ">>> " in docstring_of(definition) + text or "../errors.md#" in text


@pytest.mark.parametrize("session", sorted(set(examples().values())))
def test_an_example_of_the_reference_runs(session: str):
    if "bridge.ToLinen" in session:
        pytest.importorskip("flax")
    test = doctest.DocTestParser().get_doctest(
        session.replace("```", ""), {"__name__": "example"}, "examples.md", None, 0
    )
    said: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE
    assert test.examples
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert not result.failed, "".join(said)


def test_examples_are_of_names_that_need_one():
    """Each stands for a public name without one in its docstring."""
    known = {
        reference.below_nnx(n): d
        for names in reference.contents().values()
        for n, d in names.items()
    }
    for name in examples():
        assert ">>>" not in docstring_of(known[name]) or known[name].kind == "value", name


def test_every_address_is_in_the_reference():
    text = reference.pages()[reference.ADDRESSES]
    for address in addresses():
        assert f"{{ #{address} }}" in text


def test_a_definition_is_the_line_of_the_class_or_function():
    for name, definition in public_names().items():
        if definition.kind in ("class", "function"):
            line = (
                (ROOT / definition.file)
                .read_text(encoding="utf-8")
                .splitlines()[definition.line - 1]
            )
            assert re.match(rf"(class|def) {definition.name}\b", line), name


def test_every_error_has_an_anchor_and_the_page_says_what_it_is():
    """The rows of docs/errors.md are the classes of the library that are errors or warnings."""
    defined = {
        name: bases
        for module, name, bases in all_classes()
        if name.endswith(("Error", "Warning")) and not name.startswith("_")
    }
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r'^\| <a id="\w+"></a>`(\w+)` \| ([^|]*) \|', page, re.MULTILINE))
    assert set(rows) == set(defined), "the table of types in docs/errors.md"
    for name, bases in rows.items():
        assert f'<a id="{name}"></a>`{name}`' in page
        assert tuple(re.findall(r"`(\w+)`", bases)) == defined[name], name


def test_errors_that_the_page_shows_lead_to_the_table():
    """A message on the page begins with a type of Python's or one of the table."""
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    anchors = set(re.findall(r'<a id="(\w+)">', page))
    shown = set(re.findall(r"^(\w+(?:Error|Warning)): ", page, re.MULTILINE))
    of_python = {name for name in shown if name in dir(__builtins__) or name in __builtins__}
    assert shown - of_python - {"PicklingError"} <= anchors


def test_the_version_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{refax.__version__}"\n' in project
    assert f"\n## [{refax.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_links_between_pages_of_the_repository_hold():
    """Pages that a reader finds beside the sources; the site's own links are checked when built."""
    for page in [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
            there = (page.parent / target).resolve()
            made = there.is_relative_to(DOCS) and there.relative_to(DOCS).as_posix() in MADE
            assert made or there.exists(), f"{page.relative_to(Path(ROOT))}: {target}"
