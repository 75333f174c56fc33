"""Stack: in every respect a loop over a list of blocks, but one block to compile."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx

N = 3
X = jax.random.normal(jax.random.key(0), (4, 8))


class Block(nnx.Module):
    """Parameters, statistics, randomness, a counter: whatever a block may hold."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.linear = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: Any) -> jax.Array:
        self.calls.value += 1
        return x + self.dropout(jnp.tanh(self.linear(self.norm(x))))


class Plain(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: Any, shift: Any = 0.0, *, scale: Any = 1.0) -> jax.Array:
        return x + jnp.tanh(self.linear(x)) * scale + shift


class Counting(Plain):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: Any) -> jax.Array:  # type: ignore[override]
        self.calls.value += 1
        return super().__call__(x) + self.calls


def blocks_of(kind: Callable = Block, n: int = N) -> list[Any]:
    rngs = nnx.Rngs(0)
    return [kind(rngs) for _ in range(n)]


def in_turn(blocks: list[Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    for block in blocks:
        x = block(x, *args, **kwargs)
    return x


def assert_same_state(stack: nnx.Stack, blocks: list[Any], tolerance: float = 1e-5) -> None:
    """Every array of each block. XLA fuses (and so rounds) a loop's body on its own: 1e-5."""
    for mine, other in zip(stack.to_list(), blocks, strict=True):
        assert nnx.graphdef(mine) == nnx.graphdef(other)
        pairs = zip(nnx.to_flat_state(nnx.state(mine)), nnx.to_flat_state(nnx.state(other)))  # noqa: B905
        for (path, a), (_, b) in pairs:
            a, b = (
                jax.random.key_data(v.value) if isinstance(v, nnx.RngKey) else v.value
                for v in (a, b)
            )
            np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=str(path))


# -- the same as a list --------------------------------------------------------------------------


def test_outputs_and_state_are_those_of_the_list() -> None:
    blocks = blocks_of()
    stack = nnx.Stack.from_list(blocks)
    for _ in range(2):  # the second call sees the state of the first
        np.testing.assert_allclose(stack(X), in_turn(blocks, X), rtol=1e-5, atol=1e-5)
        assert_same_state(stack, blocks)
    assert stack.blocks.calls.value.tolist() == [2] * N
    means = stack.blocks.norm.mean.value
    assert not np.allclose(means[0], means[1])
    stack.eval()
    for block in blocks:
        block.eval()
    np.testing.assert_allclose(stack(X), in_turn(blocks, X), rtol=1e-5, atol=1e-5)
    assert (stack(X) == stack(X)).all()
    stack.train()
    assert (stack(X) != stack(X)).any()


def test_each_block_drops_on_its_own() -> None:
    stack = nnx.Stack(lambda rngs: nnx.Dropout(0.5, rngs=rngs), N, rngs=nnx.Rngs(0))
    ones = jnp.ones((50, 50))
    kept = [np.asarray(block(ones)) > 0 for block in stack]
    assert not any((kept[i] == kept[j]).all() for i in range(N) for j in range(i))
    together = stack(ones)  # kept where every block keeps, times 2³
    np.testing.assert_array_equal(together, np.where(np.all(kept, axis=0), 8.0, 0.0))


def test_gradients_are_those_of_the_list() -> None:
    blocks = blocks_of()
    stack = nnx.Stack.from_list(blocks)
    got = nnx.jit(nnx.grad(lambda s: (s(X) ** 2).sum()))(stack)
    expected = nnx.jit(nnx.grad(lambda bs: (in_turn(bs, X) ** 2).sum()))(blocks)
    for path in (("linear", "kernel"), ("linear", "bias"), ("norm", "scale")):
        together = got["blocks"][path[0]][path[1]].value
        for i in range(N):
            # Sums of 32 float32 terms of size up to 10, in another order.
            np.testing.assert_allclose(
                together[i], expected[i][path[0]][path[1]].value, rtol=1e-4, atol=1e-4
            )
    assert_same_state(stack, blocks)  # statistics, counters and streams moved too


def test_blocks_are_made_with_the_parts_of_a_fork() -> None:
    stack = nnx.Stack(Block, N, rngs=nnx.Rngs(0, dropout=1))
    streams = nnx.Rngs(0, dropout=1).fork(splits=N)
    graphdef, state = nnx.split(streams)
    blocks = [
        Block(nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state))) for i in range(N)
    ]
    assert_same_state(stack, blocks)
    kernels = stack.blocks.linear.kernel.value
    assert not (kernels[0] == kernels[1]).any()


