"""Pages of docs/ that show code and what it prints: read, and run."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)


class Section(NamedTuple):
    title: str
    wrong: str
    message: str
    right: str


def preamble_of(page: str) -> str:
    found = BLOCK.search((DOCS / page).read_text())
    assert found is not None
    return found[2]


def sections_of(page: str) -> Iterator[Section]:
    """Each part under `###`: wrong code, what it prints, right code."""
    for part in re.split(r"^### ", (DOCS / page).read_text(), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        blocks = BLOCK.findall(body)
        assert [kind for kind, _ in blocks] == ["python", "text", "python"], title
        yield Section(title, *(text for _, text in blocks))


def run(preamble: str, code: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(preamble, "preamble.py", "exec"), names)
    exec(compile(code, "example.py", "exec"), names)


def printed_by(preamble: str, code: str) -> str:
    """What the code prints, its warnings, and the error that it ends with."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(preamble, code)
        except Exception as error:
            print(shown(error))
    texts = [f"{type(w.message).__name__}: {w.message}\n" for w in caught]
    return re.sub(r"0x[0-9a-f]+", "0x…", "".join([*texts, out.getvalue()]))


def shown(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) else str(error)
    return re.sub(r"0x[0-9a-f]+", "0x…", f"{type(error).__name__}: {text}")
