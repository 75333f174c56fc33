"""Everything public has a type that is known: pyright's report on the package, name by name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.pages import DOCS

# Not annotated one by one are tables, where the type of each entry follows from what it is made of.
TABLES = {
    "refax.verbs.random_streams._Draws.": "the samplers of jax.random, with their signatures",
    "refax.nnx.nn.": "initializers: the ones of a module, and those that are made as defaults",
    "refax.objects.operators.LikeArray.__i": "the operators in place, all of one signature",
    "refax.verbs.module.Module.": "the verbs as methods",
}
NOT_ANNOTATED = "Type is missing type annotation"
# Nor what is set several at once, where there is no place for it.
SEVERAL = re.compile(r"\s*(self\.)?\w+(, (self\.)?\w+)+ = |\s*(self\.)?\w+ = (self\.)?\w+ = ")


def is_bare(symbol) -> bool:
    for diagnostic in symbol["diagnostics"]:
        if diagnostic["message"].startswith(NOT_ANNOTATED):
            lines = Path(diagnostic["file"]).read_text().splitlines()
            if not SEVERAL.match(lines[diagnostic["range"]["start"]["line"]]):
                return True
    return False


def test_every_public_name_has_a_known_type():
    report = json.loads(
        subprocess.run(
            [sys.executable, "-m", "pyright", "--verifytypes", "refax.nnx", "--ignoreexternal",
             "--outputjson"],
            capture_output=True, text=True, timeout=300,
            env={
                **os.environ,
                "PYTHONPATH": str(DOCS.parent / "src"),
                # Of this Python: without it pyright finds no JAX here, and all of it is unknown.
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        ).stdout
    )["typeCompleteness"]  # fmt: skip
    symbols = report["symbols"]
    assert report["packageRootDirectory"] == str(DOCS.parent / "src/refax")
    assert len(symbols) > 1500
    assert [s["name"] for s in symbols if not s["isTypeKnown"] and not s["isTypeAmbiguous"]] == []
    bare = {symbol["name"] for symbol in symbols if is_bare(symbol)}
    assert sorted(name for name in bare if not name.startswith(tuple(TABLES))) == []