@pytest.mark.parametrize(
    "make_block",
    [Plain, lambda rngs: Plain(rngs), lambda r: Plain(rngs=r), lambda *, rngs: Plain(rngs)],
)
def test_ways_to_make_a_block(make_block: Callable) -> None:
    stack = nnx.Stack(make_block, 2, rngs=nnx.Rngs(3))
    expected = nnx.Stack(Plain, 2, rngs=nnx.Rngs(3))
    assert (stack.blocks.linear.kernel.value == expected.blocks.linear.kernel.value).all()


def test_blocks_without_randomness_and_what_is_no_block() -> None:
    stack = nnx.Stack(lambda: nnx.PReLU(), 2)
    np.testing.assert_allclose(stack(jnp.array([-1.0, 2.0])), [-1e-4, 2.0], rtol=1e-6)
    with pytest.raises(TypeError, match="make_block returned"):
        nnx.Stack(lambda rngs: rngs.normal((2,)), 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="n=-1"):
        nnx.Stack(Plain, -1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"make_block is Plain, but(.|\n)*Stack\.from_list"):
        nnx.Stack(Plain(nnx.Rngs(0)), 2, rngs=nnx.Rngs(0))  # type: ignore
    with pytest.raises(TypeError, match="remat='yes', but"):
        nnx.Stack(Plain, 2, rngs=nnx.Rngs(0), remat="yes")  # type: ignore


# -- in transforms -------------------------------------------------------------------------------


def test_in_jit_with_an_optimizer() -> None:
    model = nnx.Sequential(*blocks_of())
    stack = nnx.Stack.from_list(model.layers)

    def train(model: Any, run: Callable) -> float:
        optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: nnx.Optimizer) -> jax.Array:
            loss, grads = nnx.value_and_grad(lambda m: (run(m, X) ** 2).mean())(model)
            optimizer.update(model, grads)
            return loss

        with nnx.assert_max_traces(1):
            losses = [step(model, optimizer) for _ in range(3)]
        return float(losses[-1])

    last = train(model, lambda m, x: m(x))
    assert train(stack, lambda m, x: m(x)) == pytest.approx(last, rel=1e-5)
    assert_same_state(stack, model.layers)


def test_vmap_and_forward_mode() -> None:
    blocks = blocks_of(Plain)
    stack = nnx.Stack.from_list(blocks)
    xs = jnp.stack([X, 2 * X])
    mapped = nnx.vmap(lambda s, x: s(x), in_axes=(None, 0))(stack, xs)
    np.testing.assert_allclose(mapped[1], in_turn(blocks, 2 * X), rtol=1e-5, atol=1e-5)
    ensemble = nnx.vmap(lambda rngs: nnx.Stack(Plain, N, rngs=rngs))(nnx.Rngs(0).fork(splits=2))
    assert ensemble.blocks.linear.kernel.shape == (2, N, 8, 8) and ensemble.n == N
    outputs = nnx.vmap(lambda s, x: s(x), in_axes=(0, None))(ensemble, X)
    assert outputs.shape == (2, 4, 8)
    tangent = jax.jvp(stack, (X,), (jnp.ones_like(X),))[1]
    expected = jax.jvp(lambda x: in_turn(blocks, x), (X,), (jnp.ones_like(X),))[1]
    np.testing.assert_allclose(tangent, expected, rtol=1e-5, atol=1e-5)


