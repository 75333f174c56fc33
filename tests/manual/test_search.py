"""What a person types into the search leads to the page about it: by titles, headings, keywords.

The search of the site puts keywords before titles and headings, and those before the text; each
page has a factor of its own (`BOOST`). Here is the same order without a browser, which
`test_browser.py` uses for some of them.
"""

import re
from functools import cache
from typing import Any

import pytest

from tests.pages import DOCS, FENCE
from tools.manual import recipes, reference
from tools.manual.definitions import ROOT, all_classes
from tools.manual.places import factor_of

yaml = pytest.importorskip("yaml", reason="PyYAML reads mkdocs.yml")

# What is typed, and the page that has to come first.
SOUGHT = {
    "install": "start.md",
    "tutorial": "start.md",
    "getting started": "start.md",
    "checkpoint": "weights.md",
    "save": "weights.md",
    "load": "weights.md",
    "resume": "weights.md",
    "export": "weights.md",
    "serving": "weights.md",
    "from_torch": "weights.md",
    "safetensors": "weights.md",
    "learning rate": "guides/training.md",
    "schedule": "guides/training.md",
    "optimizer": "guides/training.md",
    "metrics": "guides/training.md",
    "gradient accumulation": "guides/training.md",
    "mixed precision": "guides/training.md",
    "bfloat16": "guides/training.md",
    "weight decay": "guides/training.md",
    "freeze": "guides/training.md",
    "ema": "guides/training.md",
    "training loop": "guides/training.md",
    "early stopping": "guides/training.md",
    "dropout": "guides/randomness.md",
    "dropout in scan": "guides/randomness.md",
    "seed": "guides/randomness.md",
    "reproducible": "guides/randomness.md",
    "initializer": "guides/randomness.md",
    "vmap": "guides/transforms.md",
    "jit": "guides/transforms.md",
    "rnn": "guides/loops.md",
    "stack": "guides/loops.md",
    "filter": "guides/state.md",
    "surgery": "guides/state.md",
    "eval": "guides/state.md",
    "parameter": "guides/objects.md",
    "buffer": "guides/objects.md",
    "unit test": "guides/testing.md",
    "sharding": "devices.md",
    "fsdp": "devices.md",
    "data parallel": "devices.md",
    "multi gpu": "devices.md",
    "mesh": "devices.md",
    "nan": "seeing_inside.md",
    "profile": "seeing_inside.md",
    "debug": "seeing_inside.md",
    "hooks": "seeing_inside.md",
    "summary": "seeing_inside.md",
    "recompile": "mistakes.md",
    "TraceContextError": "errors.md",
    "LostWriteWarning": "errors.md",
    "typing": "types.md",
    "flax": "moving/from_flax_nnx.md",
    "migrate from flax": "moving/from_flax_nnx.md",
    "backward": "moving/from_pytorch.md",
    "zero_grad": "moving/from_pytorch.md",
    "cuda": "moving/from_pytorch.md",
    "ModuleList": "moving/from_pytorch.md",
    "linen": "moving/from_linen.md",
    "equinox": "moving/from_equinox.md",
    "haiku": "moving/from_haiku.md",
    "deprecation": "compatibility.md",
    "benchmark": "design/benchmarks.md",
    "BatchNorm": "reference/layers.md",
    "meta-learning": "recipes/meta_learning.md",
}


@cache
def keywords() -> dict[str, list[str]]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["extra"]["keywords"]


@cache
def pages() -> dict[str, tuple[list[str], list[str]]]:
    """Place → (keywords, title and headings)."""
    texts: dict[str, Any] = {**reference.pages(), **recipes.pages()}
    texts |= {p.relative_to(DOCS).as_posix(): p.read_text("utf-8") for p in DOCS.rglob("*.md")}
    texts["design/benchmarks.md"] = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    errors = [name for _, name, _ in all_classes() if name.endswith(("Error", "Warning"))]
    found = {}
    for place, text in texts.items():
        entries = re.findall(r"^::: [\w.]*?(\w+)$", text, re.MULTILINE)
        headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
        tags = [*keywords().get(place, []), *(errors if place == "errors.md" else [])]
        found[place] = (tags, [*headings, *entries])
    return found


def best(words: str) -> list[str]:
    """The places by what their keywords, titles and headings have of the words, the best first."""
    scores = {}
    for place, (tags, headings) in pages().items():
        score = 0.0
        for word in words.lower().split():
            start = re.compile(rf"\b{re.escape(word)}")
            score += 1e6 * any(start.search(tag.lower()) for tag in tags)
            score += 1e3 * any(start.search(heading.lower()) for heading in headings)
        scores[place] = score * factor_of(place)
    most = max(scores.values())
    return [place for place, score in scores.items() if score == most > 0]


@pytest.mark.parametrize(("words", "place"), SOUGHT.items())
def test_words_lead_to_the_page(words: str, place: str):
    assert best(words) == [place]


def test_keywords_are_of_pages_that_there_are():
    assert not set(keywords()) - set(pages())


def test_every_guide_is_found_by_some_word():
    places = [p.relative_to(DOCS).as_posix() for p in DOCS.glob("*/*.md")]
    sought = {p for p in places if p.startswith(("guides/", "moving/"))}
    assert sought <= set(SOUGHT.values())
