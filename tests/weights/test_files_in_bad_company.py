"""Files beside others: shards that do not belong together, odd things at a path, several savers."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

SIZE = 40  # bytes of a file, of several


def make(value: float):
    return {f"layer{i}": nnx.Param(jnp.full(8, value)) for i in range(3)}


def save(path: Path, value: float, **options):
    nnx.save(path, make(value), max_file_size=SIZE, metadata={"value": str(value)}, **options)


def loaded(path: Path) -> float:
    """The value of all arrays; the object is untouched if there is an error."""
    target = make(-1.0)
    before = nnx.state_dict(target)
    try:
        nnx.load(path, target)
    except BaseException:
        assert all(x is before[name] for name, x in nnx.state_dict(target).items())
        raise
    (value,) = {float(x) for v in target.values() for x in v.value}
    return value


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-of-*.safetensors"))


def bite(path: Path):
    os.truncate(path, path.stat().st_size - 3)


def by_folder(path: Path):
    path.unlink()
    path.mkdir()


def by_pipe(path: Path):
    path.unlink()
    os.mkfifo(path)


def by_loop(path: Path):
    path.unlink()
    path.symlink_to(path.name)


def by_dangling(path: Path):
    path.unlink()
    path.symlink_to("nowhere")


def swap(one: Path, other: Path):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": bite,
    "a folder": by_folder,
    "a pipe": by_pipe,
    "a loop": by_loop,
    "a link to nowhere": by_dangling,
    "another part": lambda path: shutil.copy(parts(path.parent)[2], path),
    "swapped": lambda path: swap(path, parts(path.parent)[2]),
    "of another save": lambda path: shutil.copy(path.parent / "other" / path.name, path),
    "of another writer": lambda path: path.write_bytes(b"\x02\0\0\0\0\0\0\0{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", [0, 1])
def test_one_of_several_files_is_not_what_it_was(tmp_path, damage, which):
    (tmp_path / "other").mkdir()
    save(tmp_path / "other" / "m.safetensors", 2.0)
    path = tmp_path / "m.safetensors"
    save(path, 1.0)
    assert len(parts(tmp_path)) == 3 and loaded(path) == 1.0
    part = parts(tmp_path)[which]
    DAMAGE[damage](part)
    for call in (loaded, nnx.inspect_file):
        with pytest.raises((ValueError, OSError), match=str(tmp_path)) as caught:
            call(path)
        assert part.name in str(caught.value), caught.value
    if damage == "missing":
        assert f"in which `layer{which}` should stand" in str(caught.value)
    if damage not in ("a loop",):  # the words of the system
        assert "Cure: " in str(caught.value), caught.value


def test_a_bit_that_flipped_anywhere_in_an_index(tmp_path):
    """What it says is used for nothing but names; these are checked against the files."""
    path, index = tmp_path / "m.safetensors", tmp_path / "m.safetensors.index.json"
    save(path, 1.0)
    whole, noticed = index.read_bytes(), 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        index.write_bytes(damaged)
        try:
            assert loaded(path) == 1.0
        except (ValueError, OSError) as error:
            assert str(tmp_path) in str(error) or "`layer" in str(error), error
            noticed += 1
    assert noticed > len(whole) / 2
    for at in range(0, len(whole), 5):
        index.write_bytes(whole[:at])
        if at < len(whole.rstrip()):
            with pytest.raises(ValueError, match="this is no index"):
                loaded(path)


def test_indices_of_others_have_no_headers(tmp_path):
    path, index = tmp_path / "m.safetensors", tmp_path / "m.safetensors.index.json"
    save(path, 1.0)
    content = json.loads(index.read_text())
    assert content["metadata"].pop("refax.headers").keys() == {x.name for x in parts(tmp_path)}
    for metadata in (content["metadata"], None):
        index.write_text(json.dumps({**content, "metadata": metadata} if metadata else
                                    {"weight_map": content["weight_map"]}))  # fmt: skip
        assert loaded(path) == loaded(index) == 1.0


ODD = {"a pipe": os.mkfifo, "a device": lambda path: os.symlink("/dev/null", path)}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path, kind):
    path = tmp_path / "m.safetensors"
    ODD[kind](path)
    for call in (
        lambda: nnx.load(path, make(0.0)),
        lambda: nnx.inspect_file(path),
        lambda: save(path, 1.0),
        lambda: save(path, 1.0, overwrite=True),
    ):
        with pytest.raises(OSError, match=r"(?s)m.safetensors is no file, but .*Cure: "):
            call()
    assert list(tmp_path.iterdir()) == [path] and not path.is_file()


def test_links(tmp_path):
    """A link is replaced where it is asked for, and what it leads to stays."""
    target, path = tmp_path / "target", tmp_path / "m.safetensors"
    for there in (True, False):
        if there:
            nnx.save(target, make(1.0))
        path.symlink_to(target)
        with pytest.raises(FileExistsError, match="Cure: overwrite=True"):
            save(path, 2.0)
        nnx.save(path, make(2.0), overwrite=True)
        assert loaded(path) == 2.0 and target.exists() is there
        if there:
            assert loaded(target) == 1.0
            target.unlink()
        path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        loaded(path)
    nnx.save(path, make(3.0), overwrite=True)
    assert loaded(path) == 3.0


def test_many_threads_save_to_one_path(tmp_path):
    path, seen, errors = tmp_path / "m.safetensors", set(), []

    def saves(number: int):
        for i in range(6):
            sizes = [SIZE, "1GB"] if i % 2 else [SIZE, SIZE]
            nnx.save(path, make(10.0 * number + i), overwrite=True, max_file_size=sizes[number % 2])

    def reads():
        while any(t.is_alive() for t in threads):
            try:
                seen.add(loaded(path))
            except (OSError, nnx.WeightsFileError) as error:  # replaced between two looks
                errors.append(error)

    save(path, 1.0)
    threads = [threading.Thread(target=saves, args=(i,)) for i in range(3)]
    reader = threading.Thread(target=reads)
    for thread in (*threads, reader):
        thread.start()
    for thread in (*threads, reader):
        thread.join(60)
    assert seen  # each time all of one save; `loaded` looks
    assert loaded(path) % 10 == 5  # somebody's last
    files = {x.name for x in nnx.inspect_file(path).files}
    index = {path.name + ".index.json"} if len(files) > 1 else set()
    assert {x.name for x in tmp_path.iterdir()} == files | index  # nothing of the others


SAVER = """
import sys
import jax.numpy as jnp
from refax import nnx
path, me = sys.argv[1], float(sys.argv[2])
print("ready", flush=True)
for i in range(1000):
    state = {f"layer{k}": nnx.Param(jnp.full(8, me + i)) for k in range(3)}
    nnx.save(path, state, overwrite=True, max_file_size=40)
