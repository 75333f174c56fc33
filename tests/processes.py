"""Programs of several processes on this machine: started together, and ended together."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).parents[1] / "src"
# How such a program begins: with `process` and `processes`, and JAX connected; what it says by
# `say`, as JSON, comes back (stdout is no place for it: gloo writes there too). Within
# `patience` seconds, where JAX's defaults are minutes, an error of one process ends all.
OPENING = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
process, processes, port, patience = map(int, sys.argv[1:5])
jax.distributed.initialize(
    f"127.0.0.1:{port}", processes, process,
    heartbeat_timeout_seconds=patience, shutdown_timeout_seconds=patience,
)
import json
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from refax import nnx
said = open(sys.argv[5], "w")
def say(value):
    print(json.dumps(value), file=said, flush=True)
"""


class Ended(NamedTuple):
    status: int
    said: list[Any]
    errors: str


def run_processes(
    program: str, processes: int = 2, devices: int = 4, timeout: float = 120, patience: int = 60
) -> list[Ended]:
    """Run a program, after `OPENING`, as so many processes with so many devices each.

    Raises:
        subprocess.TimeoutExpired: one of them did not end in time; none is left.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, sys.path)]),
    }
    code = OPENING + textwrap.dedent(program)
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        said = [Path(folder, f"{i}.said") for i in range(processes)]
        errors = [Path(folder, f"{i}.errors") for i in range(processes)]
        try:
            for i in range(processes):
                arguments = map(str, (i, processes, port, patience, said[i]))
                command = [sys.executable, "-c", code, *arguments]
                # No pipe, which nobody empties while another process is waited for.
                file = stack.enter_context(errors[i].open("w"))
                running.append(
                    subprocess.Popen(
                        command, env=environment, stdout=subprocess.DEVNULL, stderr=file
                    )
                )
            statuses = [child.wait(timeout) for child in running]
        finally:
            for child in running:
                child.kill()
                child.wait()
        lines = [file.read_text().splitlines() if file.exists() else [] for file in said]
        texts = [file.read_text() for file in errors]
    return [
        Ended(status, [json.loads(line) for line in told], text)
        for status, told, text in zip(statuses, lines, texts, strict=True)
    ]
