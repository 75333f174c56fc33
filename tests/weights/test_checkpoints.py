"""`Checkpoints`: runs that go on bit for bit, keep what they should, and survive what happens."""

import gc
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from refax import nnx
from refax.verbs.hosts import fingerprint


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)]
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.drop(nnx.relu(self.norm(self.layers[0](x)))))


def make_run(seed: int = 0):
    model = Net(nnx.Rngs(seed))
    return {
        "model": model,
        "optimizer": nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param),
        "metrics": nnx.MultiMetric(loss=nnx.metrics.Average("loss")),
    }


@nnx.jit(donate_argnums=0)
def step(run, x):
    def loss(model):
        return (model(x) ** 2).mean()

    value, grads = nnx.value_and_grad(loss)(run["model"])
    run["optimizer"].update(run["model"], grads)
    run["metrics"].update(loss=value)
    return value


def batch(i: int):
    return jax.random.normal(jax.random.key(i), (4, 3))


def values(obj):
    arrays = nnx.state_dict(obj)
    keys = {n for n, x in arrays.items() if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)}
    return {n: np.array(jax.random.key_data(x) if n in keys else x) for n, x in arrays.items()}


def assert_equal(one, other):
    one, other = values(one), values(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_goes_on_bit_for_bit(tmp_path, asynchronous):
    run = make_run()
    with nnx.Checkpoints(tmp_path / "run", asynchronous=asynchronous) as checkpoints:
        for i in range(3):
            step(run, batch(i))
        checkpoints.save(3, run, notes={"position": 3, "losses": [1.5, 2.5]})
        for i in range(3, 6):  # donated steps, beside the writing
            step(run, batch(i))
    other = make_run(9)
    with nnx.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.restore(other) == {"position": 3, "losses": [1.5, 2.5]}
    for i in range(3, 6):
        step(other, batch(i))
    assert_equal(run, other)
    assert float(run["metrics"].compute()["loss"]) == float(other["metrics"].compute()["loss"])


def test_after_restoring_nothing_compiles_again(tmp_path):
    run, inputs = make_run(), batch(0)
    fresh = nnx.jit(lambda run, x: step(run, x))
    with nnx.Checkpoints(tmp_path) as checkpoints:
        fresh(run, inputs)
        checkpoints.save(1, run)
        checkpoints.restore(run)
        compiled = []

        def listen(name: str, *_: Any, **__: Any) -> None:
            if "backend_compile" in name:
                compiled.append(name)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            jax.block_until_ready(fresh(run, inputs))
        finally:  # only this one: refax has a listener, too, and other tests
            jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_which_steps_are_kept(tmp_path):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
    with nnx.Checkpoints(tmp_path / "a", keep=2, best="loss") as lowest:
        with nnx.Checkpoints(tmp_path / "b", keep=2, best=("loss", "max")) as highest:
            with nnx.Checkpoints(tmp_path / "c", keep=2) as latest:
                for number, loss in losses.items():
                    for checkpoints in (lowest, highest, latest):
                        checkpoints.save(number, model, notes={"loss": loss})
                for checkpoints in (lowest, highest, latest):
                    checkpoints.wait()
                assert lowest.steps() == [2, 4, 5]
                assert highest.steps() == [4, 5]
                assert latest.steps() == [4, 5]
                assert lowest.restore(model, step=2) == {"loss": 1.0}


def test_another_layout_of_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    with nnx.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, one)
        for spec in (PartitionSpec("data"), PartitionSpec(None, "data"), PartitionSpec()):
            other = nnx.Linear(8, 16, rngs=nnx.Rngs(1))
            sharding = NamedSharding(mesh, spec)
            other.kernel.value = jax.device_put(other.kernel.value, sharding)
            checkpoints.restore(other, step=1)
            assert other.kernel.value.sharding == sharding
            assert (other.kernel.value == one.kernel.value).all()
        checkpoints.save(2, other)
        back = nnx.Linear(8, 16, rngs=nnx.Rngs(3))
        checkpoints.restore(back)
        assert (back.kernel.value == one.kernel.value).all()
        assert len(back.kernel.value.devices()) == 1


def test_an_abstract_model_is_filled_in(tmp_path):
    model = Net(nnx.Rngs(0))
    with nnx.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, model)
        abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
        checkpoints.restore(abstract)
    assert_equal(model, abstract)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # an option of orbax's own
