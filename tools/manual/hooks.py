"""What MkDocs is told while it builds: pages made from the sources, and links between them.

Pages of the repository that lie outside of docs/ get a place on the site (`OUTSIDE`), and so does
each source file, so that a link that leads somewhere in the repository leads there on the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

from tools.manual import plots, recipes, reference
from tools.manual.definitions import ROOT, all_classes
from tools.manual.places import factor_of

# Files that are pages of the site, and where.
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "design/contributing.md",
    "benchmarks/README.md": "design/benchmarks.md",
}
FOLDERS_SHOWN = ("src/refax", "examples", "benchmarks")  # their Python is shown under source/
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"<code>nnx\.([\w.]+)</code>")
SKIPPED = re.compile(r"(<pre.*?</pre>|<a\b.*?</a>|<h[1-6].*?</h[1-6]>)", re.DOTALL)


def on_config(config: Any) -> Any:
    """Lists the pages that are made from the sources in the navigation."""
    config.nav = [expanded(entry) for entry in config.nav]
    return config


def expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: expanded(below) for title, below in entry.items()}
    if isinstance(entry, list):
        return [one for each in entry for one in (several(each) or [expanded(each)])]
    return entry


def several(entry: Any) -> list[str]:
    """The pages that `reference/*` and `recipes/*` stand for."""
    if not isinstance(entry, str) or not entry.endswith("/*"):
        return []
    first, *others = (p for p in [*reference.pages(), *recipes.pages()] if p.startswith(entry[:-1]))
    written = sorted((ROOT / "docs").glob(f"{entry}.md"))
    return [first, *(path.relative_to(ROOT / "docs").as_posix() for path in written), *others]


def on_files(files: Any, config: Any) -> Any:
    made = {**reference.pages(), **recipes.pages()}
    made |= {place: (ROOT / file).read_text(encoding="utf-8") for file, place in OUTSIDE.items()}
    made["design/benchmarks.md"] = plots.with_plots(made["design/benchmarks.md"])
    for folder in FOLDERS_SHOWN:
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            code = path.read_text(encoding="utf-8")
            made[source_place(file)] = f'# {file}\n\n``````{{.python linenums="1"}}\n{code}``````\n'
    for place, text in made.items():
        if files.get_file_from_path(place) is not None:
            raise ValueError(f"docs/{place} is written and would be made, too: rename one of them")
        files.append(File.generated(config, place, content=text))
    return files


def source_place(file: str) -> str:
    return f"source/{file.removesuffix('.py').removeprefix('src/')}.md"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    place = page.file.src_uri
    search = {"exclude": True} if place.startswith("source/") else {"boost": factor_of(place)}
    page.meta.setdefault("search", search)
    if place.startswith("source/"):
        return markdown
    words = config.extra["keywords"].get(place, [])
    errors = [name for _, name, _ in all_classes() if name.endswith(("Error", "Warning"))]
    page.meta.setdefault("tags", [*words, *(errors if place == "errors.md" else [])])
    here = next((file for file, at in OUTSIDE.items() if at == place), f"docs/{place}")
    keep = [match.group() for match in FENCED.finditer(markdown)]
    prose = FENCED.split(markdown)[:: FENCED.groups + 1]
    prose = [
        source_links(LINK.sub(lambda m: relinked(m, here, place), part), place) for part in prose
    ]
    return "".join(text for pair in zip(prose, [*keep, ""]) for text in pair)


def relinked(match: re.Match[str], here: str, place: str) -> str:
    """A link that leads somewhere in the repository, as one that leads there on the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
    if target.startswith("docs/") and here.startswith("docs/"):
        return match.group()
    if target.startswith("docs/"):
        there = target.removeprefix("docs/")
    elif target in OUTSIDE:
        there = OUTSIDE[target]
    elif re.fullmatch(r"examples/\w+\.py", target):
        there = f"recipes/{Path(target).stem}.md"
    elif target == "examples":
        there = "recipes/index.md"
    elif target.endswith(".py") and target.startswith(FOLDERS_SHOWN):
        there = source_place(target)
    else:
        return match.group()
    return posixpath.relpath(there, posixpath.dirname(place) or ".") + (match[2] or "")


def source_links(markdown: str, place: str) -> str:
    """`source:file#12` becomes the address of that line. MkDocs sees no anchor for a line."""

    def address(match: re.Match[str]) -> str:
        there = source_place(match[1])
        if not match[2]:
            return posixpath.relpath(there, posixpath.dirname(place) or ".")
        html = posixpath.relpath(there.removesuffix(".md"), posixpath.dirname(place)) + ".html"
        return f"{html}#__codelineno-0-{match[2]}"

    line = re.compile(r"\[source\]\(<source:([^#>]+)#(\d+)>\)\{ \.source \}")
    markdown = line.sub(lambda m: f'<a class="source" href="{address(m)}">source</a>', markdown)
    return re.sub(r"(?<=\]\()source:([^)#]+)()(?=\))", address, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """A name in the text leads to its entry in the reference."""
    if page.file.src_uri.startswith("source/"):
        return html
    places = reference.page_of_each_name()

    def link(match: re.Match[str]) -> str:
        found = places.get(f"refax.nnx.{match[1]}")
        if found is None:
            return match.group()
        there, _, anchor = found.partition("#")
        url = files.get_file_from_path(there).url_relative_to(page.file)
        return f'<a href="{url}#{anchor}">{match.group()}</a>'

    parts = SKIPPED.split(html)
    return "".join(part if i % 2 else NAME.sub(link, part) for i, part in enumerate(parts))
