"""A Variable is written only where it was created or entered; elsewhere, an error names it."""

import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Node, Stateful

pytestmark = pytest.mark.usefixtures("strict_numerics")


def make_counter() -> Node:
    return Node(count=Count(jnp.array(0)), mode="train")


def under_jit(f):
    return jax.jit(lambda x: f(x))(jnp.ones(2))


def under_nnx_jit(f):
    return nnx.jit(lambda x: f(x))(jnp.ones(2))


def under_grad(f):
    return jax.grad(lambda x: (f(x), x.sum())[1])(jnp.ones(2))


def under_nnx_grad(f):
    return nnx.grad(lambda x: (f(x), x.sum())[1])(jnp.ones(2))


def under_vmap(f):
    return jax.vmap(lambda x: (f(x), x)[1])(jnp.ones(2))


def under_scan(f):
    return jax.lax.scan(lambda c, x: (c, f(x)), 0, jnp.ones(2))


def under_remat(f):
    return nnx.remat(lambda x: f(x))(jnp.ones(2))


def under_eval_shape(f):
    return nnx.eval_shape(lambda x: f(x), jnp.ones(2))


TRANSFORMS = [
    under_jit,
    under_nnx_jit,
    under_grad,
    under_nnx_grad,
    under_vmap,
    under_scan,
    under_remat,
    under_eval_shape,
]

