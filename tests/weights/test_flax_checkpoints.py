"""What Flax 0.10, 0.11 and 0.12 saved is read: by `update`, `load` and `Checkpoints`.

The folders are written by `tools/make_flax_checkpoints.py`, by each Flax itself.
"""

import logging
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from refax import nnx

from . import flax_programs as programs

RELEASES = ["0.10.2", "0.10", "0.11", "0.12"]
PACKED = Path(__file__).parent / "flax_checkpoints"
# orbax warns about its own future, and about a checkpoint that says where its arrays were.
pytestmark = pytest.mark.filterwarnings("ignore::Warning:orbax", "ignore:.*[Ss]harding info.*")


class Release:
    """The checkpoints of a release, and what is in them."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.holds = name, folder, name.startswith("0.10")
        with tarfile.open(PACKED / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        self.expected = dict(np.load(folder / "expected.npz"))

    def of(self, which: str) -> dict[str, np.ndarray]:
        head = f"{which}:"
        return {n.removeprefix(head): x for n, x in self.expected.items() if n.startswith(head)}

    def check(self, which: str, obj, *, streams: bool = True) -> None:
        """All that was saved is in the object; of streams, what is not the one that was shared."""
        found, expected = programs.named(nnx, nnx.state(obj)), self.of(which)
        if self.holds or not streams:  # the streams that layers shared then are their own now
            expected = {name: x for name, x in expected.items() if "rngs." not in name}
        for name, x in expected.items():
            np.testing.assert_array_equal(found[name], x, err_msg=name)
        rest = {name for name in found.keys() - expected.keys() if "rngs." not in name}
        of_metrics = {"_total_low", "_count_low", "_m2_low"}
        also = {"mean", "var"} if which == "params" else of_metrics
        assert {name.rpartition(".")[2] for name in rest} <= also


@pytest.fixture(scope="module", params=RELEASES)
def release(request, tmp_path_factory):
    logging.getLogger("absl").setLevel(logging.ERROR)
    return Release(request.param, tmp_path_factory.mktemp("flax"))


def restored(release: Release, which: str):
    """As orbax gives it without a target: nested dicts."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(release.folder / which)


def by_update(release, which, obj):
    nnx.update(obj, restored(release, which))


def by_load(release, which, obj):
    nnx.load(release.folder / which, obj, strict=which != "params")


@pytest.mark.parametrize("reading", [by_update, by_load])
def test_a_model(release, reading):
    for which in ("model", "pure", "by_the_old_checkpointer", "params"):
        model = programs.model_of(nnx, 9)
        before = programs.named(nnx, nnx.state(model))
        reading(release, which, model)
        release.check("params" if which == "params" else "model", model)
        after = programs.named(nnx, nnx.state(model))
        if which == "params":
            assert all((after[n] == x).all() for n, x in before.items() if "rngs." in n)
        else:
            metrics = programs.metrics_of(nnx)
            output = programs.results(nnx, model, metrics)["output"]
            np.testing.assert_allclose(output, release.of("results")["output"], atol=1e-6)


@pytest.mark.parametrize("reading", [by_update, by_load])
def test_metrics_go_on(release, reading):
    """Also ones that hold something: nothing of it is left, nor what it had lost by rounding."""
    metrics = programs.metrics_of(nnx)
    for _ in range(3):
        metrics.update(loss=jnp.full(3, 1e8 / 3), logits=jnp.eye(2), labels=jnp.array([0, 0]))
    metrics.loss._total_low.value = jnp.float32(5)
    reading(release, "metrics", metrics)
    release.check("metrics", metrics)
    assert float(metrics.loss._total_low.value) == 0
    computed = programs.results(nnx, programs.model_of(nnx, 0), metrics)
    for name in ("loss", "accuracy", "spread.mean", "spread.sem", "spread.std"):
        np.testing.assert_allclose(computed[name], release.of("results")[name], rtol=1e-6)
    metrics.reset()


