"""Bad files, bad disks, bad moments: no wrong value, no half object, an error with a name."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from refax import nnx
from refax.weights.file_format import open_file, write_file


def make_model(seed: int = 0):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, use_bias=False, rngs=rngs))


@pytest.fixture
def file(tmp_path):
    nnx.save(tmp_path / "model.safetensors", make_model(), metadata={"note": "of a test"})
    return tmp_path / "model.safetensors"


def values(model):
    return {name: np.asarray(x) for name, x in nnx.state_dict(model).items()}


def load_or_error(path, right: dict) -> str:
    """Load into a model: what is right, or the message of an error that left the model alone."""
    target = make_model(1)
    before = nnx.state_dict(target)
    try:
        nnx.load(path, target)
        info = nnx.inspect_file(path)
        assert info.metadata == {"note": "of a test"}
    except (ValueError, OSError) as error:
        after = nnx.state_dict(target)
        assert all(after[name] is before[name] for name in before)
        assert str(path.parent) in str(error), error
        assert "Cure: " in str(error), error
        return str(error)
    for name, x in values(target).items():
        assert (x == right[name]).all(), name
    return ""


def test_a_bit_that_flipped_anywhere(file):
    whole, right = file.read_bytes(), values(make_model())
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << random.Random(at).randrange(8)
        file.write_bytes(damaged)
        assert load_or_error(file, right), f"byte {at} of {len(whole)}"


def test_a_flipped_bit_of_a_tensor_is_told_with_its_name(file):
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 4
    file.write_bytes(whole)
    message = load_or_error(file, {})
    assert "the tensor `layers.1.kernel` is not as it was written: bytes 64 to 96" in message


def test_cut_anywhere(file):
    whole, right = file.read_bytes(), values(make_model())
    for at in range(len(whole)):
        file.write_bytes(whole[:at])
        assert load_or_error(file, right), f"cut at {at} of {len(whole)}"
    file.write_bytes(whole + b"\0")
    assert load_or_error(file, right)


def test_pieces_that_changed_places(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-32] + whole[-16:] + whole[-32:-16])
    assert "`layers.1.kernel` is not as it was written" in load_or_error(file, {})


CONTENTS = {
    "noise": lambda rng, n: rng.normal(size=n),
    "zeros": lambda rng, n: np.zeros(n),
    "twos": lambda rng, n: np.full(n, 2.0),  # one bit of 64: what sums lose most easily
    "minus zeros": lambda rng, n: np.full(n, -0.0),
    "integers": lambda rng, n: rng.integers(0, 1000, n),
}


def damages(data: np.ndarray, stale: np.ndarray, rng) -> Iterator[tuple[str, np.ndarray]]:
    """What disks, memory and copying do to the bytes of a tensor."""
    size, sector = data.size, 4096
    for _ in range(20):
        flipped = data.copy()
        for at in rng.integers(0, size, rng.integers(1, 5)):
            flipped[at] ^= 1 << rng.integers(8)
        yield "flipped bits", flipped
    for length in (1, 8, 512, 511 * 8, sector, 511 * 8 * 4, 512 * 8 * 511, 1 << 20):
        for at in {0, sector, int(rng.integers(size)), 511 * 8 * 4}:
            for fill in (0, 255):
                lost = data.copy()
                lost[at : at + length] = fill
                yield f"{length} bytes at {at} are {fill}", lost
            old = data.copy()
            old[at : at + length] = stale[at : at + length]
            yield f"{length} bytes at {at} of the version before", old
    for _ in range(20):
        one, other = sector * rng.integers(0, size // sector, 2)
        swapped = data.copy()
        swapped[one : one + sector] = data[other : other + sector]
        yield f"the sector at {one} is that of {other}", swapped.copy()
        swapped[other : other + sector] = data[one : one + sector]
        yield f"the sectors at {one} and {other} changed places", swapped
    yield "one byte is missing", np.append(np.delete(data, rng.integers(size)), np.uint8(0))
    yield "shifted by a word", np.roll(data, 8)
    yield "shifted by a row", np.roll(data, 511 * 8)
    yield "shifted by a block", np.roll(data, 1 << 20)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("content", CONTENTS)
def test_whatever_befalls_the_bytes_of_a_tensor(tmp_path, content, dtype):
    rng, dtype = np.random.default_rng(0), jnp.dtype(dtype)
    right, stale = (CONTENTS[content](rng, 2_300_000 // dtype.itemsize) for _ in range(2))
    right = right.astype(dtype).view(np.uint8)
    stale = (stale + 1).astype(dtype).view(np.uint8)
    write_file(tmp_path / "x", {"a": right}, {})
    with open_file(tmp_path / "x") as reader, open(tmp_path / "x", "r+b") as file:
        start = file.seek(0, os.SEEK_END) - right.size
        assert (reader.read("a") == right).all()
        tried = 0
        for what, damaged in damages(right, stale, rng):
            if not (damaged == right).all():
                file.seek(start)
                file.write(damaged)
                file.flush()
                with pytest.raises(nnx.WeightsFileError, match="`a` is not as it was written"):
                    reader.read("a")
                    raise AssertionError(what)
                tried += 1
        assert tried > 40


FOREIGN = {
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",
    "a zip": b"PK\x03\x04" + bytes(100),
    "an npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
    "text": b"These are no weights, and the first eight bytes are no size.",
    "nothing": b"",
    "a size alone": (2).to_bytes(8, "little"),
    "no JSON": (8).to_bytes(8, "little") + b"{nojson}",
    "a list": (8).to_bytes(8, "little") + b"[1, 2]  ",
    "a huge size": (1 << 60).to_bytes(8, "little") + b"{}" + bytes(50),
    "a wrong dtype": (60).to_bytes(8, "little")
    + b'{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}'.ljust(60)
    + bytes(4),
    "a tensor outside": (60).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60)
    + bytes(4),
    "a shape that is no shape": (60).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'.ljust(60)
    + bytes(4),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_files(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert load_or_error(path, {})
    with pytest.raises(ValueError, match="Cure"):
        nnx.inspect_file(path)


def test_foreign_weights_that_do_not_fit(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    target = make_model()
    with pytest.raises(ValueError, match=r"missing: `layers.0.bias`(.|\n)*unexpected: `a`"):
        nnx.load(tmp_path / "x.safetensors", target)


def test_a_newer_version(file, monkeypatch):
    from refax.weights import file_format

    monkeypatch.setattr(file_format, "VERSION", 3)
    nnx.save(file, make_model(), overwrite=True)
    monkeypatch.undo()
    assert "version 3 of refax's format; this refax knows versions up to 2" in load_or_error(
        file, {}
    )


def test_a_folder_and_what_is_not_there(tmp_path, file):
    file.rename(tmp_path / "other.safetensors")
    for call in (lambda: nnx.load(tmp_path, make_model()), lambda: nnx.inspect_file(tmp_path)):
        with pytest.raises(IsADirectoryError, match=r"is a folder.*\n.*'other.safetensors'"):
            call()
    with pytest.raises(IsADirectoryError, match=r"nnx.save: .* is a folder"):
        nnx.save(tmp_path, make_model())
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        nnx.load(tmp_path / "none.safetensors", make_model())
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        nnx.save(tmp_path / "no_such_folder" / "x", make_model())


@contextlib.contextmanager
def nobody():
    """Root may read and write everything: for a while as somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_no_permission(tmp_path, file):
    file.chmod(0)
    tmp_path.chmod(0o500)
    for call in (
        lambda: nnx.load(file, make_model()),
        lambda: nnx.save(tmp_path / "x", make_model()),
    ):
        with nobody(), pytest.raises(PermissionError, match=str(tmp_path)):
            call()
    tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == [file]


