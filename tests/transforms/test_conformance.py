"""Every transform × every property of the one contract. The transforms are in `cases.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Node
from tests.transforms.cases import CASES, Case
from tests.transforms.changes import STRUCTURES, VALUES, Watched, make_model, ones, tracers_in

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.arange(9.0).reshape(3, 3)


def each(**wanted: bool):
    """The cases that have these abilities."""
    cases = [c for c in CASES if all(bool(getattr(c, k)) == v for k, v in wanted.items())]
    return pytest.mark.parametrize("case", cases, ids=str)


# -- references ----------------------------------------------------------------------------------


@each()
def test_the_same_object_in_several_places_is_one_inside(case: Case):
    seen = []

    def body(objects, x):
        first, rest = objects
        seen.append(
            first is rest["again"]
            and first.child is rest["list"][0]
            and first.w is first.child.w
            and first.child.parent is first
            and first.items is first.child.list
        )
        return x

    model = make_model()
    case.make(body)((model, {"again": model, "list": [model.child]}), X)
    assert seen and all(seen)


@each(returns=True, propagates=True)
def test_inputs_that_are_returned_are_themselves(case: Case):
    def body(model, x):
        new = Node(w=nnx.Param(model.w * 2.0), of=model, cell=model.stat)
        return model, [model.child, model.items[0]], {"w": model.w}, new, new, x

    model = make_model()
    same, [child, item], found, new, again, x = case.make(body)(model, X)
    assert same is model and child is model.child and item is model.items[0]
    assert found["w"] is model.w
    assert new is again and new.of is model and new.cell is model.stat
    assert type(new) is Node and type(new.w) is nnx.Param
    np.testing.assert_array_equal(new.w.value, ones(2))
    np.testing.assert_array_equal(x, X)
    assert tracers_in([model, new]) == []
    new.w += 1.0  # it belongs to the outside


@each(returns=True, propagates=True)
def test_objects_made_inside_keep_their_sharing(case: Case):
    def body(model, x):
        w = nnx.Param(model.w * 3.0, tag="new")
        a = Node(w=w)
        a.twin = Node(w=w, up=a, items=[w])
        return a, a.twin, w

    a, twin, w = case.make(body)(make_model(), X)
    assert a.twin is twin and twin.up is a and a.w is w and twin.items[0] is w
    assert w.tag == "new"
    np.testing.assert_array_equal(w.value, ones(3))


# -- changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", VALUES)
@each(propagates=True)
def test_values_propagate(case: Case, change: str):
    watched = Watched()

    def body(model, x):
        VALUES[change](model, x)
        return x

    run = case.make(body)
    for _ in range(2):
        run(watched.model, X)
        body(watched.twin, X)
        watched.check()


@pytest.mark.parametrize("change", STRUCTURES)
@each(propagates=True, structure=True)
def test_structure_propagates(case: Case, change: str):
    watched = Watched()

    def body(model, x):
        STRUCTURES[change](model, x)
        return x

    case.make(body)(watched.model, X)
    body(watched.twin, X)
    watched.check()
    expected = nnx.graphdef(watched.twin)
    assert nnx.graphdef(watched.model) == expected
    nnx.jit(lambda m: m.count + 1)(watched.model)  # it is as usable as before


@pytest.mark.parametrize("change", ["a new Variable", "an appended item", "a static attribute"])
@each(structure=False)
def test_what_is_carried_must_keep_its_structure(case: Case, change: str):
    watched = Watched()

    def body(model, x):
        model.w += 1.0
        STRUCTURES[change](model, x)

    with pytest.raises(ValueError):
        case.make(body)(watched.model, X)
    watched.check()


@each(propagates=False)
def test_what_computes_nothing_leaves_the_objects_alone(case: Case):
    watched = Watched()

    def body(model, x):
        STRUCTURES["everything"](model, x)
        return x, model, Node(w=nnx.Param(x))

    x, model, new = case.make(body)(watched.model, X)
    watched.check()
    assert model is not watched.model and model.mode == "eval"
    assert new.w.value == x == jax.ShapeDtypeStruct((3, 3), jnp.float32)
    assert tracers_in([model, new]) == []


# -- all or nothing ------------------------------------------------------------------------------


class MineError(Exception):
    pass


@each()
def test_nothing_is_changed_if_the_function_raises(case: Case):
    watched = Watched()

    def body(model, x):
        STRUCTURES["everything"](model, x)
        raise MineError("after the changes")

    run = case.make(body)
    for _ in range(2):
        with pytest.raises(MineError, match="after the changes"):
            run(watched.model, X)
        watched.check()


@each()
def test_a_call_that_raised_does_not_spoil_the_next(case: Case):
    watched, fails = Watched(), [True]

    def body(model, x):
        model.w += 1.0
        if fails.pop() if fails else False:
            raise MineError
        return x

    run = case.make(body)
    with pytest.raises(MineError):
        run(watched.model, X)
    watched.check()
    run(watched.model, X)
    if case.propagates:
        body(watched.twin, X)
    watched.check()


@each(returns=True, arrays_only=True)
def test_nothing_is_changed_if_the_result_is_refused(case: Case):
    watched = Watched()

    def body(model, x):
        model.w += 1.0
        model.extra = 1
        return object()

    with pytest.raises((TypeError, ValueError)):
        case.make(body)(watched.model, X)
    watched.check()


# -- tracing -------------------------------------------------------------------------------------


@each(caches=True)
def test_a_second_call_runs_the_body_no_more(case: Case):
    runs = []

    def body(model, x):
        runs.append(1)
        model.w += 1.0
        return x

    run, model = case.make(body), make_model()
    run(make_model(), X)
    once = len(runs)
    run(model, X + 1)
    assert len(runs) == once
    run(model, X)  # JAX traces for values that are on several devices now
    once = len(runs)
    run(model, X + 1)
    assert len(runs) == once
    np.testing.assert_array_equal(model.w.value, ones(4))


@each()
def test_under_jit_a_second_call_runs_the_body_no_more(case: Case):
    runs = []

    def body(model, x):
        runs.append(1)
        model.w += 1.0
        return x

    run, model = case.make(body), make_model()

    @nnx.jit
    def f(model, x):
        run(model, x)

    f(make_model(), X)
    once = len(runs)
    f(model, X + 1)
    assert len(runs) == once and f.traces.count == 1
    f(model, X)
    once = len(runs)
    f(model, X + 1)
    assert len(runs) == once
    np.testing.assert_array_equal(model.w.value, ones(4) if case.propagates else ones(1))


# -- nesting -------------------------------------------------------------------------------------

OUTER = {c.name: c for c in CASES if c.propagates}
QUICK = ("jit", "grad", "remat", "vmap", "cond")


@pytest.mark.parametrize(
    "outer", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OUTER]
)
@each(propagates=True)
def test_nests(case: Case, outer: str):
    if {case.name, outer} <= {"pmap", "shard_map"} or (case.name, outer) in (
        ("custom_vjp", "jvp"),
        ("checkify", "while_loop"),
    ):
        pytest.skip("not in JAX either")
    structure = case.structure and OUTER[outer].structure
    change = STRUCTURES["everything"] if structure else VALUES["values in containers"]
    watched = Watched()

    def body(model, x):
        change(model, x)
        return x

    def around(model, x):
        model.w += 1.0
        case.make(body)(model, x)
        model.w *= 2.0
        return x

    def eagerly(model, x):
        model.w += 1.0
        body(model, x)
        model.w *= 2.0

    OUTER[outer].make(around)(watched.model, X)
    eagerly(watched.twin, X)
    watched.check()


# -- methods -------------------------------------------------------------------------------------


@each(decorate=True)
def test_as_a_decorator_of_methods(case: Case):
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(ones())

        @case.decorate
        def __call__(self, x):
            self.w += 1.0
            return self.w * x

        @case.decorate
        def method(self, x):
            self.w *= 2.0
            return self.w * x

        def undecorated(self, x):
            self.w *= 10.0
            return self.w * x

    model, x = Model(), ones(5)
    np.testing.assert_array_equal(model(x), ones(10))
    np.testing.assert_array_equal(model.method(x), ones(20))
    np.testing.assert_array_equal(model.w.value, ones(4))
    np.testing.assert_array_equal(case.decorate(model.undecorated)(x) if case.name not in (
        "scan", "shard_map") else model.undecorated(x), ones(200))  # fmt: skip
    np.testing.assert_array_equal(model.w.value, ones(40))
    assert Model.method.__name__ == "method"


@each(decorate=True)
def test_as_a_decorator_of_a_constructor(case: Case):
    class Model(nnx.Module):
        @case.decorate
        def __init__(self, x):
            self.w = nnx.Param(x * 2.0)
            self.name = "model"

    model = Model(ones())
    assert type(model) is Model and model.name == "model"
    np.testing.assert_array_equal(model.w.value, ones(2))
    model.w += 1.0


# -- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c.plain], ids=str)
def test_plain_pytrees_behave_as_in_jax(case: Case):
    ours, theirs = (run() for run in case.plain)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if isinstance(a, jax.Array):
            assert a.weak_type == b.weak_type
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", [c for c in CASES if c.alias], ids=str)
def test_one_object_under_two_prefixes_is_refused(case: Case):
    model = Node(w=nnx.Param(jnp.ones((3, 3))))
    with pytest.raises(ValueError) as caught:
        case.alias(model)
    text = str(caught.value)
    assert "Inconsistent aliasing detected" in text
    assert f"Node: {nnx.Param}" in text
    assert "m.w: " in text and "rest[0].w: " in text
    assert model.w.value.shape == (3, 3)


@each(keyword=True, returns=True, propagates=True)
def test_keyword_arguments(case: Case):
    if case.name in ("cond", "switch"):
        pytest.skip("their operands have no names")

    def body(model, x):
        model.w += 1.0
        return x

    model = make_model()
    np.testing.assert_array_equal(case.make(body)(model, x=X), X)
    np.testing.assert_array_equal(model.w.value, ones(2))
