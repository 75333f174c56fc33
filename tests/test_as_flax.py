"""refax.as_flax: programs and libraries that import `flax.nnx`, with Flax installed and without.

Each program runs in a Python of its own. The one without Flax gets the installed packages, apart
from Flax, by links in a folder, and no site-packages.
"""

import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

import refax

pytest.importorskip("flax")
SOURCE = str(Path(refax.__file__).parent.parent)


@pytest.fixture(scope="session")
def packages_without_flax(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("packages")
    for packages in site.getsitepackages():
        for entry in Path(packages).iterdir() if Path(packages).is_dir() else ():
            if not entry.name.startswith(("flax", "refax", "_")):
                (folder / entry.name).symlink_to(entry)
    return str(folder)


@pytest.fixture(params=["with Flax", "without Flax"])
def python(request, tmp_path):
    """Runs Python in a folder with the third-party library `layerlib`; returns what it printed."""
    write_library(tmp_path)
    command, path = [sys.executable], [SOURCE, str(tmp_path / "libraries")]
    if request.param == "without Flax":
        command.append("-S")
        path.append(request.getfixturevalue("packages_without_flax"))
    return runner(command, path, tmp_path)


@pytest.fixture
def python_with_flax(tmp_path):
    write_library(tmp_path)
    return runner([sys.executable], [SOURCE, str(tmp_path / "libraries")], tmp_path)


def runner(command: list[str], path: list[str], folder: Path):
    def run(*arguments: str, code: int = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


LIBRARY = """
import flax.nnx as by_name
from flax import nnx
from flax.nnx import graph, variablelib
from flax.nnx.graphlib import split
import flax.nnx.variablelib

assert by_name is nnx and flax.nnx is nnx and flax.nnx.variablelib is variablelib
assert graph.split is split is nnx.split


class Scale(nnx.Module):
    def __init__(self, size, rngs: nnx.Rngs):
        self.scale = nnx.Param(rngs.params.normal((size,)))

    def __call__(self, x):
        return x * self.scale
"""


def write_library(folder: Path) -> None:
    package = folder / "libraries" / "layerlib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .scale import Scale\n")
    (package / "scale.py").write_text(LIBRARY)


TRAIN = """
import pickle
import sys

import jax.numpy as jnp
import optax
from flax import nnx
from layerlib import Scale

import other


class Model(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.scale = Scale(4, rngs)

    def __call__(self, x):
        return self.scale(self.linear(x))


@nnx.jit
def train_step(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
    optimizer.update(model, grads)
    return loss


if __name__ == "__main__":
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    losses = [float(train_step(model, optimizer, jnp.ones((2, 3)))) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is Model and (again.scale.scale == model.scale.scale).all()
    import refax.nnx
    assert refax.nnx is nnx
    print(other.NAME, type(model).__module__, isinstance(model.scale, refax.nnx.Module), sys.argv)
"""


def test_a_program_and_the_library_that_it_uses(python, tmp_path):
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "train.py").write_text(TRAIN)
    (tmp_path / "programs" / "other.py").write_text("NAME = 'beside'\n")
    printed = python("-m", "refax.as_flax", "programs/train.py", "--steps", "2")
    assert printed == "beside __main__ True ['programs/train.py', '--steps', '2']\n"


FIRST_LINE = """
import refax.as_flax
import sys

import flax
from flax import nnx
from layerlib import Scale
import pkgutil
import refax

assert isinstance(Scale(2, nnx.Rngs(0)), refax.nnx.Module)
for module in pkgutil.walk_packages(refax.nnx.__path__, "refax.nnx."):
    there = __import__(module.name.replace("refax", "flax"), fromlist=["_"])
    assert there is sys.modules[module.name], module.name
from flax.nnx.nn.linear import Linear
from flax.nnx.state import State

assert Linear is nnx.Linear and isinstance(nnx.state(Scale(2, nnx.Rngs(0))), State)
try:
    import flax.nnx.no_such_address
except ModuleNotFoundError as error:
    print(str(error).splitlines()[0], "/", error.name)
try:
    import flax.linen
    assert issubclass(flax.linen.Dense, flax.linen.Module) and flax.nnx is nnx
    print(flax.errors.TraceContextError is nnx.TraceContextError, flax.errors.JaxTransformError)
except ImportError as error:
    print(error, error.name, hasattr(flax, "linen"), hasattr(flax, "__version__"))
    for statement in ("from flax import linen", "from flax.linen import Dense", "flax.linen"):
        try:
            exec(statement)
            raise SystemExit(1)
        except (ImportError, AttributeError) as error:
            print(error)
"""

NOT_INSTALLED = """\
flax.linen: Flax is not installed, and refax.as_flax brings flax.nnx alone.
Cure: pip install flax; flax.nnx stays refax's."""


def test_an_import_as_the_first_line(python, request):
    printed = python("-c", FIRST_LINE)
    first, _, rest = printed.partition("\n")
    assert first == (
        "flax.nnx.no_such_address: refax has no such address below nnx. / flax.nnx.no_such_address"
    )
    if "without" in request.node.name:
        assert rest.count(NOT_INSTALLED) == 4
        assert rest.splitlines()[1].endswith("flax False False")
    else:
        assert rest == "True <class 'flax.errors.JaxTransformError'>\n"


