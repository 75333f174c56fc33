"""Borders of a trace: what an inner transform did to an object reaches it where that is right.

Every transform, inside of every other, on an object that the outer function captured: each kind of
write is refused, and the object is as it was. On an object that entered as an argument, or that was
made in the trace, each is carried out.
"""

import operator
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from refax import nnx
from tests import strategies as graphs
from tests.models import Node, Pair
from tests.transforms.cases import CASES, X
from tests.transforms.changes import tracers_in

# -- outer transforms, traced and not compiled ---------------------------------------------------


def scanned(body):
    return lambda *args: jax.lax.scan(lambda c, _: (c, body(*c)), args, X)


def nnx_scanned(body):
    return lambda *args: nnx.scan(lambda c, _: (c, body(*c)))(args, X)


def one_more(transform):
    """An outer transform of a function of one array more, which it returns."""
    return lambda body: (
        lambda *args: transform(lambda x, *args: (body(*args), x)[1], len(args))(
            X[0] if "grad" in transform.__qualname__ else X, *args
        )
    )


def jax_grad(f, count):
    return jax.grad(f, argnums=tuple(range(count + 1)))  # it leaves other arguments as they are


def nnx_grad(f, count):
    return nnx.grad(f)


def jax_vmap(f, count):
    return jax.vmap(f, (0, *count * (None,)))


def nnx_vmap(f, count):
    return nnx.vmap(f, (0, *count * (None,)))


OUTERS = {
    "jax.jit": jax.jit,
    "jax.grad": one_more(jax_grad),
    "jax.vmap": one_more(jax_vmap),
    "jax.lax.scan": scanned,
    "jax.checkpoint": jax.checkpoint,
    "nnx.jit": nnx.jit,
    "nnx.grad": one_more(nnx_grad),
    "nnx.vmap": one_more(nnx_vmap),
    "nnx.scan": nnx_scanned,
    "nnx.remat": nnx.remat,
}


def trace(outer, body, *args):
    """Run `body(*args)` in a trace of that kind; nothing is compiled."""
    jax.eval_shape(lambda *args: OUTERS[outer](body)(*args), *args)


INNERS = [case for case in CASES if case.propagates]

# -- what is written -----------------------------------------------------------------------------


def make_model() -> Node:
    """Each kind of place once. Every leaf has an axis of 3, to be mapped."""

    def ones():
        return jnp.ones((3, 3))

    return Node(
        v=nnx.Param(ones(), tag="a"),
        array=ones(),
        pair=Pair(ones(), 1),
        items=[nnx.Param(ones()), ones()],
        parts={"a": nnx.Param(ones()), "b": ones()},
        list=nnx.List([nnx.Param(ones()), ones()]),
        dict=nnx.Dict(a=nnx.Param(ones()), b=ones()),
        child=Node(v=nnx.Param(ones()), mode="train"),
        mode="train",
    )


VALUES = {
    "a value": lambda m: setattr(m.v, "value", m.v * 2.0),
    "an item": lambda m: m.v.__setitem__(0, 2.0),
    "in place": lambda m: m.child.v.__imul__(2.0),
    "a value in a list": lambda m: m.items[0].__iadd__(1.0),
    "a value in an nnx.Dict": lambda m: m.dict.a.__iadd__(1.0),
    "an array": lambda m: setattr(m, "array", m.array * 2.0),
    "an array in a list": lambda m: m.items.__setitem__(1, m.items[1] * 2.0),
    "an array in a dict": lambda m: m.parts.update(b=m.parts["b"] * 2.0),
    "an array in an nnx.List": lambda m: m.list.__setitem__(1, m.list[1] * 2.0),
    "an array in an nnx.Dict": lambda m: setattr(m.dict, "b", m.dict.b * 2.0),
    "an array in a tuple": lambda m: setattr(m, "pair", Pair(m.pair.first * 2.0, 1)),
}
STRUCTURES = {
    "metadata": lambda m: m.v.set_metadata(tag="b"),
    "an attribute": lambda m: setattr(m.child, "mode", "eval"),
    "a new attribute": lambda m: setattr(m, "new", nnx.Param(m.array * 2.0)),
    "a deleted attribute": lambda m: delattr(m, "mode"),
    "an appended item": lambda m: m.items.append(m.array * 2.0),
    "a deleted item": lambda m: m.items.pop(),
    "a new entry": lambda m: m.parts.update(c=m.array * 2.0),
    "a deleted entry": lambda m: m.parts.pop("b"),
    "an item of an nnx.List": lambda m: m.list.append(nnx.Param(m.array * 2.0)),
    "a deleted item of an nnx.List": lambda m: m.list.pop(),
    "an entry of an nnx.Dict": lambda m: setattr(m.dict, "c", m.array * 2.0),
    "a deleted entry of an nnx.Dict": lambda m: delattr(m.dict, "b"),
}


