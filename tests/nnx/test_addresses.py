"""Every name that programs import stands at its address, and type checkers see it there."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from refax import nnx
from refax.objects import addresses
from tests.nnx.addresses import NAMES

FOLDER = Path(nnx.__file__).parent
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py"))
ADDRESSES = [(address, name) for address, names in NAMES.items() for name in names.split()]


def module_at(address: str):
    return importlib.import_module(f"refax.nnx.{address}" if address else "refax.nnx")


@pytest.mark.parametrize("address", NAMES)
def test_every_name_is_there(address):
    module = module_at(address)
    assert [name for name in NAMES[address].split() if not hasattr(module, name)] == []


@pytest.mark.parametrize("address", NAMES)
def test_an_address_is_reached_by_attributes(address):
    # `nnx.state` and `nnx.variables` are the verbs, whose modules can only be imported.
    found = nnx
    for part in address.split(".") if address else ():
        found = getattr(found, part)
    assert found is (module_at(address) if address not in ("state", "variables") else found)
    assert found.__name__.rpartition(".")[2] in (address.rpartition(".")[2], "nnx")


def test_addresses_do_not_hide_verbs():
    for address in NAMES:
        module_at(address)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert set(nnx.state(model)) == set(nnx.variables(model)) == {"bias", "kernel"}
    assert nnx.map(lambda _, x: x, model).kernel.shape == (2, 3)


def test_a_name_means_one_thing_at_all_its_addresses():
    """Except for those that meant different things before."""
    elsewhere = {("nn.recurrent", "Carry"), ("reprlib", "Object")}
    for address, name in ADDRESSES:
        here = getattr(module_at(address), name)
        if hasattr(nnx, name) and not isinstance(here, ModuleType):
            assert here is getattr(nnx, name) or (address, name) in elsewhere, f"{address}.{name}"


def test_the_table_names_every_address():
    found = {m.name for m in pkgutil.walk_packages([str(FOLDER)], "refax.nnx.")}
    packages = {"refax.nnx.bridge", "refax.nnx.nn", "refax.nnx.training", "refax.nnx.transforms"}
    assert found - packages == {f"refax.nnx.{a}" for a in NAMES if a} - packages


@pytest.mark.parametrize(
    "path", sorted(FOLDER.rglob("*.py")), ids=lambda p: str(p.relative_to(FOLDER))
)
def test_the_files_hold_names_and_no_code(path):
    docstring, *rest = ast.parse((FOLDER / path).read_text()).body
    assert isinstance(docstring, ast.Expr)
    for node in rest:  # which grows: what is loaded when it is asked for has a branch for checkers
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            rest += [*node.body, *node.orelse]
    rest = [node for node in rest if not isinstance(node, ast.If)]
    assert [ast.unparse(node) for node in rest if not isinstance(node, ast.ImportFrom)] == []
    for node in rest:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            # To a checker, `import x as x` hands a name on; `import x as y` does not.
            known = alias.name in ("*", "TYPE_CHECKING")
            assert known or alias.asname == alias.name or alias.asname[0] == "_"


def test_an_address_is_loaded_when_it_is_asked_for():
    program = """
import sys
from refax import nnx
loaded = [name for name in sys.modules if name.startswith("refax.nnx.")]
assert loaded == ["refax.nnx.state", "refax.nnx.variables"], loaded
later = [name for name in sys.modules if name.startswith(("refax.inspect", "refax.weights"))]
assert later == [], later
assert {"nn", "statelib", "transforms", "wrappers", "initializers"} <= {*dir(nnx)}
assert nnx.statelib.State is nnx.State and nnx.nn.linear.Linear is nnx.Linear
import refax.nnx.module, refax.nnx.variablelib
from refax.nnx.bridge import wrappers
from refax.nnx.nn import initializers
assert initializers is nnx.initializers and wrappers is nnx.wrappers
assert not hasattr(nnx, "no_such_name") and not hasattr(nnx, "__wrapped__")
everything = {}
exec("from refax.nnx import *", everything)
assert everything["save"] is nnx.save and everything["nn"] is nnx.nn
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_is_loaded_later_is_what_checkers_see():
    for_checkers = [node for node in ast.parse((FOLDER / "__init__.py").read_text()).body
                    if isinstance(node, ast.If)][0].body  # fmt: skip
    seen = {
        node.module: sorted(alias.name for alias in node.names)
        for node in for_checkers
        if isinstance(node, ast.ImportFrom) and node.level == 2
    }
    assert seen == {module: sorted(names.split()) for module, names in addresses._LATER.items()}


def test_a_function_replaced_in_place_is_the_one_that_layers_call():
    assert nnx.nn.dtypes.promote_dtype is nnx.Linear.promote_dtype
    assert nnx.nn.linear.default_kernel_init is nnx.nn.attention.default_kernel_init


@pytest.mark.slow
def test_checkers_know_every_name(tmp_path):
    lines = [
        f"from refax.nnx{address and '.'}{address} import {name}" for address, name in ADDRESSES
    ]
    lines += [
        "from refax import nnx",
        "import refax.nnx.graph",
        "reveal_type(nnx.nn.linear.Linear)",
        "reveal_type(refax.nnx.graph.split)",
        "reveal_type(nnx.transforms.compilation.jit)",
        "reveal_type(nnx.training.metrics.Average)",
        "nnx.nn.linear.no_such_name",
    ]
    (tmp_path / "imports.py").write_text("\n".join(lines))
    source = str(FOLDER.parent.parent)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [source]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run([*command, "-p", str(tmp_path)], capture_output=True, text=True)
    found = json.loads(run.stdout)["generalDiagnostics"]
    errors = [d["message"] for d in found if d["severity"] == "error"]
    revealed = [d["message"] for d in found if d["severity"] == "information"]
    assert len(errors) == 1 and "no_such_name" in errors[0], errors
    assert len(revealed) == 4 and not any('is "Unknown"' in text for text in revealed)
