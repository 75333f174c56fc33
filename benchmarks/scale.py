"""How cost grows with leaves, devices and bytes.

    python -m benchmarks.scale [rounds] [calls | compiling | bytes …]

Each line is measured in an interpreter of its own, with so many devices made up on the CPU, once in
each round; the rounds go over all lines, so that an hour in which the machine is busy falls on all
of them. A line has the median of the rounds, and in brackets the least and the most. The time of a
call is the least of many.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

CASES = [(1, 34), (8, 34), (64, 34), (8, 8), (8, 136), (8, 400)]  # devices, layers


def least(work: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def made(devices: int, layers: int) -> tuple[Any, Any]:
    """A tower of linear layers and its adam, every kernel divided over all devices."""
    import jax
    import optax
    from jax.sharding import AxisType, PartitionSpec

    from refax import nnx

    mesh = jax.make_mesh((devices,), ("model",), axis_types=(AxisType.Auto,))

    def build() -> tuple[nnx.Module, nnx.Optimizer]:
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(*[nnx.Linear(64, 64, rngs=rngs) for _ in range(layers)])
        return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    model, optimizer = build()  # what is measured is not how they are made
    nnx.shard(model, mesh, {"*.kernel": PartitionSpec(None, "model")})
    places = {"opt_state.*.kernel": PartitionSpec(None, "model")}
    return model, nnx.shard(optimizer, mesh, places)


def measure_calls(devices: int, layers: int) -> None:
    """Milliseconds of a call by hand and by refax, and their ratio."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from refax import nnx

    model, optimizer = made(devices, layers)
    flat = tuple(jax.tree.leaves((nnx.state(model), nnx.state(optimizer))))
    jax.block_until_ready(flat)
    mesh = flat[0].sharding.mesh
    x = jax.device_put(jax.numpy.ones(8), NamedSharding(mesh, PartitionSpec()))
    by_hand = jax.jit(lambda flat, x: x + 1)
    by_refax = nnx.jit(lambda model, optimizer, x: x + 1)
    calls = (
        lambda: by_hand(flat, x).block_until_ready(),
        lambda: by_refax(model, optimizer, x).block_until_ready(),
    )
    for call in calls:
        call()
    rounds = [[least(call, 40) for call in calls] for _ in range(20)]  # beside each other
    hand, refax = (1e3 * min(of_call) for of_call in zip(*rounds, strict=True))
    print(json.dumps([f"{devices} | {len(flat):,}", [hand, refax, refax / hand]]))


def measure_compiling(devices: int, layers: int) -> None:
    """Seconds to trace and lower a training step, and to compile it."""
    import jax

    from refax import nnx

    model, optimizer = made(devices, layers)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    start = time.perf_counter()
    lowered = step.lower(model, optimizer, jax.numpy.ones((8, 64)))
    middle = time.perf_counter()
    lowered.compile()
    end = time.perf_counter()
    count = len(jax.tree.leaves((nnx.state(model), nnx.state(optimizer))))
    print(json.dumps([f"{devices} | {count:,}", [middle - start, end - middle]]))


def measure_bytes(megabytes: int) -> None:
    """Seconds to fingerprint, to save and to restore an array over 8 devices."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from refax import nnx
    from refax.verbs.hosts import fingerprint

    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec("model"))
    value = jax.random.normal(jax.random.key(0), (megabytes * 2**18,))
    model = nnx.Dict(a=nnx.Param(jax.device_put(value, place)))
    fingerprint(model.a.value)
    hashed = least(lambda: fingerprint(model.a.value), 3)
    with (
        tempfile.TemporaryDirectory() as folder,
        nnx.Checkpoints(folder, asynchronous=False) as saved,
    ):
        start = time.perf_counter()
        saved.save(1, model)
        middle = time.perf_counter()
        model.a.value = jnp.zeros_like(model.a.value)
        again = time.perf_counter()
        saved.restore(model)
        end = time.perf_counter()
    print(json.dumps([f"{megabytes:,}", [hashed, middle - start, end - again]]))


KINDS: dict[str, tuple[Callable[..., None], list[tuple[int, ...]]]] = {
    "calls": (measure_calls, CASES),
    "compiling": (measure_compiling, CASES),
    "bytes": (measure_bytes, [(64,), (256,), (1024,)]),
}


def main() -> None:
    given = sys.argv[1:]
    if given and given[0] == "measure":
        KINDS[given[1]][0](*map(int, given[2:]))
        return
    rounds = int(given.pop(0)) if given and given[0].isdigit() else 3
    lines = [(kind, *case) for kind in given or KINDS for case in KINDS[kind][1]]
    heads: dict[tuple, str] = {}
    found: dict[tuple, list[list[float]]] = {line: [] for line in lines}
    for _ in range(rounds):
        for line in lines:
            devices = 8 if line[0] == "bytes" else line[1]
            flag = f"--xla_force_host_platform_device_count={devices}"
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
            command = [sys.executable, "-m", "benchmarks.scale", "measure", *map(str, line)]
            run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            heads[line], numbers = json.loads(run.stdout)
            found[line].append(numbers)
    for line in lines:
        cells = [
            f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
            for values in zip(*found[line], strict=True)
        ]
        print("|", " | ".join([heads[line], *cells]), "|")


if __name__ == "__main__":
    main()
