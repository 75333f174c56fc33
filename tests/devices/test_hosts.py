"""Programs of several processes, on this machine: same results, same objects, errors end all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.processes import Ended, run_processes

NAMES = {
    "jax": jax, "jnp": jnp, "np": np, "nnx": nnx, "optax": optax, "P": P,
    "AxisType": AxisType, "NamedSharding": NamedSharding,
}  # fmt: skip

TRAINING = """
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
class MLP(nnx.Module):
    def __init__(self, rngs):
        split, joined = {"sharding": ("data", "model")}, {"sharding": ("model", "data")}
        self.up = nnx.Linear(16, 32, kernel_metadata=split, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.down = nnx.Linear(32, 4, kernel_metadata=joined, rngs=rngs)
    def __call__(self, x):
        return self.down(self.dropout(nnx.gelu(self.norm(self.up(x)))))

@nnx.jit(donate_argnames=("model", "optimizer"))
def train_step(model, optimizer, x, y):
    def loss_of(model):
        return ((model(x) - y) ** 2).mean()
    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss

def build():
    model = MLP(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adamw(3e-2), wrt=nnx.Param)

model, optimizer = nnx.make_sharded(build, mesh)
x, y = np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32)
def spread(array):
    return jax.make_array_from_callback(
        array.shape, NamedSharding(mesh, P("data")), lambda at: array[at]
    )
with jax.set_mesh(mesh):
    losses = [
        float(jax.block_until_ready(train_step(model, optimizer, spread(x), spread(y[:, :4]))))
        for _ in range(6)
    ]
nnx.assert_equal_on_hosts({"model": model, "optimizer": optimizer})
say({"losses": losses, "traced": str(train_step.explain())})
"""

# What differs in each case, and what the message says of it.
CASES = """
def of(spec, values, dtype=np.float32):
    sharding = NamedSharding(mesh, spec)
    make = lambda at: values[at].astype(dtype)
    return nnx.Dict(a=nnx.Param(jax.make_array_from_callback(values.shape, sharding, make)))
def linear(seed=0):
    return nnx.Linear(4, 8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(seed))
row, me = np.arange(8.0), process
one_bit = linear()
one_bit.bias[...] = one_bit.bias.value.at[5].set(me * 1e-30)
keys = jax.jit(
    lambda: jax.random.split(jax.random.key(0), 8), out_shardings=NamedSharding(mesh, P("data"))
)()
optimizer_of = lambda rate: nnx.Optimizer(
    linear(), optax.inject_hyperparams(optax.adam)(rate), wrt=nnx.Param
)
many = lambda seed: nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(seed)) for _ in range(20)])
cases = {
    "own arrays": (linear(), ""),
    "keys": ({"r": nnx.Rngs(3), "all": nnx.Variable(keys)}, ""),
    "copies": (of(P(), row), ""),
    "parts that only one has": (of(P("data"), row + me), ""),
    "parts of both": (of(P("model"), row, jnp.bfloat16), ""),
    "seed": (linear(me), "kernel: value differs: on process 0; on process 1"),
    "one bit": (one_bit, "bias: value differs"),
    "a stream": (nnx.Dict(r=nnx.Rngs(dropout=me)), "r.dropout.key: value differs"),
    "missing": ({"a": linear(), "b": [linear()] * me}, "b.0.bias: missing on process 0"),
    "shape": (nnx.Linear(4, 3 + me, rngs=nnx.Rngs(0)),
              "bias: shape differs: (3,) on process 0; (4,) on process 1"),
    "dtype": (nnx.Dict(a=nnx.Param(jnp.zeros(3, [jnp.float32, jnp.bfloat16][me]))),
              "a: dtype differs: float32 on process 0; bfloat16 on process 1"),
    "number": (nnx.Dict(a=nnx.Variable(me)), "a: value differs"),
    "bare array": (nnx.Dict(a=np.arange(3) + me), "a: value differs"),
    "optimizer": (optimizer_of(0.1 + me), "opt_state.hyperparams.learning_rate: value differs"),
    "one copy": (of(P(), row + me), "a: value differs"),
    "one part": (of(P("model"), row + me * (row == 5)), "a: value[4:6] differs"),
    "layout": (of([P("data"), P("model")][me], row), "a: layout differs: P('data',) on process 0"),
    "own or spread": ([of(P(), row), nnx.Dict(a=nnx.Param(jnp.arange(8.0)))][me],
                      "a: layout differs: P() on process 0; of each process on process 1"),
    "many": (many(me), "… and 12 more"),
}
found = {}
for name, (obj, expected) in cases.items():
    message = ""
    try:
        nnx.assert_equal_on_hosts(obj)
    except AssertionError as error:
        message = str(error)
    found[name] = (expected, message)