@pytest.mark.parametrize("reading", [by_update, by_load, "checkpoints"])
def test_an_optimizer_that_holds_its_model_goes_on(release, reading):
    optimizer = programs.optimizer_of(nnx, programs.model_of(nnx, 9))
    metrics = programs.metrics_of(nnx)
    if reading == "checkpoints":
        with nnx.Checkpoints(release.folder / "run_of_one") as checkpoints:
            assert checkpoints.steps() == [2, 3]
            assert checkpoints.restore(optimizer) == {}
    else:
        reading(release, "holding", optimizer)
    release.check("holding", optimizer)
    nnx.load(release.folder / "metrics", metrics)
    optimizer.model.eval()
    programs.train(nnx, optimizer.model, optimizer, None, metrics, 1)
    after = programs.named(nnx, nnx.state(optimizer.model, nnx.Param))
    for name, x in release.of("after").items():
        if name == "attention.key.bias":  # its gradient is rounding alone: it shifts all logits
            continue
        np.testing.assert_allclose(after[name], x, atol=2e-6, err_msg=name)
    for name, x in programs.results(nnx, optimizer.model, metrics).items():
        np.testing.assert_allclose(x, release.of("results_after")[name], atol=5e-6, err_msg=name)


def test_an_optimizer_beside_its_model(release):
    """Today's form; what an old optimizer held is parted by name."""
    model = programs.model_of(nnx, 9)
    tx = programs.optimizer_of(nnx, model).tx if release.holds else None
    if release.holds:
        both = {"model": model, "optimizer": nnx.Optimizer(model, tx, wrt=nnx.Param)}
        rename = {r"^(opt_state|step)\b": r"optimizer.\1"}
        loaded = nnx.load(release.folder / "holding", both, rename=rename)
        assert all(".rngs." in name or "model.rngs" in name for name in loaded.missing)
        assert all("drop.rngs." in name for name in loaded.unexpected)
        found = programs.named(nnx, nnx.state(both["optimizer"]))
        for name, x in release.of("holding").items():
            if not name.startswith("model."):
                np.testing.assert_array_equal(found[name], x, err_msg=name)
        return
    optimizer = programs.optimizer_beside(nnx, model)
    for reading in (by_update, by_load):
        reading(release, "other", model)
        reading(release, "optimizer", optimizer)
        release.check("other", model)
        release.check("optimizer", optimizer)


def test_a_run_of_several_items(release):
    model, metrics = programs.model_of(nnx, 9), programs.metrics_of(nnx)
    objects = {"averages": metrics}
    if release.holds:
        objects["optimizer"] = programs.optimizer_of(nnx, model)
    else:
        objects |= {"model": model, "optimizer": programs.optimizer_beside(nnx, model)}
    with nnx.Checkpoints(release.folder / "run") as checkpoints:
        assert checkpoints.restore(objects) == {"seen": {"tokens": 48}}
        release.check("metrics", metrics)
        release.check("holding" if release.holds else "optimizer", objects["optimizer"])
        if not release.holds:
            release.check("other", model)
        alone = programs.metrics_of(nnx)
        checkpoints.restore({"averages": alone}, step=3)
        release.check("metrics", alone)
        with pytest.raises(ValueError, match=r"missing: `layers\.0\.bias`"):
            checkpoints.restore({"layers": [nnx.Linear(2, 2, rngs=nnx.Rngs(0))]})
    with pytest.raises(IsADirectoryError, match=r"(?s)several trees of arrays: \['averages'.*Cure"):
        nnx.load(release.folder / "run" / "3", model)


