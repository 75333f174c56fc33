"""Recurrent layers beside loops over steps, hand-written `lax.scan`, and the peer."""

import copy
import inspect
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from refax.layers import recurrent_cells
from refax.layers.recurrent import flip_sequences
from tests.layers.cases_recurrent import (
    RECURRENT,
    fused_lstm_step,
    gru_step,
    lstm_step,
    simple_step,
)
from tests.models import Count
from tests.transforms.observing import compilations

pytestmark = pytest.mark.usefixtures("strict_numerics")

STEPS = {  # name → (a step in NumPy, how many parts the carry has)
    "SimpleCell": (simple_step, 1),
    "LSTMCell": (lstm_step, 2),
    "OptimizedLSTMCell": (fused_lstm_step, 2),
    "GRUCell": (gru_step, 1),
}
CELLS = list(STEPS)
X = jax.random.normal(jax.random.key(0), (3, 5, 4))
LENGTHS = jnp.array([2, 5, 0])

# Values are below one, after a few steps of a few dozen roundings each.
TOLERANCE = 128 * float(jnp.finfo(jnp.float32).eps)


def close(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE),
        actual,
        expected,
    )


def make(name: str = "GRUCell", seed: int = 0, **options: Any) -> Any:
    return getattr(nnx, name)(4, 6, rngs=nnx.Rngs(seed), **{**RECURRENT, **options})


def loop(cell: Any, x: Any) -> tuple[Any, np.ndarray]:
    """One sequence (time, features) from a carry of zeros, in float64 NumPy."""
    step, parts = STEPS[type(cell).__name__]
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), nnx.to_pure_dict(nnx.state(cell)))
    carry, ys = (np.zeros(6),) * parts, []
    for x_t in np.asarray(x, np.float64):
        carry = step(params, x_t, carry)
        ys.append(carry[-1])
    return carry if parts > 1 else carry[0], np.array(ys).reshape(-1, 6)


# -- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("reverse, keep_order", [(False, False), (True, True)])
def test_lengths_as_each_sequence_alone(name: str, reverse: bool, keep_order: bool) -> None:
    cell = make(name)
    rnn = nnx.RNN(cell, reverse=reverse, keep_order=keep_order, return_carry=True)
    carry, y = jax.device_get(rnn(X, seq_lengths=LENGTHS))
    for i, length in enumerate(LENGTHS.tolist()):
        x = np.asarray(X)[i, :length]
        last, expected = loop(cell, x[::-1] if reverse else x)
        expected = expected[::-1] if keep_order else expected
        close(jax.tree.map(lambda leaf, i=i: leaf[i], carry), last)
        close(y[i, :length], expected)


@pytest.mark.parametrize("lengths", [None, [2, 5, 0]])
def test_keep_order_puts_the_outputs_where_their_inputs_are(lengths: Any) -> None:
    lengths = None if lengths is None else jnp.array(lengths)
    rnn = nnx.RNN(make())
    kept = rnn(X, seq_lengths=lengths, reverse=True, keep_order=True)
    stepwise = rnn(X, seq_lengths=lengths, reverse=True)
    np.testing.assert_array_equal(kept, flip_sequences(stepwise, lengths, 1, False))
    close(rnn(X, keep_order=True), rnn(X))  # without `reverse` it has nothing to do


def test_flip_sequences() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    for lengths in ([3, 1], [2, 0]):
        expected = x.copy()
        for i, n in enumerate(lengths):
            expected[i, :n] = x[i, :n][::-1]
            expected[i, n:] = x[i, n:][::-1]
        flipped = flip_sequences(jnp.asarray(x), jnp.array(lengths), 1, False)
        np.testing.assert_array_equal(flipped, expected)
        flipped = flip_sequences(jnp.asarray(x.swapaxes(0, 1)), jnp.array(lengths), 1, True)
        np.testing.assert_array_equal(flipped, expected.swapaxes(0, 1))
    np.testing.assert_array_equal(flip_sequences(jnp.asarray(x), None, 2, False), x[..., ::-1])


@pytest.mark.parametrize("lengths", [None, [2, 5, 0]])
@pytest.mark.parametrize("reverse", [False, True])
def test_time_first(lengths: Any, reverse: bool) -> None:
    options = {"seq_lengths": None if lengths is None else jnp.array(lengths)}
    options |= {"reverse": reverse, "return_carry": True}
    rnn = nnx.RNN(make("LSTMCell"))
    carry, y = rnn(X, **options)
    carry_of_first, y_of_first = nnx.RNN(rnn.cell, time_major=True)(X.swapaxes(0, 1), **options)
    close(carry_of_first, carry)
    close(y_of_first.swapaxes(0, 1), y)


