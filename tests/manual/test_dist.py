"""What `make dist` builds, installed where there is nothing else: `make test-dist`.

Two environments, the oldest Python with the oldest JAX that is promised and the newest of both that
are here; in each the wheel, then the source distribution. Nothing of the repository is on the path.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

import refax

ROOT = Path(__file__).resolve().parents[2]
if "REFAX_DIST" not in os.environ:
    pytest.skip("builds and installs: make test-dist", allow_module_level=True)
DIST = ROOT / os.environ["REFAX_DIST"]
WHEEL = DIST / f"refax-{refax.__version__}-py3-none-any.whl"
SDIST = DIST / f"refax-{refax.__version__}.tar.gz"
MINUTES = 10

EVERY_MODULE = """
    import importlib, importlib.metadata, importlib.util, pkgutil, sys
    import refax
    assert refax.__file__.startswith(sys.prefix), refax.__file__
    assert importlib.metadata.version("refax") == refax.__version__
    assert importlib.util.find_spec("flax") is None
    names = [module.name for module in pkgutil.walk_packages(refax.__path__, "refax.")]
    for name in sorted(names, key=lambda name: name == "refax.as_flax"):
        importlib.import_module(name)
    print(len(names), "modules")
"""

PROGRAM_OF_NNX = """
    import sys
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from flax.nnx.nn.linear import Linear

    model = nnx.Sequential(Linear(2, 8, rngs=nnx.Rngs(0)), nnx.relu, Linear(8, 1, rngs=nnx.Rngs(1)))
    optimizer = nnx.Optimizer(model, optax.adam(3e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        loss, grads = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    x = jnp.linspace(-1.0, 1.0, 32).reshape(16, 2)
    losses = [float(step(model, optimizer, x, x[:, :1] * 2)) for _ in range(100)]
    assert losses[-1] < 0.01 * losses[0], losses
    print(sys.argv[1:], nnx.__name__)
"""


def uv(*arguments: str | Path) -> str:
    executable = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert executable is not None
    return run(executable, *arguments)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    variables = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**variables, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=MINUTES * 60,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python_of(*versions: str) -> str:
    """The first of these Pythons that is here: on the path, or among those of pyenv."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in versions:
        found = [shutil.which(f"python{version}"), *folder.glob(f"{version}.*/bin/python")]
        for python in filter(None, found):
            if subprocess.run([python, "-c", "import venv"], capture_output=True).returncode == 0:
                return str(python)
    return pytest.skip(f"no Python {' or '.join(versions)} here")


@pytest.fixture(scope="module", params=["oldest", "newest"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment in which the wheel is installed."""
    oldest = request.param == "oldest"
    folder = tmp_path_factory.mktemp(request.param)
    base = python_of("3.11") if oldest else python_of("3.15", "3.14", "3.13", "3.12")
    uv("venv", "--quiet", "--no-project", "--python", base, folder / "environment")
    python = folder / "environment" / "bin" / "python"
    bound = re.search(r'"jax>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert bound is not None
    jax = [f"jax=={bound[1]}.0", f"jaxlib=={bound[1]}.0"] if oldest else []
    uv("pip", "install", "--quiet", "--python", python, WHEEL, *jax)
    return python


def first_example_of_the_readme() -> tuple[str, str]:
    """The first block of Python, and what it prints."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return blocks[0], blocks[1]


def check_everything(python: Path, folder: Path) -> None:
    code, printed = first_example_of_the_readme()
    (folder / "readme.py").write_text(code)
    assert run(python, "readme.py", cwd=folder) == printed
    (folder / "program.py").write_text(textwrap.dedent(PROGRAM_OF_NNX))
    said = run(python, "-m", "refax.as_flax", "program.py", "--steps", "3", cwd=folder)
    assert said == "['--steps', '3'] refax.nnx\n"
    (folder / "modules.py").write_text(textwrap.dedent(EVERY_MODULE))
    count = int(run(python, "modules.py", cwd=folder).split()[0])
    assert count == len([*(ROOT / "src" / "refax").rglob("*.py")]) - 1


def test_the_wheel(environment: Path, tmp_path: Path):
    check_everything(environment, tmp_path)


def test_the_source_distribution(environment: Path, tmp_path: Path):
    uv("pip", "uninstall", "--quiet", "--python", environment, "refax")
    uv("pip", "install", "--quiet", "--python", environment, "--no-deps", "--no-cache", SDIST)
    check_everything(environment, tmp_path)


def test_what_is_in_them():
    names = zipfile.ZipFile(WHEEL).namelist()
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"refax", f"refax-{refax.__version__}.dist-info"}
    assert "refax/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    with tarfile.open(SDIST) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", "docs/errors.md"} <= inside
    assert not [n for n in inside if "__pycache__" in n or n.startswith(("out/", "build/"))]
