"""Pages of docs/ that show code and what it prints: read, and run."""

import contextlib
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)
# A title says whose code it is: a block `python title="PyTorch"` runs where PyTorch is installed.
FENCE = re.compile(r"^ *```(\S*)(?: title=\"([^\"]+)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LIBRARIES = {"PyTorch": "torch", "Equinox": "equinox", "Haiku": "haiku", "Flax": "flax"}
# A page whose code, as a whole, is run and checked where this library is installed.
NEEDS = {"neural_ode.md": "diffrax"}
NOT_RUN = {"", "bash", "console", "toml", "yaml"}
# `text title="about"`: what a training run prints, whose numbers are others on another machine.
NUMBER = re.compile(r"(-?\d+\.\d+)")


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


def lacking(page: Path) -> str | None:
    """The library that the page needs, if it is not installed."""
    library = NEEDS.get(page.name)
    return library if library and importlib.util.find_spec(library) is None else None


def libraries_of(path: Path) -> set[str]:
    """Whose code a page shows beside that for refax: titles, keys of `LIBRARIES`."""
    blocks = FENCE.findall(path.read_text(encoding="utf-8"))
    return {title for language, title, _ in blocks if language == "python" and title}


def run_from_top_to_bottom(path: Path, whose: str = "") -> None:
    """Run the Python of a page with this title, and compare what it prints."""
    space: dict[str, Any] = {"__name__": "page"}
    printed, where = "", path.name
    page = path.read_text(encoding="utf-8")
    for match in FENCE.finditer(page):
        language, title, text = match.groups(default="")
        if language == "python":
            assert not printed, f"{where}: a block that prints is followed by a block of text"
            if title != whose:
                printed = None
                continue
            where = f"{path.name}: {text.splitlines()[0]}"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                above = "\n" * page.count("\n", 0, match.start(3))  # lines are those of the page
                exec(compile(above + text, str(path), "exec"), space)
            printed = output.getvalue()
        elif language == "text":
            same = printed is None or (
                nearly(printed, text) if title == "about" else printed == text
            )
            assert same, f"{where}: printed\n{printed}"
            printed = ""
        else:
            assert language in NOT_RUN, f"{where}: nothing runs a block of {language}"
    assert not printed, f"{where}: a block that prints is followed by a block of text"


def nearly(printed: str, text: str) -> bool:
    """Whether the words are the same, and each number with a decimal point within a fifth."""
    ours, theirs = (NUMBER.split(" ".join(part.split())) for part in (printed, text))
    return ours[::2] == theirs[::2] and all(
        abs(float(a) - float(b)) <= 0.2 * abs(float(b)) for a, b in zip(ours[1::2], theirs[1::2])
    )


def links_of(path: Path) -> Iterator[str]:
    """The targets of the links of a page that lead to another page, or to a place on it."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"\w+:", target):
            yield target


def anchors_of(path: Path) -> set[str]:
    """The anchors that MkDocs makes of the headings of a page; nearly always GitHub's, too."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", text) for text in words}