def test_orbax_reads_it_alone(tmp_path):
    import orbax.checkpoint as ocp

    model = Net(nnx.Rngs(0))
    with nnx.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, model)
    with ocp.CheckpointManager(tmp_path, item_names=("state", "notes")) as manager:
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore())
        state = manager.restore(0, args=args)["state"]
    assert (state["layers"]["0"]["kernel"] == model.layers[0].kernel.value).all()
    nnx.update(model.layers, state["layers"])  # a nested dict is one of nnx.update's forms


@pytest.mark.parametrize(
    "dtype", "bool int8 uint16 int32 float16 bfloat16 float32 complex64 float8_e4m3fn int4".split()
)
def test_every_flipped_bit_has_another_fingerprint(dtype):
    rng = np.random.default_rng(0)
    array = np.asarray(jnp.asarray(rng.integers(0, 2, (3, 5))).astype(dtype))
    whole = fingerprint(jnp.asarray(array))
    assert fingerprint(array) == whole  # on the host as on the device
    data = array.astype(np.int8).view(np.uint8) if dtype == "int4" else array.view(np.uint8)
    for at in range(data.size):
        changed = data.copy().reshape(-1)
        changed[at] ^= 1
        other = changed.reshape(data.shape).view(np.int8 if dtype == "int4" else array.dtype)
        assert fingerprint(other.astype(array.dtype)) != whole
    assert fingerprint(jnp.asarray(array).T) != whole


def test_fingerprints_do_not_depend_on_the_layout():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    array = jnp.arange(64.0).reshape(8, 8)
    specs = [PartitionSpec(), PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))]
    found = {fingerprint(jax.device_put(array, NamedSharding(mesh, spec))) for spec in specs}
    assert found == {fingerprint(array)}
    with jax.enable_x64(True):
        wide = np.arange(5.0) / 3
        assert fingerprint(jnp.asarray(wide)) == fingerprint(wide)


# -- bad moments ---------------------------------------------------------------------------------


def three_steps(folder: Path) -> list[dict]:
    model, found = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), []
    with nnx.Checkpoints(folder) as checkpoints:
        for number in (1, 2, 3):
            model.kernel.value = model.kernel.value + 1
            checkpoints.save(number, model)
            found.append(values(model))
    return found


def largest_file(folder: Path) -> Path:
    files = [file for file in (folder / "state").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def test_a_damaged_step_names_the_last_good_one(tmp_path):
    saved = three_steps(tmp_path)
    for number in (3, 2):
        data = largest_file(tmp_path / str(number))
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(5))
    before = nnx.state_dict(model)
    with nnx.Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"(?s)/3: the step is damaged: .*Cure: .*step=1"):
            checkpoints.restore(model)
        assert all(x is before[name] for name, x in nnx.state_dict(model).items())
        checkpoints.restore(model, step=1)
    np.testing.assert_array_equal(model.kernel.value, saved[0]["kernel"])


@pytest.mark.parametrize("what", ["notes", "state", "a file", "a note"])
def test_a_step_with_something_missing(tmp_path, what):
    three_steps(tmp_path)
    if what == "a file":
        largest_file(tmp_path / "3").unlink()
    elif what == "a note":
        note = tmp_path / "3" / "notes" / "metadata"
        note.write_text(note.read_text().replace('"version": 1', '"version": 0'))
    else:
        shutil.rmtree(tmp_path / "3" / what)
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(5))
    with nnx.Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"(?s)/3: the step is damaged.*step=2"):
            checkpoints.restore(model)


