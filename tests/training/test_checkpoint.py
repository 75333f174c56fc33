"""Save and restore of a model with its optimizer: training goes on bit for bit."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from refax import nnx

from .common import Net, count_compilations, loss_of


@nnx.jit
def step(model: Net, optimizer: nnx.Optimizer) -> None:
    optimizer.update(model, nnx.grad(loss_of)(model))


def fresh() -> tuple[Net, nnx.Optimizer]:
    model = Net()
    schedule = optax.cosine_decay_schedule(1e-1, 10)
    return model, nnx.Optimizer(model, optax.adamw(schedule), wrt=nnx.Param)


def pure(both: Any) -> dict:
    return nnx.to_pure_dict(nnx.state(both))


def continued(both: Any, saved: Any) -> dict:
    """The state after three more steps from what was saved."""
    nnx.update(both, saved)
    for _ in range(3):
        step(*both)
    return pure(both)


def six_steps() -> tuple[dict, dict]:
    """The state after three steps, and after six."""
    both = fresh()
    states = []
    for _ in range(2):
        for _ in range(3):
            step(*both)
        states.append(pure(both))
    return states[0], states[1]


def test_by_state_and_update() -> None:
    half, whole = six_steps()
    jax.tree.map(np.testing.assert_array_equal, continued(fresh(), half), whole)
    jax.tree.map(np.testing.assert_array_equal, continued(fresh(), nnx.State(half)), whole)


# orbax warns about its own future and about a missing sharding.
@pytest.mark.filterwarnings("ignore::Warning")
def test_by_orbax(tmp_path: Path) -> None:
    """Restored as NumPy arrays, they are as uncommitted as those of a new model: no compilation."""
    ocp = pytest.importorskip("orbax.checkpoint")
    half, whole = six_steps()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, half)
        on_device = checkpointer.restore(tmp_path / "half", abstract)
        hosted = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), half)
        on_host = checkpointer.restore(tmp_path / "half", hosted)
    jax.tree.map(np.testing.assert_array_equal, continued(fresh(), on_device), whole)
    assert all(x.committed for x in jax.tree.leaves(on_device))
    both = fresh()
    with count_compilations() as compilations:
        result = continued(both, on_host)
        assert compilations == []
    jax.tree.map(np.testing.assert_array_equal, result, whole)
