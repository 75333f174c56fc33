"""Plans: after any change a plan says what a new walk would say; they hold nothing alive."""

import gc
import threading
import weakref
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refax import nnx
from refax.graph.plan import plan_for
from tests import strategies as graphs
from tests.models import Block, Dense, Node, Pair, Stateful

pytestmark = pytest.mark.usefixtures("strict_numerics", "checked_plans")


@pytest.fixture(scope="module")
def checked_plans() -> Iterator[None]:
    """Walk again at every use of a plan and assert that the plan was right."""
    before = nnx.check_plans(True)
    yield
    nnx.check_plans(before)


# -- what keeps a plan and what ends it ----------------------------------------------------------


def rich() -> Node:
    return Node(
        w=nnx.Param(jnp.ones(2), tag="a"),
        x=jnp.ones(2),
        n=3,
        rate=0.0,
        items=[Dense(1, 1), 5],
        parts={"a": nnx.Param(jnp.ones(())), "b": [jnp.ones(1)]},
        pair=Pair(Stateful(), jnp.ones(2)),
        child=Node(text="t"),
        part=graphs.Registered(nnx.Param(jnp.ones(())), jnp.ones(())),
    )


KEEPS = {
    "value": lambda m: setattr(m.w, "value", jnp.zeros(2)),
    "value of another shape": lambda m: setattr(m.w, "value", jnp.zeros(5)),
    "value in place": lambda m: m.w.__iadd__(1.0),
    "array for array": lambda m: setattr(m, "x", jnp.zeros(3)),
    "the same object": lambda m: setattr(m, "child", m.child),
    "an equal static": lambda m: setattr(m, "n", int("3")),
    "an equal text": lambda m: setattr(m.child, "text", "".join(["t"])),
    "the same metadata": lambda m: setattr(m.w, "tag", "a"),
    "update": lambda m: nnx.update(m, jax.tree.map(lambda x: x, nnx.state(m))),
    "reading": lambda m: (repr(m), list(nnx.iter_graph(m)), nnx.split(m), m.w + 1),
}

ENDS = {
    "new attribute": lambda m: setattr(m, "new", 1),
    "new attribute below": lambda m: setattr(m.child, "new", 1),
    "no attribute": lambda m: delattr(m, "n"),
    "another static": lambda m: setattr(m, "n", 4),
    "True for 1": lambda m: (setattr(m, "n", 1), plan_for((m,)), setattr(m, "n", True))[0],
    "-0.0 for 0.0": lambda m: setattr(m, "rate", -0.0),
    "another Variable": lambda m: setattr(m, "w", nnx.Param(jnp.ones(2), tag="a")),
    "Variable for array": lambda m: setattr(m, "x", nnx.Param(m.x)),
    "array for Variable": lambda m: setattr(m, "w", m.w.value),
    "another node": lambda m: setattr(m, "child", Node(text="t")),
    "metadata": lambda m: setattr(m.w, "tag", "b"),
    "new metadata": lambda m: setattr(m.w, "note", "b"),
    "no metadata": lambda m: delattr(m.w, "tag"),
    "append": lambda m: m.items.append(1),
    "pop": lambda m: m.items.pop(),
    "swap": lambda m: m.items.reverse(),
    "item": lambda m: m.items.__setitem__(1, 6),
    "node for node in a list": lambda m: m.items.__setitem__(0, Dense(1, 1)),
    "entry": lambda m: m.parts.update(c=1),
    "reordered": lambda m: m.parts.update(a=m.parts.pop("a")),
    "list in a dict": lambda m: m.parts["b"].append(1),
    "tuple": lambda m: setattr(m, "pair", Pair(m.pair.first, 1)),
    "node in a tuple": lambda m: m.pair.first.eval(),
    "share": lambda m: setattr(m.child, "w", m.w),
    "mark": lambda m: setattr(m, "rate", nnx.data(0.0)),
    "part": lambda m: setattr(m.part, "right", 1),
    "cleared list": lambda m: m.items.clear(),
    "extended list": lambda m: m.items.__iadd__([1, 2]),
    "cleared dict": lambda m: m.parts.clear(),
}


