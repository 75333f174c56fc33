"""`jit`: static arguments, the cache, what leaves a program. Buffers: `test_jit_buffers.py`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Stateful, Uncomparable

pytestmark = pytest.mark.usefixtures("strict_numerics")


@pytest.fixture
def runs() -> list:
    return []


# -- static arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "args", "kwargs"),
    [
        ({"static_argnums": 1}, (3,), {}),
        ({"static_argnums": (1,)}, (3,), {}),
        ({"static_argnums": -1}, (3,), {}),
        ({"static_argnames": "n"}, (), {"n": 3}),
        ({"static_argnames": ("n",)}, (3,), {}),
        ({"static_argnums": 1}, (), {"n": 3}),
        ({"static_argnums": 1, "static_argnames": "n"}, (), {"n": 3}),
    ],
    ids=str,
)
def test_static_arguments(runs, options, args, kwargs):
    def f(model, n):
        runs.append(n)
        assert isinstance(n, int)
        for _ in range(n):
            model.w += 1.0

    jitted, model = nnx.jit(f, **options), Node(w=nnx.Param(jnp.zeros(2)))
    jitted(model, *args, **kwargs)
    jitted(model, *args, **kwargs)
    np.testing.assert_array_equal(model.w.value, [6, 6])
    assert runs == [3]
    jitted(model, *(4 for _ in args), **dict.fromkeys(kwargs, 4))
    assert runs == [3, 4]


@pytest.mark.parametrize(
    ("first", "second"), [(1, True), (1, 1.0), (0.0, -0.0), ("1", 1), ((1,), (True,))]
)
def test_equal_statics_of_another_kind_are_traced_again(runs, first, second):
    @nnx.jit(static_argnums=1)
    def f(x, static):
        runs.append(repr(static))
        return x

    f(jnp.ones(2), first)
    f(jnp.ones(2), second)
    f(jnp.ones(2), first)
    assert runs == [repr(first), repr(second)]


@pytest.mark.parametrize(("first", "second"), [(1, True), (1, 1.0), (0.0, -0.0)])
def test_equal_static_attributes_of_another_kind_are_traced_again(runs, first, second):
    @nnx.jit
    def f(model):
        runs.append(repr(model.static))
        return jnp.float32(str(model.static) == str(first))

    model = Node(static=first)
    assert f(model) == 1
    model.static = second
    assert f(model) == 0
    model.static = first
    assert f(model) == 1
    assert runs == [repr(first), repr(second)]


def test_nan_as_a_static_is_equal_to_itself(runs):
    f = nnx.jit(lambda m: runs.append(1))
    for _ in range(3):
        f(Node(rate=float("nan")))
    assert len(runs) == 1


def test_unhashable_static_arguments_are_named():
    @nnx.jit(static_argnums=1)
    def f(model, sizes):
        return sizes

    with pytest.raises(ValueError, match=r"static argument `sizes` is a list"):
        f(Dense(1, 1), [1, 2])
    g = nnx.jit(lambda model, sizes: sizes, static_argnames="sizes")
    with pytest.raises(ValueError, match=r"static argument `sizes` is a set"):
        g(Dense(1, 1), sizes={1})


def test_unhashable_static_attributes_are_named():
    model = Node(layers=[Node(names=Uncomparable())])
    for f in (nnx.jit(lambda m: 1), nnx.jit(lambda m, n: 1, static_argnums=1)):
        with pytest.raises(ValueError, match=r"`layers\[0\]\.names` is a Uncomp"):
            f(model, *([2] if f._options.static_numbers else []))


# -- the cache -----------------------------------------------------------------------------------


def test_models_of_one_structure_share_a_program(runs):
    f = nnx.jit(lambda m, x: (runs.append(1), m(x))[1])
    for seed in range(4):
        f(Dense(2, 2, seed=seed), jnp.ones((1, 2)))
    assert len(runs) == 1
    f(Dense(2, 3), jnp.ones((1, 2)))
    f(Dense(2, 2), jnp.ones((5, 2)))
    assert len(runs) == 3


def test_jit_made_again_for_the_same_function_compiles_nothing(runs):
    def f(m, x):
        runs.append(1)
        return m(x)

    model = Dense(2, 2)
    for _ in range(3):
        nnx.jit(f)(model, jnp.ones((1, 2)))
    assert len(runs) == 1
    nnx.jit(f, inline=True)(model, jnp.ones((1, 2)))  # other options are another program
    assert len(runs) == 2


def test_equal_optimizers_made_twice_are_one_static(runs):
    @nnx.jit
    def f(m):
        runs.append(1)
        updates, _ = m.tx.update(m.w.value, m.tx.init(m.w.value))
        return updates

    with jax.numpy_dtype_promotion("standard"):  # optax is not strict
        for _ in range(3):
            f(Node(tx=optax.adam(1e-3), w=nnx.Param(jnp.ones(2))))
        assert len(runs) == 1
        f(Node(tx=optax.adam(1e-2), w=nnx.Param(jnp.ones(2))))
        assert len(runs) == 2


def test_functions_as_attributes_are_compared_by_what_they_do(runs):
    def scale(factor):
        return lambda x: x * factor

    f = nnx.jit(lambda m, x: (runs.append(1), m.f(x))[1])
    assert f(Node(f=scale(2.0)), 1.0) == 2
    assert f(Node(f=scale(2.0)), 1.0) == 2
    assert f(Node(f=functools.partial(jnp.add, 1.0)), 1.0) == 2
    assert f(Node(f=functools.partial(jnp.add, 1.0)), 1.0) == 2
    assert len(runs) == 2
    assert f(Node(f=scale(3.0)), 1.0) == 3
    assert len(runs) == 3


def test_clear_cache(runs):
    f = nnx.jit(lambda m: runs.append(1))
    f(Dense(1, 1))
    f.clear_cache()
    f(Dense(1, 1))
    assert len(runs) == 2


def test_sharing_between_arguments_is_part_of_the_program(runs):
    @nnx.jit
    def f(a, b):
        runs.append(a is b)
        a.count += 1

    a, b = Stateful(), Stateful()
    f(a, a)
    f(a, b)
    f(b, a)
    assert runs == [True, False]
    assert a.count == 2 and b.count == 1


def test_a_function_that_changes_the_structure_settles(runs):
    @nnx.jit
    def f(model):
        runs.append(1)
        if not hasattr(model, "cache"):
            model.cache = nnx.Cache(jnp.zeros(2))
        model.cache += 1.0

    model = Node()
    for _ in range(4):
        f(model)
    assert len(runs) == 2
    np.testing.assert_array_equal(model.cache.value, [4, 4])


# -- looking inside ------------------------------------------------------------------------------


def test_only_what_changed_leaves_the_program():
    model = Block()
    f = nnx.jit(lambda m, x: m(x))
    model.eval()
    x = jnp.ones((1, 2))
    assert len(jax.tree.leaves(f.eval_shape(model, x))) == 1
    assert len(f.trace(model, x).jaxpr.jaxpr.outvars) == 1  # no parameter comes back
    model.train()
    assert len(f.trace(model, x).jaxpr.jaxpr.outvars) == 3  # and the statistics it wrote


def test_lower_compile_and_call():
    model = Stateful()
    f = nnx.jit(lambda m, x: m(x))
    lowered = f.lower(model, jnp.ones((1, 2)))
    assert "stablehlo" in lowered.as_text()
    assert model.count == 0
    compiled = lowered.compile()
    assert compiled.cost_analysis()
    y = compiled(model, jnp.ones((1, 2)))
    assert y.shape == (1, 2) and model.count == 1


def test_eval_shape():
    model = Stateful()
    out = nnx.jit(lambda m, x, n: (m(x), n), static_argnums=2).eval_shape(
        model, jnp.ones((1, 2)), 3
    )
    assert out[0] == jax.ShapeDtypeStruct((1, 2), jnp.float32)
    assert model.count == 0 and isinstance(model.count.value, jax.Array)


def test_wrapping_keeps_the_name_and_what_was_wrapped():
    def my_step(model, x: int = 3) -> int:
        """What it does."""

    f = nnx.jit(my_step)
    assert f.__name__ == "my_step" and f.__doc__ == "What it does." and f.__wrapped__ is my_step
    assert "my_step" in repr(f)
    assert "my_step" in f.lower(Dense(1, 1)).as_text()


def test_explain_names_path_and_change():
    model = Block()
    f = nnx.jit(lambda model, x: model(x))
    f(model, jnp.ones((1, 2)))
    assert "traced 1 time" in f.explain()
    model.parts["norm"].deterministic = True
    f(model, jnp.ones((3, 2)))
    text = f.explain()
    assert "model.parts.norm.deterministic: False → True" in text
    assert "x: float32[1,2] → float32[3,2]" in text


# -- JAX's own options and modes -----------------------------------------------------------------


def test_options_of_jax_are_passed_on():
    f = nnx.jit(lambda m, x: m.w * x, keep_unused=True, inline=True)
    np.testing.assert_array_equal(f(Node(w=nnx.Param(jnp.ones(2))), 2.0), [2, 2])
    with pytest.raises(TypeError):
        nnx.jit(lambda m: m, no_such_option=1)(Node())


def test_without_jit():
    model = Stateful()
    f = nnx.jit(lambda m, x: m(x))
    with jax.disable_jit():
        f(model, jnp.ones((1, 2)))
    assert model.count == 1
    f(model, jnp.ones((1, 2)))
    assert model.count == 2


def test_a_jitted_function_without_objects():
    f = nnx.jit(lambda *args, **kwargs: (args, kwargs))
    assert f(1, x=2) == ((1,), {"x": 2})
    assert nnx.jit(lambda: 3)() == 3
    with pytest.raises(TypeError, match="fun=3, but must be callable"):
        nnx.jit(3)


def test_variables_as_arguments_and_results():
    count = Count(jnp.array(0))

    @nnx.jit
    def f(count, others):
        count += 1
        others["c"] = Count(count.value * 10)
        return others

    out = f(count, {"again": count})
    assert out["again"] is count and count == 1 and out["c"] == 10


def test_callables_and_bound_methods():
    model = Stateful()
    assert nnx.jit(model)(jnp.ones((1, 2))).shape == (1, 2)
    assert nnx.jit(model.__call__)(jnp.ones((1, 2))).shape == (1, 2)
    assert model.count == 2


# -- with its first arguments fixed --------------------------------------------------------------


def test_a_step_with_its_objects_fixed():
    jax.clear_caches()  # JAX keeps so many programs in all, and this counts those that it has

    def step(model, count, x, *, by=1.0):
        count += 1
        model.kernel.value = model.kernel + by
        return (model(x) * count).sum()

    model, twin, count, x = Dense(2, 2), Dense(2, 2), Count(jnp.array(0)), jnp.ones((1, 2))
    run = nnx.jit_partial(step, model, count)
    by_hand = nnx.jit(step)
    other = Count(jnp.array(0))
    for by in (1.0, 2.0):
        assert float(run(x, by=by)) == float(by_hand(twin, other, x, by=by))
    assert int(count) == 2
    np.testing.assert_array_equal(model.kernel.value, twin.kernel.value)
    assert run.eval_shape(x).shape == () and run.trace(x).jaxpr is not None and int(count) == 2
    compiled = run.lower(x).compile()
    assert float(compiled(x)) == float(by_hand(twin, other, x)) and int(count) == 3
    assert run.jitted_fn is not None and run.jitted_fn._cache_size() == 2  # with and without `by`
    run.jitted_fn.clear_cache()
    assert run.jitted_fn._cache_size() == 0
    # Options count all arguments, the fixed ones too.
    times = nnx.jit_partial(lambda m, x, n: x * n if n == 2 else x, model, static_argnums=2)
    np.testing.assert_array_equal(times(x, 2), 2 * x)


def test_a_step_with_its_objects_fixed_in_other_transforms():
    class Scale(nnx.Module):
        def __init__(self):
            self.factor = nnx.Param(jnp.array(2.0))

        def times(self, other, x):
            return self.factor * other.factor * x

    one, two = Scale(), Scale()
    of_function = nnx.jit_partial(lambda m, carry, x: (carry, m.factor * x), one)
    of_method = nnx.jit_partial(one.times, two)
    loop = nnx.scan(of_function)
    for factor in (2.0, 3.0):  # the second call of an eager loop does not have the value of then
        one.factor.value = jnp.array(factor)
        np.testing.assert_array_equal(loop(0.0, jnp.arange(3.0))[1], factor * jnp.arange(3.0))
        assert float(of_method(1.0)) == factor * 2
        assert float(nnx.grad(of_method)(1.0)) == factor * 2
        assert of_method.eval_shape(1.0).shape == ()


def test_what_a_wrapper_shows_of_the_function():
    def step(model: Dense, x: jax.Array) -> jax.Array:
        """Says what it does."""
        return model(x)

    jitted = nnx.jit(step)
    assert jitted.jitted_fn(Dense(2, 2), jnp.ones((1, 2))).shape == (1, 2)
    for transform in (nnx.jit, nnx.remat, nnx.vmap, nnx.pmap, nnx.grad, nnx.value_and_grad,
                      nnx.scan, nnx.checkify, nnx.make_jaxpr, nnx.custom_vjp, nnx.vjp, nnx.jvp,
                      nnx.transform_metadata(partition="i")):  # fmt: skip
        wrapped = transform(step)
        assert wrapped.__wrapped__ is step and wrapped.__doc__ == "Says what it does."
        assert inspect.signature(wrapped) == inspect.signature(step)