def test_any_number_of_batch_axes() -> None:
    rnn = nnx.RNN(make("OptimizedLSTMCell"), reverse=True, return_carry=True)
    x = np.random.default_rng(1).normal(size=(2, 2, 5, 4)).astype(np.float32)
    lengths = np.array([[5, 1], [3, 0]])
    carry, y = jax.device_get(rnn(x, seq_lengths=lengths))
    for i, length in np.ndenumerate(lengths):
        last, expected = loop(rnn.cell, x[i][:length][::-1])
        close((jax.tree.map(lambda leaf, i=i: leaf[i], carry), y[i][:length]), (last, expected))
    carry, y = jax.device_get(rnn(x[0, 0], seq_lengths=np.array(2)))
    close((carry, y[:2]), loop(rnn.cell, x[0, 0, 1::-1]))


def test_return_carry_and_initial_carry_continue_a_sequence() -> None:
    rnn = nnx.RNN(make("LSTMCell"), return_carry=True)
    carry, y = rnn(X)
    middle, first = rnn(X[:, :2])
    last, second = rnn(X[:, 2:], initial_carry=middle)
    close(last, carry)
    close(jnp.concatenate([first, second], 1), y)
    close(rnn(X, return_carry=False), y)
    same, _ = rnn(X, initial_carry=middle, seq_lengths=jnp.zeros(3, int))
    close(same, middle)


def test_bidirectional_is_both() -> None:
    forward, backward = nnx.RNN(make()), nnx.RNN(make("LSTMCell", 1))
    both = nnx.Bidirectional(forward, backward)
    carries, y = both(X, seq_lengths=LENGTHS, return_carry=True)
    carry, there = forward(X, seq_lengths=LENGTHS, return_carry=True)
    other, back = backward(X, seq_lengths=LENGTHS, return_carry=True, reverse=True, keep_order=True)
    close((carries, y), ((carry, other), jnp.concatenate([there, back], -1)))
    summed = nnx.Bidirectional(forward, backward, merge_fn=jnp.add, time_major=True)
    x = X.swapaxes(0, 1)
    expected = forward(X, initial_carry=carry) + backward(
        X, initial_carry=other, reverse=True, keep_order=True
    )
    close(summed(x, initial_carry=carries).swapaxes(0, 1), expected)


# -- carries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_a_carry_is_drawn_where_an_initializer_is_given(name: str) -> None:
    normal = nnx.initializers.normal()
    cell = make(name, carry_init=normal, param_dtype=jnp.float16)
    parts = jax.tree.leaves(cell.initialize_carry((3, 4), nnx.Rngs(0, carry=7)))
    for n, part in enumerate(parts):
        key = jax.random.fold_in(jax.random.key(7), n)
        np.testing.assert_array_equal(part, normal(key, (3, 6), jnp.float16))
    given = cell.initialize_carry((4,), carry_init=lambda key, *a: jnp.ones(*a), rngs=nnx.Rngs(0))
    assert all(part.shape == (6,) and part.min() == 1 for part in jax.tree.leaves(given))
    with pytest.raises(ValueError, match=f"{name}: carry_init(.|\n)*Cure: cell.initialize_carry"):
        cell.initialize_carry((3, 4))
    keeping = make(name, carry_init=normal, keep_rngs=True)
    first, second = keeping.initialize_carry((4,)), keeping.initialize_carry((4,))
    assert not np.array_equal(jax.tree.leaves(first)[0], jax.tree.leaves(second)[0])


def test_an_rnn_draws_carries_from_the_call_then_from_its_own_stream() -> None:
    cell = make(carry_init=nnx.initializers.normal(1.0))
    rnn = nnx.RNN(cell, rngs=nnx.Rngs(1))
    fork = nnx.Rngs(1).fork().default
    close(rnn(X), rnn(X, initial_carry=cell.initialize_carry((3, 4), fork)))
    assert int(rnn.rngs.count.value) == 1
    expected = rnn(X, initial_carry=cell.initialize_carry((3, 4), nnx.Rngs(2)))
    close(rnn(X, rngs=nnx.Rngs(2)), expected)
    with pytest.raises(ValueError, match="no `rngs`"):
        nnx.RNN(cell, rngs=False)(X)
    both = nnx.Bidirectional(nnx.RNN(cell, rngs=False), nnx.RNN(cell, rngs=False))
    y = both(X)
    assert both.rngs is not None and int(both.rngs.count.value) == 2
    assert not np.array_equal(y[..., :6], y[..., 6:])