def test_an_index_that_is_none(tmp_path):
    path = tmp_path / "model.safetensors"
    nnx.save(path, make_model(), max_file_size=40, metadata={"note": "of a test"})
    index = tmp_path / "model.safetensors.index.json"
    text, right = index.read_text(), values(make_model())
    weight_map = json.loads(text)["weight_map"]
    for wrong in (
        "", "[]", "{}", text[:-9], json.dumps({"weight_map": {"a": 1}}),
        json.dumps({"weight_map": {"layers.0.bias": "../../etc/passwd"}}),
        json.dumps({"weight_map": {**weight_map, "more": next(iter(weight_map.values()))}}),
        json.dumps({"weight_map": {**weight_map, "layers.0.bias": "none.safetensors"}}),
    ):  # fmt: skip
        index.write_text(wrong)
        target = make_model(1)
        before = nnx.state_dict(target)
        with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
            nnx.load(path, target)
        assert all(x is before[name] for name, x in nnx.state_dict(target).items())
    index.write_text(text)
    assert load_or_error(path, right) == ""
    one = tmp_path / next(iter(weight_map.values()))
    one.write_bytes(one.read_bytes()[:-1])
    assert one.name in load_or_error(path, right)


def test_an_error_while_reading_leaves_the_object(tmp_path):
    path = tmp_path / "m"
    nnx.save(path, make_model(), metadata={"note": "of a test"})
    target = make_model(1)
    before = nnx.state_dict(target)

    def transform(name, array):
        if name == "layers.1.kernel":
            raise KeyboardInterrupt
        return array

    with pytest.raises(KeyboardInterrupt):
        nnx.load(path, target, transform=transform)
    assert all(x is before[name] for name, x in nnx.state_dict(target).items())


