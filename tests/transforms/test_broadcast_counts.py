"""One rule for the counts of streams that a transform broadcasts, against fold_in by hand.

A count that every instance advances by the same comes out advanced once; all instances see the same
keys; nothing else that is broadcast may be written by a scan.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from refax import nnx

# Here all are meant to draw the same.
pytestmark = pytest.mark.filterwarnings("ignore::refax.transforms.shard_map.SameRandomnessWarning")
KEY = jax.random.key(1)
MESH = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
X = jnp.zeros((2, 3))


def draw(rngs: Any, x: jax.Array) -> Any:
    """Two draws, of shape (3,) each."""
    return jnp.stack([rngs.dropout.normal((3,)), rngs.dropout.normal((3,))]) + x


def by_hand(first: int = 0, key: jax.Array = KEY) -> Any:
    return jnp.stack(
        [jax.random.normal(jax.random.fold_in(key, first + i), (3,)) for i in range(2)]
    )


def sharded(f: Callable, whole: Any = P()) -> Callable:
    return nnx.shard_map(
        lambda rngs, x: f(rngs, x[0])[None], mesh=MESH, in_specs=(whole, P("d")), out_specs=P("d")
    )


def scanned(f: Callable, whole: Any = None) -> Callable:
    return nnx.scan(f, in_axes=(whole, 0), out_axes=0)


def mapped(f: Callable, whole: Any = None) -> Callable:
    return nnx.vmap(f, in_axes=(whole, 0))


BY_TYPE = nnx.StateAxes({nnx.RngState: None, ...: 0})
BY_NAME = nnx.StateAxes({"dropout": None, ...: 0})
TRANSFORMS: dict[str, Callable[[Callable], Callable]] = {
    "vmap": mapped,
    "vmap by type": lambda f: mapped(f, BY_TYPE),
    "vmap by name": lambda f: mapped(f, BY_NAME),
    "pmap": lambda f: nnx.pmap(f, in_axes=(None, 0)),
    "pmap by type": lambda f: nnx.pmap(f, in_axes=(BY_TYPE, 0)),
    "scan": scanned,
    "scan by type": lambda f: scanned(f, BY_TYPE),
    "scan by name": lambda f: scanned(f, BY_NAME),
    "scan, reversed": lambda f: nnx.scan(f, in_axes=(None, 0), out_axes=0, reverse=True),
    "scan, unrolled": lambda f: nnx.scan(f, in_axes=(None, 0), out_axes=0, unroll=2),
    "shard_map": sharded,
    "shard_map by type": lambda f: sharded(f, nnx.StateSharding({nnx.RngState: P()})),
}
NESTED: dict[str, Callable[[Callable], Callable]] = {
    "jit(scan)": lambda f: nnx.jit(scanned(f)),
    "scan(jit)": lambda f: scanned(nnx.jit(f)),
    "scan(remat)": lambda f: scanned(nnx.remat(f)),
    "remat(scan)": lambda f: nnx.remat(scanned(f)),
    "vmap(scan)": lambda f: lambda r, x: mapped(scanned(f))(r, jnp.stack([x, x]))[0],
    "scan(vmap)": lambda f: lambda r, x: scanned(mapped(f))(r, jnp.stack([x, x]))[1],
    "scan(scan)": lambda f: lambda r, x: scanned(scanned(f))(r, jnp.stack([x, x]))[1],
    "scan(cond)": lambda f: scanned(
        lambda r, x: nnx.cond(r.dropout.count.value < 9, f, lambda r, x: f(r, x) * 2, r, x)
    ),
    "scan(fori_loop)": lambda f: scanned(
        lambda r, x: nnx.fori_loop(0, 1, lambda i, c: (c[0], f(c[0], x)), (r, jnp.zeros((2, 3))))[1]
    ),
    "scan(while_loop)": lambda f: scanned(
        lambda r, x: nnx.while_loop(
            lambda c: c[1] < 1, lambda c: (c[0], c[1] + 1, f(c[0], x)), (r, 0, jnp.zeros((2, 3)))
        )[2]
    ),
    "scan(grad)": lambda f: scanned(
        lambda r, x: nnx.grad(lambda y, r: (f(r, x) * y).sum())(jnp.ones((2, 3)), r)
    ),
    "jit(vmap(scan))": lambda f: nnx.jit(lambda r, x: mapped(scanned(f))(r, jnp.stack([x, x]))[0]),
    "shard_map(scan)": lambda f: sharded(lambda r, x: scanned(f)(r, x[None])[0]),
    "pmap(scan)": lambda f: nnx.pmap(lambda r, x: scanned(f)(r, x[None])[0], in_axes=(None, 0)),
    "jit(shard_map)": lambda f: nnx.jit(sharded(f)),
}


@pytest.mark.parametrize("name", [*TRANSFORMS, *NESTED])
def test_a_broadcast_count_advances_once(name: str) -> None:
    run = (TRANSFORMS | NESTED)[name](draw)
    rngs = nnx.Rngs(dropout=1)
    for call in range(2):
        np.testing.assert_allclose(run(rngs, X), jnp.stack([by_hand(2 * call)] * 2), rtol=1e-6)
        assert int(rngs.dropout.count) == 2 * (call + 1)
        assert rngs.dropout.count.shape == () and rngs.dropout.count.dtype == jnp.uint32
    assert bool(rngs.dropout.key.value == KEY)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_streams_of_a_layer(name: str) -> None:
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1))
    run = TRANSFORMS[name](lambda layer, x: layer(x))
    y = run(layer, jnp.ones((2, 64)))
    mask = jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), 0.5, (64,))
    np.testing.assert_array_equal(y, jnp.stack([2.0 * mask] * 2))
    assert layer.rngs is not None and int(layer.rngs.count) == 1


@pytest.mark.parametrize("name", ["vmap", "pmap", "scan"])
def test_a_key_for_each_and_one_count(name: str) -> None:
    keys = jax.random.split(KEY, 2)
    rngs = nnx.Rngs(dropout=keys)
    rngs.dropout.count.value = jnp.uint32(0)
    axes = nnx.StateAxes({nnx.RngKey: 0, nnx.RngCount: None})
    run = {"vmap": mapped, "scan": scanned}.get(name, lambda f, a: nnx.pmap(f, in_axes=(a, 0)))
    y = run(draw, axes)(rngs, X)
    np.testing.assert_allclose(y, jnp.stack([by_hand(0, k) for k in keys]), rtol=1e-6)
    assert int(rngs.dropout.count) == 2


def sometimes(rngs: Any, x: jax.Array) -> Any:
    return nnx.cond(x[0] > 0, draw, lambda r, x: jnp.stack([x, x]), rngs, x)


def by_where(rngs: Any, x: jax.Array) -> Any:
    y = draw(rngs, x)
    rngs.dropout.count.value = jnp.where(x[0] > 0, rngs.dropout.count.value, jnp.uint32(0))
    return y


def in_a_loop(rngs: Any, x: jax.Array) -> Any:
    return nnx.while_loop(
        lambda c: c[1] < x[0], lambda c: (c[0], c[1] + 1, draw(c[0], x)),
        (rngs, x[0] * 0, jnp.stack([x, x])),
    )[2]  # fmt: skip


@pytest.mark.parametrize("body", [sometimes, by_where, in_a_loop])
@pytest.mark.parametrize(
    "name", [*TRANSFORMS, "jit(scan)", "scan(jit)", "scan(remat)", "vmap(scan)", "shard_map(scan)"]
)
def test_counts_that_differ_are_refused(name: str, body: Callable) -> None:
    rngs = nnx.Rngs(dropout=1)
    run = (TRANSFORMS | NESTED)[name](body)
    with pytest.raises(nnx.GraphError, match=r"`\w+\.dropout\.count`"):
        run(rngs, jnp.array([[0.0, 1, 2], [2, 1, 0]]))
    assert int(rngs.dropout.count) == 0 and bool(rngs.dropout.key.value == KEY)


def test_counts_that_follow_the_carry_are_refused() -> None:
    def step(rngs: Any, n: Any, x: Any) -> Any:
        rngs.dropout.count.value += n
        return n + 1, x

    loop = nnx.scan(step, in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    with pytest.raises(nnx.GraphError, match=r"`rngs\.dropout\.count`.*step to step"):
        loop(nnx.Rngs(dropout=1), jnp.uint32(0), X)


class Counted(nnx.Module):
    def __init__(self) -> None:
        self.rngs = nnx.Rngs(dropout=1)
        self.other = nnx.Variable(jnp.zeros(()))
        self.array = jnp.zeros(())


@pytest.mark.parametrize(
    ("place", "write"),
    [
        ("other", lambda m: setattr(m.other, "value", m.other.value + 1)),
        ("array", lambda m: setattr(m, "array", m.array + 1)),
        (r"rngs\.dropout\.key", lambda m: setattr(m.rngs.dropout.key, "value", jax.random.key(7))),
        ("new", lambda m: setattr(m, "new", nnx.RngCount(jnp.uint32(0)))),
    ],
)
def test_nothing_else_that_scan_broadcasts_is_written(place: str, write: Callable) -> None:
    model = Counted()

    def step(model: Any, x: Any) -> Any:
        write(model)
        return draw(model.rngs, x)

    with pytest.raises(nnx.GraphError, match=rf"`model\.{place}`.*broadcast \(None\)"):
        scanned(step)(model, X)
    assert int(model.rngs.dropout.count) == 0 and not hasattr(model, "new")


def test_no_steps_draw_nothing() -> None:
    rngs = nnx.Rngs(dropout=1)
    assert scanned(draw)(rngs, jnp.zeros((0, 3))).shape == (0, 2, 3)
    assert int(rngs.dropout.count) == 0


def test_streams_forked_and_split_inside() -> None:
    rngs = nnx.Rngs(dropout=1)

    def step(rngs: Any, x: Any) -> Any:
        with nnx.fork_rngs(rngs):
            y = rngs.dropout.normal((3,))
        return y + rngs.dropout.fork().normal((3,))

    fold = jax.random.fold_in
    expected = sum(jax.random.normal(fold(fold(KEY, i), 0), (3,)) for i in range(2))
    np.testing.assert_allclose(scanned(step)(rngs, X), jnp.stack([expected] * 2), rtol=1e-6)
    assert int(rngs.dropout.count) == 2


# -- recurrent dropout ---------------------------------------------------------------------------


class Cell(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, size: int = 16):
        self.linear = nnx.Linear(size + 2, size, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs, rng_collection="recurrent_dropout")
        self.steps = nnx.Variable(jnp.uint32(0))

    def __call__(self, h: Any, x: Any) -> Any:
        h = self.drop(h)
        y = nnx.tanh(self.linear(jnp.concatenate([h, x], axis=-1)))
        self.steps[...] += 1
        return y, h


AXES = nnx.StateAxes({"recurrent_dropout": None, ...: nnx.Carry})


def unroll(cell: Cell, x: Any, axes: Any = AXES) -> Any:
    step = nnx.scan(lambda c, h, x: c(h, x), in_axes=(axes, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
    return step(cell, jnp.ones((x.shape[0], 16)), x)


def hand_written(kernel: Any, bias: Any, key: Any, x: Any) -> Any:
    mask = 2.0 * jax.random.bernoulli(key, 0.5, (x.shape[0], 16))
    h, seen = jnp.ones((x.shape[0], 16)), []
    for t in range(x.shape[1]):
        seen.append(h * mask)
        h = jnp.tanh(jnp.concatenate([h * mask, x[:, t]], -1) @ kernel + bias)
    return h, jnp.stack(seen, 1)


@pytest.mark.parametrize("how", ["eager", "jit"])
def test_recurrent_dropout_has_one_mask(how: str) -> None:
    cell, x = Cell(nnx.Rngs(params=0, recurrent_dropout=1)), jnp.full((4, 5, 2), 0.5)
    run = nnx.jit(unroll) if how == "jit" else unroll
    for call in range(2):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 0), call)
        expected = hand_written(cell.linear.kernel.value, cell.linear.bias.value, key, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
                     run(cell, x), expected)  # fmt: skip
        assert int(cell.drop.rngs.count) == call + 1 and int(cell.steps) == 5 * (call + 1)


def test_the_gradient_through_it() -> None:
    cell, x = Cell(nnx.Rngs(params=0, recurrent_dropout=1)), jnp.full((4, 5, 2), 0.5)
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    parameters = (cell.linear.kernel.value, cell.linear.bias.value)
    expected = jax.grad(lambda p: (hand_written(*p, key, x)[0] ** 2).sum())(parameters)
    grads = nnx.jit(nnx.grad(lambda cell: (unroll(cell, x)[0] ** 2).sum()))(cell)
    np.testing.assert_allclose(grads["linear"]["kernel"], expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads["linear"]["bias"], expected[1], rtol=1e-4, atol=1e-6)
    assert int(cell.drop.rngs.count) == 1


def test_an_ensemble_of_cells() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    cells = nnx.vmap(lambda key: Cell(nnx.Rngs(key)))(keys)
    x = jnp.full((4, 5, 2), 0.5)
    cells.drop.rngs.count.value = jnp.uint32(0)
    axes = nnx.StateAxes({nnx.RngCount: None, ...: 0})
    in_loop = nnx.StateAxes({nnx.RngState: None, ...: nnx.Carry})
    h, _ = nnx.vmap(lambda c, x: unroll(c, x, in_loop), in_axes=(axes, None))(cells, x)
    for i in range(3):
        key = jax.random.fold_in(cells.drop.rngs.key.value[i], 0)
        weights = cells.linear.kernel.value[i], cells.linear.bias.value[i]
        np.testing.assert_allclose(h[i], hand_written(*weights, key, x)[0], rtol=2e-5, atol=1e-6)
    assert int(cells.drop.rngs.count) == 1


class Noisy(nnx.SimpleCell):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(2, 16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs, rng_collection="recurrent_dropout")

    def __call__(self, carry: Any, inputs: Any) -> Any:
        carry, _ = super().__call__(carry, inputs)
        return carry, self.drop(jnp.ones_like(carry))


@pytest.mark.parametrize("both", [False, True])
def test_layers_with_broadcast_streams(both: bool) -> None:
    cell = Noisy(nnx.Rngs(params=0, recurrent_dropout=1))
    rnn = nnx.RNN(cell, broadcast_rngs="recurrent_dropout")
    layer: Any = nnx.Bidirectional(rnn, nnx.RNN(Noisy(nnx.Rngs(0)))) if both else rnn
    for call in range(2):
        y = layer(jnp.ones((3, 5, 2)))[..., :16]
        key = jax.random.fold_in(jax.random.fold_in(KEY, 0), call)
        mask = 2.0 * jax.random.bernoulli(key, 0.5, (3, 16))
        np.testing.assert_array_equal(y, jnp.broadcast_to(mask[:, None], y.shape))
        assert int(cell.drop.rngs.count) == call + 1


def test_the_step_is_traced_once_at_any_depth() -> None:
    traces = 0

    def step(rngs: Any, x: Any) -> Any:
        nonlocal traces
        traces += 1
        return draw(rngs, x)

    run: Any = scanned(step)
    for _ in range(3):
        run = lambda r, x, inner=run: scanned(inner)(r, x[None])[0]  # noqa: E731
    plain = traces
    run(nnx.Rngs(dropout=1), X)
    assert traces - plain <= 2  # JAX looks twice where types of a carry are not known beforehand