@pytest.mark.parametrize("change", KEEPS)
def test_what_keeps_a_plan(change):
    model = rich()
    plan = plan_for((model,))
    KEEPS[change](model)
    assert plan_for((model,)) is plan


@pytest.mark.parametrize("change", ENDS)
def test_what_ends_a_plan(change):
    model = rich()
    plan_for((model,))
    f = nnx.jit(lambda m: graphs.total(m))
    f(model)
    ENDS[change](model)
    assert graphs.difference(model, nnx.clone(model)) == ""
    np.testing.assert_allclose(f(model), graphs.total(model), rtol=1e-5)


def test_a_plan_over_several_roots():
    a, b = Dense(1, 1), Node(items=[])
    plan = plan_for((a, b))
    assert plan_for((a, b)) is plan
    assert plan_for((b, a)) is not plan
    assert plan_for((a,)) is not plan
    b.items.append(a.kernel)
    changed = plan_for((a, b))
    assert changed is not plan and not plan.valid
    assert plan_for((a, b)) is changed
    a.kernel.tag = "x"
    assert not changed.valid


def test_eval_and_train_come_back_to_equal_graphdefs():
    model = Block()
    train = nnx.graphdef(model)
    model.eval()
    assert nnx.graphdef(model) != train
    model.train()
    assert nnx.graphdef(model) is train


@given(root=graphs.graphs, changes=st.lists(graphs.changes, min_size=1, max_size=8))
def test_a_plan_is_right_after_any_change(root, changes):
    """`checked_plans` compares each plan with a new walk."""
    for change in changes:
        nnx.graphdef(root)
        graphs.apply(root, change)
        assert graphs.difference(root, nnx.merge(*nnx.split(root))) == ""


@given(
    roots=st.lists(graphs.graphs, min_size=2, max_size=3),
    changes=st.lists(st.tuples(st.integers(0, 2), graphs.changes), min_size=1, max_size=6),
)
def test_plans_over_several_roots_are_right_after_any_change(roots, changes):
    for number, change in changes:
        plan_for(tuple(roots))
        graphs.apply(roots[number % len(roots)], change)
        roots[0].other = roots[-1]
        plan_for(tuple(roots))


@given(root=graphs.graphs, changes=st.lists(graphs.traced_changes, min_size=1, max_size=4))
def test_jit_computes_on_the_current_structure(root, changes):
    f = nnx.jit(lambda m: graphs.total(m))
    for change in changes:
        np.testing.assert_allclose(f(root), graphs.total(root), rtol=1e-4, atol=1e-4)
        graphs.apply(root, change)
    np.testing.assert_allclose(f(root), graphs.total(root), rtol=1e-4, atol=1e-4)


# -- memory --------------------------------------------------------------------------------------


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def use(model) -> None:
    """Put every kind of plan on a model."""
    x = jnp.ones((3, 2))
    step = nnx.jit(lambda m, x: m(x).sum())
    step(model, x)
    step(model, x)
    nnx.value_and_grad(lambda m, x: m(x).sum())(model, x)
    nnx.update(model, nnx.split(model)[1])
    jax.tree.map(lambda x: x, model)
    nnx.clone(model).eval()


def test_a_model_dies_by_its_reference_count(no_gc):
    model = Block()
    use(model)
    refs = [weakref.ref(x) for x in (model, model.layers[0], model.tied, model.parts["norm"].mean)]
    array = weakref.ref(model.tied.value)
    del model
    assert [r() for r in refs] == [None] * 4
    assert array() is None


def test_a_model_dies_though_the_function_lives_on(no_gc):
    step = nnx.jit(lambda m, other, x: m(x).sum() + other(x).sum())
    keeps = Block()
    model = Block()
    for _ in range(2):
        step(keeps, model, jnp.ones((3, 2)))
        step(model, keeps, jnp.ones((3, 2)))
    refs = [weakref.ref(model), weakref.ref(model.tied), weakref.ref(model.parts["norm"])]
    del model
    assert [r() for r in refs] == [None] * 3


