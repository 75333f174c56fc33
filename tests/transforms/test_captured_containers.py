"""Plain containers of captured objects: a trace leaves nothing in them, or its end is told.

They have no hook that could refuse a write. So a transform looks at them when its trace ends, and
puts them back; what plain JAX has left in one is told where the object is used next.
"""

import collections
import functools
import operator
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from refax import nnx
from tests.models import Node
from tests.transforms.cases import CASES, X
from tests.transforms.changes import tracers_in
from tests.transforms.test_trace_borders import OUTERS


def holder() -> Node:
    return Node(
        history=[X],
        parts={"a": X, "deep": []},
        fixed=([], 1),
        ordered=collections.OrderedDict(a=X),
        lists=collections.defaultdict(list, k=[]),
        state=nnx.State({"a": {"b": X}}),
        v=nnx.Variable({"a": X}),
        w=nnx.Variable([X]),
        functions=nnx.static(set()),
        child=Node(items=[[X]]),
    )


def argument() -> Node:
    return Node(w=nnx.Param(jnp.ones((3, 3))))


PLACES = {
    "history": lambda m: m.history,
    "parts": lambda m: m.parts,
    "parts.deep": lambda m: m.parts["deep"],
    "fixed[0]": lambda m: m.fixed[0],
    "ordered": lambda m: m.ordered,
    "lists": lambda m: m.lists,
    "lists.k": lambda m: m.lists["k"],
    "state.a": lambda m: m.state._tree["a"],
    "v": lambda m: m.v.raw_value,
    "w": lambda m: m.w.raw_value,
    "child.items[0]": lambda m: m.child.items[0],
    "new": vars,
    "child.new": lambda m: vars(m.child),
}
WHAT = {
    "a tracer": lambda x: x,
    "a tuple": lambda x: (1, x),
    "a dict": lambda x: {"deep": [x]},
    "a function": lambda x: lambda y: x + y,
    "a Variable": nnx.Param,
    "a module": lambda x: Node(w=nnx.Param(x)),
}


def put(container: Any, value: Any) -> None:
    if isinstance(container, list):
        container.append(value)
    else:
        container["new"] = value


def contents(model: Node) -> list[list[Any]]:
    found = [place(model) for place in PLACES.values()]
    return [list(c.items()) if isinstance(c, dict) else list(c) for c in found]


