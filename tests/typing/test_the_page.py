"""docs/types.md: both checkers say of its program what its comments say, and nothing else."""

import json
import re
import subprocess
import sys

import pytest

from tests.pages import DOCS, preamble_of

PROGRAM = preamble_of("types.md")
MARKED = {
    number: comment
    for number, line in enumerate(PROGRAM.splitlines(), 1)
    for comment in re.findall(r"  # (.*)", line)
}


def run(*command, cwd):
    environment = {"PYTHONPATH": str(DOCS.parent / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    return done.stdout


def by_pyright(directory):
    (directory / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(DOCS.parent / "src")]})
    )
    found = json.loads(
        run("pyright", "--outputjson", "--pythonpath", sys.executable, "program.py", cwd=directory)
    )
    for entry in found["generalDiagnostics"]:
        yield entry["range"]["start"]["line"] + 1, entry["severity"], entry["message"]


def by_mypy(directory):
    output = run(
        "mypy", "--follow-imports=silent", "--disable-error-code=import-untyped", "program.py",
        cwd=directory,
    )  # fmt: skip
    for line in output.splitlines():
        if entry := re.fullmatch(r"program\.py:(\d+): (\w+): (.*)", line):
            yield int(entry[1]), entry[2], entry[3]


@pytest.mark.slow
@pytest.mark.parametrize("checker", [by_pyright, by_mypy])
def test_checkers_say_what_the_comments_say(checker, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    reported = {}
    for number, severity, message in checker(tmp_path):
        if severity == "error":
            reported[number] = "error"
        elif shown := re.search(r'(?:is|Revealed type is) "(.*)"$', message):
            reported[number] = re.sub(r"[\w.]+\.(\w+)", r"\1", shown[1])
    expected = {n: comment.partition(":")[0] for n, comment in MARKED.items()}
    assert reported == expected
