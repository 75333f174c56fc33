"""Rows for many devices: a mesh of 2 × 4 that are made up on the CPU, with a fourth of each kernel.

`--devices` measures these alone, since the devices must be made up before JAX begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .harness import Bound, Row, Work
from .models import ADAM, MLP, Flat, inputs, nnx_model
from .rows_calls import train_step_of_nnx

COUNT = 8
_COMPILED: list[str] = []  # one for each program that XLA has compiled


def rows() -> Iterator[Row]:
    size = MLP(34, width=64, batch=16)
    yield from (Dispatch(size, writes=False), Dispatch(size, writes=True))
    yield from (ShardedTrain(size, donate=False), ShardedTrain(size, donate=True))
    yield Compilations(size)
    yield from (MemoryOfMaking(), MemoryOfTraining(size))


@functools.cache
def mesh() -> jax.sharding.Mesh:
    def note(event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            _COMPILED.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def placed(x: jax.Array) -> jax.Array:
    """Kernels by their columns; what has another rank whole on every device."""
    spec = PartitionSpec(None, "model") if x.ndim == 2 else PartitionSpec()
    return jax.device_put(x, NamedSharding(mesh(), spec))


class OfTrainStep(Row):
    """Base: a train step of a sharded model; `call` gives what to wait for: loss, first kernel."""

    donate = False
    what = ""

    def __init__(self, size: MLP):
        self.size = size
        self.name = f"{self.what}, 2 × 4 devices, {size.name} + adam, {3 * size.leaves + 1} leaves"

    @functools.cached_property
    def batch(self) -> tuple[jax.Array, ...]:
        rows = NamedSharding(mesh(), PartitionSpec("data"))
        return tuple(jax.device_put(x, rows) for x in inputs(self.size))

    def of_floor(self) -> tuple[Any, tuple[Any, ...]]:
        """The jitted step, and its arguments before the batch."""
        flat = Flat(self.size)
        params, state = jax.tree.map(placed, (flat.params, flat.state))
        where = jax.tree.map(lambda x: x.sharding, (params, state))
        whole = NamedSharding(mesh(), PartitionSpec())
        step = jax.jit(
            lambda *args: flat.train_step(*args),  # which no cache of JAX has seen
            donate_argnums=(0, 1) if self.donate else (),
            out_shardings=(whole, *where),
        )
        return step, (params, state)

    def of_nnx(self, nnx: Any) -> tuple[Any, tuple[Any, ...]]:
        model = nnx_model(nnx, self.size)
        nnx.update(model, jax.tree.map(placed, nnx.state(model)))
        optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
        nnx.update(optimizer, jax.tree.map(placed, nnx.state(optimizer)))
        options = {"donate_argnums": (0, 1)} if self.donate else {}
        return nnx.jit(train_step_of_nnx(nnx, self.size), **options), (model, optimizer)

    def call_of_floor(self) -> Work:
        step, (params, state) = self.of_floor()

        def work() -> jax.Array:
            nonlocal params, state
            loss, params, state = step(params, state, *self.batch)
            # The first kernel's gradient is the last to be known; on made-up devices, a step must
            # not begin before all of them have ended the one before.
            return jax.block_until_ready((loss, params[-1], params[0]))[0]

        return work

    def call_of_nnx(self, nnx: Any) -> Work:
        step, (model, optimizer) = self.of_nnx(nnx)

        def work() -> jax.Array:
            loss = step(model, optimizer, *self.batch)
            last, first = model.layers[self.size.layers - 1].kernel, model.layers[0].kernel
            return jax.block_until_ready((loss, last.value, first.value))[0]

        return work


class Dispatch(OfTrainStep):
    """No device talks to another, so the host shows: arrays go in, and out if `writes`."""

    bound = Bound(1.3)  # as where there is one device
    tolerance = 1e-5

    def __init__(self, size: MLP, writes: bool):
        self.writes = writes
        self.what = "warm call that writes all" if writes else "warm no-op call"
        super().__init__(size)

    def floor(self) -> Work:
        _, (params, state) = self.of_floor()
        where = jax.tree.map(lambda x: x.sharding, params) if self.writes else ()
        x = self.batch[0]

        def scale(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            return x + 1, tuple(p * 0.5 for p in params) if self.writes else ()

        f = jax.jit(scale, out_shardings=(x.sharding, where))

        def work() -> jax.Array:
            nonlocal params
            y, new = f(params, state, x)
            params = new or params
            return jax.block_until_ready((y, params[-1]))[0]

        return work

    def nnx(self, nnx: Any) -> Work:
        _, (model, optimizer) = self.of_nnx(nnx)
        x = self.batch[0]

        def scale(model: Any, optimizer: Any, x: jax.Array) -> jax.Array:
            if self.writes:
                nnx.update(model, jax.tree.map(lambda p: p * 0.5, nnx.state(model)))
            return x + 1

        f = nnx.jit(scale)
        last = model.layers[self.size.layers - 1].kernel
        return lambda: jax.block_until_ready((f(model, optimizer, x), last.value))[0]


class ShardedTrain(OfTrainStep):
    bound = Bound(1.05)
    checked = 4
    tolerance = 2e-3  # adam divides by small numbers: four steps of rounding

    def __init__(self, size: MLP, donate: bool):
        self.donate = donate
        self.what = f"{'donating' if donate else 'warm'} train step"
        super().__init__(size)

    def floor(self) -> Work:
        return self.call_of_floor()

    def nnx(self, nnx: Any) -> Work:
        return self.call_of_nnx(nnx)


class Compilations(OfTrainStep):
    """How many programs XLA compiles in ten steps."""

    what = "programs compiled in ten steps"
    bound = Bound(1.0)
    gives_value, unit, min_rounds = True, "", 1

    def _count(self, make: Callable[[], Work]) -> Work:
        def work() -> int:
            step = make()
            self.batch  # noqa: B018 - placed before what is counted
            before = len(_COMPILED)
            for _ in range(10):
                step()
            return len(_COMPILED) - before

        return work

    def floor(self) -> Work:
        return self._count(self.call_of_floor)

    def nnx(self, nnx: Any) -> Work:
        return self._count(lambda: self.call_of_nnx(nnx))


class MemoryOfTraining(OfTrainStep):
    """What XLA says that a donating step needs on a device: arguments, results, temporaries."""

    what = "memory per device of a train step"
    donate = True
    bound = Bound(1.05)
    gives_value, unit, min_rounds = True, "B", 1

    def _bytes(self, step: Any, arguments: tuple[Any, ...]) -> Work:
        found = step.lower(*arguments, *self.batch).compile().memory_analysis()
        used = found.argument_size_in_bytes + found.output_size_in_bytes
        used += found.temp_size_in_bytes - found.alias_size_in_bytes
        return lambda: used

    def floor(self) -> Work:
        return self._bytes(*self.of_floor())

    def nnx(self, nnx: Any) -> Work:
        return self._bytes(*self.of_nnx(nnx))


class MemoryOfMaking(Row):
    """The bytes of a model and its adam on the fullest device, made there as documented."""

    width, layers = 256, 8
    name = "memory per device of model + adam as made, 8 kernels of 256 × 256"
    bound = Bound(1.05)
    gives_value, unit, min_rounds = True, "B", 1

    def floor(self) -> Work:
        kernel = NamedSharding(mesh(), PartitionSpec(None, "model"))
        whole = NamedSharding(mesh(), PartitionSpec())

        def make() -> tuple[Any, Any]:
            keys = jax.random.split(jax.random.key(0), self.layers)
            shape = (self.width, self.width)
            params = [(jax.random.normal(k, shape), jnp.zeros(self.width)) for k in keys]
            return params, ADAM.init(params)

        where = jax.tree.map(lambda x: kernel if x.ndim == 2 else whole, jax.eval_shape(make))
        return lambda: _fullest(jax.jit(make, out_shardings=where)())

    def nnx(self, nnx: Any) -> Work:
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))

        class Model(nnx.Module):
            def __init__(self, width: int, layers: int):
                rngs = nnx.Rngs(0)
                self.layers = nnx.List(
                    [nnx.Linear(width, width, kernel_init=init, rngs=rngs) for _ in range(layers)]
                )

        def build() -> tuple[Any, Any]:
            model = Model(self.width, self.layers)
            return model, nnx.Optimizer(model, ADAM, wrt=nnx.Param)

        def work() -> int:
            if hasattr(nnx, "make_sharded"):
                model, optimizer = nnx.make_sharded(build, mesh())
            else:
                with jax.set_mesh(mesh()):
                    model, optimizer = nnx.jit(build)()
            return _fullest((nnx.state(model), nnx.state(optimizer)))

        return work


def _fullest(tree: Any) -> int:
    used = np.zeros(COUNT, int)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            used[shard.device.id] += shard.data.nbytes
    return int(used.max())