def same(before: list[list[Any]], after: list[list[Any]]) -> bool:
    flat = [x for c in (*before, *after) for e in c for x in (e if isinstance(e, tuple) else (e,))]
    return len(flat) % 2 == 0 and all(map(operator.is_, flat, flat[len(flat) // 2 :]))


def left_in(case: Any, place: str, what: str) -> str:
    """What is said of a transformed function that puts something into a captured container."""
    model = holder()
    before = contents(model)

    def body(m, x):
        put(PLACES[place](model), WHAT[what](x * m.w.sum()))
        return x

    with pytest.raises(nnx.TraceContextError) as raised:
        case.make(body)(argument(), X)
    assert same(before, contents(model)) and tracers_in(model) == []
    model.new = nnx.state(model)
    return str(raised.value)


# checkify runs its function with the values themselves, grad and vjp with those that it does not
# differentiate: nothing is left then.
TRACING = [case for case in CASES if case.name not in ("checkify", "custom_vjp")]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", TRACING, ids=str)
def test_every_transform_and_container(case, place):
    text = left_in(case, place, "a tracer")
    assert re.match(r"`.*`( \(.*\.py:\d+\))? leaves a value of its trace", text)
    assert f"in `Node.{place}`, a" in text and "Cure: pass the object as an argument" in text


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("case", TRACING, ids=str)
def test_every_transform_and_kind_of_value(case, what):
    assert "`Node.history`, a list" in left_in(case, "history", what)


@pytest.mark.parametrize("case", TRACING, ids=str)
@pytest.mark.parametrize("outer", OUTERS)
def test_inside_of_another_trace(outer, case):
    if case.name == "shard_map" and outer.rpartition(".")[2] in ("vmap", "grad"):
        pytest.skip("JAX runs it in two traces at once, and the tracers are of the outer one")
    model, said = holder(), []

    def body():
        with pytest.raises(nnx.TraceContextError, match=r"`Node.history`, a list"):
            case.make(lambda m, x: (model.history.append(x * m.w.sum()), x)[1])(argument(), X)
        said.append(len(model.history))
        return 0

    jax.eval_shape(lambda: OUTERS[outer](body)())
    assert said and set(said) == {1}


@pytest.mark.parametrize("case", TRACING, ids=str)
def test_a_function_that_raises_leaves_nothing(case):
    model = holder()

    def body(m, x):
        put(model.history, x * m.w.sum())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        case.make(body)(argument(), X)
    assert len(model.history) == 1


def test_what_is_no_tracer_may_stay():
    model = holder()

    @nnx.jit
    def f(x):
        model.history.append("traced")
        model.parts["shape"] = x.shape
        return x

    f(X)
    assert model.history[1] == "traced" and model.parts["shape"] == (3,)


def test_a_tracer_of_an_outer_trace_may_stay_in_an_inner_one():
    @nnx.jit
    def f(model, x):
        y = x * 2.0
        nnx.remat(lambda: (model.history.append(y), y)[1])()
        return model.history[1] + 1.0

    model = holder()
    assert jnp.array_equal(f(model, X), X * 2.0 + 1.0)
    assert jnp.array_equal(model.history[1], X * 2.0)


# -- plain JAX -----------------------------------------------------------------------------------

PLAIN = {
    "jit": jax.jit,
    "grad": lambda f: jax.grad(lambda x: f(x).sum()),
    "vmap": jax.vmap,
    "checkpoint": jax.checkpoint,
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, x: (c, f(x)), 0, x),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
}
USES = {
    "split": nnx.split,
    "state": nnx.state,
    "clone": nnx.clone,
    "update": lambda m: nnx.update(m, {}),
    "state_dict": nnx.state_dict,
    "tree.leaves": jax.tree.leaves,
    "tree.map": lambda m: jax.tree.map(lambda x: x, m),
    "jax.jit": lambda m: jax.jit(lambda m: 0)(m),
    "nnx.jit": lambda Node: nnx.jit(lambda Node: 0)(Node),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("transform", PLAIN)
def test_what_plain_jax_left_is_told(transform, use):
    model = holder()
    model.w = nnx.Param(X)

    def f(x):
        model.child.items[0].append(nnx.Param(x * 2.0))
        return x

    PLAIN[transform](f)(X)
    for _ in range(2):
        with pytest.raises(nnx.TraceContextError, match=r"`Node.child.items\[0\]\[1\]` \(float32"):
            USES[use](model)
    assert "Traced<" in repr(model)
    model.child.items[0].pop()
    USES[use](model)


def test_a_model_of_a_trace_where_what_is_computed_is_known():
    @jax.jit
    def f(x):
        model = Node(w=nnx.Param(x), items=[x])
        with jax.ensure_compile_time_eval():
            assert len(jax.tree.leaves(nnx.state(model))) == 2
        return x

    f(X)


class Scaled(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(3))

    @functools.cached_property
    def scale(self):
        return self.w.sum() * 2


@pytest.mark.parametrize("case", TRACING, ids=str)
def test_a_cached_property_of_a_captured_object(case):
    model = Scaled()
    with pytest.raises(nnx.TraceContextError, match=r"`Scaled.scale`, an attribute of"):
        case.make(lambda m, x: (vars(model).update(scale=x * m.w.sum()), x)[1])(argument(), X)
    assert "scale" not in vars(model) and tracers_in(model) == []

    assert float(model.scale) == 6.0
    assert "scale" in vars(model)
    case.make(lambda m, x: (m.w.sum() * model.scale, x)[1])(argument(), X)


def test_a_cached_property_of_an_argument_comes_back():
    model = Scaled()
    assert float(nnx.jit(lambda m: m.scale + 1)(model)) == 7.0
    assert float(model.scale) == 6.0 and tracers_in(model) == []
