"""`python -m benchmarks.scale`: how cost grows with leaves, devices and bytes.

Each line is measured in an interpreter of its own, with so many devices made up on the CPU. A time
is the least of many: the machine may be busy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

CASES = [(1, 34), (8, 34), (64, 34), (8, 8), (8, 136), (8, 400)]  # devices, layers


def least(work: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def measure(devices: int, layers: int) -> None:
    """One line: milliseconds of a call by hand and by refax, seconds to trace and to compile."""
    import jax
    import optax
    from jax.sharding import AxisType, PartitionSpec

    from refax import nnx

    mesh = jax.make_mesh((devices,), ("model",), axis_types=(AxisType.Auto,))

    def build() -> tuple[nnx.Module, nnx.Optimizer]:
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(*[nnx.Linear(64, 64, rngs=rngs) for _ in range(layers)])
        nnx.shard(model, mesh, {"*.kernel": PartitionSpec(None, "model")})
        return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    model, optimizer = nnx.make_sharded(build, mesh)
    flat = tuple(jax.tree.leaves((nnx.state(model), nnx.state(optimizer))))
    jax.block_until_ready(flat)
    x = jax.device_put(jax.numpy.ones(8), jax.sharding.NamedSharding(mesh, PartitionSpec()))
    by_hand = jax.jit(lambda flat, x: x + 1)
    by_refax = nnx.jit(lambda model, optimizer, x: x + 1)
    calls = (
        lambda: by_hand(flat, x).block_until_ready(),
        lambda: by_refax(model, optimizer, x).block_until_ready(),
    )
    for call in calls:
        call()
    times = [least(call, 200) for call in calls]

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
    print(
        f"| {devices} | {len(flat)} | {1e3 * times[0]:.2f} | {1e3 * times[1]:.2f} "
        f"| {middle - start:.2f} | {end - middle:.2f} |",
        flush=True,
    )


def measure_bytes(megabytes: int) -> None:
    """One line: seconds to fingerprint, to save and to restore an array over 8 devices."""
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
    print(f"| {megabytes} | {hashed:.2f} | {middle - start:.2f} | {end - again:.2f} |", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        what, *numbers = sys.argv[1:]
        {"calls": measure, "bytes": measure_bytes}[what](*map(int, numbers))
        return
    lines = [("calls", *case) for case in CASES] + [("bytes", size) for size in (64, 256, 1024)]
    for what, *numbers in lines:
        devices = numbers[0] if what == "calls" else 8
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
        command = [sys.executable, "-m", "benchmarks.scale", what, *map(str, numbers)]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
