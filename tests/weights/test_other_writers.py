"""States in the hands of other libraries' writers: orbax, old and new API, Equinox, NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from refax import nnx

# orbax warns about its own future, and about a checkpoint that says where its arrays were.
pytestmark = pytest.mark.filterwarnings("ignore::Warning:orbax", "ignore:.*[Ss]harding info.*")


class Net(nnx.Module):
    def __init__(self, seed: int):
        rngs = nnx.Rngs(seed)
        self.layers = [nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)]
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.tied = self.layers[0]


def make(seed: int) -> dict:
    model = Net(seed)
    return {"model": model, "optimizer": nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)}


def trained() -> dict:
    run = make(0)
    grads = nnx.grad(lambda m: (m.layers[0].kernel.value ** 2).sum())
    run["optimizer"].update(run["model"], grads(run["model"]))
    return run


def bits(obj) -> dict[str, np.ndarray]:
    arrays = nnx.state_dict(obj)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return {n: np.asarray(jax.random.key_data(x) if is_key(x) else x) for n, x in arrays.items()}


def assert_same(one, other) -> None:
    one, other = bits(one), bits(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def abstract_state(obj):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(obj))


@pytest.mark.parametrize("target", ["none", "abstract state", "state", "pure dict"])
def test_orbax_standard(tmp_path, target):
    run, other = trained(), make(1)
    saved = nnx.to_pure_dict(nnx.state(run)) if target == "pure dict" else nnx.state(run)
    pure = nnx.to_pure_dict(nnx.state(other))
    like = {
        "none": None,
        "abstract state": abstract_state(other),
        "state": nnx.state(other),
        "pure dict": jax.tree.map(ocp.utils.to_shape_dtype_struct, pure),
    }[target]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", saved)
        checkpointer.wait_until_finished()
        nnx.update(other, checkpointer.restore(tmp_path / "x", like))
    assert_same(run, other)


def test_orbax_restores_a_part_into_a_state(tmp_path):
    """The paths of a State are what orbax looks for, not the letters of its keys."""
    run, other = trained(), make(1)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", nnx.state(run))
        like = nnx.state(other["model"].layers, nnx.Param)
        part = nnx.State({"model": {"layers": like}})
        restored = checkpointer.restore(
            tmp_path / "x",
            args=ocp.args.PyTreeRestore(
                item=part,
                restore_args=ocp.checkpoint_utils.construct_restore_args(part),
                partial_restore=True,
            ),
        )
    assert isinstance(restored, nnx.State)
    nnx.update(other, restored)
    for one, two in zip(run["model"].layers, other["model"].layers, strict=True):
        np.testing.assert_array_equal(one.kernel.value, two.kernel.value)
    fresh = make(1)
    assert_same(fresh["optimizer"], other["optimizer"])
    assert_same(fresh["model"].norm, other["model"].norm)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_orbax_manager_with_several_items(tmp_path, asynchronous):
    run, other = trained(), make(1)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=asynchronous)
    kept = bits(run)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        args = {name: ocp.args.StandardSave(nnx.state(x)) for name, x in run.items()}
        manager.save(1, args=ocp.args.Composite(**args, notes=ocp.args.JsonSave({"seen": 3})))
        run["optimizer"].step.value = run["optimizer"].step.value + 5  # beside the writing
        manager.wait_until_finished()
        like = {n: ocp.args.StandardRestore(abstract_state(x)) for n, x in other.items()}
        read = manager.restore(1, args=ocp.args.Composite(**like, notes=ocp.args.JsonRestore()))
    assert read["notes"] == {"seen": 3}
    for name, x in other.items():
        nnx.update(x, read[name])
    found = bits(other)
    assert all((found[name] == x).all() for name, x in kept.items())
    third = make(2)
    with nnx.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(third) == {"notes": {"seen": 3}}
    assert_same(other, third)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the names, which still change
def test_orbax_new_api(tmp_path):
    new = pytest.importorskip("orbax.checkpoint.experimental.v1")
    run, other, third, fourth = trained(), make(1), make(2), make(3)
    new.save_pytree(tmp_path / "x", nnx.state(run))
    nnx.update(other, new.load_pytree(tmp_path / "x", abstract_state(other)))
    assert_same(run, other)
    nnx.update(third, new.load_pytree(tmp_path / "x"))
    assert_same(run, third)
    nnx.load(tmp_path / "x", fourth)
    assert_same(run, fourth)
    pure = nnx.to_pure_dict(nnx.state(run["optimizer"]))
    new.save_pytree_async(tmp_path / "y", pure).result()
    nnx.load(tmp_path / "y", other["optimizer"])
    assert_same(run["optimizer"], other["optimizer"])
    with new.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save_pytree(4, nnx.state(run))
    fifth = make(5)
    with nnx.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps() == [4]
        checkpoints.restore(fifth)
    assert_same(run, fifth)


def test_equinox_leaves(tmp_path):
    eqx = pytest.importorskip("equinox")
    run, other = trained(), make(1)
    for what in ("pure", "state"):
        pure = lambda run: nnx.to_pure_dict(nnx.state(run, nnx.Not(nnx.RngKey)))  # noqa: E731
        state = lambda run: nnx.state(run, nnx.Not(nnx.RngKey))  # noqa: E731
        form = {"pure": pure, "state": state}[what]
        eqx.tree_serialise_leaves(tmp_path / what, form(run))
        other = make(1)
        nnx.update(other, eqx.tree_deserialise_leaves(tmp_path / what, form(other)))
        one, two = bits(run), bits(other)
        assert all((one[n] == two[n]).all() for n in one if not n.endswith(".key"))


def test_numpy_archives(tmp_path):
    run, other, third = trained(), make(1), make(2)
    np.savez(tmp_path / "x.npz", **bits(run))
    nnx.load_state_dict(other, np.load(tmp_path / "x.npz"))
    assert_same(run, other)
    with np.load(tmp_path / "x.npz") as archive:
        nnx.update(third, dict(archive))
    assert_same(run, third)