def test_a_second_call_compiles_nothing() -> None:
    stack = nnx.Stack(Plain, N, rngs=nnx.Rngs(0), remat=True)
    drop = nnx.Stack(lambda rngs: nnx.Dropout(0.5, rngs=rngs), N, rngs=nnx.Rngs(0))
    shift, rngs = jnp.ones(8), nnx.Rngs(1)
    stack(X, shift, scale=2.0)
    drop(X, rngs=rngs)
    with pytest.MonkeyPatch.context() as patch:
        # The blocks' own code, which a trace runs; while jax.lax.scan is replaced, all is traced.
        patch.setattr(Plain, "__call__", _forbidden)
        patch.setattr(nnx.Dropout, "__call__", _forbidden)
        stack(X, shift, scale=2.0)
        drop(X, rngs=rngs)
        nnx.Stack(Plain, N, rngs=nnx.Rngs(5), remat=True)(X, shift, scale=2.0)
        with pytest.raises(AssertionError, match="traced again"):
            stack(X, shift, scale=3.0)


def test_a_function_that_reads_objects_is_read_at_each_call() -> None:
    class Apply(nnx.Module):
        def __call__(self, x: Any, function: Callable) -> Any:
            return function(x)

    factor = nnx.Variable(jnp.array(2.0))
    stack = nnx.Stack(Apply, N)
    assert float(stack(1.0, lambda x: x * factor)) == 8.0
    factor.value = jnp.array(3.0)
    assert float(stack(1.0, lambda x: x * factor)) == 27.0
    assert float(stack(1.0, jnp.negative)) == -1.0


def _forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("traced again")


def test_one_block_is_in_the_program() -> None:
    def products(n: int) -> int:
        stack = nnx.Stack(Plain, n, rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(stack)
        lowered = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x)).lower(state, X)
        return lowered.as_text().count("dot_general")

    assert products(2) == products(12) == 1


def test_stacks_of_stacks() -> None:
    def inner(rngs: nnx.Rngs) -> nnx.Stack:
        return nnx.Stack(Counting, 2, rngs=rngs)

    stack = nnx.Stack(inner, N, rngs=nnx.Rngs(0))
    assert stack.blocks.blocks.linear.kernel.shape == (N, 2, 8, 8)
    blocks = [block for part in stack for block in part]
    assert len(blocks) == 2 * N
    np.testing.assert_allclose(stack(X), in_turn(blocks, X), rtol=1e-5, atol=1e-5)
    for i, part in enumerate(stack):
        assert_same_state(part, blocks[2 * i : 2 * i + 2])
    again = nnx.Stack.from_list(stack.to_list())
    assert nnx.graphdef(again) == nnx.graphdef(stack)