def test_what_does_not_fit(tmp_path):
    three_steps(tmp_path)
    with nnx.Checkpoints(tmp_path) as checkpoints:
        model = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
        with pytest.raises(
            ValueError, match=r"`kernel` is float32\[4,5\] in the object but float32\[4,4\]"
        ):
            checkpoints.restore(model)
        with pytest.raises(ValueError, match=r"missing: `mean`"):
            checkpoints.restore(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
        with pytest.raises(FileNotFoundError, match=r"no step 7 in .*; it has \[1, 2, 3\]"):
            checkpoints.restore(model, step=7)
        with pytest.raises(FileExistsError, match=r"step 3 is in .* already"):
            checkpoints.save(3, model)
        with pytest.raises(TypeError, match=r"notes\['loss'\] is no JSON"):
            checkpoints.save(4, model, notes={"loss": jnp.ones(())})
    with nnx.Checkpoints(tmp_path / "empty") as checkpoints:
        with pytest.raises(FileNotFoundError, match="it is empty"):
            checkpoints.restore(model)
    with pytest.raises(ValueError, match="keep=0"):
        nnx.Checkpoints(tmp_path / "none", keep=0)
    with nnx.Checkpoints(tmp_path / "best", best="loss") as checkpoints:
        with pytest.raises(
            ValueError, match=r"told by the note 'loss', which is not among \['los'\]"
        ):
            checkpoints.save(1, model, notes={"los": 1.0})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk(tmp_path, asynchronous):
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a file system, and not in every container")
    try:
        checkpoints = nnx.Checkpoints(tmp_path / "run", asynchronous=asynchronous)
        model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        checkpoints.save(1, model)
        noise = jax.random.normal(jax.random.key(0), (400_000,))  # what cannot be compressed
        with pytest.raises(OSError, match=r"(?i)no space left|disk is full"):
            checkpoints.save(2, nnx.Param(noise))
            checkpoints.wait()
        assert checkpoints.steps() == [1]
        names = {file.name for file in (tmp_path / "run").iterdir()}
        assert not [name for name in names if "tmp" in name or name == "2"]
        checkpoints.restore(model)
        checkpoints.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


SAVER = """
import sys
import jax.numpy as jnp
from refax import nnx
checkpoints = nnx.Checkpoints(sys.argv[1], keep=3)
step = max(checkpoints.steps(), default=0)
print("ready", flush=True)
while True:
    step += 1
    state = {str(i): nnx.Param(jnp.full((20_000,), step, jnp.float32)) for i in range(4)}
    checkpoints.save(step, state, notes={"step": step})
"""


@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_saves_leave_the_step_before(tmp_path, kills):
    rng, latest = random.Random(0), 0
    first = {str(i): nnx.Param(jnp.zeros(20_000)) for i in range(4)}
    with nnx.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, first, notes={"step": 0})
    for _ in range(kills):
        command = [sys.executable, "-c", SAVER, str(tmp_path)]
        saver = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert saver.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.1, 1.5))
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        target = {str(i): nnx.Param(jnp.full(20_000, -1.0)) for i in range(4)}
        with nnx.Checkpoints(tmp_path) as checkpoints:
            notes = checkpoints.restore(target)
        assert notes["step"] >= latest
        latest = notes["step"]
        assert all((variable.value == latest).all() for variable in target.values())
    with nnx.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(latest + 1, first)
    assert not list(tmp_path.glob("*tmp*"))


class Ring(BaseException):
    pass


# A signal may come while a file is being opened, or in a callback.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_interruption_in_the_middle_of_saving(tmp_path, asynchronous):
    """As Ctrl-C: no step has other values; an old one may have been in the middle of deletion."""

    def make(value: float):
        return {"a": nnx.Param(jnp.full(5000, value)), "b": nnx.Param(jnp.full(10, value))}

    def ring(*_: Any):
        raise Ring

    def restored(checkpoints: nnx.Checkpoints, step: int | None = None) -> float:
        target = make(-1.0)
        checkpoints.restore(target, step)
        (value,) = {float(x) for v in target.values() for x in v.value}
        return value

    rng, interrupted = random.Random(0), 0
    checkpoints = nnx.Checkpoints(tmp_path, asynchronous=asynchronous)
    old = signal.signal(signal.SIGALRM, ring)
    try:
        checkpoints.save(1, make(1.0))
        started = time.perf_counter()
        checkpoints.save(2, make(2.0))
        checkpoints.wait()
        seconds = time.perf_counter() - started
        for step in range(3, 18):
            objects = make(float(step))
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 0.8 * seconds))
                checkpoints.save(step, objects)
                checkpoints.wait()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Ring:
                interrupted += 1
            assert 2 <= restored(checkpoints) <= step
            if step == 10 and step not in checkpoints.steps():
                checkpoints.save(step, objects)  # once more
                assert restored(checkpoints) == step
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    checkpoints.close()
    assert interrupted
    with nnx.Checkpoints(tmp_path) as again:
        assert restored(again) == again.steps()[-1]
        for step in again.steps():
            try:
                assert restored(again, step) == step
            except nnx.WeightsFileError as error:
                assert f"/{step}: the step is damaged" in str(error)
        again.save(99, make(99.0))
    assert not list(tmp_path.glob("*tmp*")) and not list(tmp_path.glob(".refax-*"))
    gc.collect()  # what was not closed or awaited, while that is no error
