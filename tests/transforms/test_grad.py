"""`grad` and `value_and_grad` against hand-written `jax.grad` on plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Pair, Stateful, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.arange(6.0).reshape(3, 2) / 6


def loss_of(model, x):
    return (model(x) ** 2).sum()


def close(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def by_hand(kernel, bias, x):
    return ((x @ kernel + bias[None]) ** 2).sum()


# -- what is differentiated ----------------------------------------------------------------------


def test_against_jax_on_plain_arrays():
    model = Dense(2, 3)
    grads = nnx.grad(loss_of)(model, X)
    expected = jax.grad(by_hand, (0, 1))(model.kernel.value, model.bias.value, X)
    close((grads.kernel.value, grads.bias.value), expected)
    value, again = nnx.value_and_grad(loss_of)(model, X)
    np.testing.assert_allclose(value, by_hand(model.kernel.value, model.bias.value, X), rtol=1e-6)
    close(again, grads)


@pytest.mark.parametrize("make", [lambda: Dense(2, 2), Block, Stateful])
def test_the_tree_is_that_of_the_state(make):
    model = make()
    grads = nnx.grad(loss_of)(model, X)
    params = nnx.state(model, nnx.Param)
    assert isinstance(grads, nnx.State)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert [g.shape for g in jax.tree.leaves(grads)] == [p.shape for p in jax.tree.leaves(params)]


def test_only_params_by_default():
    model = Node(
        w=nnx.Param(jnp.ones(2)),
        lora=nnx.LoRAParam(jnp.ones(2)),
        stat=nnx.BatchStat(jnp.ones(2)),
        array=jnp.ones(2),
        key=nnx.RngKey(jax.random.key(0)),
        count=Count(jnp.array(1)),
    )
    grads = nnx.grad(lambda m: (m.w * m.lora * m.stat * m.array).sum())(model)
    assert paths_of(grads) == [("lora",), ("w",)]
    assert type(grads.lora) is nnx.LoRAParam


def test_metadata_comes_along():
    model = Node(w=nnx.Param(jnp.ones((2, 2)), sharding=("a", "b")))
    grads = nnx.grad(lambda m: m.w.sum())(model)
    assert grads.w.sharding == ("a", "b")


def test_shared_parameters_have_one_gradient():
    model = Block()
    grads = nnx.grad(loss_of)(model, X)
    assert ("tied",) not in paths_of(grads)

    def flat(kernel0, kernel1):
        x = jnp.tanh(X @ kernel0)
        x = jnp.tanh(x @ kernel1) @ kernel0
        mean = 0.5 * x.mean(0)
        return (((x - mean[None]) + 0.5) ** 2).sum()

    expected = jax.grad(flat)(model.tied.value, model.layers[1].kernel.value)
    close(grads.layers[0].kernel.value, expected)


@pytest.mark.parametrize("argnums", [1, -1, (1,), [1], (0, 1), (1, 0), (-1, 0)])
def test_argnums(argnums):
    def f(a, b):
        return (a**2 * b).sum()

    a, b = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    ours, theirs = nnx.grad(f, argnums)(a, b), jax.grad(f, argnums)(a, b)
    assert type(ours) is type(theirs)
    close(ours, theirs)


def test_argnums_of_objects_and_arrays():
    model, scale = Dense(2, 2), jnp.array(2.0)

    def f(model, x, scale):
        return loss_of(model, x) * scale

    grads, x_bar, s_bar = nnx.grad(f, argnums=(0, 1, 2))(model, X, scale)
    assert isinstance(grads, nnx.State) and x_bar.shape == X.shape
    close(s_bar, loss_of(model, X))
    only, _ = nnx.value_and_grad(f, argnums=1)(model, X, scale)
    assert only.shape == ()
    by_keyword = nnx.grad(f)(model, x=X, scale=scale)
    close(by_keyword, grads)


def test_two_models():
    a, b = Dense(2, 2), Dense(2, 2, seed=1)

    def f(a, b, x):
        return loss_of(a, b(x))

    ga, gb = nnx.grad(f, argnums=(0, 1))(a, b, X)
    close(ga, nnx.grad(f, argnums=0)(a, b, X))
    close(gb, nnx.grad(f, argnums=1)(a, b, X))


# -- filters -------------------------------------------------------------------------------------


def test_diff_state():
    model = Stateful()

    def f(m, x):
        return (x * m.scale[None] * m.mean[None]).sum()

    stats = nnx.grad(f, argnums=nnx.DiffState(0, nnx.BatchStat))(model, X)
    assert paths_of(stats) == [("mean",)]
    np.testing.assert_allclose(stats.mean.value, X.sum(0), rtol=1e-6)
    both = nnx.grad(f, argnums=nnx.DiffState(0, (nnx.Param, nnx.BatchStat)))(model, X)
    assert paths_of(both) == [("mean",), ("scale",)]
    kernel = nnx.grad(loss_of, argnums=nnx.DiffState(0, nnx.PathContains("kernel")))(Dense(2, 2), X)
    assert paths_of(kernel) == [("kernel",)]
    frozen = lambda path, v: isinstance(v, nnx.Param) and path != ("bias",)  # noqa: E731
    assert paths_of(nnx.grad(loss_of, nnx.DiffState(0, frozen))(Dense(2, 2), X)) == [("kernel",)]


def test_diff_states_in_a_sequence():
    a, b = Dense(2, 2), Dense(2, 2, seed=1)
    ga, gx, gb = nnx.grad(
        lambda a, x, b: loss_of(a, b(x)),
        argnums=[nnx.DiffState(0, nnx.PathContains("bias")), 1, nnx.DiffState(-1, nnx.Param)],
    )(a, X, b)
    assert paths_of(ga) == [("bias",)] and gx.shape == X.shape
    assert paths_of(gb) == [("bias",), ("kernel",)]


def test_a_filter_that_matches_nothing():
    grads = nnx.grad(loss_of, argnums=nnx.DiffState(0, nnx.BatchStat))(Dense(2, 2), X)
    assert isinstance(grads, nnx.State) and len(grads) == 0


def test_bare_arrays_by_filter():
    model = Node(w=nnx.Param(jnp.ones(2)), array=jnp.full(2, 3.0))
    f = lambda m: (m.w * m.array).sum()  # noqa: E731
    grads = nnx.grad(f, argnums=nnx.DiffState(0, ...))(model)
    assert paths_of(grads) == [("array",), ("w",)]
    np.testing.assert_array_equal(grads.array, [1, 1])
    np.testing.assert_array_equal(grads.w.value, [3, 3])


# -- containers ----------------------------------------------------------------------------------


def test_models_in_containers():
    tree = {"a": Dense(2, 2), "rest": [Dense(2, 2, seed=1), jnp.array(2.0)]}

    def f(tree, x):
        return loss_of(tree["a"], tree["rest"][0](x)) * tree["rest"][1]

    grads = nnx.grad(f)(tree, X)
    assert type(grads) is dict and isinstance(grads["a"], nnx.State)
    assert isinstance(grads["rest"][0], nnx.State) and grads["rest"][1].shape == ()
    close(grads["a"], nnx.grad(lambda m: f({**tree, "a": m}, X))(tree["a"]))


def test_one_model_twice_in_a_container():
    model = Dense(2, 2)
    grads = nnx.grad(lambda p: loss_of(p.first, X) + loss_of(p.second, X))(Pair(model, model))
    single = nnx.grad(loss_of)(model, X)
    close(grads.first.kernel.value, 2 * single.kernel.value)
    close(grads.second.kernel.value, 2 * single.kernel.value)


def test_variables_as_arguments():
    v = nnx.Param(jnp.array([1.0, 2.0]), tag="x")
    g = nnx.grad(lambda v: (v**2).sum())(v)
    assert type(g) is nnx.Param and g.tag == "x"
    np.testing.assert_array_equal(g.value, [2, 4])


def test_states_as_arguments():
    model = Dense(2, 2)
    graphdef, state = nnx.split(model)
    grads = nnx.grad(lambda s: loss_of(nnx.merge(graphdef, s), X))(state)
    assert isinstance(grads, nnx.State)
    close(grads, nnx.grad(loss_of)(model, X))


# -- aux, state, options -------------------------------------------------------------------------


def test_has_aux():
    model = Stateful()

    def f(model, x):
        y = model(x)
        return y.sum(), {"y": y, "model": model, "new": Node(w=nnx.Param(y))}

    grads, aux = nnx.grad(f, has_aux=True)(model, X)
    assert aux["model"] is model and aux["y"].shape == (3, 2)
    assert isinstance(aux["new"].w.value, jax.Array)
    assert not isinstance(aux["new"].w.value, jax.core.Tracer)
    (value, aux), again = nnx.value_and_grad(f, has_aux=True)(model, X)
    assert value.shape == () and aux["model"] is model
    assert model.count == 2
    assert paths_of(grads) == paths_of(again) == [("scale",)]
    with pytest.raises(TypeError, match="has_aux=True"):
        nnx.grad(lambda m: m.scale.sum(), has_aux=True)(model)


def test_state_changes_once():
    model = Stateful()
    nnx.value_and_grad(loss_of)(model, X)
    assert model.count == 1
    np.testing.assert_allclose(model.mean.value, 0.5 * X.mean(0), rtol=1e-6)


def test_a_written_parameter_is_differentiated_where_it_came_in():
    model = Node(w=nnx.Param(jnp.array(3.0)))

    def f(m):
        m.w *= 2.0
        return m.w**2

    value, grads = nnx.value_and_grad(f)(model)
    assert value == 36 and model.w == 6
    np.testing.assert_allclose(grads.w.value, 8 * 3.0)


def test_holomorphic_and_allow_int():
    z = jnp.array(1.0 + 2.0j)
    np.testing.assert_allclose(
        nnx.grad(lambda z: z**2, holomorphic=True)(z), jax.grad(lambda z: z**2, holomorphic=True)(z)
    )
    model = Node(z=nnx.Param(z))
    np.testing.assert_allclose(
        nnx.grad(lambda m: m.z**2, holomorphic=True)(model).z.value, 2 * z, rtol=1e-6
    )
    g = nnx.grad(lambda i, x: (i * 2).sum() * 0.0 + x.sum(), (0, 1), allow_int=True)
    with jax.numpy_dtype_promotion("standard"):
        i_bar, _ = g(jnp.arange(3), jnp.ones(3))
    assert i_bar.dtype == jax.dtypes.float0
    with pytest.raises(TypeError):
        nnx.grad(lambda i: i.sum() * 1.0)(jnp.arange(3))


def test_higher_derivatives():
    model = Node(w=nnx.Param(jnp.array(2.0)))

    def slope(m):
        return nnx.grad(lambda m: m.w**3)(m).w.value

    np.testing.assert_allclose(nnx.grad(slope)(model).w.value, 12.0, rtol=1e-6)
    np.testing.assert_allclose(nnx.grad(nnx.remat(slope))(model).w.value, 12.0, rtol=1e-6)


def test_inside_jax_transforms():
    model = Dense(2, 2)

    def slope(kernel):
        inner = nnx.clone(model)
        inner.kernel.value = kernel
        return nnx.grad(loss_of)(inner, X).kernel.value.sum()

    hessian = jax.jit(jax.grad(slope))(model.kernel.value)
    flat = lambda k: jax.grad(by_hand)(k, model.bias.value, X).sum()  # noqa: E731
    close(hessian, jax.grad(flat)(model.kernel.value))


def test_eager_grad_uses_what_jax_sees():
    """No retrace inside: a step under jit runs the loss once."""
    runs = []

    @nnx.jit
    def step(model, x):
        def loss(m):
            runs.append(1)
            return loss_of(m, x)

        grads = nnx.grad(loss)(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - g, nnx.state(model, nnx.Param), grads))

    model = Dense(2, 2)
    step(model, X)
    step(model, X)
    assert len(runs) == 1


# -- methods and errors --------------------------------------------------------------------------


def test_methods():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array([1.0, 2.0]))

        @nnx.grad
        def slope(self, x):
            return (self.w**2 * x).sum()

        @nnx.value_and_grad(argnums=1)
        def in_x(self, x):
            return (self.w**2 * x).sum()

        def loss(self, x):
            return (self.w**2 * x).sum()

    model, x = Model(), jnp.ones(2)
    np.testing.assert_array_equal(model.slope(x).w.value, [2, 4])
    value, g = model.in_x(x)
    assert value == 5
    np.testing.assert_array_equal(g, [1, 4])
    # The object of a bound method is no argument of it, as in JAX.
    np.testing.assert_array_equal(nnx.grad(model.loss)(x), [1, 4])


@pytest.mark.parametrize(
    ("argnums", "error", "pattern"),
    [
        (2, ValueError, "argument 2.*called with 2"),
        (-3, ValueError, "argument -3"),
        ((0, 0), ValueError, "twice"),
        ((0, nnx.DiffState(0, nnx.BatchStat)), ValueError, "twice"),
        ("a", TypeError, "argnums"),
        (1.5, TypeError, "argnums"),
    ],
)
def test_argnums_that_do_not_fit(argnums, error, pattern):
    with pytest.raises(error, match=pattern):
        nnx.grad(loss_of, argnums=argnums)(Dense(2, 2), X)


def test_diff_state_is_checked_where_it_is_made():
    with pytest.raises(TypeError, match="argnum"):
        nnx.DiffState("a", nnx.Param)
    with pytest.raises(TypeError, match="must be a filter"):
        nnx.DiffState(0, 3)
    assert nnx.DiffState(0, nnx.Param) == nnx.DiffState(0) != nnx.DiffState(1)
    assert len({nnx.DiffState(0), nnx.DiffState(0)}) == 1


def test_a_loss_that_is_no_scalar_changes_nothing():
    model = Stateful()
    with pytest.raises(TypeError, match="scalar"):
        nnx.grad(lambda m, x: m(x))(model, X)
    with pytest.raises(TypeError):
        nnx.grad(lambda m, x: (m(x), 1)[1])(model, X)
    assert model.count == 0


def test_an_object_as_the_loss_is_refused():
    model = Stateful()
    with pytest.raises(TypeError):
        nnx.grad(lambda m: m)(model)
    assert model.count == 0


def test_variables_in_a_container_that_are_not_differentiated():
    values = {"w": nnx.Param(jnp.array(3.0)), "s": nnx.BatchStat(jnp.array(2.0))}
    grads = nnx.grad(lambda v: v["w"].value ** 2 * v["s"].value)(values)
    assert float(grads["w"].value) == 12.0 and grads["s"] is None
    both = nnx.grad(
        lambda v: v["w"].value ** 2 * v["s"].value, argnums=nnx.DiffState(0, nnx.Variable)
    )(values)
    assert float(both["s"].value) == 9.0
