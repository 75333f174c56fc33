"""`Checkpoints` in programs of several processes: bit for bit; one's error ends the call of all."""

import pytest

from tests.processes import run_processes

RUN = """
import logging, os, resource, shutil, signal
logging.disable(logging.ERROR)
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(8, 16, kernel_metadata={"sharding": ("data", "model")}, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.down = nnx.Linear(16, 4, rngs=rngs)
    def __call__(self, x):
        return self.down(self.drop(nnx.relu(self.norm(self.up(x)))))
def make(seed):
    def build():
        model = Net(nnx.Rngs(seed))
        return {"model": model, "optimizer": nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)}
    run = nnx.make_sharded(build, mesh)
    # Also what a process has for itself: a metric that stands on its first device.
    return {**run, "metrics": nnx.metrics.Average("loss")}
@nnx.jit(donate_argnames=("model", "optimizer"))
def step(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss
def batch(i):
    rows = np.random.default_rng(i).normal(size=(8, 8)).astype(np.float32)
    return jax.make_array_from_callback((8, 8), NamedSharding(mesh, P("data")), lambda at: rows[at])
def train(run, steps):
    losses = []
    with jax.set_mesh(mesh):
        for i in steps:
            loss = step(run["model"], run["optimizer"], batch(i))
            losses.append(float(jax.block_until_ready(loss)))
            run["metrics"].update(loss=losses[-1])
    return losses
def bits(run):
    local = {}
    for name, x in nnx.state_dict(run).items():
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        local[name] = [np.asarray(shard.data).tobytes() for shard in x.addressable_shards]
    return local
def told(call):
    try:
        call()
    except Exception as error:
        say([type(error).__name__, str(error)])
    else:
        say("no error")
"""

GOES_ON = """
run, again = make(0), make(5)
with nnx.Checkpoints(folder) as checkpoints:
    train(run, range(2))
    checkpoints.save(2, run, notes={"position": 2})
    train(run, range(2, 4))  # donated steps beside the writing
    checkpoints.wait()
    notes = checkpoints.restore(again)
    say([notes, checkpoints.steps()])
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
)
train(again, range(2, 4))
say(compiled)
nnx.assert_equal_on_hosts(again)
one, other = bits(run), bits(again)
say([len(one), sorted(name for name in one if one[name] != other.get(name))])
say(list(again["model"].up.kernel.value.sharding.spec))
"""

ERRORS = """
run = make(0)
checkpoints = nnx.Checkpoints(folder)
checkpoints.save(1, run)
checkpoints.save(2, run)
checkpoints.wait()
other = dict(run, more=nnx.Param(jnp.ones(3))) if process else run
told(lambda: checkpoints.restore(other))
told(lambda: checkpoints.save(3, other))
told(lambda: checkpoints.save(3, run, notes={"x": jnp.ones(2) if process else 1}))
told(lambda: checkpoints.restore(run, step=2 + process))
mine = folder
if process == 1:  # a disk of its own, with a file that is damaged
    mine = folder + "-of-1"
    shutil.copytree(folder, mine)
    for file in os.scandir(mine + "/2/state/d"):
        content = bytearray(open(file.path, "rb").read())
        content[len(content) // 2] ^= 1
        open(file.path, "wb").write(content)
damaged = nnx.Checkpoints(mine)
before = bits(run)
told(lambda: damaged.restore(run))
say(bits(run) == before)
rows = np.random.default_rng(0).normal(size=(8, 60_000)).astype(np.float32)  # not to be compressed
spread = NamedSharding(mesh, P(("data", "model")))
big = nnx.Param(jax.make_array_from_callback(rows.shape, spread, lambda at: rows[at]))
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
if process == 1:  # its disk is full
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
def save_big():
    checkpoints.save(3, big)
    checkpoints.wait()
told(save_big)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
told(lambda: checkpoints.restore(run))
told(save_big)
say([checkpoints.steps(), sorted(os.listdir(folder))])
told(checkpoints.close)
"""


