"""`vmap`: which axis each Variable takes, what comes back stacked, and what cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Dense, Node, Stateful

pytestmark = pytest.mark.usefixtures("strict_numerics")

SIZE = 5


def make_stack(size: int = SIZE) -> Dense:
    return nnx.vmap(lambda seed: Dense(2, 3, seed=seed))(jnp.arange(size))


def weights(**attributes) -> Node:
    """A stacked kernel and bias, and one count for all."""
    stack = make_stack()
    return Node(kernel=stack.kernel, bias=stack.bias, count=Count(jnp.array(0)), **attributes)


def dot(w, x):
    w.count += 1
    return x @ w.kernel + w.bias


PARAMS_MAPPED = nnx.StateAxes({nnx.Param: 0, ...: None})
X = jnp.arange(10.0).reshape(SIZE, 2)


# -- axes ----------------------------------------------------------------------------------------


def by_hand(kernel, bias, x):
    return x @ kernel + bias


@pytest.mark.parametrize(
    "in_axes, out_axes, positional",
    [(0, 0, False), (0, 1, True), ((0, 0), 0, False), ([0, 0], -1, False)],
)
def test_equals_jax_on_plain_arrays(in_axes, out_axes, positional):
    stack = make_stack()
    expected = jax.vmap(by_hand, (0, 0, 0), out_axes)(stack.kernel.value, stack.bias.value, X)

    def f(m, x):
        return by_hand(m.kernel, m.bias, x)

    mapped = nnx.vmap(f, in_axes, out_axes) if positional else None
    mapped = mapped or nnx.vmap(f, in_axes=in_axes, out_axes=out_axes)
    np.testing.assert_array_equal(mapped(stack, X), expected)
    np.testing.assert_array_equal(nnx.vmap(f, out_axes=out_axes)(stack, x=X), expected)


@pytest.mark.parametrize(
    "axes",
    [
        {nnx.Param: 0, Count: None},
        {(nnx.Param, nnx.BatchStat): 0, ...: None},
        {"mapped": 0, ...: None},
        {nnx.PathContains("count"): None, ...: 0},
        {lambda path, value: path == ("count",): None, True: 0},
        {nnx.Not(nnx.Param): None, nnx.Param: 0},
    ],
    ids=["type", "tuple", "tag", "path", "callable", "not"],
)
def test_state_axes_by_filter(axes):
    w = weights()
    w.kernel.set_metadata(tag="mapped")
    w.bias.set_metadata(tag="mapped")
    y = nnx.vmap(dot, in_axes=(nnx.StateAxes(axes), 0))(w, X)
    assert y.shape == (SIZE, 3)
    assert int(w.count) == 1


def test_the_first_filter_that_matches_counts():
    w = weights()
    axes = nnx.StateAxes({nnx.PathContains("kernel"): 0, nnx.Param: 0, ...: None, Count: 0})
    nnx.vmap(dot, in_axes=(axes, 0))(w, X)
    assert int(w.count) == 1


def test_state_axes_stand_for_a_pytree_of_objects_and_nest_in_prefixes():
    tree = {"a": weights(), "b": [weights(), (weights(), None)]}

    def f(tree, x):
        a, (b, (c, _)) = tree["a"], tree["b"]
        return dot(a, x) + dot(b, x) + dot(c, x)

    for prefix in (
        PARAMS_MAPPED,
        {"a": PARAMS_MAPPED, "b": nnx.StateAxes({nnx.Param: 0, Count: None})},
        {"a": PARAMS_MAPPED, "b": [PARAMS_MAPPED, (PARAMS_MAPPED, None)]},
    ):
        nnx.vmap(f, in_axes=(prefix, 0))(tree, X)
    assert [int(w.count) for w in (tree["a"], tree["b"][0], tree["b"][1][0])] == [3, 3, 3]


def test_state_axes_stand_for_arrays_and_states_among_the_objects():
    w, shared = weights(), jnp.ones(3)

    def f(everything):
        w, state, (x, y) = everything
        return dot(w, x) + state["kernel"].value[0] + y

    axes = nnx.StateAxes({(nnx.Param, lambda path, _: path[-2:] == (2, 0)): 0, ...: None})
    mapped = nnx.vmap(f, in_axes=(axes,))((w, nnx.state(w), (X, shared)))
    expected = jax.vmap(by_hand)(w.kernel.value, w.bias.value, X) + w.kernel[:, 0] + shared[None]
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)


def test_axis_size_axis_name_and_spmd_axis_name():
    w = weights()
    made = nnx.vmap(lambda: Dense(2, 3), axis_size=4, out_axes=1)()
    assert made.kernel.shape == (2, 4, 3)
    totals = nnx.vmap(lambda w, x: jax.lax.psum(x, "batch"), in_axes=(None, 0), axis_name="batch")
    np.testing.assert_array_equal(totals(w, X)[0], X.sum(0))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:4])  # fmt: skip
    with jax.set_mesh(mesh):
        f = nnx.vmap(lambda v: v * 2, spmd_axis_name="data")
        assert jax.jit(f)(jnp.ones((4, 3))).shape == (4, 3)


def test_bare_variables_and_bare_arrays():
    variable, node = nnx.Param(jnp.arange(3.0)), Node(array=jnp.arange(3.0), pair=(1, jnp.ones(3)))

    def f(v, n):
        v += 1.0
        n.array = n.array * 2
        return v * n.array * n.pair[1]

    y = nnx.vmap(f)(variable, node)
    np.testing.assert_array_equal(variable.value, [1, 2, 3])
    np.testing.assert_array_equal(node.array, [0, 2, 4])
    np.testing.assert_array_equal(y, [0, 4, 12])


# -- changes -------------------------------------------------------------------------------------


def test_changes_of_structure_propagate():
    stack = make_stack()
    stack.items = [nnx.Param(X)]
    kernel = stack.kernel

    def f(w, x):
        y = x @ w.kernel + w.bias
        w.properties = ["a", 2, False]
        w.shared = w.kernel
        w.items.append(nnx.Param(y))
        w.items[0].value *= 2
        w.child = Node(parent=w, made=Count(jnp.array(7)))
        w.kernel.set_metadata(seen=True)
        del w.bias
        return y

    y = nnx.vmap(f, out_axes=1)(stack, X)
    assert stack.kernel is kernel is stack.shared and kernel.seen
    assert stack.properties == ["a", 2, False] and not hasattr(stack, "bias")
    assert stack.child.parent is stack and stack.child.made.shape == (SIZE,)
    np.testing.assert_array_equal(stack.items[1].value, y.T)
    np.testing.assert_array_equal(stack.items[0].value, X * 2)


def test_a_list_that_is_appended_to_at_each_call():
    node = Node(total=Count(jnp.zeros(2)), log=[])
    for i in range(3):
        nnx.vmap(lambda n: n.log.append(Count(n.total.value)))(node)
        assert [v.shape for v in node.log] == [(2,)] * (i + 1)


def test_references_are_kept():
    stack, tied = make_stack(), make_stack()
    tied.kernel = stack.kernel
    seen = []

    def f(a, b, pair):
        seen.append(a.kernel is b.kernel and pair["a"] is a)
        return {"same": a, "new": Node(inner=b)}

    result = nnx.vmap(f)(stack, tied, {"a": stack})
    assert seen == [True]
    assert result["same"] is stack and result["new"].inner is tied


def test_objects_come_out_by_out_axes():
    axes = nnx.StateAxes({nnx.PathContains("kernel"): 2, ...: 0})

    def make(seed):
        return {"one": Dense(2, 3, seed=seed), "more": [Dense(2, 3, seed=seed), seed]}

    made = nnx.vmap(make, out_axes={"one": 1, "more": [axes, 0]})(jnp.arange(SIZE))
    assert made["one"].kernel.shape == (2, SIZE, 3) and made["one"].bias.shape == (3, SIZE)
    assert made["more"][0].kernel.shape == (2, 3, SIZE) and made["more"][0].bias.shape == (SIZE, 3)
    np.testing.assert_array_equal(made["more"][1], jnp.arange(SIZE))


class Stack(nnx.Module):
    """All methods are mapped over axis 0 of the object; the entries leave `self` out, or not."""

    @nnx.vmap(in_axes=(0,))
    def __init__(self, seed):
        self.inner = Dense(2, 3, seed=seed)

    @nnx.vmap(in_axes=0, out_axes=1)
    def __call__(self, x):
        assert self.inner.kernel.ndim == 2
        return x @ self.inner.kernel + self.inner.bias

    @nnx.vmap(in_axes=(0, None))
    def full(self, x):
        return x @ self.inner.kernel

    @nnx.vmap(in_axes=(None,))
    def short(self, x):
        return x @ self.inner.kernel

    def plain(self, x):
        return x @ self.inner.kernel


def test_methods():
    stack = Stack(jnp.arange(SIZE))
    assert stack.inner.kernel.shape == (SIZE, 2, 3)
    assert stack(X).shape == (3, SIZE)
    np.testing.assert_array_equal(stack.full(X[0]), stack.short(X[0]))
    np.testing.assert_array_equal(nnx.vmap(stack.plain)(X), nnx.vmap(Stack.plain)(stack, X))
    np.testing.assert_array_equal(nnx.vmap(stack.plain, in_axes=(0,))(X), nnx.vmap(stack.plain)(X))


def test_nested_vmap():
    grid = nnx.vmap(nnx.vmap(lambda seed: Dense(2, 3, seed=seed)))(jnp.arange(6).reshape(2, 3))
    assert grid.kernel.shape == (2, 3, 2, 3)
    total = Node(count=Count(jnp.zeros((2, 3), jnp.int32)))

    def f(m, total, x):
        total.count += 1
        return by_hand(m.kernel, m.bias, x)

    y = nnx.vmap(nnx.vmap(f, in_axes=(0, 0, None)), in_axes=(0, 0, None))(grid, total, X[0])
    assert y.shape == (2, 3, 3) and int(total.count.sum()) == 6


# -- what its prefix says, or an error with the path and the choices -----------------------------


def test_broadcast_state_that_would_need_the_axis():
    model, x = Stateful(2), jnp.ones((SIZE, 3, 2))

    def f(model, x):
        return model(x)

    with pytest.raises(nnx.GraphError) as error:
        nnx.vmap(f, in_axes=(None, 0))(model, x * jnp.arange(5.0)[:, None, None])
    for part in ("`model.mean`", "axis None", "nnx.StateAxes({BatchStat: 0, ...: None})", "pmean"):
        assert part in str(error.value)
    assert int(model.count) == 0 and not isinstance(model.mean.value, jax.core.Tracer)

    # Each choice that the message offers:
    stats = Node(model=Stateful(2))
    stats.model.mean.value = jnp.zeros((SIZE, 2))
    axes = nnx.StateAxes({nnx.BatchStat: 0, ...: None})
    nnx.vmap(lambda n, x: n.model(x), in_axes=(axes, 0))(stats, x)
    assert stats.model.mean.shape == (SIZE, 2) and int(stats.model.count) == 1

    def reduced(model, x):
        y = model(x)
        model.mean.value = jax.lax.pmean(model.mean.value, "batch")
        return y

    nnx.vmap(reduced, in_axes=(None, 0), axis_name="batch")(model, x)
    np.testing.assert_array_equal(model.mean.value, [0.5, 0.5])


def test_sizes_that_differ_and_axes_that_are_missing():
    stack = make_stack()
    with pytest.raises(nnx.GraphError) as error:
        nnx.vmap(lambda model, xs: model.kernel)(stack, [jnp.ones(4)])
    text = str(error.value)
    assert "size 4: xs[0] (float32[4], axis 0)" in text
    assert "size 5: model.kernel (float32[5,2,3], axis 0)" in text
    with pytest.raises(
        nnx.GraphError, match=r"`rngs\.default\.key` is .*no axis 0(.|\n)*split_rngs"
    ):
        nnx.vmap(lambda rngs, x: rngs())(nnx.Rngs(0), X)
    with pytest.raises(nnx.GraphError, match=r"`model\.bias` is float32\[5,3\].*no axis 2"):
        nnx.vmap(lambda model: None, in_axes=2)(stack)


def test_inconsistent_aliases_list_every_place():
    stack = make_stack()

    def f(a, b):
        return None

    with pytest.raises(ValueError, match="Inconsistent aliasing detected") as error:
        nnx.vmap(f, in_axes=(0, 1))({"x": stack, "y": [stack]}, (stack,))
    text = str(error.value)
    for place in ("a['x'].kernel: 0", "a['y'][0].kernel: 0", "b[0].kernel: 1", "Param"):
        assert place in text
    with pytest.raises(ValueError, match="Inconsistent aliasing detected") as error:
        nnx.vmap(lambda a: a, in_axes=0, out_axes=1)({"x": Node(w=stack.kernel)})
    assert "a['x'].w: 0\n  result['x'].w: 1" in str(error.value)


def test_an_alias_inside_one_object_is_seen():
    stack = make_stack()
    stack.tied = stack.kernel
    axes = nnx.StateAxes({nnx.PathContains("tied"): 1, ...: 0})
    with pytest.raises(ValueError, match=r"model\.kernel: 0\n  model\.tied: 1"):
        nnx.vmap(lambda model: None, in_axes=axes)(stack)


def test_left_over_and_wrong_prefixes():
    with pytest.raises(
        nnx.GraphError, match=r"StateAxes\(\{Param: 0\}\) matches `w\.count`, a Count"
    ):
        nnx.vmap(lambda w: None, in_axes=nnx.StateAxes({nnx.Param: 0}))(weights())
    with pytest.raises(nnx.GraphError, match=r"`in_axes` is not a prefix(.|\n)*length 3"):
        nnx.vmap(lambda a, b: None, in_axes=(0, 0, 0))(weights(), X)
    with pytest.raises(TypeError, match="vmap: f is Node, but must be callable"):
        nnx.vmap(Node())