WRITES = {
    "value": lambda m: setattr(m.count, "value", jnp.array(1)),
    "item": lambda m: m.count.__setitem__(..., jnp.array(1)),
    "in place": lambda m: m.count.__iadd__(1),
    "metadata": lambda m: setattr(m.count, "note", 1),
    "no metadata": lambda m: m.noted.del_metadata("note"),
    "copy_from": lambda m: m.count.copy_from(Count(jnp.array(3))),
    "attribute": lambda m: setattr(m, "mode", "eval"),
    "new attribute": lambda m: setattr(m, "extra", 1),
    "no attribute": lambda m: delattr(m, "mode"),
    "update": lambda m: nnx.update(m, {"count": jnp.array(2)}),
    "set_attributes": lambda m: m.set_attributes(mode="eval"),
    "sow": lambda m: m.sow(nnx.Intermediate, "seen", jnp.array(1)),
    "pop": lambda m: nnx.pop(m, Count),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("write", WRITES)
def test_writing_to_an_outer_object_is_refused(transform, write):
    model = make_counter()
    model.noted = nnx.Param(jnp.zeros(2), note=1)
    before = repr(model)

    def f(x):
        WRITES[write](model)

    with pytest.raises(nnx.TraceContextError):
        transform(f)
    assert repr(model) == before


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_reading_from_an_outer_level_is_fine(transform):
    model = make_counter()
    seen = []

    def f(x):
        value = model.count.value + 1
        seen.append((model.mode, model.count.shape, nnx.state(model)["count"].shape))
        return value.astype(jnp.float32)

    transform(f)
    assert seen[0] == ("train", (), ())


def test_the_message_names_the_variable_the_function_and_the_cure():
    model = make_counter()

    def step_of_mine(x):
        model.count += 1
        return x

    with pytest.raises(nnx.TraceContextError) as caught:
        jax.jit(step_of_mine)(jnp.ones(2))
    text = str(caught.value)
    assert "Count `Node.count` (int32[])" in text
    assert re.search(r"`step_of_mine` \(.*test_trace_safety\.py:\d+\), by jit", text)
    assert "pass the object" in text and "argument" in text


def test_the_message_of_refax_transforms_names_the_users_function():
    model = make_counter()

    def step_of_mine(x):
        model.count += 1
        return x.sum()

    for transform in (nnx.jit, nnx.grad, nnx.remat, lambda f: lambda x: nnx.eval_shape(f, x)):
        pattern = r"step_of_mine` \(.*test_trace_safety\.py:\d+\)"
        with pytest.raises(nnx.TraceContextError, match=pattern):
            transform(step_of_mine)(jnp.ones(2))


def test_the_message_names_attribute_and_class():
    model = make_counter()

    def f(x):
        model.mode = "eval"

    with pytest.raises(nnx.TraceContextError, match=r"set the attribute `mode` of.*Node"):
        jax.jit(f)(1)

    def g(x):
        del model.mode

    with pytest.raises(nnx.TraceContextError, match=r"delete the attribute `mode` of.*Node"):
        jax.jit(g)(1)


def test_the_example_of_the_guide():
    class Counter(nnx.Module):
        def __init__(self):
            self.count = nnx.Param(jnp.array(0))

        def increment(self):
            self.count += jnp.array(1)

    counter = Counter()

    @nnx.jit
    def f(x):
        counter.increment()
        return 2 * x

    with pytest.raises(nnx.TraceContextError, match=r"`Counter\.count`"):
        f(3)
    assert counter.count == 0
    counter.increment()  # and outside it is as usable as before
    assert counter.count == 1


def test_inner_objects_are_written_freely():
    @jax.jit
    def f(x):
        model = make_counter()
        model.count += 1
        model.mode = "eval"
        model.extra = nnx.Param(x)
        return model.count.value + model.extra.value.astype(jnp.int32).sum()

    assert f(jnp.ones(2)) == 3


def test_an_inner_object_is_outer_in_a_nested_trace():
    @jax.jit
    def f(x):
        model = make_counter()

        @jax.jit
        def g(y):
            model.count += 1
            return y

        return g(x)

    with pytest.raises(nnx.TraceContextError, match="`g`"):
        f(jnp.ones(2))


def test_merged_objects_may_be_written_in_the_trace_of_the_merge():
    graphdef, state = nnx.split(Stateful())

    @jax.jit
    def f(state, x):
        model = nnx.merge(graphdef, state)
        y = model(x)
        model.scale += 1.0
        model.deterministic = True
        return y, nnx.state(model)

    _, new = f(state, jnp.ones((3, 2)))
    assert new["count"].value == 1
    np.testing.assert_array_equal(new["mean"].value, [0.5, 0.5])
    np.testing.assert_array_equal(new["scale"].value, [2, 2])
    assert state["count"].value == 0


def test_merge_under_grad_and_inside_a_nested_jit():
    graphdef, state = nnx.split(Stateful())

    def loss(state, x):
        model = nnx.merge(graphdef, state)
        return model(x).sum(), nnx.state(model)

    @jax.jit
    def step(state, x):
        grads, new = jax.grad(loss, has_aux=True, allow_int=True)(state, x)
        return grads, new

    _, new = step(state, jnp.ones((3, 2)))
    assert new["count"].value == 1


def test_merge_gives_new_cells_even_of_a_state_of_the_outside():
    model = Stateful()
    graphdef, state = nnx.split(model)

    @jax.jit
    def f(x):
        inner = nnx.merge(graphdef, state)  # closed over
        inner.count += 1
        return inner.count.value

    assert f(1) == 1
    assert state["count"].value == 0 and model.count.value == 0


def test_an_object_that_entered_as_an_argument_may_be_written():
    model = make_counter()

    @nnx.jit
    def f(model):
        model.count += 1
        model.mode = "eval"

        @nnx.jit
        def g(model):
            model.count += 10

        g(model)

    f(model)
    assert model.count == 11 and model.mode == "eval"


def test_modules_through_plain_jax_may_be_written_inside():
    model = Stateful()
    out = jax.jit(lambda m, x: (m(x), m)[1])(model, jnp.ones((3, 2)))
    assert model.count == 0
    assert out.count == 1
    out.count += 1  # what came out belongs to the outside
    assert out.count == 2


def test_a_variable_through_plain_jax_may_be_written_inside():
    def f(v):
        v += 1
        return v

    v = Count(jnp.array(0))
    assert jax.jit(f)(v) == 1 and v == 0
    assert (jax.vmap(f)(Count(jnp.arange(3))).value == jnp.arange(1, 4)).all()


def test_no_trace_is_kept_alive():
    @jax.jit
    def f(x):
        models.append(make_counter())
        return x

    models: list = []
    f(1)
    with pytest.raises(nnx.TraceContextError):
        models[0].count.value = jnp.array(1)
    gc.collect()


def test_objects_made_in_a_vmap_or_grad_belong_to_it():
    made = []

    def f(x):
        model = Node(weight=nnx.Param(x))
        model.weight += 1.0
        made.append(model)
        return model.weight.value.sum()

    jax.grad(f)(jnp.ones(2))
    jax.vmap(f)(jnp.ones((3, 2)))
    for model in made:
        with pytest.raises(nnx.TraceContextError):
            model.weight.value = jnp.ones(2)
