"""A model that no process could hold is loaded into an abstract one: each reads its part alone."""

import os
from pathlib import Path

import numpy as np
import pytest

from refax.weights.file_format import write_file
from tests.processes import run_processes

# The processes load in turn, since one machine has to do for all of them.
LOADING = """
import re, time
from jax.experimental.multihost_utils import sync_global_devices
mesh = jax.make_mesh((processes,), ("model",), axis_types=(AxisType.Auto,))
class Wide(nnx.Module):
    def __init__(self):
        zeros = lambda spec: nnx.Param(jnp.zeros(({rows}, {columns})), sharding=spec)
        self.by_rows = [zeros(("model", None)) for _ in range({count})]
        self.by_columns = [zeros((None, "model")) for _ in range({count})]
def memory(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
model = nnx.eval_shape(Wide)
for turn in range(processes):
    if turn == process:
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
                assert (rows == i + np.reshape(at, (-1, 1))).all(), (axis, i)
                del rows
        say({{"before": before, "peak": peak, "held": held, "seconds": seconds}})
        del model, part, variable, parts
    sync_global_devices(str(turn))
"""


def measured(folder: Path, processes: int, size: int) -> list[dict]:
    columns, count = 4096, 6
    rows = size // (4 * columns * 2 * count) // processes * processes
    numbers = np.arange(rows, dtype=np.float32)[:, None]

    class Made:
        """An array that is made when it is written."""

        shape, dtype, nbytes = (rows, columns), np.dtype(np.float32), 4 * rows * columns

        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return np.ascontiguousarray(np.broadcast_to(self.values, self.shape))

    arrays = {f"by_rows.{i}": Made(numbers + i) for i in range(count)}
    arrays |= {f"by_columns.{i}": Made(np.float32(i)) for i in range(count)}
    path = folder / "wide.safetensors"
    write_file(path, arrays, {})
    program = LOADING.format(rows=rows, columns=columns, count=count, path=str(path))
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