@contextlib.contextmanager
def largest_file(size: int):
    """Writing beyond `size` fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("limit", [0, 7, 300, 1000])
@pytest.mark.parametrize("max_file_size", ["5GB", 40])
def test_a_full_disk_leaves_the_old_file_and_no_debris(tmp_path, limit, max_file_size):
    path = tmp_path / "model.safetensors"
    nnx.save(path, make_model(), metadata={"note": "of a test"}, max_file_size=max_file_size)
    before = sorted(tmp_path.iterdir())
    big = nnx.Param(jnp.ones(4096))
    with largest_file(limit), pytest.raises(OSError):
        nnx.save(path, {"a": make_model(1), "b": big}, overwrite=True, max_file_size=max_file_size)
    assert sorted(tmp_path.iterdir()) == before
    assert load_or_error(path, values(make_model())) == ""


def test_a_full_file_system(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a file system, and not in every container")
    try:
        path = tmp_path / "model.safetensors"
        nnx.save(path, make_model(), metadata={"note": "of a test"})
        with pytest.raises(OSError, match="No space left"):
            nnx.save(path, nnx.Param(jnp.ones(40_000)), overwrite=True)
        assert list(tmp_path.iterdir()) == [path]
        assert load_or_error(path, values(make_model())) == ""
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


SAVER = """
import sys
import jax.numpy as jnp
from refax import nnx
path, size = sys.argv[1], sys.argv[2]
print("ready", flush=True)
step = 0
while True:
    step += 1
    state = {str(i): nnx.Param(jnp.full((50_000,), step, jnp.float32)) for i in range(6)}
    nnx.save(path, state, overwrite=True, max_file_size=size, metadata={"step": str(step)})
"""


def killed_saves(folder, kills: int, size: str) -> set[int]:
    path, rng, seen = folder / "m.safetensors", random.Random(0), set()
    first = {str(i): nnx.Param(jnp.zeros(50_000)) for i in range(6)}
    nnx.save(path, first, max_file_size=size, metadata={"step": "0"})
    for _ in range(kills):
        command = [sys.executable, "-c", SAVER, str(path), size]
        saver = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert saver.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.0, 0.4))
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        target = {str(i): nnx.Param(jnp.full(50_000, -1.0)) for i in range(6)}
        nnx.load(path, target)
        step = int(nnx.inspect_file(path).metadata["step"])
        for variable in target.values():
            assert (variable.value == step).all()
        seen.add(step)
    nnx.save(path, first, max_file_size=size, overwrite=True)
    debris = [file for file in folder.iterdir() if file.suffix == ".tmp"]
    assert debris == []
    return seen


@pytest.mark.parametrize("size", ["5GB", "500KB"])
def test_a_killed_save_leaves_the_one_before(tmp_path, size):
    assert killed_saves(tmp_path, 2, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["5GB", "500KB"])
def test_many_killed_saves(tmp_path, size):
    assert max(killed_saves(tmp_path, 25, size)) > 1


# The signal may come while a weakref's callback runs, where Python can only report the exception.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_the_middle_of_loading(tmp_path):
    """An exception from a signal handler, at random moments: all of a file is loaded or nothing."""
    files = [tmp_path / str(i) for i in range(2)]
    make = lambda i: {str(k): nnx.Param(jnp.full(64, float(i))) for k in range(40)}  # noqa: E731
    for i, path in enumerate(files):
        nnx.save(path, make(i))
    target, interrupted = make(0), 0

    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    nnx.load(files[0], target)
    started = time.perf_counter()
    nnx.load(files[1], target)
    seconds = time.perf_counter() - started  # a machine may be ten times as fast as another
    old = signal.signal(signal.SIGALRM, ring)
    rng = random.Random(0)
    try:
        for step in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1.2 * seconds))
                nnx.load(files[step % 2], target)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                interrupted += 1
            found = {float(v.value[0]) for v in target.values()}
            assert len(found) == 1, found
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted > 5  # of 60
    jax.block_until_ready([v.value for v in target.values()])
