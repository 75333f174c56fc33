"""docs/mistakes.md: what the commonest mistakes print, and the code that was meant."""

import pytest

from tests.pages import preamble_of, printed_by, run, sections_of

SECTIONS = list(sections_of("mistakes.md"))
PREAMBLE = preamble_of("mistakes.md")


def test_they_are_numbered():
    assert [s.title.split(".")[0] for s in SECTIONS] == [str(n + 1) for n in range(len(SECTIONS))]
    assert len(SECTIONS) >= 12


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_what_is_printed_is_on_the_page(section):
    assert printed_by(PREAMBLE, section.wrong) == section.message


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_the_right_code_runs(section):
    run(PREAMBLE, section.right)
