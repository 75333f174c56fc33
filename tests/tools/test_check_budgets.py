"""The budget checker, on small packages made up for it."""

import sys
from pathlib import Path

import pytest

from tools import check_budgets


class Tree:
    """A package `tiny`, written file by file; `problems()` is what the checker finds in it."""

    def __init__(self, folder: Path):
        self.package = folder / "tiny"

    def write(self, path: str, *lines: str) -> "Tree":
        file = self.package / path
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in [file.parent, *file.parent.parents]:
            if not package.is_relative_to(self.package):
                break
            (package / "__init__.py").touch()
        file.write_text("\n".join(lines) + "\n")
        return self

    def problems(self) -> list[str]:
        _, violations = check_budgets.check_package(self.package)
        return [str(violation).removeprefix(f"{self.package}/") for violation in violations]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def only(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


def test_a_good_package_has_no_problems(tree: Tree):
    tree.write("__init__.py", "from tiny import nnx as nnx")
    tree.write("_jax_compat.py", "from jax._src import core", "import jax.experimental.checkify")
    tree.write("graph/errors.py", "import jax")
    tree.write("graph/variable.py", "from . import errors", "from .. import _jax_compat")
    tree.write("lift/rebuild.py", "from tiny.graph.variable import Variable", "import tiny.graph")
    tree.write("layers/linear.py", "from ..lift.rebuild import rebuild", "import jax, optax")
    tree.write("inspect/tabulate.py", "def tabulate():", "    import rich.table")
    tree.write("nnx.py", "from tiny.layers.linear import Linear as Linear")
    assert tree.problems() == []


# ── Size ──────────────────────────────────────────────────────────────────────────────────────


def test_a_file_too_long(tree: Tree):
    tree.write("graph/short.py", *["x = 1"] * 500)
    tree.write("graph/long.py", *["x = 1"] * 501)
    problem = only(tree.problems())
    assert problem.startswith("graph/long.py:501: 501 lines, a file may have 500 → split it")


def test_a_package_too_long(tree: Tree, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check_budgets, "MAX_TOTAL_LINES", 9)
    tree.write("graph/first.py", *["x = 1"] * 4)
    tree.write("graph/second.py", *["x = 1"] * 5)
    assert tree.problems() == []
    tree.write("nnx/names.py", *["x = 1"] * 50)  # names do not count
    assert tree.problems() == []
    tree.write("graph/second.py", *["x = 1"] * 6)
    assert "second.py:6: the package has 10 lines of code, it may have 9" in only(tree.problems())


# ── Floors ────────────────────────────────────────────────────────────────────────────────────

UPWARD = {
    "absolute": "from tiny.layers.linear import Linear",
    "relative": "from ..layers.linear import Linear",
    "of a module": "from ..layers import linear",
    "plain": "import tiny.layers.linear",
    "by name": "import importlib; importlib.import_module('tiny.layers.linear')",
}


@pytest.mark.parametrize("statement", UPWARD.values(), ids=UPWARD.keys())
def test_an_import_from_above(tree: Tree, statement: str):
    tree.write("layers/linear.py", "class Linear: ...")
    tree.write("graph/variable.py", "import jax", statement)
    problem = only(tree.problems())
    assert problem.startswith(
        "graph/variable.py:2: graph (floor 2) imports tiny.layers.linear, above it (floor 6) → "
    )


def test_an_import_from_above_inside_a_function(tree: Tree):
    tree.write("inspect/display.py", "def render(): ...")
    inside = "    from ..inspect.display import render"
    tree.write("graph/variable.py", "def show():", inside)
    assert "imports tiny.inspect.display, above it (floor 7)" in only(tree.problems())


def test_an_import_for_annotations_counts(tree: Tree):
    tree.write("layers/linear.py", "class Linear: ...")
    guarded = ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:"]
    statement = "    from tiny.layers.linear import Linear"
    tree.write("graph/variable.py", *guarded, statement)
    assert "graph/variable.py:3: " in only(tree.problems())


def test_floors_of_one_height_do_not_import_one_another(tree: Tree):
    tree.write("training/optimizer.py", "class Optimizer: ...")
    tree.write("inspect/tabulate.py", "from ..training.optimizer import Optimizer")
    assert "imports tiny.training.optimizer, beside it (floor 7)" in only(tree.problems())


@pytest.mark.parametrize("statement", ["import tiny.nnx", "from tiny import nnx"])
def test_nothing_imports_the_face(tree: Tree, statement: str):
    tree.write("nnx.py", "")
    tree.write("layers/linear.py", "def f():", f"    {statement}")
    assert "imports tiny.nnx, above it (floor 8)" in only(tree.problems())


@pytest.mark.parametrize("statement", ["import tiny", "from tiny import x", "from .. import x"])
def test_nothing_imports_the_root_package(tree: Tree, statement: str):
    tree.write("layers/linear.py", statement)
    problem = only(tree.problems())
    assert "layers/linear.py:1: imports the root package (tiny" in problem


def test_a_module_not_yet_written_stands_on_its_floor(tree: Tree):
    tree.write("layers/linear.py", "from ..graph.later import Variable", "import tiny.lift.later")
    assert tree.problems() == []


def test_a_module_on_no_floor(tree: Tree):
    tree.write("helpers.py", "import jax")
    tree.write("graph/variable.py", "from tiny.helpers import name")
    assert "helpers.py:1: `helpers` stands on no floor" in only(tree.problems())


# ── Libraries ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("statement", ["import flax.nnx", "from equinox import Module"])
def test_peers_are_imported_nowhere(tree: Tree, statement: str):
    tree.write("_jax_compat.py", "def f():", f"    {statement}")
    assert "_jax_compat.py:2: imports the peer " in only(tree.problems())


def test_flax_is_imported_where_linen_modules_are_made(tree: Tree):
    tree.write("bridge/to_linen.py", "def f():", "    from flax import linen")
    assert tree.problems() == []
    tree.write("bridge/to_linen.py", "from flax import linen")
    assert "to_linen.py:1: imports the peer flax" in only(tree.problems())
    tree.write("bridge/to_nnx.py", "def f():", "    from flax import linen")
    tree.write("bridge/to_linen.py", "import haiku")
    assert ["to_nnx.py:2: imports the peer flax" in p for p in tree.problems()] == [False, True]


@pytest.mark.parametrize(
    "statement",
    [
        "from jax._src import core",
        "from jax import experimental",
        "import jax.extend.core",
        "import jax; jax.experimental.io_callback",
    ],
)
def test_private_jax_stands_in_one_file(tree: Tree, statement: str):
    tree.write("transforms/vmap.py", "def f():", f"    {statement}")
    assert "transforms/vmap.py:2: uses jax." in only(tree.problems())


def test_a_compat_module_in_a_folder_is_not_the_one_file(tree: Tree):
    tree.write("graph/_jax_compat.py", "from jax._src import core")
    assert "uses jax._src.core, private" in only(tree.problems())


def test_heavy_libraries_are_imported_inside_functions(tree: Tree):
    tree.write("training/checkpoint.py", "def save():", "    import orbax.checkpoint")
    tree.write("inspect/display.py", "if True:", "    import treescope")
    problem = only(tree.problems())
    assert problem.startswith("inspect/display.py:2: imports treescope at module level")


def test_names_that_only_begin_alike_are_free(tree: Tree):
    tree.write("graph/variable.py", "import flaxen, richer, jax.extended", "import tinyness.nnx")
    assert tree.problems() == []


# ── Cycles ────────────────────────────────────────────────────────────────────────────────────


def test_a_cycle_of_three(tree: Tree):
    tree.write("graph/a.py", "from . import b")
    tree.write("graph/b.py", "import jax", "from .c import name")
    tree.write("graph/c.py", "import tiny.graph.a")
    problem = only(tree.problems())
    cycle = "tiny.graph.a → tiny.graph.b → tiny.graph.c → tiny.graph.a"
    assert problem.startswith(f"graph/a.py:1: a cycle of imports: {cycle} → ")


def test_a_cycle_through_a_package(tree: Tree):
    tree.write("graph/__init__.py", "from .variable import Variable")
    tree.write("graph/variable.py", "from tiny.graph import Variable")
    assert "tiny.graph → tiny.graph.variable → tiny.graph" in only(tree.problems())


def test_two_cycles_are_two_problems(tree: Tree):
    tree.write("graph/a.py", "from . import b")
    tree.write("graph/b.py", "from . import a")
    tree.write("lift/c.py", "from . import d")
    tree.write("lift/d.py", "from . import c")
    assert len(tree.problems()) == 2


@pytest.mark.parametrize("head", ["def f():", "if typing.TYPE_CHECKING:"])
def test_imports_that_do_not_run_at_import_make_a_cycle_too(tree: Tree, head: str):
    tree.write("graph/a.py", "from . import b")
    tree.write("graph/b.py", "import typing", head, "    from . import a")
    assert "a cycle of imports: tiny.graph.a → tiny.graph.b → " in only(tree.problems())


# ── Import time ───────────────────────────────────────────────────────────────────────────────


def fake_interpreter(monkeypatch: pytest.MonkeyPatch, seconds: float, *loaded: str) -> list[str]:
    """Replace the fresh interpreters: one second for the base. Returns the list of what was run."""
    statements = []

    def import_once(statement: str, folder: Path) -> tuple[float, set[str]]:
        statements.append(statement)
        if statement == check_budgets.BASE_IMPORT:
            return 1.0, {"jax", "optax", "IPython"}
        return seconds, {"jax", "optax", "IPython", "tiny", *loaded}

    monkeypatch.setattr(check_budgets, "import_once", import_once)
    return statements


def test_a_quick_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    statements = fake_interpreter(monkeypatch, 1.09)
    line, violations = check_budgets.check_import(tmp_path / "tiny", strict=True)
    assert line == "`import tiny.nnx` takes 1.09× the time of `import jax, optax`"
    assert violations == []
    assert statements == ["import jax, optax", "import tiny.nnx"] * 6


def test_a_slow_import_is_measured_twice_and_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    statements = fake_interpreter(monkeypatch, 1.2)
    line, violations = check_budgets.check_import(tmp_path / "tiny", strict=False)
    assert line.startswith("warning: `import tiny.nnx` takes 1.20×")
    assert violations == []
    assert len(statements) == 24
    _, violations = check_budgets.check_import(tmp_path / "tiny", strict=True)
    assert "at most 1.10× is allowed" in only([str(violation) for violation in violations])


def test_a_heavy_library_loaded_on_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake_interpreter(monkeypatch, 1.0, "rich", "flax")
    _, violations = check_budgets.check_import(tmp_path / "tiny", strict=False)
    assert [violation.what for violation in violations] == [
        "`import tiny.nnx` loads flax",
        "`import tiny.nnx` loads rich",
    ]


def test_a_fresh_interpreter_imports_from_the_given_folder(tree: Tree):
    tree.write("nnx.py", "import json")
    seconds, loaded = check_budgets.import_once("import tiny.nnx", tree.package.parent)
    assert seconds > 0
    assert {"tiny", "json"} <= loaded
    assert "tiny" not in sys.modules


def test_an_import_that_fails_says_why(tree: Tree):
    tree.write("nnx.py", "import no_such_module_at_all")
    with pytest.raises(ImportError, match="no_such_module_at_all"):
        check_budgets.import_once("import tiny.nnx", tree.package.parent)


# ── The command ───────────────────────────────────────────────────────────────────────────────


def test_docstrings_comments_and_blank_lines_are_not_code(tree: Tree):
    tree.write("graph/a.py", '"""One.', "", 'Two."""', "", "# why", "x = 1  # here", "", "y = 2")
    module = check_budgets.read_package(tree.package)["tiny.graph.a"]
    assert (module.code_lines, len(module.lines)) == (2, 8)


def test_the_command_prints_sizes_and_violations(tree: Tree, capsys: pytest.CaptureFixture[str]):
    tree.write("graph/a.py", "x = 1", "y = 2")
    arguments = ["--package", str(tree.package), "--no-import-time"]
    assert check_budgets.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "budgets: 2 lines of code, within the budget of 14,000" in printed
    assert "3 files; median 0, largest 2 of 500" in printed

    tree.write("graph/b.py", "import flax")
    assert check_budgets.main(arguments) == 1
    assert "graph/b.py:1: imports the peer flax → write it here" in capsys.readouterr().out


def test_the_command_on_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert check_budgets.main(["--package", str(tmp_path)]) == 1
    assert "holds no Python file" in capsys.readouterr().out