TESTED = """
import flax.errors
import jax.numpy as jnp
import pytest
from flax import nnx
from layerlib import Scale

import refax.nnx


def test_scale():
    assert isinstance(Scale(2, nnx.Rngs(0)), refax.nnx.Module)


def test_errors_of_both_are_caught():
    scale = Scale(2, nnx.Rngs(0))

    @nnx.jit
    def write(x):
        scale.scale[...] = x

    with pytest.raises(flax.errors.TraceContextError):
        write(jnp.ones(2))
"""


def test_pytest_takes_it_as_a_plugin(python_with_flax, tmp_path):
    (tmp_path / "test_scale.py").write_text(TESTED)
    printed = python_with_flax("-m", "pytest", "-q", "-p", "refax.as_flax", "test_scale.py")
    assert "2 passed" in printed


def test_a_module_that_is_run_by_name(python_with_flax, tmp_path):
    (tmp_path / "test_scale.py").write_text(TESTED)
    printed = python_with_flax("-m", "refax.as_flax", "-m", "pytest", "-q", "test_scale.py")
    assert "2 passed" in printed


PROBE = """
import atexit, sys
print(__name__, __file__, __package__, __cached__, type(__loader__).__name__, __doc__)
print(getattr(__spec__, "name", None), sys.argv, sys.path[0])
print(sys.modules["__main__"].__dict__ is globals(), annotated.__annotations__)
atexit.register(lambda: print(sys.modules["__main__"].annotated is annotated))
""".replace("import atexit", "def annotated(x: int): ...\nimport atexit")


@pytest.mark.parametrize(
    "arguments", [["probe.py", "-m", "x"], ["-m", "package.probe", "-h"], ["-m", "package", "--"],
                  ["folder"]], ids=" ".join
)  # fmt: skip
def test_a_program_finds_what_python_itself_would_give_it(python_with_flax, tmp_path, arguments):
    for folder in ("package", "folder"):
        (tmp_path / folder).mkdir()
    for name in ("probe.py", "package/probe.py", "package/__main__.py", "package/__init__.py"):
        (tmp_path / name).write_text(PROBE)
    (tmp_path / "folder/__main__.py").write_text("import sys; print(sys.argv, sys.path[:2])")
    alone = python_with_flax(*arguments)
    assert python_with_flax("-m", "refax.as_flax", *arguments) == alone


SPAWNING = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from flax import nnx
from layerlib import Scale

class Doubled(Scale):
    def __call__(self, x):
        return 2 * super().__call__(x)

def work(model):
    import refax.nnx
    assert isinstance(model, refax.nnx.Module) and nnx is refax.nnx
    return type(model).__name__, model(1.0).shape

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(pool.submit(work, Doubled(3, nnx.Rngs(0))).result())
"""


def test_processes_that_the_program_spawns_have_it_too(python, tmp_path, request):
    (tmp_path / "spawning.py").write_text(SPAWNING)
    how = ["-m", "spawning"] if "without" in request.node.name else ["spawning.py"]
    assert python("-m", "refax.as_flax", *how) == "('Doubled', (3,))\n"


def test_exit_codes_and_tracebacks_are_the_programs_own(python_with_flax, tmp_path):
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    python_with_flax("-m", "refax.as_flax", "exits.py", code=3)
    (tmp_path / "fails.py").write_text("def f():\n    return {}['here']\n\nf()\n")
    printed = python_with_flax("-m", "refax.as_flax", "fails.py", code=1)
    assert f"File \"{tmp_path / 'fails.py'}\", line 2, in f\n    return {{}}['here']" in printed
    assert printed.endswith("KeyError: 'here'\n")


def test_too_late_is_an_error_with_the_cure(python_with_flax):
    printed = python_with_flax("-c", "from flax import nnx; import refax.as_flax", code=1)
    assert "refax.as_flax comes too late" in printed
    assert "Cure: `import refax.as_flax` as the first line of the program" in printed
    python_with_flax("-c", "import flax; import refax.as_flax, refax; assert flax.nnx is refax.nnx")


ARGUMENTS = """
import refax.as_flax
for line in ("-h", "", "--unknown", "absent.py", "-m absent", "-m layerlib", "."):
    try:
        refax.as_flax.main(line.split())
    except SystemExit as error:
        print(error)
"""


def test_usage_and_what_cannot_be_run(python_with_flax, tmp_path):
    printed = python_with_flax("-u", "-c", ARGUMENTS)
    assert printed.count("usage: python -m refax.as_flax program.py") == 3
    assert printed.count("\n2\n") == 2
    assert "No such file or directory: '" + str(tmp_path / "absent.py") in printed
    for name in ("absent", "layerlib.__main__", f"__main__ in {str(tmp_path)!r}"):
        assert f"No module named {name}\n" in printed