def test_a_carry_of_zeros_takes_no_key() -> None:
    rnn = nnx.RNN(make("LSTMCell"))
    jax.grad(lambda x: rnn(x).sum())(X)  # a stream of an outer level could not be written here
    assert rnn.rngs is not None and int(rnn.rngs.count.value) == 0


@pytest.mark.parametrize("name", CELLS)
def test_a_carry_keeps_its_dtype(name: str) -> None:
    cell = make(name, dtype=jnp.bfloat16)
    carry = cell.initialize_carry((3, 4))
    carry, y = nnx.RNN(cell, return_carry=True)(X, initial_carry=carry)
    assert {part.dtype for part in jax.tree.leaves(carry)} == {jnp.dtype("f4")}
    assert y.dtype == jnp.bfloat16
    # XLA may leave out the rounding to bfloat16 on the way to the carry.
    np.testing.assert_allclose(
        jax.tree.leaves(carry)[-1],
        y[:, -1].astype(jnp.float32),
        rtol=float(jnp.finfo("bfloat16").eps),
    )


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_orthogonal_kernels_in_half_precision(name: str, dtype: Any) -> None:
    init = recurrent_cells.default_recurrent_kernel_init
    cell = make(name, param_dtype=dtype, recurrent_kernel_init=init)
    kernel = np.asarray((cell.hi if name == "LSTMCell" else cell.dense_h).kernel, np.float64)
    assert kernel.shape[0] == 6
    product = kernel @ kernel.T
    # A sum of six squares or more below one, each rounded to half precision.
    atol = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(product, np.eye(6), rtol=0, atol=atol)


# -- what the cell writes ------------------------------------------------------------------------


class Noisy(nnx.RNNCellBase):
    """Counts its steps and drops units of a constant."""

    def __init__(self) -> None:
        self.steps = Count(jnp.array(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))

    def initialize_carry(self, input_shape: Any, rngs: Any = None, carry_init: Any = None) -> Any:
        return jnp.zeros(input_shape)

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
        self.steps += 1
        return carry + inputs, self.drop(jnp.ones((64,)))


def test_state_goes_from_step_to_step_and_comes_out() -> None:
    cell = Noisy()
    rnn, steps = nnx.RNN(cell), cell.steps
    rnn(X)
    nnx.jit(rnn)(X)
    assert cell.steps is steps and int(steps) == 10
    nnx.jit(lambda rnn: rnn(X, seq_lengths=LENGTHS))(rnn)  # steps of padding are steps
    assert int(steps) == 15


def test_dropout_differs_by_step() -> None:
    cell, stepwise = Noisy(), Noisy()
    y = nnx.RNN(cell, time_major=True)(X[0])
    for row in y:
        np.testing.assert_array_equal(row, stepwise(X[0, 0], X[0, 0])[1])
    assert len({tuple(row.tolist()) for row in y}) == 5
    assert cell.drop.rngs is not None and int(cell.drop.rngs.count.value) == 5


@pytest.mark.parametrize("streams", ["dropout", True, nnx.RngState])
def test_broadcast_streams_are_the_same_at_each_step(streams: Any) -> None:
    cell = Noisy()
    rnn = nnx.RNN(cell, time_major=True, broadcast_rngs=streams)
    y, again = rnn(X[0]), rnn(X[0])
    assert len({tuple(row.tolist()) for row in y}) == 1
    assert not np.array_equal(y, again)  # another call, another mask
    assert cell.drop.rngs is not None and int(cell.drop.rngs.count.value) == 2
    assert int(cell.steps) == 10


class Normalized(nnx.GRUCell):
    def __init__(self) -> None:
        super().__init__(4, 6, rngs=nnx.Rngs(0), **RECURRENT)
        self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
        carry, y = super().__call__(carry, inputs)
        return carry, self.norm(y)


def test_running_averages_are_carried_and_broadcast_ones_are_an_error() -> None:
    cell, stepwise = Normalized(), Normalized()
    nnx.RNN(cell, time_major=True)(X.swapaxes(0, 1))
    carry = stepwise.initialize_carry((3, 4))
    for t in range(5):
        carry, _ = stepwise(carry, X[:, t])
    close(cell.norm.mean.value, stepwise.norm.mean.value)
    mean = cell.norm.mean.value
    fixed = nnx.RNN(cell, state_axes={...: None})
    with pytest.raises(nnx.GraphError) as error:
        fixed(X)
    assert "`self.cell.norm." in str(error.value) and "nnx.StateAxes" in str(error.value)
    assert cell.norm.mean.value is mean
    cell.eval()
    assert fixed(X).shape == (3, 5, 6)


