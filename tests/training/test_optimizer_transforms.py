"""Optimizer in transforms: retraces, compilations, placement, scan, vmap, cond, grad."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from refax import nnx

from .common import Net, count_compilations, loss_of


def step(model: Net, optimizer: nnx.Optimizer) -> jax.Array:
    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


def values(*nodes: Any) -> dict[Any, Any]:
    return {path: leaf.value for path, leaf in nnx.state(nodes).flat_state()}


def trained(steps: int, tx: Any = None) -> tuple[Net, nnx.Optimizer]:
    model = Net()
    optimizer = nnx.Optimizer(model, tx or optax.adam(1e-2), wrt=nnx.Param)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def assert_close(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for path in one:  # the same operations, fused differently: a few ulp of float32
        np.testing.assert_allclose(one[path], other[path], rtol=1e-5, atol=1e-6, err_msg=str(path))


def kernels(state: Any) -> nnx.State:
    return nnx.map_state(lambda path, value: value.ndim > 1, state)


EQUAL = {
    "adam": lambda: optax.adam(1e-3),
    "schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 100)),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.sgd(optax.linear_schedule(0.1, 0.0, 10))),
    "mask": lambda: optax.adamw(1e-3, mask=kernels),
    "multi": lambda: optax.MultiSteps(optax.adam(1e-3), 2),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_optimizers_share_one_program(name: str) -> None:
    traces = 0

    @nnx.jit
    def counted(model: Net, optimizer: nnx.Optimizer) -> None:
        nonlocal traces
        traces += 1
        step(model, optimizer)

    for _ in range(2):
        model = Net()
        optimizer = nnx.Optimizer(model, EQUAL[name](), wrt=nnx.Param)
        for _ in range(2):
            counted(model, optimizer)
    assert traces == 1


NAMES = ("encoder.kernel", "encoder.bias", "head.kernel", "head.bias")


def sharded() -> dict[str, Any]:
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))
    axes = [(None, "y"), ("y",), ("y", None), (None,)]
    return {n: NamedSharding(mesh, PartitionSpec(*a)) for n, a in zip(NAMES, axes, strict=True)}


PLACES = {
    "uncommitted": lambda: {},
    "committed": lambda: dict.fromkeys(NAMES, jax.devices()[0]),
    "sharded": sharded,
}


@pytest.mark.parametrize(
    ("place", "dtype"), [*((place, jnp.float32) for place in PLACES), ("sharded", jnp.bfloat16)]
)
@pytest.mark.parametrize("make", [optax.adam, lambda lr: optax.MultiSteps(optax.sgd(lr), 2)])
def test_placement_and_dtype_stay_and_one_program_serves_all_steps(
    place: str, dtype: Any, make: Any
) -> None:
    model = Net(param_dtype=dtype)
    placed = PLACES[place]()
    for name, where in placed.items():
        layer, leaf = name.split(".")
        cell = vars(vars(model)[layer])[leaf]
        cell.value = jax.device_put(cell.value, where)
    optimizer = nnx.Optimizer(model, make(1e-2), wrt=nnx.Param)
    before = values(model, optimizer)
    for path, value in before.items():
        where = placed.get(".".join(map(str, path[-2:])))
        if isinstance(where, NamedSharding):
            assert value.sharding.is_equivalent_to(where, value.ndim), path
    compiled = nnx.jit(lambda model, optimizer: step(model, optimizer))
    with count_compilations() as compilations:
        counts = []
        for _ in range(4):
            compiled(model, optimizer)
            counts.append(len(compilations))
    assert counts[0] >= 1 and counts[-1] == counts[0], counts
    for path, value in values(model, optimizer).items():
        assert value.dtype == before[path].dtype, path
        assert value.sharding.is_equivalent_to(before[path].sharding, value.ndim), path
        assert value.committed == before[path].committed, path


def test_line_search_starts_with_no_weak_types() -> None:
    optimizer = nnx.Optimizer(Net(), optax.lbfgs(), wrt=nnx.Param)
    assert not any(value.weak_type for value in values(optimizer).values())


def test_in_scan() -> None:
    model, optimizer = trained(0)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def many(both: tuple[Net, nnx.Optimizer], _: jax.Array) -> Any:
        return both, step(*both)

    many((model, optimizer), jnp.arange(3))
    assert_close(values(model, optimizer), values(*trained(3)))


def test_in_vmap_as_an_ensemble() -> None:
    @nnx.vmap(in_axes=0)
    def make(seed: jax.Array) -> tuple[Net, nnx.Optimizer]:
        model = Net(nnx.Rngs(seed))
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    model, optimizer = make(jnp.arange(3))
    nnx.jit(nnx.vmap(step))(model, optimizer)
    assert optimizer.step.value.tolist() == [1, 1, 1]
    for seed in range(3):
        alone = Net(nnx.Rngs(seed))
        other = nnx.Optimizer(alone, optax.adam(1e-2), wrt=nnx.Param)
        step(alone, other)
        member = {path: value[seed] for path, value in values(model, optimizer).items()}
        assert_close(member, values(alone, other))


def test_in_cond() -> None:
    def skip(model: Net, optimizer: nnx.Optimizer) -> jax.Array:
        return loss_of(model)

    run = nnx.jit(lambda flag, model, optimizer: nnx.cond(flag, step, skip, model, optimizer))
    model, optimizer = trained(0)
    run(False, model, optimizer)
    assert_close(values(model, optimizer), values(*trained(0)))
    run(True, model, optimizer)
    assert_close(values(model, optimizer), values(*trained(1)))


def test_gradient_through_an_update() -> None:
    """Meta-learning: the derivative of the loss after a step by the parameters before it."""

    def after(model: Net) -> jax.Array:
        clone = nnx.clone(model)
        inner = nnx.Optimizer(clone, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
        for _ in range(2):
            step(clone, inner)
        return loss_of(clone)

    def after_plain(params: nnx.State) -> jax.Array:
        graphdef = nnx.graphdef(Net())
        trace = jax.tree.map(jnp.zeros_like, params)
        for _ in range(2):
            grads = jax.grad(lambda p: loss_of(nnx.merge(graphdef, p)))(params)
            trace = jax.tree.map(lambda t, g: 0.9 * t + g, trace, grads)
            params = jax.tree.map(lambda p, t: p - 0.1 * t, params, trace)
        return loss_of(nnx.merge(graphdef, params))

    ours = nnx.jit(nnx.grad(after))(Net())
    theirs = jax.grad(after_plain)(nnx.state(Net(), nnx.Param))
    for (path, one), (_, other) in zip(ours.flat_state(), theirs.flat_state(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=str(path))  # float32
