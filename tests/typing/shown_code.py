"""The Python that the README, the guides and the docstrings show, as programs for checkers."""

import ast
import doctest
import re
from collections.abc import Iterator

from tests.pages import BLOCK, DOCS, lacking, preamble_of, sections_of

ROOT = DOCS.parent
_IN_PAIRS = {"errors.md", "mistakes.md"}  # wrong code, what it says, right code
_MARKED = {"types.md"}  # says itself what checkers say


def programs() -> Iterator[tuple[str, str]]:
    """(name, source) of each: a page from top to bottom, a right example, a docstring's example."""
    for page in [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]:
        if page.name in _IN_PAIRS:
            preamble = preamble_of(page.name)
            for number, section in enumerate(sections_of(page.name)):
                yield f"{page.stem}_{number}", f"# {section.title}\n{preamble}\n{section.right}"
        elif page.name not in _MARKED and not lacking(page):
            blocks = [code for kind, code in BLOCK.findall(page.read_text()) if kind == "python"]
            yield page.stem, _with_names_made_once("\n".join(blocks))
    for path in sorted((ROOT / "src/refax").glob("**/*.py")):
        module = path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", "_")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                parts = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
                if parts:
                    name = getattr(node, "name", "module")
                    yield f"{module}_{name}", "".join([part.source for part in parts])


def _with_names_made_once(source: str) -> str:
    """What is defined again, as in a notebook, has another name from there on: mypy keeps one."""
    defined: set[str] = set()
    parts = re.split(r"^(?=(?:@.*\n)*(?:def|class) )", source, flags=re.MULTILINE)
    for i, part in enumerate(parts):
        name = re.search(r"^(?:def|class) (\w+)", part, re.MULTILINE)
        if name and name[1] in defined:
            new = f"{name[1]}_{i}"
            parts[i:] = [re.sub(rf"\b{name[1]}\b", new, later) for later in parts[i:]]
        defined.update(name.groups() if name else ())
    return "".join(parts)