def test_state_axes_gives_each_step_its_own() -> None:
    class Shifted(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nnx.Cache(jnp.arange(5.0))

        def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
            return carry, inputs + self.shift

    cell = Shifted()
    axes = {nnx.Cache: 0, ...: nnx.Carry}
    for state_axes in (axes, nnx.StateAxes(axes)):
        y = nnx.RNN(cell, state_axes=state_axes)(X)
        np.testing.assert_array_equal(y, X + jnp.arange(5.0)[None, :, None])


# -- transforms ----------------------------------------------------------------------------------


def by_hand(params: Any, x: jax.Array, reverse: bool = False) -> jax.Array:
    wi, bi, wh = params
    n = wh.shape[0]

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = x @ wi + bi[None], h @ wh
        r = jax.nn.sigmoid(a[:, :n] + b[:, :n])
        z = jax.nn.sigmoid(a[:, n : 2 * n] + b[:, n : 2 * n])
        h = (1 - z) * jnp.tanh(a[:, 2 * n :] + r * b[:, 2 * n :]) + z * h
        return h, h

    h = jnp.zeros((x.shape[0], n))
    return jax.lax.scan(step, h, x.swapaxes(0, 1), reverse=reverse)[1].swapaxes(0, 1)


def params_of(cell: Any) -> Any:
    return cell.dense_i.kernel.value, cell.dense_i.bias.value, cell.dense_h.kernel.value


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_is_that_of_a_scan_by_hand(reverse: bool) -> None:
    rnn = nnx.RNN(make(), reverse=reverse, keep_order=True)
    grads = nnx.jit(nnx.grad(lambda rnn: (rnn(X) ** 2).sum()))(rnn)
    expected = jax.grad(lambda p: (by_hand(p, X, reverse) ** 2).sum())(params_of(rnn.cell))
    close(params_of(grads.cell), expected)


def test_gradients_stop_at_the_length() -> None:
    rnn = nnx.RNN(make("LSTMCell"), return_carry=True)
    gradient = jax.grad(lambda x: rnn(x, seq_lengths=LENGTHS)[0][1].sum())(X)
    used = np.asarray(abs(gradient).max(-1) > 0)
    np.testing.assert_array_equal(used, np.arange(5) < np.asarray(LENGTHS)[:, None])
    alone = jax.grad(lambda x: rnn(x)[0][1].sum())(X[:1, :2])[0]
    close(gradient[0, :2], alone)


def test_in_transforms() -> None:
    rnn = nnx.RNN(make())
    y = rnn(X)
    close(nnx.jit(rnn)(X), y)
    close(jax.jit(lambda rnn, x: rnn(x))(rnn, X), y)
    close(nnx.vmap(lambda rnn, x: rnn(x), in_axes=(None, 0))(rnn, X), y)
    stack = nnx.vmap(lambda key: nnx.RNN(make(), rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 2)
    )
    close(nnx.vmap(lambda rnn: rnn(X))(stack), jnp.stack([y, y]))
    close(nnx.remat(lambda rnn, x: rnn(x))(rnn, X), y)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_with_options(copied: Any) -> None:
    rnn = nnx.RNN(
        make(carry_init=nnx.initializers.ones),
        reverse=True,
        state_axes={nnx.Param: None, ...: nnx.Carry},
        broadcast_rngs="dropout",
    )
    np.testing.assert_array_equal(copied(rnn)(X), rnn(X))


def test_the_second_call_compiles_nothing() -> None:
    both = nnx.Bidirectional(nnx.RNN(make()), nnx.RNN(make("OptimizedLSTMCell")))

    def call() -> None:
        both(X)
        both(X, seq_lengths=LENGTHS, return_carry=True)

    call()
    call()
    with compilations() as count:
        call()
    assert count.number == 0


# -- compiled programs ---------------------------------------------------------------------------


def test_parameters_are_neither_carried_nor_stacked() -> None:
    rnn = nnx.RNN(make("OptimizedLSTMCell"), return_carry=True)
    jaxpr = nnx.make_jaxpr(lambda rnn, x: rnn(x))(rnn, X)
    (scan,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert [v.aval.shape for v in scan.outvars] == [(3, 6), (3, 6), (5, 3, 6)]
    assert str(scan).count("dot_general[") == 2


def cost(compiled: Any) -> tuple[int, int, int, int]:
    memory = compiled.memory_analysis()
    operations = re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", compiled.as_text(), re.MULTILINE)
    return (
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        memory.argument_size_in_bytes,
        len(operations),
    )


def test_as_lean_as_a_scan_by_hand() -> None:
    rnn = nnx.RNN(make(), time_major=False)
    pairs = [
        (lambda rnn, x: rnn(x), by_hand),
        (
            lambda rnn, x: nnx.grad(lambda rnn: rnn(x).sum())(rnn),
            lambda p, x: jax.grad(lambda p: by_hand(p, x).sum())(p),
        ),
    ]
    for ours, theirs in pairs:
        mine = cost(nnx.jit(ours).lower(rnn, X).compile())
        its = cost(jax.jit(theirs).lower(params_of(rnn.cell), X).compile())
        # The key and the count of the stream for carries come in, and are not read.
        assert (
            all(m <= 1.05 * i + 64 for m, i in zip(mine[:3], its[:3])) and mine[3] <= 1.05 * its[3]
        )


# -- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_wrong_shapes_are_named(name: str) -> None:
    rnn = nnx.RNN(make(name))
    with pytest.raises(ValueError, match=rf"{name}: .*\(3, 7\).*in_features=4"):
        rnn(jnp.ones((3, 5, 7)))
    wrong = jax.tree.map(lambda c: c[:, :5], rnn.cell.initialize_carry((3, 4)))
    with pytest.raises(ValueError) as error:
        rnn(X, initial_carry=wrong)
    for part in (name, "(3, 5)", "hidden_features=6", "cell.initialize_carry((3, 4))"):
        assert part in str(error.value)


@pytest.mark.parametrize("which", ["forward_rnn", "backward_rnn"])
@pytest.mark.parametrize("wrong", [make("GRUCell"), 3], ids=["a cell", "a number"])
def test_bidirectional_takes_rnns(which: str, wrong: Any) -> None:
    rnns = {"forward_rnn": nnx.RNN(make("GRUCell")), "backward_rnn": nnx.RNN(make("GRUCell"))}
    with pytest.raises(TypeError, match=rf"Bidirectional: {which} is (.|\n)*nnx\.RNN\(cell\)"):
        nnx.Bidirectional(**{**rnns, which: wrong})


def test_wrong_axes_and_lengths_are_named() -> None:
    rnn = nnx.RNN(make())
    with pytest.raises(ValueError, match=r"\(4,\), but needs.*GRUCell, num_feature_axes=1"):
        rnn(jnp.ones(4))
    with pytest.raises(ValueError, match=r"seq_lengths has the shape \(2,\).*are \(3,\)"):
        rnn(X, seq_lengths=jnp.array([1, 2]))
    for method in ("__call__", "initialize_carry"):
        with pytest.raises(NotImplementedError):
            getattr(nnx.RNNCellBase(), method)(*(1, 2))


# -- beside the peer -----------------------------------------------------------------------------


@pytest.fixture
def peer() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield pytest.importorskip("flax.nnx")


@pytest.mark.parametrize("name", CELLS)
def test_the_same_seed_gives_the_same_cell_as_the_peer(name: str, peer: Any) -> None:
    def initialize_carry(lib: Any) -> Any:
        return getattr(lib, name).initialize_carry

    mine, its = (inspect.signature(initialize_carry(lib)).parameters for lib in (nnx, peer))
    assert [(p.name, p.default, p.kind) for p in mine.values()] == [
        (p.name, p.default, p.kind) for p in its.values()
    ]
    mine, its = (getattr(lib, name)(4, 6, rngs=lib.Rngs(3)) for lib in (nnx, peer))
    expected = peer.to_pure_dict(peer.state(its))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(mine)), expected)
    normal = nnx.initializers.normal()
    mine = mine.initialize_carry((3, 4), nnx.Rngs(5), normal)
    its = its.initialize_carry((3, 4), peer.Rngs(5), normal)
    jax.tree.map(np.testing.assert_array_equal, mine, its)


def test_lengths_and_order_as_the_peer(peer: Any) -> None:
    mine, its = (lib.RNN(lib.LSTMCell(4, 6, rngs=lib.Rngs(0), **RECURRENT)) for lib in (nnx, peer))
    lengths = jnp.array([2, 5, 1])
    for reverse, keep_order in [(False, False), (True, False), (True, True)]:
        options = {"reverse": reverse, "keep_order": keep_order}
        actual, expected = (
            rnn(X, seq_lengths=lengths, return_carry=True, **options) for rnn in (mine, its)
        )
        close(actual, expected)  # also in the padding