def test_a_plan_keeps_no_other_root_alive(no_gc):
    model, optimizer = Dense(2, 2), Node(state=[nnx.OptState(jnp.ones(1))], x=jnp.ones(1))
    plan_for((model, optimizer))
    nnx.jit(lambda m, o: m.kernel.sum() + o.x)(model, optimizer)
    refs = [weakref.ref(optimizer), weakref.ref(optimizer.state[0])]
    del optimizer
    assert [r() for r in refs] == [None] * 2
    assert not model._refax_plans


def test_a_root_with_a_cycle_of_its_own_is_collected():
    model, tree = Dense(2, 2), Node(children=[Node()])
    tree.children[0].parent = tree
    plan_for((model, tree))
    ref = weakref.ref(tree)
    del tree
    gc.collect()
    assert ref() is None


def test_an_optimizer_over_a_model_may_die_first(no_gc):
    models = [Dense(2, 2) for _ in range(20)]
    f = nnx.jit(lambda a, b: a.kernel + b.kernel)
    for model in models[1:]:
        f(models[0], model)
    assert len(models[0]._refax_plans) <= 8
    del model, models[1:]
    assert len(models[0]._refax_plans) == 0


def test_ever_new_models_stay_bounded(no_gc):
    before = nnx.check_plans(False)
    f = nnx.jit(lambda m, x: m(x))
    x = jnp.ones((1, 2))
    f(Dense(2, 2), x)
    live = len(gc.get_objects())
    for _ in range(1000):
        f(Dense(2, 2), x)
    assert len(gc.get_objects()) < live + 200
    nnx.check_plans(before)


def test_steps_make_no_cyclic_garbage(no_gc):
    before = nnx.check_plans(False)
    model, x = Block(), jnp.ones((3, 2))

    @nnx.jit
    def step(model, x):
        grads = nnx.grad(lambda m, x: m(x).sum())(model, x)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), grads)
        nnx.update(model, params)

    for _ in range(3):
        step(model, x)
    gc.collect()
    for _ in range(100):
        step(model, x)
        nnx.update(model, nnx.split(model)[1])
        model.eval()
        model.train()
    assert gc.collect() == 0
    nnx.check_plans(before)


def test_graphdefs_die(no_gc):
    graphdef = nnx.graphdef(Node(unique="a text that is in no other test"))
    ref = weakref.ref(graphdef)
    assert ref() is graphdef
    del graphdef
    assert ref() is None


# -- threads -------------------------------------------------------------------------------------


def run_in_threads(work, count: int = 4) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_with_a_model_each():
    step = nnx.jit(lambda m, x: m(x))

    def work(number: int) -> None:
        model = Stateful()
        for i in range(50):
            step(model, jnp.full((2, 2), float(number)))
            if i % 10 == 0:
                model.extra = i
        assert model.count == 50
        np.testing.assert_allclose(model.mean.value, number, rtol=1e-4)

    run_in_threads(work)


def test_threads_that_read_one_model():
    model, x = Block(), jnp.ones((2, 2))
    model.eval()
    expected = np.asarray(model(x))
    f = nnx.jit(lambda m, x: m(x))

    def work(number: int) -> None:
        for _ in range(50):
            np.testing.assert_allclose(f(model, x), expected, rtol=1e-5)
            nnx.merge(*nnx.split(model))
            jax.tree.leaves(model)

    run_in_threads(work)


def test_threads_that_trace_at_the_same_time():
    def work(number: int) -> None:
        for i in range(3):
            size = 2 + number * 3 + i
            model = Stateful(size)
            nnx.jit(lambda m, x: m(x))(model, jnp.ones((2, size)))
            assert model.count == 1

    run_in_threads(work)


def test_an_array_in_a_tuple_is_seen_through_every_plan():
    model, other = Node(pair=(jnp.array(1.0), "x")), Node()
    read = nnx.jit(lambda model, other: model.pair[0] + 0.0)
    state = nnx.state(model)  # one plan
    assert read(model, other) == 1.0  # another
    nnx.update(model, jax.tree.map(lambda x: x + 1.0, state))
    assert model.pair[0] == 2.0 and read(model, other) == 2.0

    @nnx.jit
    def write(model, other):
        model.pair = (model.pair[0] + 1.0, "x")

    write(model, other)
    assert model.pair[0] == 3.0 and nnx.state(model).pair[0] == 3.0
    assert nnx.clone(model).pair[0] == 3.0
