"""What is loaded lies where the array before it lay, so that the next step compiles nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx

RULES = {
    "data": [("in", None), ("out", None)],  # each device has the whole model
    "fsdp": [("in", "data"), ("out", None)],
    "tensor": [("in", None), ("out", "model")],
    "one device": None,
}


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        linear = lambda *axes: nnx.Linear(  # noqa: E731
            8, 8, kernel_metadata={"sharding": axes}, rngs=rngs
        )
        self.up, self.down = linear("in", "out"), linear("out", "in")
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.calls = nnx.Variable(0)  # a number of Python's

    def __call__(self, x):
        self.calls.value += 1
        return self.down(self.drop(nnx.relu(self.norm(self.up(x)))))


class Run:
    """A model and an optimizer in a layout, with a step that is compiled for them."""

    def __init__(self, layout: str, seed: int):
        def build():
            model = Net(nnx.Rngs(seed))
            optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
            return {"model": model, "optimizer": optimizer}

        self.traced = 0
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        rows = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
        if layout == "one device":
            self.objects, self.batch = build(), jnp.asarray(rows)
            self.mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        else:
            self.objects = nnx.make_sharded(build, mesh, RULES[layout])
            self.batch = jax.device_put(rows, NamedSharding(mesh, P("data")))
            self.mesh = mesh

        @nnx.jit
        def step(objects, batch):
            self.traced += 1
            model, optimizer = objects["model"], objects["optimizer"]
            loss, grads = nnx.value_and_grad(lambda m: (m(batch) ** 2).mean())(model)
            optimizer.update(model, grads)
            return loss

        self._step = step

    def steps(self, count: int) -> list[float]:
        with jax.set_mesh(self.mesh):
            return [float(self._step(self.objects, self.batch)) for _ in range(count)]

    def shardings(self):
        return {n: (x.sharding, x.committed) for n, x in nnx.state_dict(self.objects).items()}

    def values(self):
        key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
        arrays = nnx.state_dict(self.objects)
        return {n: np.asarray(jax.random.key_data(x) if key(x) else x) for n, x in arrays.items()}


@pytest.fixture
def compiled():
    """The names of what is compiled."""
    found: list[str] = []

    def listen(name: str, *_, **__) -> None:
        if "backend_compile" in name:
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def runs():
    """By layout: runs whose step is compiled, each with other values."""
    runs = {layout: Run(layout, i) for i, layout in enumerate(RULES)}
    for run in runs.values():
        run.steps(3)  # after the first, the arrays lie as the step leaves them
        assert run.traced <= 2
    return runs


@pytest.mark.parametrize("way", ["file", "checkpoint"])
def test_from_every_layout_into_every_layout(runs, tmp_path, compiled, way):
    expected = {}
    with nnx.Checkpoints(tmp_path / "run", keep=None) as checkpoints:
        for number, (layout, run) in enumerate(runs.items()):
            if way == "file":
                nnx.save(tmp_path / layout, run.objects)
            else:
                checkpoints.save(number, run.objects)
            expected[layout] = run.values()
        checkpoints.wait()
        every = list(itertools.product(RULES, RULES))
        for source, target in every if way == "file" else every[::3]:
            run = runs[target]
            run.steps(1)
            before, traced = run.shardings(), run.traced
            if way == "file":
                nnx.load(tmp_path / source, run.objects)
            else:
                checkpoints.restore(run.objects, step=list(RULES).index(source))
            assert run.shardings() == before, (source, target)
            for name, x in run.values().items():
                np.testing.assert_array_equal(x, expected[source][name], err_msg=name)
            compiled.clear()
            run.steps(2)
            assert compiled == [] and run.traced == traced, (source, target)


SAME = [
    [P("x"), P("x", None), P(("x",)), P(("x",), None)],
    [P(None, "x"), P(None, ("x",))],
    [P(), P(None), P(None, None)],
]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("specs", SAME, ids=str)
def test_specs_that_mean_the_same_are_one_program(tmp_path, compiled, specs, kind):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    numbers = np.arange(64, dtype=np.float32).reshape(8, 8)

    def make(spec):
        return {"w": nnx.Param(jax.device_put(numbers, NamedSharding(mesh, spec)))}

    traced = []

    @nnx.jit
    def step(objects):
        traced.append(1)
        objects["w"].value = objects["w"].value + 1

    nnx.save(tmp_path / "x", make(specs[0]))
    objects = [make(spec) for spec in specs]
    with jax.set_mesh(mesh), nnx.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(0, objects[0])
        checkpoints.wait()
        for _ in range(2):
            step(objects[0])
        for obj in objects:
            for read in (lambda x: nnx.load(tmp_path / "x", x), checkpoints.restore):
                read(obj)
                compiled.clear()
                count = len(traced)
                step(obj)
                assert compiled == [] and len(traced) == count
                assert (np.asarray(obj["w"].value) == numbers + 1).all()
