"""`split_context`, `merge_context`, `update_context`: splits and merges that know of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Dense, Node


def make_pair():
    shared = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    return Node(first=shared, own=nnx.Param(jnp.ones(2))), Node(second=shared)


def test_what_an_earlier_split_gave_is_not_given_again():
    a, b = make_pair()
    with nnx.split_context() as ctx:
        graphdef_a, state_a = ctx.split(a)
        graphdef_b, params, rest = ctx.split(b, nnx.Param, ...)
    assert len(jax.tree.leaves(state_a)) == 3
    assert jax.tree.leaves((params, rest)) == []
    assert hash(graphdef_a) != hash(graphdef_b)
    with nnx.merge_context() as ctx:
        new_a = ctx.merge(graphdef_a, state_a)
        new_b = ctx.merge(graphdef_b, params, rest)
    assert new_a.first is new_b.second and new_a.first is not a.first
    np.testing.assert_array_equal(new_b.second.kernel.value, a.first.kernel.value)


def test_they_go_through_jit():
    a, b = make_pair()
    with nnx.split_context() as ctx:
        parts_a, parts_b = ctx.split(a), ctx.split(b)

    @jax.jit
    def f(parts_a, parts_b):
        with nnx.merge_context() as ctx:
            a, b = ctx.merge(*parts_a), ctx.merge(*parts_b)
        a.first.bias.value = jnp.full(3, 7.0)
        return b.second.bias.value

    np.testing.assert_array_equal(f(parts_a, parts_b), [7, 7, 7])
    np.testing.assert_array_equal(a.first.bias.value, [0, 0, 0])


def test_changes_inside_a_jitted_function_come_back_to_the_objects():
    a, b = make_pair()
    gone, kernel = a.own, a.first.kernel
    traces = 0

    @jax.jit
    def f(parts_a, parts_b):
        nonlocal traces
        traces += 1
        with nnx.merge_context("f") as ctx:
            a, b = ctx.merge(*parts_a), ctx.merge(*parts_b)
        a.first.kernel += 1.0
        b.new = [nnx.Param(jnp.arange(2)), a]
        b.second.bias.tag = "changed"
        del a.own
        with nnx.split_context("f") as ctx:
            return ctx.split((a, b))

    before = np.asarray(kernel.value)
    for i in (1, 2):
        if i == 2:  # the same structure again: the program of before, another context
            del b.new
            a.own = gone
            del a.first.bias.tag
        with nnx.update_context("f"):
            with nnx.split_context("f") as ctx:
                parts = ctx.split(a), ctx.split(b)
            out = f(*parts)
            with nnx.merge_context("f") as ctx:
                pair = ctx.merge(*out)
        assert pair[0] is a and pair[1] is b
        assert a.first is b.second and a.first.kernel is kernel and not hasattr(a, "own")
        assert b.new[1] is a and a.first.bias.tag == "changed"
        np.testing.assert_array_equal(b.new[0].value, [0, 1])
        np.testing.assert_allclose(kernel.value, before + i, rtol=1e-6)
    assert traces == 1


def test_as_a_decorator_and_nested():
    node = Node(x=nnx.Param(jnp.zeros(())))

    @nnx.update_context("outer")
    def double(node):
        with nnx.update_context("inner"), nnx.split_context("outer") as ctx:
            graphdef, state = ctx.split(node)

        def add(graphdef, state):
            with nnx.merge_context("outer", inner=True) as ctx:
                node = ctx.merge(graphdef, state)
            node.x += 2.0
            with nnx.split_context("outer") as ctx:
                return ctx.split(node)

        with nnx.merge_context("outer", inner=False) as ctx:
            return ctx.merge(*jax.jit(add)(graphdef, state))

    assert double(node) is node and node.x.value == 2


def test_mistakes_are_named():
    node = Node(x=nnx.Param(jnp.zeros(())))
    with pytest.raises(ValueError, match=r"no update context 'a' here; open: none"):
        with nnx.split_context("a"):
            pass
    with nnx.split_context() as ctx:
        graphdef, state = ctx.split(node)
    with pytest.raises(TypeError, match=r"split` of a context"):
        ctx.merge(nnx.graphdef(node), state)
    with pytest.raises(ValueError, match="`x`"):
        nnx.split_context().__enter__().merge(graphdef, nnx.State({}))
    with pytest.raises(ValueError, match="`y`"):
        nnx.merge_context().__enter__().merge(graphdef, state, nnx.State({"y": nnx.Param(1.0)}))


def test_what_a_context_splits_is_a_graphdef():
    model = Dense(2, 2)
    with nnx.split_context() as ctx:
        (graphdef, state), (again, nothing) = ctx.split(model), ctx.split(model)
    assert isinstance(graphdef, nnx.GraphDef) and graphdef != again and nothing == nnx.State()
    assert graphdef != nnx.graphdef(model) and nnx.graphdef(model) != graphdef
    assert len({graphdef, again, nnx.graphdef(model)}) == 3
    assert type(nnx.merge(graphdef, state)) is Dense
    with nnx.split_context() as ctx:
        assert ctx.split(Dense(2, 2))[0] == graphdef