def writes_for(case) -> dict[str, Any]:
    return {**VALUES, **(STRUCTURES if case.structure else {})}


def done(write):
    return lambda model, x: (write(model), x)[1]


@pytest.mark.parametrize("case", INNERS, ids=str)
@pytest.mark.parametrize("outer", OUTERS)
def test_a_captured_object_is_not_written(outer, case):
    model = make_model()
    before = graphs.objects_of(model)
    raised = {}

    def body():
        for name, write in writes_for(case).items():
            try:
                case.make(done(write))(model, X)
            except nnx.TraceContextError as error:
                raised[name] = str(error)
        return 0

    trace(outer, body)
    assert raised.keys() == writes_for(case).keys()
    for text in raised.values():
        assert re.search(r"`Node.* from inside `[^`]+` \(.*test_trace_borders.py:\d+\), by ", text)
        assert "Cure: " in text
    assert tracers_in(Node(root=model, all=before)) == []
    assert graphs.difference(model, make_model()) == ""
    model.new = 1  # not left in a trace


@pytest.mark.parametrize("case", INNERS, ids=str)
@pytest.mark.parametrize("outer", OUTERS)
def test_an_argument_and_a_new_object_are_written(outer, case):
    expected = make_model()
    for write in writes_for(case).values():
        write(expected)

    def check(model):
        for write in writes_for(case).values():
            case.make(done(write))(model, X)
        assert nnx.graphdef(model) == nnx.graphdef(expected)

    trace(outer, lambda: (check(make_model()), 0)[1])
    if "scan" not in outer:  # the carry keeps its structure
        trace(outer, lambda model: (check(model), 0)[1], make_model())


# -- what layers write by themselves -------------------------------------------------------------


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def noisy():
    return Noisy(nnx.Rngs(0)), jnp.ones((1, 2))


def stack():
    return nnx.Stack(Noisy, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 2))


def call(m, x):
    return m(x)


LAYERS = {
    "remat": (noisy, nnx.remat(call)),
    "jit": (noisy, nnx.jit(call)),
    "cond": (noisy, lambda m, x: nnx.cond(True, call, lambda m, x: x, m, x)),
    "grad": (noisy, lambda m, x: nnx.grad(lambda m, x: m(x).sum())(m, x)),
    "Stack": (stack, call),
    "Rngs": (lambda: (nnx.Rngs(0), X), nnx.remat(lambda rngs, x: rngs.normal(x.shape))),
    "split_rngs": (
        lambda: (nnx.Rngs(0), X),
        nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs, x: rngs.normal())),
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("outer", OUTERS)
def test_random_counts_of_a_captured_layer(outer, layer):
    make, f = LAYERS[layer]
    model, x = make()
    before = nnx.state(model)

    def body():
        with pytest.raises(nnx.TraceContextError, match="count"):
            f(model, x)
        f(make()[0], x)
        return 0

    trace(outer, body)
    assert tracers_in(model) == []
    after = nnx.state(model)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(map(operator.is_, jax.tree.leaves(before), jax.tree.leaves(after)))


def test_a_loop_that_only_reads_what_it_carries():
    model, count = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Variable(jnp.array(0))
    kernel = model.kernel.value

    def step(i, value):
        model, count, x = value
        count += 1
        return model, count, model(x)

    @jax.jit
    def f(x):
        count = nnx.Variable(jnp.array(0))
        _, _, y = nnx.fori_loop(0, 3, step, (model, count, x))
        _, _, y = nnx.while_loop(lambda v: v[1] < 5, lambda v: step(0, v), (model, count, y))
        (_, _, y), _ = nnx.scan(lambda c, x: (step(0, c), x))((model, count, y), X)
        return y, count.value

    x = jnp.ones((1, 2))
    y, counted = f(x)
    for _ in range(8):
        x = model(x)
    assert jnp.allclose(x, y) and counted == 8
    assert model.kernel.value is kernel and count.value == 0
