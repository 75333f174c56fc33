"""The Python of the README and of the guides runs, from top to bottom, and prints what they say."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from refax import nnx

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/weights.md", "docs/devices.md"])
def test_python_of_a_page_prints_what_it_says(page):
    path = README.parent / page
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    assert blocks[0][0] == "python"
    namespace: dict[str, Any] = {"__name__": "readme"}
    printed = ""
    for language, text in blocks:
        if language == "python":
            assert not printed, "a block that prints is followed by a block of text"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(text, str(path), "exec"), namespace)
            printed = output.getvalue()
        else:
            assert printed == text
            printed = ""
    assert not printed


def test_links_of_the_readme_lead_somewhere():
    prose = BLOCK.sub("", README.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (README.parent / target).exists(), target


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
