"""`cond` and `switch`: one of the branches runs; all of them leave one structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Dense, Node, Stateful
from tests.transforms.observing import Counted, assert_warm

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.ones((3, 2))


def run(model, x):
    return model(x)


def skip(model, x):
    return x


def double(model, x):
    model.scale.value = model.scale * 2.0
    return x * model.scale[None]


BRANCHES = [run, skip, double]


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pred", [True, False, jnp.array(True), np.array(False), nnx.Variable(True)]
)
def test_one_branch_runs(pred):
    model, twin = Stateful(2), Stateful(2)
    y = nnx.cond(pred, run, skip, model, X)
    expected = run(twin, X) if bool(pred) else skip(twin, X)
    np.testing.assert_allclose(y, expected)
    assert int(model.count) == int(twin.count)
    np.testing.assert_allclose(model.mean.value, twin.mean.value)


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 5])
def test_switch_clamps_the_index(index):
    model, twin = Stateful(2), Stateful(2)
    y = nnx.switch(index, BRANCHES, model, X)
    np.testing.assert_allclose(y, BRANCHES[min(max(index, 0), 2)](twin, X))
    np.testing.assert_allclose(model.scale.value, twin.scale.value)
    assert nnx.switch(jnp.array(0), [run], model, X).shape == (3, 2)


def test_arrays_as_jax():
    branches = (lambda x: (x, {"a": x * 2}), lambda x: (x + 1, {"a": x}))
    for pred in (True, False):
        ours, theirs = (f(pred, *branches, jnp.ones(2)) for f in (nnx.cond, jax.lax.cond))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert float(nnx.cond(True, jnp.sin, jnp.cos, operand=0.0)) == 0
    assert float(nnx.switch(1, [jnp.sin, jnp.cos], operand=0.0)) == 1
    with jax.numpy_dtype_promotion("standard"):
        weak = nnx.cond(True, lambda x: x * 1.0, lambda x: x * jnp.ones(()), 2)
    assert weak.dtype == jnp.float32


def test_structure_may_change_if_every_branch_changes_it_so():
    node = Node(w=nnx.Param(jnp.ones(2)), items=[])

    def branch(factor):
        def f(node):
            node.new = nnx.Param(node.w * factor)
            node.alias = node.w
            node.items.append(3)
            return node.w, Node(made=Count(jnp.array(factor)))

        return f

    kept, made = nnx.cond(False, branch(1.0), branch(2.0), node)
    assert kept is node.w is node.alias and node.items == [3]
    np.testing.assert_array_equal(node.new.value, [2, 2])
    assert float(made.made) == 2


def test_an_object_in_two_operands_is_one():
    node = Node(w=nnx.Param(jnp.ones(2)))

    def both(a, b):
        assert a is b["x"]
        a.w.value = a.w + 1.0
        return b

    assert nnx.cond(True, both, lambda a, b: b, node, {"x": node})["x"] is node
    np.testing.assert_array_equal(node.w.value, [2, 2])


# -- nested --------------------------------------------------------------------------------------


def test_inside_of_jit():
    model, counted = Stateful(2), Counted(run)

    @nnx.jit
    def step(model, x, pred):
        return nnx.cond(pred, counted.function, skip, model, x)

    for pred in (True, False, True):
        step(model, X, jnp.array(pred))
    assert int(model.count) == 2 and counted.runs <= 2  # once to look, once to trace


def test_inside_of_vmap():
    models = nnx.vmap(lambda _: Stateful(2))(jnp.arange(4))
    preds = jnp.array([True, False, True, False])
    nnx.vmap(lambda m, pred: nnx.cond(pred, run, skip, m, X))(models, preds)
    assert models.count.value.tolist() == [1, 0, 1, 0]
    one = Stateful(2)
    with pytest.raises(nnx.GraphError, match=r"`m\.mean` is written inside vmap"):
        nnx.vmap(lambda m, pred: nnx.cond(pred, run, skip, m, X), in_axes=(None, 0))(one, preds)


@pytest.mark.parametrize("pred", [True, False])
def test_inside_of_grad(pred):
    model = Stateful(2)
    model.scale.value = jnp.array([1.0, 2.0])

    def loss(model, x):
        return nnx.cond(pred, run, double, model, x).sum()

    def by_hand(scale):
        mean = 0.5 * X.mean(0)
        return ((X - mean[None]) * scale[None] if pred else X * (2 * scale)[None]).sum()

    scale = model.scale.value
    grads = nnx.grad(loss)(model, X)
    np.testing.assert_allclose(grads.scale.value, jax.grad(by_hand)(scale), rtol=1e-6)
    assert int(model.count) == int(pred)


# -- called eagerly ------------------------------------------------------------------------------


def test_the_second_call_neither_traces_nor_compiles():
    model = Stateful(2)
    counted = [Counted(f) for f in BRANCHES]
    first, second, third = (c.function for c in counted)
    pred = jnp.array(True)

    def go():
        nnx.cond(True, first, second, model, X)
        nnx.cond(pred, first, second, model, X)
        nnx.switch(2, [first, second, third], model, X)

    assert_warm(go, *counted)


def test_closures_see_the_current_values():
    outer, settings = nnx.Variable(jnp.array(1.0)), {"models": [Dense(1, 1)]}

    def reads(x):
        return x * outer

    def reads_deep(x):
        return x * settings["models"][0].kernel[0, 0]

    for value in (1.0, 2.0, 3.0):
        outer.value = jnp.array(value)
        settings["models"][0].kernel.value = jnp.full((1, 1), value)
        assert float(nnx.cond(True, reads, reads_deep, 1.0)) == value
        assert float(nnx.cond(False, reads, reads_deep, 1.0)) == value
        assert float(nnx.switch(1, [reads, reads_deep], 1.0)) == value


def test_writing_to_a_closure():
    outer = nnx.Variable(jnp.array(1.0))

    def writes(x):
        outer.value = outer + x
        return x

    for call in (
        lambda: nnx.cond(True, writes, lambda x: x, 1.0),
        lambda: nnx.cond(True, lambda x: x, writes, 1.0),
        lambda: nnx.switch(0, [writes, writes], 1.0),
    ):
        with pytest.raises(
            nnx.TraceContextError, match="`test_writing_to_a_closure.<locals>.writes`"
        ):
            call()
        assert float(outer) == 1


# -- branches that leave different things --------------------------------------------------------


def adds(model, x):
    model.new = nnx.Param(x)
    return x


def sets_mode(model, x):
    model.deterministic = True
    return x


def aliases(model, x):
    model.alias = model.scale
    return x


def aliases_other(model, x):
    model.alias = model.mean
    return x


def replaces(model, x):
    model.scale = nnx.Param(jnp.ones(2))
    return x


def widens(model, x):
    model.mean.value = jnp.ones(3)
    return x


def annotates(model, x):
    model.scale.set_metadata(tag="new")
    return x


@pytest.mark.parametrize(
    "first, second, message",
    [
        (adds, skip, "`model.new` is a new Param after `adds`, but nothing after `skip`"),
        (skip, adds, "`model.new` is nothing after `skip`, but a new Param after `adds`"),
        (sets_mode, skip, "`model.deterministic` is True after `sets_mode`, but False after"),
        (aliases, aliases_other, "`model.alias` is `model.scale` after `aliases`, but `model.mean"),
        (replaces, skip, "`model.scale` is a new Param after `replaces`, but Param after `skip`"),
        (annotates, skip, "`model.scale.tag` is 'new' after `annotates`, but nothing after"),
        (widens, skip, "`model.mean` is float32[3] after `widens`, but float32[2] after `skip`"),
        (lambda model, x: model, lambda model, x: Node(),
         "`result` is `model` after the first branch, but a new Node after the other"),
        (lambda model, x: Dense(2, 2), lambda model, x: Dense(2, 3),
         "`result.outputs` is 2 after the first branch, but 3 after the other"),
        (skip, lambda model, x: (x, x), "`result` is float32[3,2] after `skip`, but (float32["),
        (skip, lambda model, x: x[:1], "`result` is float32[3,2] after `skip`, but float32[1,2]"),
        (lambda model, x: {"a": x}, lambda model, x: {"a": x[0]},
         "`result` is {'a': float32[3,2]} after the first branch, but {'a': float32[2]}"),
    ],
)  # fmt: skip
def test_the_place_and_both_sides_are_named(first, second, message):
    for call in (
        lambda model: nnx.cond(True, first, second, model, X),
        lambda model: nnx.switch(0, [first, second], model, X),
        lambda model: nnx.jit(lambda model, x: nnx.cond(True, first, second, model, x))(model, X),
    ):
        model = Stateful(2)
        content = vars(model).copy()
        with pytest.raises(nnx.GraphError, match="different") as error:
            call(model)
        parts = message.split(" after ")
        assert all(part in str(error.value) for part in (message, *parts[:1])), str(error.value)
        assert vars(model) == content and model.mean.shape == (2,)


def test_no_branches():
    with pytest.raises(ValueError, match="no branches"):
        nnx.switch(0, [], Stateful(2))
