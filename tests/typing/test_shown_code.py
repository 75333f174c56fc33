"""Checkers find nothing in what is shown, and on docs/types.md what its comments say.

What an array can do, they read with a Variable in its place: all of it, in the same two runs.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.pages import DOCS, preamble_of
from tests.typing import shown_code, variable_matrix

SOURCES = [str(DOCS.parent / "src"), str(DOCS.parent / "examples")]
SHOWN = dict(shown_code.programs()) | variable_matrix.programs()
PAGE = preamble_of("types.md")
# A name may be made again on a page, or in a loop, as in a notebook.
OFF = ["reportRedeclaration", "reportUnusedExpression", "reportPossiblyUnboundVariable"]
PYRIGHT = {"extraPaths": SOURCES, **dict.fromkeys(OFF, False)}
MYPY = (
    "--follow-imports=silent --check-untyped-defs --allow-redefinition"
    " --disable-error-code=import-untyped --disable-error-code=no-redef ."
)
# An attribute that is added from outside of a class is an error, as docs/types.md says.
ADDED = re.compile(r"^\s*[\w.]+\.(\w+) = ", re.MULTILINE)
ATTRIBUTE = re.compile(r'attribute "(\w+)"')
# What JAX and optax declare: less than what a Sharding has, more than what a schedule gives.
OF_OTHERS = re.compile(
    r'"Sharding" has no|for class "Sharding"|"ArrayLike" .* "ConvertibleToFloat"'
)


class Report(NamedTuple):
    program: str
    line: int
    severity: str
    message: str


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, list[Report]]:
    """One run of each checker, side by side, over all the programs."""
    directory = tmp_path_factory.mktemp("shown")
    for name, source in SHOWN.items():
        (directory / f"{name}.py").write_text(source)
    (directory / "the_page.py").write_text(PAGE)
    (directory / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    pyright = ["pyright", "--outputjson", "--pythonpath", sys.executable]
    mypy = ["mypy", *MYPY.split()]
    environment = {"MYPYPATH": ":".join(SOURCES), "PATH": "/usr/bin:/bin"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *command], cwd=directory, env=environment, text=True,
            stdout=subprocess.PIPE,
        )
        for command in (pyright, mypy)
    ]  # fmt: skip
    try:
        by_pyright, by_mypy = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [1, 1], by_mypy  # the page has errors
    return {"pyright": [*_of_pyright(by_pyright)], "mypy": [*_of_mypy(by_mypy)]}


def _of_pyright(output: str) -> Iterator[Report]:
    found = json.loads(output)
    assert found["summary"]["filesAnalyzed"] == len(SHOWN) + 1
    for entry in found["generalDiagnostics"]:
        name = re.split(r"[/\\]", entry["file"])[-1].removesuffix(".py")
        yield Report(name, entry["range"]["start"]["line"] + 1, entry["severity"], entry["message"])


def _of_mypy(output: str) -> Iterator[Report]:
    assert f"(checked {len(SHOWN) + 1} source files)" in output, output
    for line in output.splitlines():
        if entry := re.fullmatch(r"(\w+)\.py:(\d+): (\w+): (.*)", line):
            yield Report(entry[1], int(entry[2]), entry[3], entry[4])


def is_known(report: Report) -> bool:
    added = ATTRIBUTE.search(report.message)
    if added and added[1] in ADDED.findall(SHOWN[report.program]):
        return True
    return OF_OTHERS.search(report.message) is not None


@pytest.mark.parametrize("checker", ["pyright", "mypy"])
def test_checkers_find_nothing_in_what_is_shown(reports, checker):
    errors = [r for r in reports[checker] if r.program != "the_page" and r.severity == "error"]
    lines = [
        f"{r.program}:{r.line}: {SHOWN[r.program].splitlines()[r.line - 1].strip()}\n  {r.message}"
        for r in errors
        if not is_known(r)
    ]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("checker", ["pyright", "mypy"])
def test_checkers_say_what_the_comments_say(reports, checker):
    reported = {}
    for _, line, severity, message in [r for r in reports[checker] if r.program == "the_page"]:
        if severity == "error":
            reported[line] = "error"
        elif shown := re.search(r'(?:is|Revealed type is) "(.*)"$', message):
            reported[line] = re.sub(r"[\w.]+\.(\w+)", r"\1", shown[1])
    assert reported == {
        number: comment.partition(":")[0]
        for number, line in enumerate(PAGE.splitlines(), 1)
        for comment in re.findall(r"  # (.*)", line)
    }