@pytest.mark.parametrize(
    ("remat", "unroll"), [(True, 1), (jax.checkpoint_policies.dots_saveable, 1), (True, True)]
)
def test_remat_changes_memory_and_nothing_else(remat: Any, unroll: Any) -> None:
    class Deep(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(8, 8, rngs=rngs)
            self.calls = nnx.Variable(jnp.array(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.calls.value += 1
            for _ in range(4):
                x = jnp.tanh(self.linear(jnp.sin(x)))
            return x

    x = jax.random.normal(jax.random.key(1), (256, 8))

    def gradients(remat: Any) -> tuple[Any, int]:
        stack = nnx.Stack(Deep, 4, rngs=nnx.Rngs(0), remat=remat, unroll=unroll)
        graphdef, params, rest = nnx.split(stack, nnx.Param, ...)

        @jax.jit
        @partial(jax.value_and_grad, has_aux=True)
        def grad(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            stack = nnx.merge(graphdef, params, rest)
            return (stack(x) ** 2).mean(), nnx.state(stack, nnx.Not(nnx.Param))

        compiled = grad.lower(params).compile()
        analysis: Any = compiled.memory_analysis()
        memory = analysis.temp_size_in_bytes
        return compiled(params), memory

    plain, memory = gradients(False)
    got, less = gradients(remat)
    # The same numbers, computed twice: float32 rounding of sums over 256.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), got, plain)
    assert got[0][1].blocks.calls.value.tolist() == [1] * 4
    if unroll is not True:
        assert less < 0.5 * memory if remat is True else less < memory


def test_train_and_eval_mode_through_remat() -> None:
    stack = nnx.Stack(Block, N, rngs=nnx.Rngs(0), remat=True)
    stack.eval()
    before = nnx.state(stack)
    nnx.jit(nnx.grad(lambda s: s(X).sum()))(stack)
    after = nnx.state(stack)
    assert (before.blocks.norm.mean.value == after.blocks.norm.mean.value).all()
    assert after.blocks.calls.value.tolist() == [1] * N


# -- what goes in and out ------------------------------------------------------------------------


def test_more_arguments_go_to_every_block() -> None:
    blocks = blocks_of(Plain)
    stack = nnx.Stack.from_list(blocks)
    shift = jnp.arange(8.0)
    for args, kwargs in [((shift,), {}), ((0.5,), {"scale": 2.0}), ((), {"scale": shift})]:
        got, expected = stack(X, *args, **kwargs), in_turn(blocks, X, *args, **kwargs)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_masks_flags_and_trees_as_arguments() -> None:
    class Switch(nnx.Module):
        def __call__(self, x: Any, options: Any, mask: Any = None, *, double: bool = False) -> Any:
            assert isinstance(double, bool) and options["name"] == "plus"
            y = x + options["by"]
            y = 2 * y if double else y
            return y if mask is None else jnp.where(mask, y, x)

    stack = nnx.Stack(Switch, 2)
    options = {"name": "plus", "by": jnp.array(1.0)}
    x, mask = jnp.zeros(2), jnp.array([True, False])
    assert stack(x, options).tolist() == [2.0, 2.0]
    assert stack(x, options, double=True).tolist() == [6.0, 6.0]
    assert stack(x, options, mask).tolist() == [2.0, 0.0]
    assert stack(x, options, mask=mask, double=True).tolist() == [6.0, 0.0]


def test_an_object_as_an_argument_goes_from_block_to_block() -> None:
    class Drop(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any, shared: nnx.Linear, rngs: nnx.Rngs) -> Any:
            return shared(self.dropout(x, rngs=rngs))

    blocks = blocks_of(Drop)
    stack = nnx.Stack.from_list(blocks)
    shared = nnx.Linear(8, 8, rngs=nnx.Rngs(1))
    rngs, same = nnx.Rngs(dropout=2), nnx.Rngs(dropout=2)
    expected = in_turn(blocks, X, shared, rngs=same)
    np.testing.assert_allclose(stack(X, shared, rngs=rngs), expected, rtol=1e-5, atol=1e-5)
    assert int(rngs.dropout.count.value) == int(same.dropout.count.value) == N
    got = nnx.jit(nnx.grad(lambda w, s: s(X, w, nnx.Rngs(2)).sum()))(shared, stack)
    expected = nnx.jit(nnx.grad(lambda w, bs: in_turn(bs, X, w, nnx.Rngs(2)).sum()))(shared, blocks)
    # Sums of float32 terms of size up to 30, in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-3), got, expected)


def test_arguments_per_block() -> None:
    class Scale(nnx.Module):
        def __call__(self, x: Any, factor: Any, *, shift: Any) -> Any:
            return x * factor + shift

    stack = nnx.Stack(Scale, N, per_block=(1, "shift"))
    factors, shifts = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 10.0, 100.0])
    assert float(stack(1.0, factors, shift=shifts)) == ((1 * 1 + 0) * 2 + 10) * 3 + 100
    tree = nnx.Stack(Scale, N, per_block=["factor"])
    assert float(tree(1.0, factor=factors, shift=1.0)) == ((1 * 1 + 1) * 2 + 1) * 3 + 1
    with pytest.raises(ValueError, match=r"argument 1 is float32\[4\].*the 3 blocks"):
        stack(1.0, jnp.ones(4), shift=shifts)
    with pytest.raises(ValueError, match=r"argument 'shift'\['a'\] is float32\[\]"):
        stack(1.0, factors, shift={"a": jnp.array(1.0)})


def test_side_outputs_are_stacked() -> None:
    class Both(Plain):
        def __call__(self, x: Any) -> Any:
            y = super().__call__(x)
            return y, {"mean": y.mean(), "y": y}

    blocks = blocks_of(Both)
    stack = nnx.Stack.from_list(blocks, outputs=True)
    x, outputs = stack(X)
    expected = X
    for i, block in enumerate(blocks):
        expected, side = block(expected)
        np.testing.assert_allclose(outputs["y"][i], side["y"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(outputs["mean"][i], side["mean"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)
    stack.outputs = False
    with pytest.raises(TypeError, match="outputs=True"):
        stack(X)
    with pytest.raises(TypeError, match="outputs=True, but the block returned float32"):
        nnx.Stack(Plain, 2, rngs=nnx.Rngs(0), outputs=True)(X)


def test_a_tree_is_carried() -> None:
    class Pair(nnx.Module):
        def __call__(self, carry: Any) -> Any:
            a, b = carry
            return a + b, a

    a, b = nnx.Stack(Pair, 6)((jnp.array(1), jnp.array(1)))  # Fibonacci
    assert (int(a), int(b)) == (21, 13)


def test_sown_intermediates_are_stacked() -> None:
    class Sowing(Plain):
        def __call__(self, x: Any) -> jax.Array:
            self.sow(nnx.Intermediate, "x", x)
            return super().__call__(x)

    blocks = blocks_of(Sowing)
    stack = nnx.Stack.from_list(blocks)
    stack(X)
    in_turn(blocks, X)
    (seen,) = nnx.pop(stack, nnx.Intermediate)["blocks"]["x"].value
    for i, block in enumerate(blocks):
        np.testing.assert_allclose(seen[i], block.x.value[0], rtol=1e-5, atol=1e-5)
    assert not hasattr(stack.blocks, "x")


def test_caches_of_attention() -> None:
    class Decoder(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

        def __call__(self, x: Any, mask: Any = None) -> jax.Array:
            return x + self.attention(x, mask=mask)

    stack = nnx.Stack(Decoder, N, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    whole = stack(x, nnx.make_causal_mask(x[..., 0]))
    stack.set_attributes(decode=True)
    view = nnx.view(stack, batch_size=2, max_length=5)
    for make_caches in (
        lambda: stack.vmap(lambda block: block.attention.init_cache((2, 5, 8))),
        lambda: stack.blocks.attention.init_cache((2, 5, 8)),
        lambda: setattr(stack, "blocks", view.blocks),
    ):
        make_caches()
        assert stack.blocks.attention.cached_key.shape == (N, 2, 5, 2, 4)
        steps = [stack(x[:, i : i + 1]) for i in range(5)]
        # The softmax is over the same numbers in another order.
        np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, rtol=1e-4, atol=1e-5)
        assert stack.blocks.attention.cache_index.value.tolist() == [5] * N


def test_a_block_must_return_the_form_that_it_got() -> None:
    class Wider(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return jnp.concatenate([x, x], -1)

    with pytest.raises(ValueError, match=r"must keep its form"):
        nnx.Stack(Wider, 2)(X)


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(n: int) -> None:
    stack = nnx.Stack(Counting, n, rngs=nnx.Rngs(0))
    blocks = stack.to_list()
    assert len(stack) == len(blocks) == n
    assert stack.blocks.linear.kernel.shape == (n, 8, 8)
    np.testing.assert_allclose(stack(X), in_turn(blocks, X), rtol=1e-5, atol=1e-5)
    grads = nnx.jit(nnx.grad(lambda s: s(X).sum()))(stack)
    assert grads.blocks.linear.kernel.shape == (n, 8, 8)
    both = nnx.Stack(lambda r: Outputs(), n, rngs=nnx.Rngs(0), outputs=True)
    x, ys = both(X)
    assert (x == X).all() and ys.shape == (n, 4, 8)


class Outputs(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return x, x


# -- as a sequence -------------------------------------------------------------------------------


def test_indexing_slicing_and_iterating() -> None:
    blocks = blocks_of(Plain, 5)
    stack = nnx.Stack.from_list(blocks, remat=True, unroll=2)
    for i in (0, 4, -1, -5, np.int64(2)):
        assert nnx.graphdef(stack[i]) == nnx.graphdef(blocks[i])
        assert (stack[i].linear.kernel.value == blocks[i].linear.kernel.value).all()
    for part in (slice(1, 3), slice(None, None, -1), slice(3, 3), slice(-2, None)):
        short = stack[part]
        assert isinstance(short, nnx.Stack) and (short.remat, short.unroll) == (True, 2)
        assert_same_state(short, blocks[part], tolerance=0)
        np.testing.assert_allclose(short(X), in_turn(blocks[part], X), rtol=1e-5, atol=1e-5)
    assert [b.linear.kernel.shape for b in stack] == [(8, 8)] * 5
    assert_same_state(stack, blocks, tolerance=0)  # the parts were copies
    for i in (5, -6):
        with pytest.raises(IndexError, match="5 blocks"):
            stack[i]


def test_assigning_a_block() -> None:
    stack = nnx.Stack(Block, N, rngs=nnx.Rngs(0))
    kernel = stack.blocks.linear.kernel
    block = stack[1]
    block.linear.kernel *= 0
    stack[-1] = block
    assert stack.blocks.linear.kernel is kernel
    assert kernel.value[2].any() == False and kernel.value[1].all()  # noqa: E712
    keys = jax.random.key_data(stack.blocks.dropout.rngs.key.value)
    assert (keys[1] == keys[2]).all() and (keys[0] != keys[1]).any()
    block.dropout.rate = 0.1
    before = nnx.state(stack)
    with pytest.raises(ValueError, match=r"`block\.dropout\.rate`.*0\.5.*0\.1"):
        stack[0] = block
    block = stack[1]
    block.linear.bias.value = jnp.zeros(9)
    with pytest.raises(ValueError, match=r"`block\.linear\.bias`.*\[8\].*\[9\]"):
        stack[0] = block
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(*map(_data, (a, b))),
                 nnx.state(stack), before)  # fmt: skip


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_unequal_blocks_are_named() -> None:
    def changed(f: Callable[[Any], None]) -> list[Any]:
        blocks = blocks_of()
        f(blocks[2])
        return blocks

    for f, words in [
        (lambda b: setattr(b.dropout, "rate", 0.25), ["`block.dropout.rate`", "0.5", "0.25"]),
        (lambda b: b.eval(), ["`block.", "False", "True", "block 2"]),
        (lambda b: setattr(b, "extra", nnx.Param(X)), ["`block.extra`", "nothing", "Param"]),
        (lambda b: setattr(b, "linear", nnx.Identity()), ["`block.linear", "Identity"]),
        (lambda b: setattr(b.norm.mean, "value", X), ["`block.norm.mean`", "[8]", "[4,8]"]),
        (lambda b: setattr(b.norm.mean, "value", X[0].astype(jnp.float16)), ["float16"]),
    ]:
        with pytest.raises(ValueError) as info:
            nnx.Stack.from_list(changed(f))
        for word in [*words, "Cure: "]:
            assert word in str(info.value)
    with pytest.raises(ValueError, match="no block was given"):
        nnx.Stack.from_list([])


def test_what_blocks_share_is_named() -> None:
    first, second = blocks_of(n=2)
    second.linear.kernel = first.linear.kernel
    with pytest.raises(ValueError) as info:
        nnx.Stack.from_list([first, second])
    assert "`blocks[1].linear.kernel`" in str(info.value)
    assert "`blocks[0].linear.kernel`" in str(info.value)
    with pytest.raises(ValueError, match=r"blocks\[1\]"):
        nnx.Stack.from_list([first, first])
    with pytest.raises(ValueError, match=r"`calls` is a Variable from outside"):
        nnx.Stack(lambda: first, 2)


def test_sharing_inside_a_block_is_kept() -> None:
    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Linear(8, 8, rngs=rngs)
            self.second = nnx.Linear(8, 8, rngs=rngs)
            self.second.kernel = self.first.kernel
            self.table = (jnp.arange(8.0), [jnp.ones(8)])

        def __call__(self, x: Any) -> Any:
            return jnp.tanh(self.second(self.first(x)) + self.table[0] * self.table[1][0])

    blocks = blocks_of(Tied)
    for stack in (nnx.Stack.from_list(blocks), nnx.Stack(Tied, N, rngs=nnx.Rngs(0))):
        assert stack.blocks.first.kernel is stack.blocks.second.kernel
        block = stack[0]
        assert block.first.kernel is block.second.kernel
        assert stack.blocks.table[0].shape == (N, 8)
        expected = in_turn(stack.to_list(), X)
        np.testing.assert_allclose(stack(X), expected, rtol=1e-5, atol=1e-5)
        block.table = (jnp.zeros(8), [jnp.zeros(8)])
        stack[0] = block
        assert not stack.blocks.table[0][0].any() and not stack[0].table[1][0].any()
        assert stack[1].table[0].any()


# -- as a model ----------------------------------------------------------------------------------


def test_copies_pickles_and_names() -> None:
    stack = nnx.Stack(Block, N, rngs=nnx.Rngs(0), unroll=2)
    for other in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack)), nnx.clone(stack)):
        assert nnx.graphdef(other) == nnx.graphdef(stack)
        assert_same_state(other, stack.to_list(), tolerance=0)
    names = [name for name, _ in stack.named_parameters()]
    assert names == ["blocks.linear.bias", "blocks.linear.kernel", "blocks.norm.bias",
                     "blocks.norm.scale"]  # fmt: skip
    other = nnx.Stack(Block, N, rngs=nnx.Rngs(1), unroll=2)
    nnx.update(other, nnx.to_pure_dict(nnx.state(stack)))
    assert_same_state(other, stack.to_list(), tolerance=0)
    doubled = jax.tree.map(lambda x: x[:1], nnx.state(stack, nnx.Param))
    assert doubled.blocks.linear.kernel.shape == (1, 8, 8)


def test_plain_jax_sees_a_pytree() -> None:
    blocks = blocks_of(Plain)
    stack = nnx.Stack.from_list(blocks)
    got = jax.jit(lambda s, x: s(x))(stack, X)
    np.testing.assert_allclose(got, in_turn(blocks, X), rtol=1e-5, atol=1e-5)
    abstract = nnx.eval_shape(lambda: nnx.Stack(Plain, N, rngs=nnx.Rngs(0)))
    assert abstract.blocks.linear.kernel.shape == (N, 8, 8)


@pytest.mark.parametrize("name", [None, "layers"])
def test_the_leading_axis_has_its_name(name: str | None) -> None:
    class Annotated(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
            self.linear = nnx.Linear(8, 8, kernel_init=init, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            assert self.linear.kernel.out_sharding == ("in", "out")
            return self.linear(x)

    metadata = {nnx.PARTITION_NAME: name}
    made = nnx.Stack(Annotated, N, rngs=nnx.Rngs(0), transform_metadata=metadata)
    again = nnx.Stack.from_list(made.to_list(), transform_metadata=metadata)
    for stack in (made, again):
        stack(X)
        assert stack.blocks.linear.kernel.out_sharding == (name, "in", "out")
        assert stack[0].linear.kernel.out_sharding == ("in", "out")
        assert stack[1:].blocks.linear.kernel.out_sharding == (name, "in", "out")
        stack[0] = stack[1]
        assert stack.blocks.linear.kernel.out_sharding == (name, "in", "out")
    spec = nnx.get_partition_spec(nnx.state(made)).blocks.linear.kernel.value
    assert tuple(spec) == (name, "in", "out")


def test_indexing_inside_a_transform() -> None:
    stack = nnx.Stack(Plain, N, rngs=nnx.Rngs(0))
    expected = in_turn(stack.to_list()[1:], X)

    @nnx.jit
    def run(stack: nnx.Stack, x: jax.Array) -> jax.Array:
        y = stack[1:](x)
        block = stack[0]
        block.linear.kernel *= 0
        stack[2] = block
        return y

    np.testing.assert_allclose(run(stack, X), expected, rtol=1e-5, atol=1e-5)
    assert not stack.blocks.linear.kernel.value[2].any()


@pytest.mark.parametrize("kind", [Plain, Counting])
def test_a_device_runs_the_blocks_that_it_has(kind: Callable) -> None:
    blocks = nnx.Stack(kind, 8, rngs=nnx.Rngs(0))
    expected = np.stack([in_turn(blocks.to_list()[i : i + 2], X) for i in range(0, 8, 2)])
    mesh = jax.make_mesh((4,), ("stage",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec

    @nnx.shard_map(mesh=mesh, in_specs=(P("stage"), P()), out_specs=P("stage"))
    def run(blocks: nnx.Stack, x: jax.Array) -> jax.Array:
        return blocks(jax.lax.pcast(x, "stage", to="varying"))[None]

    np.testing.assert_allclose(run(blocks, X), expected, rtol=1e-5, atol=1e-5)
    assert len(blocks) == 8
    if kind is Counting:
        assert blocks.blocks.calls.value.tolist() == [1] * 8