def test_a_run_goes_on_in_the_same_folder(release, tmp_path):
    with tarfile.open(PACKED / f"{release.name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    optimizer = programs.optimizer_of(nnx, programs.model_of(nnx, 9))
    with nnx.Checkpoints(tmp_path / "run_of_one") as checkpoints:
        checkpoints.restore(optimizer)
        checkpoints.save(4, optimizer, notes={"position": 4})
        checkpoints.wait()
        again = programs.optimizer_of(nnx, programs.model_of(nnx, 3))
        assert checkpoints.restore(again) == {"position": 4}
        release.check("holding", again)
        metadata = tmp_path / "run_of_one/3/default/_METADATA"
        metadata.write_bytes(metadata.read_bytes()[:-9])
        before = nnx.state_dict(again)
        with pytest.raises(nnx.WeightsFileError, match=r"/3: the step is damaged"):
            checkpoints.restore(again, step=3)
        with pytest.raises(nnx.WeightsFileError, match="default"):
            nnx.load(tmp_path / "run_of_one/3/default", again)
    assert all(x is before[name] for name, x in nnx.state_dict(again).items())


def test_into_a_model_on_a_mesh_and_an_abstract_one(release):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model = programs.model_of(nnx, 9)
    sharding = jax.NamedSharding(mesh, jax.P(None, "data"))
    model.first.kernel.value = jax.device_put(model.first.kernel.value, sharding)
    nnx.load(release.folder / "model", model)
    assert model.first.kernel.value.sharding == sharding
    release.check("model", model)
    abstract = nnx.eval_shape(lambda: programs.model_of(nnx, 0))
    if release.holds:  # it would be left with streams that have no keys
        with pytest.raises(ValueError, match=r"missing: `attention|missing: `drop"):
            nnx.load(release.folder / "model", abstract)
    else:
        nnx.load(release.folder / "model", abstract)
        release.check("model", abstract)


def test_the_recipe_for_old_checkpoints(release, tmp_path):
    checkpoint = restored(release, "model")

    @jax.jit
    def fix_checkpoint(checkpoint, rngs: nnx.Rngs):
        flat_paths = nnx.traversals.flatten_mapping(checkpoint)
        flat_paths = {
            path: value
            for path, value in flat_paths.items()
            if "rngs" not in path  # drop the old random streams
        }
        checkpoint = nnx.traversals.unflatten_mapping(flat_paths)
        model = programs.model_of(nnx, 0)
        nnx.reseed(model, default=rngs())
        nnx.update(model, checkpoint)
        return nnx.state(model)

    new = fix_checkpoint(checkpoint, rngs=nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "new", new)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(tmp_path / "new")
    model = programs.model_of(nnx, 3)
    nnx.update(model, again)
    release.check("model", model, streams=False)


def test_key_data_where_a_key_is():
    rngs = nnx.Rngs(3)
    data = jax.random.key_data(jax.random.key(7))
    for i, given in enumerate((data, np.asarray(data))):
        nnx.update(rngs, {"default": {"key": {"value": given}, "count": i}})
        assert rngs.default.key.value == jax.random.key(7)
        nnx.reseed(rngs, default=0)
        nnx.load_state_dict(rngs, {"default.key": given, "default.count": i})
        assert rngs.default.key.value == jax.random.key(7)
        assert int(rngs.default.count.value) == i
    with pytest.raises(ValueError, match=r"`default\.key` is key<fry>\[\].* but uint32\[3\]"):
        nnx.update(rngs, {"default": {"key": np.zeros(3, np.uint32)}})
    many = nnx.Rngs(0).fork(splits=3)
    nnx.update(many, {"default": {"key": np.arange(6, dtype=np.uint32).reshape(3, 2)}})
    assert jax.random.key_data(many.default.key.value).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_what_is_passed_over_is_the_old_form_alone():
    model = programs.model_of(nnx, 0)
    stream = {"count": 0, "key": np.zeros(2, np.uint32)}
    nnx.update(model, {"drop": {"rngs": {"noise": stream}}})
    nnx.update(model, {"attention.rngs.noise.key": stream["key"]})
    for wrong in (
        {"rngs": {"noise": stream}},  # a Rngs that has other streams
        {"drop": {"rngs": {"noise": {"kernel": np.zeros(2)}}}},
        {"drop": {"rngz": {"noise": stream}}},
    ):
        with pytest.raises(ValueError, match="the object has no Variable or array there"):
            nnx.update(model, wrong)
    state = nnx.state_dict(model)
    with pytest.raises(ValueError, match=r"missing: `rngs\.dropout\.key`"):
        state.pop("rngs.dropout.key")
        nnx.load_state_dict(model, state)
