"""`while_loop` and `fori_loop` against JAX's own, with objects in what they carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Dense, Node
from tests.transforms.observing import Counted, assert_warm

pytestmark = pytest.mark.usefixtures("strict_numerics")


def make_node() -> Node:
    return Node(count=Count(jnp.array(0)), w=nnx.Param(jnp.ones(2)), mode="train")


def not_yet(value):
    return value[0].count < 3


def step(value):
    node, x = value
    node.count += 1
    return node, x + node.w


def indexed(i, value):
    node, x = value
    node.count += i
    return node, x * node.w


# -- values --------------------------------------------------------------------------------------


def test_while_loop_changes_the_callers_object():
    node, w = make_node(), None
    w = node.w
    returned, x = nnx.while_loop(not_yet, step, (node, jnp.zeros(2)))
    assert returned is node and node.w is w and int(node.count) == 3
    np.testing.assert_array_equal(x, [3, 3])


def test_fori_loop_changes_the_callers_object():
    node = make_node()
    returned, x = nnx.fori_loop(0, 4, indexed, (node, jnp.ones(2)))
    assert returned is node and int(node.count) == 6
    nnx.fori_loop(jnp.array(2), jnp.array(4), indexed, (node, jnp.ones(2)))
    nnx.fori_loop(0, jnp.array(2), indexed, (node, jnp.ones(2)), unroll=None)
    nnx.fori_loop(0, 4, indexed, (node, jnp.ones(2)), unroll=2)
    assert int(node.count) == 6 + 5 + 1 + 6
    assert nnx.fori_loop(3, 3, indexed, (node, jnp.ones(2)))[0] is node


@pytest.mark.parametrize("start", [0, 1.5, np.float32(1), jnp.ones(())], ids=repr)
def test_arrays_as_jax(start):
    with jax.numpy_dtype_promotion("standard"):
        for ours, theirs in [
            (nnx.while_loop, jax.lax.while_loop),
            (lambda cond, body, x: nnx.fori_loop(1, 4, lambda i, x: body(x) + i, x),
             lambda cond, body, x: jax.lax.fori_loop(1, 4, lambda i, x: body(x) + i, x)),
        ]:  # fmt: skip
            a, b = (f(lambda x: x < 9, lambda x: x + 1.5, start) for f in (ours, theirs))
            assert a == b and a.dtype == b.dtype


def test_an_object_in_two_places_is_one():
    node = make_node()

    def body(i, value):
        assert value["a"] is value["b"][0]
        value["a"].count += 1
        return value

    result = nnx.fori_loop(0, 3, body, {"a": node, "b": [node, None]})
    assert result["a"] is result["b"][0] is node and int(node.count) == 3


@pytest.mark.parametrize("outer", [nnx.jit, jax.jit, nnx.remat], ids=["nnx.jit", "jit", "remat"])
def test_inside_of_other_transforms(outer):
    node = make_node()

    def run(node, x):
        return nnx.while_loop(not_yet, step, (node, x))[1], node.count.value

    x, count = outer(run)(node, jnp.zeros(2))
    np.testing.assert_array_equal(x, [3, 3])
    assert int(count) == 3
    assert int(node.count) == (0 if outer is jax.jit else 3)


def test_inside_of_vmap_and_grad():
    stack = nnx.vmap(lambda count: Node(count=Count(count), w=nnx.Param(jnp.ones(2))))(
        jnp.arange(3)
    )
    run = nnx.vmap(lambda node: nnx.while_loop(not_yet, step, (node, jnp.zeros(2)))[1])
    np.testing.assert_array_equal(run(stack), [[3, 3], [2, 2], [1, 1]])
    assert stack.count.value.tolist() == [3, 3, 3]

    model = Dense(2, 2)
    body = lambda i, value: (value[0], value[0](value[1]))  # noqa: E731
    x = jnp.ones((1, 2))

    def loss(model):
        return nnx.fori_loop(0, 3, body, (model, x))[1].sum()

    def by_hand(w):
        return (x @ w @ w @ w).sum()

    grads = nnx.grad(loss)(model)
    np.testing.assert_allclose(grads.kernel.value, jax.grad(by_hand)(model.kernel.value), rtol=1e-5)


# -- called eagerly ------------------------------------------------------------------------------


def test_the_second_call_neither_traces_nor_compiles():
    cond, body, by_index = Counted(not_yet), Counted(step), Counted(indexed)
    node, x = make_node(), jnp.zeros(2)

    def go():
        node.count.value = zero
        nnx.while_loop(cond.function, body.function, (node, x))
        nnx.fori_loop(0, 4, by_index.function, (node, x))
        nnx.fori_loop(low, high, by_index.function, (node, x))

    zero, low, high = jnp.array(0), jnp.array(1), jnp.array(2)
    assert_warm(go, cond, body, by_index)


class Holder:
    """An object that refax knows nothing of."""

    def __init__(self, variable):
        self.variable = variable


def test_closures_see_the_current_values():
    limit, holder = nnx.Variable(jnp.array(3.0)), Holder(nnx.Variable(jnp.array(1.0)))

    def below(x):
        return x < limit

    def add(x, by=holder):
        return x + by.variable

    for value, expected in [(3.0, 3.0), (5.0, 6.0)]:
        limit.value = jnp.array(value)
        assert float(nnx.while_loop(below, add, jnp.zeros(()))) == expected
        holder.variable.value = jnp.array(2.0)
    assert float(nnx.fori_loop(0, 2, lambda i, x: add(x), jnp.zeros(()))) == 4.0
    holder.variable.value = jnp.array(3.0)
    assert float(nnx.fori_loop(0, 2, lambda i, x: add(x), jnp.zeros(()))) == 6.0


# -- what cannot be ------------------------------------------------------------------------------


def test_writing_to_a_closure():
    outer = nnx.Variable(jnp.zeros(()))

    def write(x):
        outer.value = outer + x
        return x

    for call in (
        lambda: nnx.while_loop(lambda x: x < 3, write, jnp.ones(())),
        lambda: nnx.while_loop(lambda x: write(x) < 3, lambda x: x + 1, jnp.ones(())),
        lambda: nnx.fori_loop(0, 3, lambda i, x: write(x), jnp.ones(())),
    ):
        with pytest.raises(nnx.TraceContextError, match="argument"):
            call()
        assert float(outer) == 0


def new_attribute(node):
    node.new = nnx.Param(jnp.ones(2))
    return node


def other_shape(node):
    node.w.value = jnp.ones(3)
    return node


def other_mode(node):
    node.mode = "eval"
    return node


@pytest.mark.parametrize(
    "body, message",
    [
        (new_attribute, r"`node\.new` is new"),
        (other_shape, r"`node\.w` was float32\[2\] and becomes float32\[3\]"),
        (other_mode, r"`node\.mode` was 'train' and becomes 'eval'"),
        (lambda node: make_node(), r"`carry` is another object"),
        (lambda node: None, r"`carry` was Node and becomes None"),
    ],
)
def test_a_body_that_changes_the_form(body, message):
    node = make_node()
    before = vars(node).copy()
    with pytest.raises(nnx.GraphError, match="while_loop: (.|\n)*" + message):
        nnx.while_loop(lambda node: node.count < 3, body, node)
    with pytest.raises(nnx.GraphError, match="fori_loop: (.|\n)*" + message):
        nnx.fori_loop(0, 3, lambda i, node: body(node), node)
    assert vars(node) == before and node.w.shape == (2,)


def test_a_condition_that_changes_an_object():
    node = make_node()

    def cond(node):
        node.count += 1
        return node.count < 3

    with pytest.raises(nnx.GraphError, match=r"cond_fun changes `node\.count`(.|\n)*body_fun"):
        nnx.while_loop(cond, lambda node: node, node)
    assert int(node.count) == 0