# The calls of which process 0, and then 1, has something wrong by itself.
ALONE = """
checkpoints = nnx.Checkpoints(folder)
checkpoints.save(1, run)
for wrong in range(2):
    mine = process == wrong
    in_the_way = folder + f"-file-of-{wrong}"
    if mine:
        open(in_the_way, "w").close()
    told(lambda: nnx.Checkpoints(in_the_way + "/run" if mine else folder))
    told(lambda: nnx.Checkpoints(folder, keep=0 if mine else 3))
    told(lambda: checkpoints.save(-1 if mine else 5, run))
    told(lambda: checkpoints.save(*([5] if mine else [5, run])))
    told(lambda: checkpoints.restore(run, step="last" if mine else 1))
    gone = {"more": nnx.Param(jnp.ones(3))}
    if mine:
        gone["more"].value.delete()
    told(lambda: checkpoints.save(5, gone))
    here, checkpoints.folder = checkpoints.folder, type(checkpoints.folder)(in_the_way)
    if not mine:
        checkpoints.folder = here
    told(lambda: checkpoints.save(5, run))
    told(lambda: checkpoints.restore(run))
    checkpoints.folder = here
    told(lambda: checkpoints.restore(run))
for wrong in range(2):
    for asynchronous in (False, True):
        disk = nnx.Checkpoints(folder, asynchronous=asynchronous)
        step = 10 + 2 * wrong + asynchronous
        if process == wrong:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        told(lambda: (disk.save(step, big), disk.wait()))
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        told(disk.close)
if process == 0:
    shutil.rmtree(folder)
    open(folder, "w").close()
nnx.assert_equal_on_hosts(run)  # both are here now
told(lambda: checkpoints.save(6, run))
told(checkpoints.close)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What the processes say: of going on, and of errors."""
    folder = str(tmp_path_factory.mktemp("run") / "run")
    program = f"folder = {folder!r}\n{RUN}{GOES_ON}say('errors')\nfolder += '-2'\n{ERRORS}"
    program += f"say('alone')\nfolder += '-3'\n{ALONE}"
    ended = run_processes(program, timeout=600)
    for process in ended:
        assert process.status == 0, process.errors[-3000:]
    at, then = map(ended[0].said.index, ("errors", "alone"))
    return [(x.said[:at], x.said[at + 1 : then], x.said[then + 1 :]) for x in ended]


def test_a_sharded_run_of_two_processes_goes_on_bit_for_bit(ended):
    for said, _, _ in ended:
        assert said[0] == [{"position": 2}, [2]]
        assert said[1] == []  # nothing compiles after a restore
        assert said[2] == [28, []]
        assert said[3] == ["data", "model"]


def test_an_error_of_one_process_ends_the_call_of_both(ended):
    (_, first, _), (_, second, _) = ended
    for one, other in zip(first[:2], second[:2], strict=True):
        assert one[0] == other[0] == "GraphError"
        assert one[1] == other[1]
        assert "do not have the same names" in one[1] and "assert_equal_on_hosts" in one[1]
    of_first = ["notes['x'] is no JSON", "there is no step 3", "/2: the step is damaged"]
    for one, other, text in zip(first[2:5], second[2:5], of_first, strict=True):
        assert text in other[1], other
        assert one[0] == "RuntimeError" and "First process 1: " in one[1] and text in one[1], one
    assert "Cure: restore(…, step=1)" in second[4][1]
    assert first[5] is second[5] is True  # the objects are as they were
    assert second[6][0] == "OSError" and "disk is full" in second[6][1], second[6]
    assert first[6][1] == "process 1 could not write its part; it says why"
    for said in (first, second):
        # What was there is there, nothing else is, and both go on.
        assert said[7:] == ["no error", "no error", [[1, 2, 3], ["1", "2", "3"]], "no error"]


def test_whatever_one_process_has_wrong_ends_the_call_of_both(ended):
    texts = [
        "-file-of-", "keep=0", "step=-1", "objects", "step='last'", "`more` was deleted",
        "-file-of-", "-file-of-",
    ]  # fmt: skip
    said = [said for _, _, said in ended]
    for wrong in range(2):
        here, other = said[wrong], said[1 - wrong]
        begin = wrong * (len(texts) + 1)
        for i, text in enumerate(texts):
            one, two = here[begin + i], other[begin + i]
            assert text in one[1] and one[0] != "RuntimeError", one
            assert two[0] == "RuntimeError" and text in two[1], two
            assert f"1 of 2 processes failed, so all do. First process {wrong}: " in two[1]
        assert here[begin + len(texts)] == other[begin + len(texts)] == "no error"
    disks = [x[2 * (len(texts) + 1) :] for x in said]
    for i in range(4):  # the disk of 0, of 1; waiting or not
        wrong = i // 2
        assert disks[wrong][2 * i][0] == "OSError" and "disk is full" in disks[wrong][2 * i][1]
        assert f"process {wrong} could not write its part" in disks[1 - wrong][2 * i][1]
        assert disks[0][2 * i + 1] == disks[1][2 * i + 1] == "no error"
    assert disks[0][8][0] == "FileExistsError" and "First process 0: " in disks[1][8][1]
