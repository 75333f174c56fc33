"""What holds for every test: eight CPU devices, Hypothesis without deadlines, strict numerics.

The environment is set before anything imports jax; a user's own settings win.

Compiling is what takes most of the time. With `REFAX_TESTS=quick` (`make test`) XLA optimizes less,
as it does for JAX's own tests, and what was compiled once is compiled once for all tests and
processes of the run. `make test-long` has neither.
"""

import atexit
import os
import shutil
import tempfile

QUICK = os.environ.get("REFAX_TESTS") == "quick"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = ["--xla_force_host_platform_device_count=8"]
if QUICK:
    flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(x for x in flags if x.split("=")[0] not in given)])
if QUICK and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The processes that run the tests inherit the environment of the one that starts them.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="refax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

from collections.abc import Iterator

import hypothesis
import jax
import pytest

from refax.objects import variable_types

# A first example may compile, so no deadline; in CI the same examples are tried at every run.
hypothesis.settings.register_profile("refax", deadline=None, max_examples=50)
hypothesis.settings.register_profile(
    "refax-ci", hypothesis.settings.get_profile("refax"), derandomize=True
)
hypothesis.settings.load_profile("refax-ci" if os.environ.get("CI") else "refax")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of Variable types that a test registers end with it: the registry is one a process."""
    monkeypatch.setattr(variable_types, "_TYPE_OF_NAME", dict(variable_types._TYPE_OF_NAME))


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What readline, where something imports it, says of the terminal that a test has not."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def strict_numerics() -> Iterator[None]:
    """Raise where JAX would promote dtypes or ranks silently.

    For a whole module: `pytestmark = pytest.mark.usefixtures("strict_numerics")`.
    """
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
