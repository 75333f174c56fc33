"""`cond` and `switch`: one of the branches runs; all of them leave one structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from refax.nnx import Carry
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
    assert int(model.count) == 2 and counted.runs == 1


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


def nested(depth, count, branch):
    """`branch` below `depth` conditionals; `count(level)` notes each run of a branch's Python."""
    if depth == 0:
        return branch

    def inner(which):
        def f(model, x):
            count((depth, which))
            return nested(depth - 1, count, branch)(model, x + which)

        return f

    return lambda model, x: nnx.cond(x.sum() > 100 * depth, inner(0.0), inner(1.0), model, x)


@pytest.mark.parametrize("outer", ["eager", "jit", "grad", "scan", "remat", "vmap", "while_loop"])
def test_a_branch_is_traced_once_at_any_depth(outer):
    runs = []
    model = Stateful(2)
    f = nested(4, runs.append, run)
    state = nnx.StateAxes({...: Carry})
    each = {
        "eager": f,
        "jit": nnx.jit(f),
        "grad": nnx.grad(lambda m, x: f(m, x).sum()),
        "scan": lambda m, x: nnx.scan(f, in_axes=(state, 0), out_axes=0)(m, x[None]),
        "remat": nnx.remat(f),
        "vmap": lambda m, x: nnx.vmap(f, in_axes=(None, None), axis_size=2)(m, x),
        "while_loop": lambda m, x: nnx.while_loop(
            lambda v: v[0].count < 1, lambda v: (v[0], f(*v)), (m, x)
        ),
    }[outer]
    each(model, X)
    # Two branches of each conditional, which stands in both branches of the one around it.
    assert len(runs) == sum(2**level for level in range(1, 5))
    assert int(model.count) == 1


def test_a_chain_of_conditionals_is_traced_once_at_each_depth():
    """As nested as it comes in practice: the other branch has no conditional in it."""
    traces, depth = [], 7

    def level(n, model, x):
        traces.append(n)
        if n == depth:
            return run(model, x)
        return nnx.cond(x.sum() > 0, lambda m, x: level(n + 1, m, x), skip, model, x)

    model, twin = Stateful(2), Stateful(2)
    y = nnx.jit(lambda m, x: level(0, m, x))(model, X)
    assert traces == list(range(depth + 1))
    np.testing.assert_allclose(y, run(twin, X))
    assert int(model.count) == 1
    assert not any(grads.any() for grads in jax.tree.leaves(
        nnx.grad(lambda m, x: level(0, m, x).sum())(model, -X).scale))  # fmt: skip


BODIES = {
    "a literal": lambda x: 1.0,
    "an int": lambda x: 3,
    "the input": lambda x: x,
    "weak arithmetic": lambda x: x * 2.0,
    "an array": lambda x: jnp.ones(()),
    "where": lambda x: jnp.where(x > 0, 1.0, 2.0),
    "a compiled literal": lambda x: jax.jit(lambda x: 2.0)(x),
    "a scan": lambda x: jax.lax.scan(lambda c, _: (c * 2.0, None), x, length=2)[0],
}


@pytest.mark.parametrize("x", [2.0, jnp.ones(())], ids=["weak", "strong"])
def test_types_are_those_of_jax(x):
    """Weak types too: they decide how a result promotes later."""
    with jax.numpy_dtype_promotion("standard"):
        for name, first in BODIES.items():
            for second in BODIES.values():
                try:
                    theirs = jax.eval_shape(lambda x, f=first, g=second:
                                            jax.lax.cond(x > 0, f, g, x), x)  # fmt: skip
                except TypeError:
                    with pytest.raises(nnx.GraphError, match="leave different values"):
                        nnx.cond(x > 0, first, second, x)
                    continue
                ours = jax.eval_shape(lambda x, f=first, g=second: nnx.cond(x > 0, f, g, x), x)
                assert (ours.dtype, ours.weak_type) == (theirs.dtype, theirs.weak_type), name


def test_effects_happen_once_and_in_order():
    seen = []

    def says(word):
        def f(model, x):
            jax.debug.callback(lambda x: seen.append((word, float(x))), x.sum(), ordered=True)
            return model(x)

        return f

    def both(model, x):
        x = nnx.cond(x.sum() > 0, says("first"), says("never"), model, x)
        return nnx.switch(1, [says("never"), says("second")], model, x)

    for f in (both, nnx.jit(both)):
        seen.clear()
        f(Stateful(2), X)
        jax.effects_barrier()
        assert [word for word, _ in seen] == ["first", "second"]


def test_branches_read_outer_values_at_every_level():
    """What a branch closes over may be traced by any transform around it."""
    model, pred = Stateful(2), jnp.array(True)

    def inner(model, x, y):
        return nnx.cond(pred, lambda m, x: nnx.cond(pred, lambda m, x: m(x) * y, skip, m, x),
                        skip, model, x).sum()  # fmt: skip

    expected = jax.grad(lambda y: (0.5 * X * y).sum())(3.0)
    np.testing.assert_allclose(nnx.grad(inner, argnums=2)(model, X, 3.0), expected)
    many = nnx.vmap(nnx.grad(inner, argnums=2), in_axes=(nnx.StateAxes({...: 0}), None, 0))
    models = nnx.vmap(lambda _: Stateful(2))(jnp.arange(2))
    np.testing.assert_allclose(many(models, X, jnp.arange(2.0)), [expected] * 2)
    (y,), _ = jax.jvp(lambda y: (nnx.jit(inner)(Stateful(2), X, y),), (3.0,), (1.0,))
    np.testing.assert_allclose(y, (0.5 * X * 3).sum())


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
