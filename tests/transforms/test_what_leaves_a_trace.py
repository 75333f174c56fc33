"""Static content with a tracer in it, and captured objects: refused where a trace is left."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx
from tests.models import Dense, Node, Pair
from tests.transforms.cases import CASES, X

# Transforms that give back what the body returns, which may be objects.
RETURNING = [case for case in CASES if case.returns and case.structure]
CHANGING = [case for case in CASES if case.structure and case.propagates]


@dataclasses.dataclass(frozen=True)
class Config:
    rate: Any


@dataclasses.dataclass
class Mutable:
    rate: Any


class Callable:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, x):
        return x * self.rate

    def method(self, x):
        return x


def with_default(rate):
    def f(x, rate=rate):
        return x * rate

    return f


def with_keyword(rate):
    def f(x, *, rate=rate):
        return x * rate

    return f


STATICS = {  # a tracer itself is refused when it is assigned, as any array in a static attribute
    "a closure": lambda x: lambda y: x + y,
    "a default": with_default,
    "a keyword": with_keyword,
    "a closure of a closure": lambda x: (lambda f: lambda y: f(y))(lambda y: y + x),
    "a partial": lambda x: functools.partial(jnp.multiply, x),
    "a partial's keyword": lambda x: functools.partial(jnp.sum, initial=x[0]),
    "a tuple": lambda x: (1, lambda y: x + y),
    "a NamedTuple": lambda x: Pair(lambda y: x, 1),
    "a frozen dataclass": Config,
    "a dataclass": Mutable,
    "a callable": Callable,
    "a method": lambda x: Callable(x).method,
    "a transformation": optax.adam,
    "a chain": lambda x: optax.chain(optax.clip(1.0), optax.sgd(x)),
}


def holder(static: Any) -> Node:
    return Node(part=Node(fixed=nnx.static(static), w=nnx.Param(jnp.ones((3, 3)))))


PATH = r"`result\[0\]\['a'\]\.part\.fixed` holds a tracer \(float32\["


@pytest.mark.parametrize("static", STATICS)
def test_static_content_of_new_objects(static):
    def body(x):
        return [{"a": holder(STATICS[static](x))}, x]

    for transform in (nnx.jit, nnx.vmap, nnx.remat, lambda f: lambda x: nnx.eval_shape(f, x)):
        with pytest.raises(nnx.TraceContextError, match=PATH):
            transform(body)(X[:, None])


TRACING = [c for c in RETURNING if c.name not in ("grad", "vjp", "jvp", "value_and_grad")]


@pytest.mark.parametrize("case", TRACING, ids=str)
def test_static_content_in_every_transform(case):
    def body(model, x):
        rate = x * 2.0  # checkify passes concrete arguments on as they are
        return {"a": holder(lambda y: y + rate)}

    with pytest.raises(nnx.TraceContextError, match=r"`result.*\['a'\]\.part\.fixed` holds a tr"):
        case.make(body)(holder(1), X)


@pytest.mark.parametrize("case", [c for c in CHANGING if c in TRACING], ids=str)
def test_static_content_of_arguments(case):
    def attribute(model, x):
        model.part.fixed = functools.partial(jnp.multiply, x * 2.0)
        return x

    def metadata(model, x):
        rate = x * 2.0
        model.part.w.set_metadata(on_get_value=lambda variable, value: value + rate)
        return x

    model = holder(1)
    for change, name in ((attribute, "fixed"), (metadata, r"w\.on_get_value")):
        with pytest.raises(nnx.TraceContextError, match=rf"part\.{name}` holds a tracer"):
            case.make(change)(model, X)
    assert model.part.fixed == 1 and not model.part.w.get_metadata()


def test_differentiated_values_in_static_content():
    def body(x):
        return (x * 2.0).sum(), holder(lambda y: y + x)

    for transform in (nnx.grad, nnx.value_and_grad):
        with pytest.raises(nnx.TraceContextError, match=r"part\.fixed` holds a tracer"):
            transform(body, has_aux=True)(X)
    with pytest.raises(nnx.TraceContextError, match=r"part\.fixed` holds a tracer"):
        nnx.vjp(body, X, has_aux=True)


def test_a_tracer_of_an_outer_trace_may_leave_an_inner_one():
    @nnx.jit
    def f(rate):
        model = nnx.remat(lambda: holder(lambda y: y * rate))()
        return model.part.fixed(3.0)

    assert f(2.0) == 6.0


def test_static_content_that_is_not_traced_leaves():
    scale = jnp.ones(2)
    model = nnx.jit(lambda x: holder(lambda y: y * scale))(1.0)
    np.testing.assert_array_equal(model.part.fixed(2.0), [2.0, 2.0])


# -- optimizers over traced rates ----------------------------------------------------------------

RATES = jnp.array([0.1, 0.01])
DATA = jnp.ones((4, 2))


def make_with(tx):
    def make(rate):
        model = Dense(2, 1)
        return model, nnx.Optimizer(model, tx(rate), wrt=nnx.Param)

    return make


def test_an_optimizer_over_a_traced_rate():
    message = r"(?s)`result\[1\]\.tx` holds a tracer.*Cure: .*optax\.inject_hyperparams"
    for transform in (nnx.vmap, nnx.jit):
        with pytest.raises(nnx.TraceContextError, match=message):
            transform(make_with(optax.adamw))(RATES if transform is nnx.vmap else RATES[0])


@pytest.mark.parametrize("clipped", [False, True])
def test_the_cure(clipped):
    def tx(rate):
        inner = optax.inject_hyperparams(optax.adamw)(rate)
        return optax.chain(optax.clip(0.5), inner) if clipped else inner

    models, optimizers = nnx.vmap(make_with(tx))(RATES)

    @nnx.jit
    @nnx.vmap
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: (m(DATA) ** 2).mean())(model))

    for _ in range(3):
        step(models, optimizers)
    for i, rate in enumerate(RATES):
        model, optimizer = make_with(tx)(float(rate))
        for _ in range(3):
            optimizer.update(model, nnx.grad(lambda m: (m(DATA) ** 2).mean())(model))
        np.testing.assert_allclose(models.kernel[i], model.kernel.value, rtol=1e-5)
    with pytest.raises(TypeError, match=r"optimizer\.opt_state"):
        optimizers.tx.init(models) if not clipped else optimizers.tx.init(nnx.state(models))


# -- captured objects ----------------------------------------------------------------------------

ABSTRACT = ("eval_shape", "make_jaxpr")


@pytest.mark.parametrize("case", RETURNING, ids=str)
def test_a_captured_object_that_is_returned(case):
    captured, model = holder(1), holder(1)
    bodies = {
        "result": lambda model, x: captured,
        r"result\['a'\]\[1\]": lambda model, x: {"a": [x, captured.part]},
        r"result\.new": lambda model, x: Node(new=captured),
        r"result\.w": lambda model, x: Node(w=captured.part.w),
        "(result)": lambda model, x: captured.part.w,
    }
    for place, body in bodies.items():
        if case.name in ABSTRACT:
            case.make(body)(model, X)  # copies all, and computes nothing
            continue
        place = place.replace("result", r"result(\[\d\])*")
        with pytest.raises(nnx.TraceContextError, match=f"(?s)`{place}` is .*Cure: pass it as an"):
            case.make(body)(model, X)


@pytest.mark.parametrize("case", CHANGING, ids=str)
def test_a_captured_object_that_is_put_into_an_argument(case):
    captured, model = holder(1), holder(1)

    def body(model, x):
        model.new = captured
        return x

    with pytest.raises(nnx.TraceContextError, match=r"\.new` is (`\w+`, )?a Node that"):
        case.make(body)(model, X)
    assert not hasattr(model, "new")


@pytest.mark.parametrize("case", RETURNING, ids=str)
def test_an_object_that_was_made_while_compile_time_values_are_known(case):
    def body(model, x):
        with jax.ensure_compile_time_eval():
            made = Node(w=nnx.Param(jnp.ones((3, 3))), items=[nnx.Variable(jnp.ones((3, 3)))])
        return {"a": [made, made.w]}

    result = case.make(body)(holder(1), X)
    if case.name not in ABSTRACT:
        made, w = result["a"]
        assert made.w is w and float(w.value.max()) == 1.0
        w += 1.0


class Registry:
    model = holder(1)


@pytest.mark.parametrize("case", RETURNING, ids=str)
def test_a_captured_object_of_a_class(case):
    if case.name not in ABSTRACT:
        with pytest.raises(nnx.TraceContextError, match=r"`result.*` is a Node that"):
            case.make(lambda model, x: Registry.model)(holder(1), X)


def test_the_message_names_the_captured_object():
    teacher = Dense(2, 1)

    @nnx.jit
    def distill(student):
        student.teacher = teacher

    with pytest.raises(nnx.TraceContextError, match=r"`student.teacher` is `teacher`, a Dense th"):
        distill(Dense(2, 1))


@pytest.mark.parametrize("transform", [nnx.jit, nnx.vmap, nnx.remat])
def test_copies_and_arrays_of_captured_objects_leave(transform):
    captured = Dense(2, 1)

    def body(x):
        return nnx.clone(captured), nnx.state(captured), captured.kernel.value

    copied, state, kernel = transform(body)(X)
    assert copied is not captured
    np.testing.assert_array_equal(jnp.broadcast_to(captured.kernel.value, kernel.shape), kernel)
    assert state.kernel.shape == copied.kernel.shape == kernel.shape


def test_what_jax_made_inside_leaves():
    def body(x):
        made = jax.jit(lambda: Dense(2, 1))()
        mapped = jax.tree.map(lambda a: a + 1, made)
        scanned, _ = jax.lax.scan(lambda m, _: (m, None), made, None, length=2)
        return made, mapped, scanned, nnx.merge(*nnx.split(made))

    for model in nnx.jit(body)(1.0):
        model.kernel += 1.0
