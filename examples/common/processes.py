"""One program as several processes on this machine, each with some of the devices.

On a cluster, its scheduler starts the processes, one on each host; `jax.distributed.initialize()`
finds the others there by itself.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from .command_line import ExampleParser, count, whole

GRACE = 5.0  # seconds that the others have to end by themselves, when one has failed


def add_devices(parser: ExampleParser) -> None:
    """The option `--devices`."""
    parser.add_argument(
        "--devices",
        type=count,
        metavar="N",
        help="make up so many devices on the CPU (default: those that there are)",
    )


def add_processes(parser: ExampleParser) -> None:
    """The option `--processes`, and what one of several processes is told."""
    parser.add_number("--processes", count, 1, "processes that the devices are divided among")
    parser.add_argument("--process", type=whole, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=count, help=argparse.SUPPRESS)


def find_devices(
    parser: ExampleParser, options: argparse.Namespace, processes: int = 1
) -> list[Any]:
    """The devices to work on: of all processes, which are connected."""
    if options.devices is not None:
        if options.devices % processes:
            parser.error(f"--devices {options.devices} is no multiple of --processes {processes}")
        flags = os.environ.get("XLA_FLAGS", "").split()
        flags = [flag for flag in flags if "host_platform_device_count" not in flag]
        flags.append(f"--xla_force_host_platform_device_count={options.devices // processes}")
        os.environ["XLA_FLAGS"] = " ".join(flags)  # read when JAX looks for devices
        jax.config.update("jax_platforms", "cpu")
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # By default JAX waits for minutes for a process that has died.
        jax.distributed.initialize(
            f"127.0.0.1:{options.port}",
            processes,
            options.process,
            heartbeat_timeout_seconds=30,
            shutdown_timeout_seconds=30,
        )
    found = jax.devices()
    if len(found) < (options.devices or 1):
        parser.error(f"--devices {options.devices}: JAX has begun already, with {len(found)}")
    return found[: options.devices]


def run_together(command: Sequence[str], processes: int) -> int:
    """Run a command as several processes; if one fails, all end. The exit status of the first to.

    What the first process prints is shown, and what any of them complains of.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[subprocess.Popen[str]] = []
    shown = threading.Thread(target=lambda: _show(children[0]), daemon=True)
    try:
        for i in range(processes):
            told = [*command, "--process", str(i), "--port", str(port)]
            out = subprocess.DEVNULL if i else subprocess.PIPE
            children.append(subprocess.Popen(told, stdout=out, text=True))
        shown.start()
        statuses: list[int | None] = [None]
        while None in statuses and not any(statuses):
            time.sleep(0.05)
            statuses = [child.poll() for child in children]
        failed = [status for status in statuses if status]
        return 0 if not failed else failed[0] if failed[0] > 0 else 128 - failed[0]
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        _end(children)
        if shown.is_alive():
            shown.join(GRACE)


def _show(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            if "[Gloo]" not in line:  # it greets each peer
                print(line, end="", flush=True)


def _end(children: Sequence[subprocess.Popen[str]]) -> None:
    """Wait a moment, for a message that is the same on all; then end what still runs."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(c.poll() is None for c in children):
        time.sleep(0.05)
    for child in children:
        child.kill()
        child.wait()


def say(text: str = "") -> None:
    """Print, on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def command_of(script: str, arguments: Sequence[str] | None) -> list[str]:
    """What this program was started with."""
    return [sys.executable, script, *(sys.argv[1:] if arguments is None else arguments)]
