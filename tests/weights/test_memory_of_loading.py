"""A model that no process could hold is loaded into an abstract one: each reads its part alone."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from refax.weights.file_format import write_file
from tests.processes import run_processes

# The processes load in turn, since one machine has to do for all of them.
LOADING = """
import atexit, pathlib, re, time
mesh = jax.make_mesh((processes,), ("model",), axis_types=(AxisType.Auto,))
class Wide(nnx.Module):
    def __init__(self):
        zeros = lambda spec: nnx.Param(jnp.zeros(({rows}, {columns})), sharding=spec)
        self.by_rows = [zeros(("model", None)) for _ in range({count})]
        self.by_columns = [zeros((None, "model")) for _ in range({count})]
def memory(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
model = nnx.eval_shape(Wide)
turn = lambda number: pathlib.Path({path!r} + f".{{number}}")
atexit.register(turn(process + 1).touch)  # also after an error
while process and not turn(process).exists():
    time.sleep(0.02)
before, started = memory("VmRSS"), time.perf_counter()
nnx.load({path!r}, model, mesh=mesh)
seconds, peak = time.perf_counter() - started, memory("VmHWM")
held = 0
for axis, parts in ((0, model.by_rows), (1, model.by_columns)):
    for i, variable in enumerate(parts):
        (part,) = variable.value.addressable_shards
        held += part.data.nbytes
        first = part.index[axis].start or 0
        rows = np.asarray(part.data)
        assert rows.shape[axis] * processes == variable.value.shape[axis]
        at = np.arange(first, first + rows.shape[axis]) if axis == 0 else 0
        if {sparse}:
            assert rows[0, 0] == -rows[-1, -1] == 100 * i + process + 1, (axis, i)
            assert np.count_nonzero(rows) == 2
        else:
            assert (rows == i + np.reshape(at, (-1, 1))).all(), (axis, i)
        del rows
say({{"before": before, "peak": peak, "held": held, "seconds": seconds}})
del model, part, variable, parts
turn(process + 1).touch()
"""


COLUMNS, COUNT = 4096, 6


def write_whole(path: Path, rows: int, processes: int) -> None:
    """A file with numbers everywhere, by the library."""
    numbers = np.arange(rows, dtype=np.float32)[:, None]

    class Made:
        """An array that is made when it is written."""

        shape, dtype, nbytes = (rows, COLUMNS), np.dtype(np.float32), 4 * rows * COLUMNS

        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return np.ascontiguousarray(np.broadcast_to(self.values, self.shape))

    arrays = {f"by_rows.{i}": Made(numbers + i) for i in range(COUNT)}
    arrays |= {f"by_columns.{i}": Made(np.float32(i)) for i in range(COUNT)}
    write_file(path, arrays, {})


def write_sparse(path: Path, rows: int, processes: int) -> None:
    """A file of zeros without a place on the disk, with a number in two corners of each part."""
    size = 4 * rows * COLUMNS
    names = [f"{how}.{i}" for how in ("by_rows", "by_columns") for i in range(COUNT)]
    header = {
        name: {"dtype": "F32", "shape": [rows, COLUMNS], "data_offsets": [k * size, (k + 1) * size]}
        for k, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + len(names) * size)
        for k, part in itertools.product(range(len(names)), range(processes)):
            axis, value = k // COUNT, np.float32(100 * (k % COUNT) + part + 1)
            step = [rows, COLUMNS][axis] // processes
            begin = [0, 0], [rows - 1, COLUMNS - 1]
            begin[0][axis], begin[1][axis] = part * step, (part + 1) * step - 1
            for (row, column), number in zip(begin, (value, -value), strict=True):
                at = 8 + len(text) + k * size + 4 * (row * COLUMNS + column)
                os.pwrite(file.fileno(), number.tobytes(), at)


def measured(folder: Path, processes: int, size: int, write=write_whole) -> list[dict]:
    rows = size // (4 * COLUMNS * 2 * COUNT) // processes * processes
    path = folder / "wide.safetensors"
    write(path, rows, processes)
    facts = dict(rows=rows, columns=COLUMNS, count=COUNT, path=str(path))
    program = LOADING.format(**facts, sparse=write is write_sparse)
    ended = run_processes(program, processes, devices=1, timeout=900, patience=600)
    path.unlink()
    assert [e.status for e in ended] == [0] * processes, ended[0].errors[-2000:]
    return [e.said[0] for e in ended]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="tells the memory of Linux")
@pytest.mark.parametrize("processes, megabytes", [(2, 200)])
def test_each_process_needs_memory_for_its_part_alone(tmp_path, processes, megabytes):
    size = megabytes * 10**6
    for told in measured(tmp_path, processes, size):
        assert told["held"] == pytest.approx(size / processes, rel=0.1)
        # Beside its part, two pieces of the file; and what JAX takes when it is used first.
        assert told["peak"] - told["before"] < 1.1 * told["held"] + 80e6


def lacking(folder: Path, size: int) -> str:
    """Why the large test cannot run here."""
    if not os.path.exists("/proc/meminfo"):
        return "tells the memory of Linux"
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if (free := int(told["MemAvailable"].split()[0]) * 1024) < 6e9:
        return f"needs 6 GB of memory for eight processes, here are {free / 1e9:.1f}"
    probe = folder / "probe"
    with open(probe, "wb") as file:
        file.truncate(1 << 24)
    sparse = probe.stat().st_blocks * 512 < 1 << 20
    disk = os.statvfs(folder)
    if not sparse and disk.f_bavail * disk.f_frsize < size:
        return "files take their whole place here, and the disk has no 10 GB"
    return ""


@pytest.mark.slow
def test_a_model_of_ten_gigabytes_in_processes_of_two(tmp_path):
    size = 10 * 10**9
    if reason := lacking(tmp_path, size):
        pytest.skip(reason)
    told = measured(tmp_path, 8, size, write_sparse)
    assert sum(each["held"] for each in told) == pytest.approx(size, rel=0.01)
    for each in told:
        assert each["peak"] < 2e9, told
        assert each["peak"] - each["before"] < 1.1 * each["held"] + 80e6


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="tells the memory of Linux")
def test_a_file_with_holes(tmp_path):
    """The small form of the large test: each process gets its own numbers."""
    for told in measured(tmp_path, 2, 40 * 10**6, write_sparse):
        assert told["held"] == pytest.approx(20e6, rel=0.1)