"""


def test_processes_save_to_one_path_and_one_is_killed(tmp_path):
    path = tmp_path / "m.safetensors"
    save(path, 0.0)
    savers = []
    try:
        for me in (1000, 2000):
            command = [sys.executable, "-c", SAVER, str(path), str(me)]
            savers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for saver in savers:
            assert saver.stdout.readline() == b"ready\n"
        seen, end = set(), time.monotonic() + 1.5
        while time.monotonic() < end or (len(seen) < 2 and time.monotonic() < end + 30):
            try:
                seen.add(loaded(path))
            except (OSError, nnx.WeightsFileError):
                pass
    finally:
        for saver in savers:
            saver.send_signal(signal.SIGKILL)
            saver.wait()
            saver.stdout.close()
    assert len(seen) >= 2
    assert loaded(path) >= 1000
    save(path, 7.0, overwrite=True)  # no lock is left
    assert loaded(path) == 7.0
    assert not list(tmp_path.glob(".*.tmp"))


class Ring(BaseException):
    pass


# It may come between the opening of a file and the `with` that closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_in_the_middle_of_saving(tmp_path):
    """As Ctrl-C, at every moment: the file before or the new one, whole, and no debris."""
    path, number, interrupted = tmp_path / "m.safetensors", 1.0, 0
    big = {f"layer{i}": nnx.Param(jnp.full(8, 0.0)) for i in range(3)}

    def ring(*_):
        raise Ring

    took = []
    for _ in range(4):
        started = time.perf_counter()
        save(path, number, overwrite=True)
        took.append(time.perf_counter() - started)
    seconds = min(took)
    old, rng = signal.signal(signal.SIGALRM, ring), np.random.default_rng(0)
    try:
        for _ in range(60):
            for v in big.values():
                v.value = jnp.full(8, number + 1)
            jax.block_until_ready([v.value for v in big.values()])
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1.2 * seconds))
                nnx.save(path, big, overwrite=True, max_file_size=SIZE)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Ring:
                interrupted += 1
            assert loaded(path) in (number, number + 1)
            number = loaded(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted > 5
    save(path, 9.0, overwrite=True)
    assert loaded(path) == 9.0 and not list(tmp_path.glob(".*.tmp"))
    assert len(list(tmp_path.iterdir())) <= 4 + 3 * interrupted
    gc.collect()  # what was not closed, while that is no error