say(found)
"""

# Each of these ends in an error on process 1 alone; all processes must hear of it.
FAILURES = """
deleted = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
if process == 1:
    deleted.kernel.value.delete()
def build_one():
    return nnx.Linear(4, 4 + process, kernel_metadata={"sharding": (None, "model")},
                      rngs=nnx.Rngs(0))
def read():
    with nnx.fail_together("reading the data"):
        return [0][process]
messages = []
for act in (
    read,
    lambda: nnx.make_sharded(build_one, mesh),
    lambda: nnx.assert_equal_on_hosts(deleted),
):
    try:
        act()
        messages.append("no error")
    except Exception as error:
        messages.append(f"{type(error).__name__}: {error}")
with nnx.fail_together("what all can do"):
    pass
say(messages)
"""


@pytest.fixture(scope="module")
def ended() -> list[Ended]:
    both = run_processes(TRAINING + CASES + FAILURES)
    assert [one.status for one in both] == [0, 0], both[0].errors + both[1].errors
    return both


def test_two_processes_train_to_the_losses_of_one(ended):
    said: list[dict[str, Any]] = []
    exec(TRAINING, {**NAMES, "say": said.append})
    alone = said[0]
    assert alone["losses"][-1] < alone["losses"][0] / 2
    for both in ended:
        assert both.said[0]["traced"] == alone["traced"] == "train_step: traced 1 time."
        # float32, where sums over devices are taken in another order
        np.testing.assert_allclose(both.said[0]["losses"], alone["losses"], rtol=2e-6)


def test_what_differs_is_named_on_every_process(ended):
    first, second = (one.said[1] for one in ended)
    for name, (expected, message) in first.items():
        assert message == second[name][1], name
        assert bool(message) == bool(expected), (name, message)
        assert expected in message, (name, message)
        assert not message or message.startswith("assert_equal_on_hosts: not the same on all 2")
        assert not message or "Cure: " in message
        assert len(message) < 1500


def test_the_error_of_one_process_is_raised_on_all(ended):
    first, second = (one.said[2] for one in ended)
    assert second[0] == "IndexError: list index out of range"
    assert first[0].startswith(
        "RuntimeError: reading the data: 1 of 2 processes failed, so all do. First process "
        "1: IndexError: list index out of range\nCure: "
    )
    assert "of shape (4, 5) does not fit" in second[1]
    assert first[1].startswith("RuntimeError: make_sharded: 1 of 2 processes failed")
    assert "of shape (4, 5) does not fit" in first[1]
    assert second[2].startswith("RuntimeError: ") and "deleted" in second[2]
    assert first[2].startswith("RuntimeError: assert_equal_on_hosts: 1 of 2 processes failed")


def test_an_uncaught_error_of_one_process_ends_the_other_in_a_collective():
    """By JAX's own timeouts: the failing one waits for the others to end, then all are ended."""
    program = """
        if process == 1:
            raise ValueError("of this process alone")
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        nnx.make_sharded(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), mesh)
        say("never")
    """
    first, second = run_processes(program, patience=10)
    assert first.status != 0 and second.status != 0
    assert "ValueError: of this process alone" in second.errors
    assert first.said == []


def test_one_process_needs_no_other():
    nnx.assert_equal_on_hosts(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(KeyError, match="mine"), nnx.fail_together("reading"):
        raise KeyError("mine")
