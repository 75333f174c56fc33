"""`scan` against `jax.lax.scan`: what is carried, scanned, broadcast, stacked, and what not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from refax.nnx import Carry
from tests.models import Count, Dense, Node
from tests.transforms.observing import Counted, assert_warm

pytestmark = pytest.mark.usefixtures("strict_numerics")

XS = jnp.arange(4.0)


def make_layers(count: int = 4) -> Dense:
    return nnx.vmap(lambda seed: Dense(3, 3, seed=seed))(jnp.arange(count))


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


# -- arrays: as jax.lax.scan ---------------------------------------------------------------------


def body(carry, x):
    return carry * 2 + x, carry - x


@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"unroll": 2}, {"unroll": True}, {"length": 4}], ids=str
)
def test_equals_lax_scan(options):
    same(
        nnx.scan(body, **options)(jnp.ones(()), XS), jax.lax.scan(body, jnp.ones(()), XS, **options)
    )


@pytest.mark.parametrize("start", [0, 0.0, 1.5, np.float32(1)])
def test_a_weakly_typed_start_is_adapted(start):
    def add(carry, x):
        return carry + x, None

    with jax.numpy_dtype_promotion("standard"):
        same(nnx.scan(add)(start, XS), jax.lax.scan(add, start, XS))


@pytest.mark.parametrize("in_axes", [(Carry, 0, None), (0, Carry, None), (None, 0, Carry)], ids=str)
def test_the_carry_in_any_position(in_axes):
    values = {Carry: jnp.ones(()), 0: XS, None: jnp.array(2.0)}

    def step(*args):
        carry, x, factor = (args[in_axes.index(entry)] for entry in (Carry, 0, None))
        return carry + factor * x

    run = nnx.scan(step, in_axes=in_axes, out_axes=Carry)
    assert float(run(*(values[entry] for entry in in_axes))) == 13


@pytest.mark.parametrize("first", [True, False])
def test_the_carry_in_any_place_of_the_result(first):
    def step(c, x):
        return (c + x, (x, x[None])) if first else ((x, x[None]), c + x)

    ys = (0, 1)
    out = nnx.scan(step, out_axes=(Carry, ys) if first else (ys, Carry))(
        jnp.zeros(2), jnp.ones((4, 2))
    )
    carry, (a, b) = out if first else out[::-1]
    np.testing.assert_array_equal(carry, [4, 4])
    assert a.shape == (4, 2) and b.shape == (1, 4, 2)


def test_out_axes_without_a_carry():
    def step(x):
        return {"a": x, "b": (x, x[None])}

    ys = nnx.scan(step, in_axes=(1,), out_axes={"a": 1, "b": (0, -1)})(jnp.ones((3, 4)))
    assert (ys["a"].shape, ys["b"][0].shape, ys["b"][1].shape) == ((3, 4), (4, 3), (1, 3, 4))
    assert nnx.scan(lambda x: x, in_axes=-1, out_axes=1)(jnp.ones((3, 4))).shape == (3, 4)


def test_negative_axes():
    xs = jnp.arange(12.0).reshape(3, 4)
    carry, ys = nnx.scan(
        lambda c, x: (c + x.sum(), x * 2), in_axes=(Carry, -1), out_axes=(Carry, -1)
    )(jnp.zeros(()), xs)
    assert float(carry) == 66
    np.testing.assert_array_equal(ys, xs * 2)


def test_length_without_xs_and_keywords():
    @nnx.scan(length=5, in_axes=(Carry,), out_axes=(Carry, 0))
    def count(carry):
        return carry + 1, carry

    same(count(jnp.array(0)), (jnp.array(5), jnp.arange(5)))
    same(count(carry=jnp.array(0)), count(jnp.array(0)))
    with pytest.raises(ValueError, match="length"):
        nnx.scan(lambda c: (c, c), in_axes=(Carry,), out_axes=(Carry, 0))(XS)
    with pytest.raises(ValueError, match=r"`length` argument of 3"):
        nnx.scan(body, length=3)(jnp.ones(()), XS)


# -- objects -------------------------------------------------------------------------------------


def test_scan_over_layers():
    layers, x = make_layers(), jnp.ones((2, 3))
    forward = nnx.scan(lambda layer, x: layer(x), in_axes=(0, Carry), out_axes=Carry)
    expected = x
    for i in range(4):
        expected = expected @ layers.kernel[i] + layers.bias[i][None]
    np.testing.assert_allclose(forward(layers, x), expected, rtol=1e-5)
    np.testing.assert_allclose(nnx.jit(forward)(layers, x), expected, rtol=1e-5)


class Mixed(nnx.Module):
    """Each kind of state once."""

    def __init__(self):
        self.w = nnx.Param(jnp.arange(4.0))  # one for each step
        self.total = nnx.BatchStat(jnp.zeros(()))  # from step to step
        self.factor = nnx.Cache(jnp.array(3.0))  # the same for all

    @nnx.scan(
        in_axes=(nnx.StateAxes({nnx.Param: 0, nnx.BatchStat: Carry, ...: None}), 0), out_axes=0
    )
    def __call__(self, x):
        self.total.value = self.total + self.w * x * self.factor
        self.w.value = self.w + 1.0
        return self.total.value

    @nnx.scan(in_axes=(Carry, 0), out_axes=(Carry, 0))
    def without_self(self, carry, x):
        return carry + x * self.factor, carry

    def plain(self, carry, x):
        return carry + x * self.factor, carry


def test_carried_scanned_and_broadcast_state():
    model = Mixed()
    w, total, factor = model.w, model.total, model.factor
    ys = model(jnp.full(4, 2.0))
    np.testing.assert_array_equal(ys, jnp.cumsum(jnp.arange(4.0) * 6))
    assert (model.w, model.total, model.factor) == (w, total, factor) and model.w is w
    np.testing.assert_array_equal(model.w.value, [1, 2, 3, 4])
    assert float(model.total) == 36


def test_methods_leave_self_out():
    model = Mixed()
    expected = (jnp.array(18.0), jnp.array([0.0, 0.0, 3.0, 9.0]))
    same(model.without_self(jnp.zeros(()), XS), expected)
    same(nnx.scan(model.plain)(jnp.zeros(()), XS), expected)
    same(nnx.scan(model.plain, in_axes=(Carry, 0))(jnp.zeros(()), XS), expected)
    same(nnx.scan(Mixed.plain, in_axes=(None, Carry, 0))(model, jnp.zeros(()), XS), expected)


def test_an_object_as_carry():
    model = Node(w=nnx.Param(jnp.ones(2)), count=Count(jnp.array(0)))

    def step(carry, x):
        model, total = carry
        model.count += 1
        model.w.value = model.w * x
        return (model, total + x), model.w.value.sum()

    (returned, total), ys = nnx.scan(step)((model, jnp.zeros(())), jnp.full(3, 2.0))
    assert returned is model and float(total) == 6 and int(model.count) == 3
    np.testing.assert_array_equal(model.w.value, [8, 8])
    np.testing.assert_array_equal(ys, [4, 8, 16])
    cell = nnx.Variable(jnp.zeros(()))

    def add(cell, x):
        cell += x
        return cell, None

    assert nnx.scan(add)(cell, XS)[0] is cell and float(cell) == 6


class Sowing(nnx.Module):
    def __init__(self, seed):
        self.dense = Dense(3, 3, seed=seed)

    def __call__(self, x):
        y = self.dense(x)
        self.sow(nnx.Intermediate, "hidden", y)
        return y


def test_what_is_made_inside_is_stacked():
    layers = nnx.vmap(Sowing)(jnp.arange(4))
    run = nnx.scan(lambda layer, x: layer(x), in_axes=(0, Carry), out_axes=Carry)
    for calls in (1, 2):
        run(layers, jnp.ones((2, 3)))
        assert [h.shape for h in layers.hidden.value] == [(4, 2, 3)] * calls
    popped = nnx.pop(layers, nnx.Intermediate)
    assert list(popped) == ["hidden"] and not hasattr(layers, "hidden")

    made = nnx.scan(
        lambda c, x: (c, Dense(2, 3, seed=x)),
        out_axes=(Carry, nnx.StateAxes({nnx.PathContains("kernel"): 1, ...: 0})),
    )(jnp.zeros(()), jnp.arange(4))[1]
    assert made.kernel.shape == (2, 4, 3) and made.bias.shape == (4, 3)


# -- called eagerly ------------------------------------------------------------------------------


def test_the_second_call_neither_traces_nor_compiles():
    layers, x = make_layers(), jnp.ones((2, 3))
    counted = Counted(lambda layer, x: layer(x))
    run = nnx.scan(counted.function, in_axes=(0, Carry), out_axes=Carry)
    assert_warm(lambda: run(layers, x), counted)
    assert counted.runs == 1

    def again():  # the transform made again, another model of the same structure
        return nnx.scan(counted.function, in_axes=(0, Carry), out_axes=Carry)(make_layers(), x)

    assert_warm(again, counted)
    assert counted.runs == 1
    run(layers, jnp.ones((5, 3)))
    for unroll in (2, True):  # True is not 1
        nnx.scan(counted.function, in_axes=(0, Carry), out_axes=Carry, unroll=unroll)(layers, x)
    assert counted.runs == 4


def test_equal_lift_types_are_the_same_program():
    counted = Counted(lambda m, x: m.total + x)

    def call():
        axes = nnx.StateAxes({nnx.Param: 0, nnx.BatchStat: Carry, ...: None})
        return nnx.scan(counted.function, in_axes=(axes, 0), out_axes=0)(Mixed(), XS)

    assert_warm(call, counted)
    assert counted.runs == 1


def test_lift_types_of_types_with_the_same_name_are_different():
    first, second = (type("Same", (nnx.Variable,), {}) for _ in range(2))

    def body(carry, x):
        return carry, Node(made=first(jnp.zeros(3)))

    axes = [nnx.StateAxes({kind: 1, ...: 0}) for kind in (first, second)]
    shapes = [nnx.scan(body, out_axes=(Carry, a))(XS[0], XS)[1].made.shape for a in axes]
    assert shapes == [(3, 4), (4, 3)]


# -- what cannot be: the path and the difference -------------------------------------------------


def grow(model, x):
    model.child.new = nnx.Param(x)
    return model, x


def widen(model, x):
    model.child.w.value = jnp.zeros(3)
    return model, x


def flip(model, x):
    model.child.mode = "eval"
    return model, x


def drop(model, x):
    del model.child.extra
    return model, x


def replace(model, x):
    return Node(child=Node(w=nnx.Param(jnp.zeros(2)), mode="train")), x


def swap(model, x):
    model.child = Node(w=model.child.w, mode="train", extra=model.child.extra)
    return model, x


def append(model, x):
    model.items.append(1)
    return model, x


def annotate(model, x):
    model.child.w.set_metadata(tag="new")
    return model, x


@pytest.mark.parametrize(
    "step, message",
    [
        (grow, r"`model\.child\.new` is new"),
        (widen, r"`model\.child\.w` was float32\[2\] and becomes float32\[3\]"),
        (flip, r"`model\.child\.mode` was 'train' and becomes 'eval'"),
        (drop, r"`model\.child` changes its form: it loses \['extra'\]"),
        (replace, r"`carry` is another object(.|\n)*in place"),
        (swap, r"`model\.child` refers to another object(.|\n)*in place"),
        (append, r"`model\.items` changes its form: it gains \[0\]"),
        (annotate, r"`model\.child\.w` had metadata \{\} and gets \{'tag': 'new'\}"),
        (lambda model, x: (None, x), r"`carry` was Node and becomes None"),
        (lambda model, x: ((model, x), x), r"`carry` was Node and becomes \(Node, float32\[\]\)"),
    ],
)
def test_a_carry_that_changes_its_form(step, message):
    model = Node(child=Node(w=nnx.Param(jnp.zeros(2)), mode="train", extra=2), items=[])
    content, value = vars(model.child).copy(), model.child.w.value
    with pytest.raises(nnx.GraphError, match=message):
        nnx.scan(step)(model, XS)
    assert vars(model.child) == content and model.child.w.value is value and model.items == []


def test_plain_carries_that_change_their_form():
    with pytest.raises(
        nnx.GraphError, match=r"`carry\['a'\]` was float32\[2\] and becomes .*\[3\]"
    ):
        nnx.scan(lambda c, x: ({"a": jnp.zeros(3)}, x))({"a": jnp.zeros(2)}, XS)
    with pytest.raises(
        nnx.GraphError, match=r"was \{'a': float32\[2\]\} and becomes \{'a': float32"
    ):
        nnx.scan(lambda c, x: ({**c, "b": x}, x))({"a": jnp.zeros(2)}, XS)


def test_broadcast_state_cannot_be_written():
    model = Node(count=Count(jnp.array(0)))

    def step(model, carry, x):
        model.count += 1
        return carry, x

    with pytest.raises(nnx.GraphError) as error:
        nnx.scan(step, in_axes=(None, Carry, 0))(model, XS[0], XS)
    text = str(error.value)
    assert "`model.count`" in text and "nnx.StateAxes({Count: nnx.Carry, ...: None})" in text
    axes = nnx.StateAxes({Count: nnx.Carry, ...: None})  # the cure
    nnx.scan(step, in_axes=(axes, Carry, 0))(model, XS[0], XS)
    assert int(model.count) == 4


def test_wrong_prefixes():
    for in_axes, out_axes in [((Carry, Carry), Carry), ((Carry, 0), 0), ((0, 0), Carry)]:
        with pytest.raises(ValueError, match=r"nnx\.Carry for \d arguments"):
            nnx.scan(body, in_axes=in_axes, out_axes=out_axes)(XS, XS)
    with pytest.raises(ValueError, match="inside of containers"):
        nnx.scan(lambda d: d, in_axes=({"a": Carry, "b": 0},), out_axes=0)({"a": XS, "b": XS})
    with pytest.raises(ValueError, match="out_axes has None"):
        nnx.scan(body, out_axes=(Carry, None))(XS[0], XS)
    with pytest.raises(ValueError, match=r"has 2 entries, but the body returned float32\[\]"):
        nnx.scan(lambda c, x: c)(XS[0], XS)
    with pytest.raises(nnx.GraphError, match="`in_axes` is not a prefix"):
        nnx.scan(body, in_axes=(Carry,))(XS[0], XS)
    with pytest.raises(nnx.GraphError, match="for an array"):
        nnx.scan(lambda x: x, in_axes=(nnx.StateAxes({...: Carry}),), out_axes=0, length=2)(XS)


def test_sizes_that_differ():
    with pytest.raises(nnx.GraphError) as error:
        nnx.scan(lambda layer, c, x: c, in_axes=(0, Carry, 0), out_axes=Carry)(
            make_layers(), XS[0], jnp.ones(5)
        )
    assert "size 4: layer.kernel (float32[4,3,3], axis 0)" in str(error.value)
    assert "size 5: x (float32[5], axis 0)" in str(error.value)


def test_a_carried_object_that_drops_an_array_of_its_own():
    class Holder(nnx.Module):
        def __init__(self):
            self.first, self.second = nnx.data(jnp.zeros(2)), nnx.data(jnp.zeros(3))

    def body(holder, x):
        if hasattr(holder, "first"):
            del holder.first
        holder.second = holder.second + x
        return x

    holder = Holder()
    carried = nnx.StateAxes({...: nnx.Carry})
    nnx.scan(body, in_axes=(carried, 0), out_axes=0)(holder, jnp.arange(3.0))
    assert not hasattr(holder, "first")
    np.testing.assert_array_equal(holder.second, np.full(3, 3.0))
