"""Statics and metadata across a transform: what is compared, what is refused, what comes back."""

from collections import OrderedDict, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests import strategies as graphs
from tests.models import Node, Uncomparable

pytestmark = pytest.mark.usefixtures("strict_numerics")

TRANSFORMS = {
    "jit": nnx.jit,
    "remat": nnx.remat,
    "grad": lambda f: nnx.grad(lambda m, x: (f(m, x), x.sum())[1], argnums=1),
    "vmap": lambda f: nnx.vmap(f, in_axes=(None, 0)),
}
each = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())


def make_model() -> Node:
    return Node(w=nnx.Param(jnp.ones(2), tag="w"), deep=Node())


# -- what no static may be -----------------------------------------------------------------------


@each
@pytest.mark.parametrize("value", [lambda x: x, lambda x: (1, x), lambda x: {"a": x}])
def test_a_tracer_as_metadata_is_refused(transform, value):
    model, twin = make_model(), make_model()

    def f(m, x):
        m.w.value = m.w * 2.0
        m.w.note = value(x)

    with pytest.raises(TypeError, match=r"(?s)metadata 'note'.*value"):
        transform(f)(model, jnp.ones(2))
    assert graphs.difference(model, twin) == ""
    with pytest.raises(TypeError, match="metadata 'note'"):
        jax.jit(lambda x: nnx.Param(jnp.ones(2), note=x).value)(jnp.ones(2))


@each
@pytest.mark.parametrize(
    "change",
    [
        lambda m, x: setattr(m.deep, "bad", Uncomparable()),
        lambda m, x: setattr(m, "deep", Node(bad=Uncomparable())),
    ],
)
def test_an_unhashable_static_made_inside_is_named(transform, change):
    model, twin = make_model(), make_model()
    with pytest.raises(nnx.UnhashableStaticError, match=r"`deep\.bad`"):
        transform(change)(model, jnp.ones(2))
    assert graphs.difference(model, twin) == ""


# -- what is compared ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.float32(0.0), np.float32(-0.0)),
        (0j, -0j),
        (1, np.int64(1)),
        ((1, (0.0,)), (1, (-0.0,))),
        (1, True),
        ("a", b"a"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("mark", [lambda x: x, nnx.static], ids=["plain", "marked"])
def test_equal_values_of_another_kind_are_other_statics(first, second, mark):
    model = Node()
    model.value = mark(first)
    before = nnx.graphdef(model)
    model.value = mark(second)
    assert nnx.graphdef(model) != before
    assert repr(nnx.merge(*nnx.split(model)).value) == repr(second)
    model.value = mark(first)
    assert nnx.graphdef(model) == before


def test_metadata_is_compared_by_content():
    runs = []
    f = nnx.jit(lambda m: runs.append(1))

    def make(mask, info):
        return Node(w=nnx.Param(jnp.ones(2), mask=mask, info=info))

    for _ in range(2):
        f(make(np.array([0, 1]), {"a": [1]}))
        f(make(np.array([0, 2]), {"a": [1]}))
        f(make(np.array([0, 1]), {"a": [2]}))
    assert len(runs) == 3
    states = [nnx.state(make(np.array([0, 1]), {"a": [1]})) for _ in range(2)]
    summed = jax.tree.map(jnp.add, *states)
    np.testing.assert_array_equal(summed.w.mask, [0, 1])


def test_hooks_made_anew_are_equal():
    runs = []
    f = nnx.jit(lambda m: runs.append(1))

    def make(factor):
        init = nnx.with_metadata(jax.nn.initializers.ones, get_value_hooks=lambda v, x: x * factor)
        return Node(w=nnx.Param(init(jax.random.key(0), (2,))))

    f(make(2.0))
    f(make(2.0))
    assert len(runs) == 1
    f(make(3.0))
    assert len(runs) == 2


# -- what comes back -----------------------------------------------------------------------------


@each
def test_hooks_run_inside_and_values_come_back_raw(transform):
    def make():
        return Node(
            v=nnx.Variable(
                jnp.array(1.0), on_get_value=lambda v, x: x * 2, on_set_value=lambda v, x: x + 1
            )
        )

    def f(m, x):
        m.v.value = m.v.value + 1

    model, twin = make(), make()
    transform(f)(model, jnp.ones(2))
    f(twin, None)
    assert model.v.raw_value == twin.v.raw_value == 4


@each
def test_containers_keep_their_kind(transform):
    def make():
        return Node(
            lists=defaultdict(list, old=[1]),
            order=OrderedDict(a=1, b=nnx.Param(jnp.ones(2))),
            refax=nnx.List([nnx.Dict(x=1)]),
        )

    def f(m, x):
        m.lists["new"].append(nnx.Param(m.order["b"] * 2.0))
        m.order.move_to_end("a")
        m.refax[0].y = 2
        m.refax.append(nnx.List())

    model, twin = make(), make()
    kept = [model.lists, model.lists["old"], model.order, model.refax, model.refax[0]]
    transform(f)(model, jnp.ones(2))
    f(twin, None)
    assert graphs.difference(model, twin) == ""
    now = [model.lists, model.lists["old"], model.order, model.refax, model.refax[0]]
    assert all(a is b for a, b in zip(kept, now, strict=True))
    assert model.lists["made by the factory"] == []


@each
def test_values_that_are_pytrees_may_be_changed_in_place(transform):
    def make():
        return Node(cache=nnx.Cache({"k": jnp.zeros(2), "n": [jnp.zeros(())]}))

    def f(m, x):
        m.cache.value["k"] = m.cache.value["k"] + 1
        m.cache.value["n"].append(m.cache.value["n"][0] + 2)

    model, twin = make(), make()
    transform(f)(model, jnp.ones(2))
    f(twin, None)
    assert graphs.difference(model, twin) == ""


def test_an_untouched_value_stays_the_very_same_array():
    model = Node(w=nnx.Param(jnp.ones(2)), x=jnp.ones(3), t=(jnp.ones(4), jnp.ones(5)))
    before = jax.tree.leaves(nnx.state(model))
    nnx.jit(lambda m: m.w.sum() + m.x.sum() + m.t[0].sum())(model)
    nnx.jit(lambda m: setattr(m, "new", nnx.Param(m.w * 2.0)))(model)
    del model.new
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True))


def test_tuples_are_compared_by_what_is_in_them():
    def scaled(by):
        return lambda x: x * by

    @nnx.jit
    def apply(model, x):
        return model.functions[0](x)

    def make(by, mark):
        return Node(functions=nnx.static((scaled(by), mark)))

    assert apply(make(2.0, 1), 3.0) == 6.0
    with nnx.assert_max_traces(0):  # equal functions, made anew
        assert apply(make(2.0, 1), 3.0) == 6.0
    for by, mark in ((3.0, 1), (2.0, True), (2.0, 1.0)):
        with pytest.raises(AssertionError, match="was traced 1 times"), nnx.assert_max_traces(0):
            apply(make(by, mark), 3.0)
    with pytest.raises(nnx.UnhashableStaticError, match="functions"):
        apply(Node(functions=nnx.static((Uncomparable(),))), 3.0)
