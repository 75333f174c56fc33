"""docs/errors.md: every snippet runs, every message is the one printed, no error is left out."""

import ast
import functools
import textwrap
import traceback
from pathlib import Path

import pytest

import refax
from tests.pages import preamble_of, run, sections_of, shown

SOURCE = Path(refax.__file__).parent
SECTIONS = list(sections_of("errors.md"))
PREAMBLE = preamble_of("errors.md")


@functools.cache
def error_of(code: str) -> BaseException | None:
    try:
        run(PREAMBLE, code)
    except (Exception, AssertionError) as error:
        return error
    return None


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_the_message_is_the_one_that_is_printed(section):
    error = error_of(section.wrong)
    assert error is not None, "the wrong code ran"
    assert f"{shown(error)}\n" == section.message
    assert "Cure: " in section.message


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_the_right_code_runs(section):
    run(PREAMBLE, section.right)


def test_titles_are_unique():
    titles = [section.title for section in SECTIONS]
    assert len(set(titles)) == len(titles)


# -- none is left out ----------------------------------------------------------------------------

# Not for the page: abstract methods, the attribute protocol, the debug switch for plans, and what
# takes several processes (docs/devices.md tells of it).
EXEMPT = ("raise NotImplementedError", "raise TypeError(\"it cannot be compared\")",
          "raise AttributeError(name)", "raise KeyError(part)",
          "raise own", 'raise RuntimeError(f"{what}: {count}',
          "raise AssertionError(\n"
          '            "refax: a cached plan')  # fmt: skip


def raising_lines() -> dict[tuple[str, int], str]:
    """(file, line) → source of every `raise` in the folders from objects to transforms."""
    found = {}
    for folder in ("objects", "graph", "verbs", "lift", "transforms"):
        for path in sorted((SOURCE / folder).glob("*.py")):
            source = path.read_text()
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Raise) and node.exc is not None:
                    text = ast.get_source_segment(source, node) or ""
                    if not text.startswith(EXEMPT):
                        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                            found[str(path), line] = f"{folder}/{path.name}:{node.lineno}: {text}"
    return found


def test_every_error_is_on_the_page():
    raising = raising_lines()
    missing = set(raising.values())
    for section in SECTIONS:
        error = error_of(section.wrong)
        if error is not None:
            for frame in traceback.extract_tb(error.__traceback__):
                missing.discard(raising.get((frame.filename, frame.lineno or 0), ""))
    listed = "\n".join(textwrap.shorten(text, 200) for text in sorted(missing))
    assert not missing, f"to be added to docs/errors.md:\n{listed}"
