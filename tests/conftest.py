"""What holds for every test: eight CPU devices, Hypothesis without deadlines, strict numerics.

The environment is set before anything imports jax; a user's own settings win.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count=8".strip()

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


@pytest.fixture
def strict_numerics() -> Iterator[None]:
    """Raise where JAX would promote dtypes or ranks silently.

    For a whole module: `pytestmark = pytest.mark.usefixtures("strict_numerics")`.
    """
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
