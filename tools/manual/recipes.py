"""The pages of recipes: each example with what a real run printed and drew.

    python -m tools.manual.recipes [name …]

runs the examples and keeps, in docs/recipes/, what they print and their plots.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.manual.definitions import ROOT

EXAMPLES = ROOT / "examples"
RESULTS = ROOT / "docs" / "recipes"
MINUTES = 30  # for one example
EIGHT = ["--devices", "8"]  # made up on the CPU
ARGUMENTS = {
    "mixture_of_experts": EIGHT,
    "pipeline_stages": EIGHT,
    "train_sharded": [*EIGHT, "--layout", "2d", "--compare"],
}
SHORT = {
    "lora": "LoRA", "rnn": "RNN", "vae": "VAE", "resnet": "ResNet", "vit": "ViT",
    "gpt2": "GPT-2, a decoder with a cache",
}  # fmt: skip


def recipes() -> list[Path]:
    """The programs in examples/, the simplest first."""
    return sorted(
        EXAMPLES.glob("*.py"), key=lambda path: (path.stem == "train_language_model", path.stem)
    )


def place_of(path: Path) -> str:
    return f"recipes/{path.stem}.md"


def title_of(path: Path) -> str:
    words = path.stem.split("_")
    title = " ".join(SHORT.get(word, word) for word in words)
    return title[0].upper() + title[1:]


def page(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree) or ""
    code = "".join(source.splitlines(keepends=True)[tree.body[0].end_lineno :]).lstrip("\n")
    parts = [f"# {title_of(path)}", docstring]
    parts += ["## What a run shows", *results_of(path.stem)] if results_of(path.stem) else []
    parts.append(f'## The program\n\n``````python title="examples/{path.name}"\n{code}``````')
    parts += [f"It uses {links}." for links in [links_to_parts(source)] if links]
    return "\n\n".join(parts) + "\n"


def results_of(name: str) -> list[str]:
    """What the kept run printed, and its plots."""
    folder = RESULTS / name
    output = folder / "output.txt"
    if not output.exists():
        return []
    plots = [
        f"![{plot.stem} of a run]({name}/{plot.name})" for plot in sorted(folder.glob("*.png"))
    ]
    return [f"``````text\n{output.read_text(encoding='utf-8')}``````", *plots]


def links_to_parts(source: str) -> str:
    """Links to the modules in examples/ that the program imports."""
    modules = re.findall(r"^from ([\w.]+) import (.+)$", source, re.MULTILINE)
    files = {}
    for module, names in modules:
        folder = EXAMPLES / module.replace(".", "/")
        candidates = [
            folder.with_suffix(".py"),
            *(folder / f"{n.strip()}.py" for n in names.split(",")),
        ]
        files.update({f.relative_to(ROOT).as_posix(): None for f in candidates if f.is_file()})
    return ", ".join(f"[`{file}`](source:{file})" for file in sorted(files))


def pages() -> dict[str, str]:
    """The pages that are made, first a list of them and of those that are written by hand."""
    written = [first_lines_of(path) for path in sorted(RESULTS.glob("*.md"))]
    programs = [f"- [{title_of(p)}]({p.stem}.md): {summary_of(p)}" for p in recipes()]
    index = [
        "# Recipes\n\nEach trains something small to the end, beside a baseline.\n\n## On a page\n",
        *written,
        "\n## Whole programs\n\nEach in one file, to be read from top to bottom and changed. Under "
        "each stands what a run printed and drew, on two CPU cores that other programs used as "
        "well: what takes time takes less on a machine of its own.\n",
        *programs,
    ]
    made = {place_of(path): page(path) for path in recipes()}
    return {"recipes/index.md": "\n".join(index) + "\n", **made}


def first_lines_of(path: Path) -> str:
    """The title of a page as a link, and its first sentence."""
    title, _, text = path.read_text(encoding="utf-8").removeprefix("# ").partition("\n\n")
    sentence = re.split(r"(?<=\.) (?=[A-Z])", " ".join(text.partition("\n\n")[0].split()))[0]
    return f"- [{title}]({path.name}): {sentence}"


def summary_of(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def record(name: str) -> None:
    """Run an example and keep what it printed and drew."""
    with tempfile.TemporaryDirectory() as out:
        run = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{name}.py"), "--out", out, *ARGUMENTS.get(name, [])],
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True, text=True, check=True, timeout=MINUTES * 60,
        )  # fmt: skip
        keep(name, run.stdout, Path(out))


def keep(name: str, output: str, out: Path) -> None:
    folder = RESULTS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", output).replace(str(out), f"out/{name}")
    (folder / "output.txt").write_text(text.rstrip() + "\n", encoding="utf-8")
    for plot in sorted(out.rglob("*.png")):
        shutil.copy(plot, folder / plot.name)


if __name__ == "__main__":
    for example in sys.argv[1:] or [path.stem for path in recipes()]:
        record(example)
        print(f"docs/recipes/{example}/")
