"""`custom_vjp`: rules for functions of objects; the gradients are what the rule says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Node, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


class Wave(nnx.Module):
    def __init__(self, x=1.0, y=2.0):
        self.x = nnx.Param(jnp.array(x))
        self.y = nnx.Param(jnp.array(y))
        self.calls = Count(jnp.array(0))


def plain(m):
    return jnp.sin(m.x) * m.y


def make_rule(nondiff=()):
    """`plain` with a hand-written derivative, which counts its calls and keeps the module."""

    @nnx.custom_vjp(nondiff_argnums=nondiff)
    def wave(m):
        m.calls += 1
        return plain(m)

    def forward(m):
        return wave(m), (jnp.cos(m.x), jnp.sin(m.x), m)

    def backward(residuals, cotangents):
        (m_g,), value_g = cotangents
        cos, sin, m = residuals
        assert isinstance(m, Wave)
        return nnx.State({"x": value_g * cos * m.y, "y": value_g * sin})

    wave.defvjp(forward, backward)
    return wave


def values(state):
    return jax.tree.map(float, nnx.to_pure_dict(state))


def expected(m):
    return values(nnx.grad(plain)(m))


# -- rules ---------------------------------------------------------------------------------------


def test_the_rule_is_used_and_changes_propagate_once():
    m = Wave()
    value, grads = nnx.value_and_grad(make_rule())(m)
    assert float(value) == float(plain(m)) and int(m.calls) == 1
    assert values(grads) == pytest.approx(expected(m))
    assert float(make_rule()(m)) == float(plain(m)) and int(m.calls) == 2


def in_scan(wave):
    axes = nnx.StateAxes({Count: nnx.Carry, ...: None})
    return nnx.scan(
        lambda m, c, x: c + wave(m) * x, in_axes=(axes, nnx.Carry, 0), out_axes=nnx.Carry
    )


@pytest.mark.parametrize(
    "around, factor, calls",
    [
        (lambda f: nnx.jit(nnx.grad(f)), 1, 1),
        (lambda f: nnx.grad(nnx.jit(f)), 1, 1),
        (lambda f: nnx.grad(nnx.remat(f)), 1, 1),
        (lambda f: nnx.remat(nnx.grad(f)), 1, 1),
        (lambda f: lambda m: nnx.vjp(f, m)[1](1.0)[0], 1, 1),
        (lambda f: nnx.grad(lambda m: nnx.vmap(f, in_axes=None, axis_size=3)(m).sum()), 3, 1),
        (lambda f: nnx.grad(lambda m: in_scan(f)(m, 0.0, jnp.ones(3))), 3, 3),
        (lambda f: nnx.grad(lambda m: nnx.cond(True, f, plain, m)), 1, 1),
        (lambda f: nnx.grad(lambda m: f(m) + f(m)), 2, 2),
        (lambda f: nnx.jit(nnx.grad(nnx.jit(nnx.remat(f)))), 1, 1),
    ],
)
def test_under_other_transforms(around, factor, calls):
    m = Wave()
    grads = around(make_rule())(m)
    want = {k: v * factor for k, v in expected(m).items()}
    assert {k: float(v.value) for k, v in grads.items()} == pytest.approx(want, rel=1e-5)
    assert int(m.calls) == calls


def test_under_vmap_over_the_module():
    stack = nnx.vmap(lambda x: Wave(x))(jnp.arange(3.0))
    by_hand = jax.vmap(jnp.cos)(jnp.arange(3.0)) * 2
    for grads in (
        nnx.vmap(nnx.grad(make_rule()))(stack),
        nnx.grad(lambda m: nnx.vmap(make_rule())(m).sum())(stack),
    ):
        np.testing.assert_allclose(grads.x.value, by_hand, rtol=1e-6)
    assert stack.calls.value.tolist() == [2, 2, 2]


def test_diff_state():
    def is_x(path, value):
        return path[-1] == "x"

    seen = []

    @nnx.custom_vjp(nondiff_argnums=(nnx.DiffState(0, is_x),))
    def wave(m):
        return plain(m)

    def backward(residuals, cotangents):
        (m_g,), value_g = cotangents
        seen.append(paths_of(m_g))
        return nnx.State({"x": value_g * residuals[0] * 10})

    wave.defvjp(lambda m: (wave(m), (m.y.value,)), backward)
    assert values(nnx.grad(wave, argnums=nnx.DiffState(0, is_x))(Wave())) == {"x": 20}
    assert values(nnx.grad(wave)(Wave())) == {"x": 20, "y": 0}
    assert seen == [[("x",)], [("x",)]]


def test_nondiff_arguments():
    @functools.partial(nnx.custom_vjp, nondiff_argnums=(0, -1))
    def scaled(factor, m, function):
        return function(m.x) * factor

    def forward(factor, m, function):
        return scaled(factor, m, function), (m.x.value,)

    def backward(factor, function, residuals, cotangents):
        assert factor == 3.0 and function is jnp.sin
        return (nnx.State({"x": cotangents[1] * factor * jnp.cos(residuals[0])}),)

    scaled.defvjp(forward, backward)
    grads = nnx.grad(lambda m: scaled(3.0, m, function=jnp.sin))(Wave())
    assert values(grads) == pytest.approx({"x": 3 * np.cos(1.0), "y": 0.0})


def test_arrays_only_is_jax():
    def make(custom):
        @custom
        def f(x, y):
            return x * y

        f.defvjp(lambda x, y: (x * y, (x, y)), lambda r, g: (g * r[1] * 10, g * r[0] * 100))
        return f

    ours, theirs = make(nnx.custom_vjp), make(jax.custom_vjp)
    for transform in (nnx.grad, jax.grad):
        assert transform(ours, argnums=(0, 1))(2.0, 3.0) == jax.grad(theirs, argnums=(0, 1))(
            2.0, 3.0
        )
    both = [jax.jit(jax.vmap(jax.grad(f)))(jnp.ones(3), jnp.ones(3)) for f in (ours, theirs)]
    np.testing.assert_array_equal(*both)


class Layer(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.array(2.0))

    @nnx.custom_vjp
    def __call__(self, x):
        return self.w * x

    def forward(self, x):
        return self.w * x, (self, x)

    def backward(residuals, cotangents):
        layer, x = residuals
        grads = nnx.clone(layer)  # an object of the same structure does as well as a State
        grads.w.value = cotangents[1] * x * 10
        return grads, cotangents[1] * layer.w.value

    __call__.defvjp(forward, backward)


def test_methods_and_an_object_as_gradient():
    grads, x_bar = nnx.grad(lambda m, x: m(x), argnums=(0, 1))(Layer(), 3.0)
    assert values(grads) == {"w": 30} and float(x_bar) == 2


def test_pytrees_of_objects_and_missing_gradients():
    @nnx.custom_vjp
    def f(models, x):
        return models["a"].x * models["b"][0].y * x

    def backward(residuals, cotangents):
        return {"a": nnx.State({"x": cotangents[1]}), "b": [None]}, None

    f.defvjp(lambda models, x: (f(models, x), ()), backward)
    grads, x_bar = nnx.grad(f, argnums=(0, 1))({"a": Wave(), "b": [Wave()]}, 3.0)
    assert values(grads["a"]) == {"x": 1, "y": 0} and values(grads["b"][0]) == {"x": 0, "y": 0}
    assert float(x_bar) == 0


# -- state ---------------------------------------------------------------------------------------


def test_the_cotangent_of_a_parameter_that_was_written():
    """Downstream of the call the loss uses the new value: its cotangent comes as inputs_g."""

    @nnx.custom_vjp
    def quintuple(m):
        m.x.value = m.x * 5.0
        return m.y * 1.0

    def forward(m):
        return quintuple(m), ()

    def backward(_, cotangents):
        (m_g,), value_g = cotangents
        return nnx.State({"x": m_g["x"].value * 5.0, "y": m_g["y"].value + value_g})

    quintuple.defvjp(forward, backward)

    def without(m):
        m.x.value = m.x * 5.0
        return m.y * 1.0

    for f in (quintuple, without):
        m = Wave()
        assert values(nnx.grad(lambda m: f(m) * m.x)(m)) == {"x": 10, "y": 5}  # noqa: B023
        assert float(m.x) == 5


def test_a_parameter_that_was_only_read_keeps_its_own_gradient():
    wave = make_rule()
    m = Wave()
    want = {**expected(m), "x": expected(m)["x"] + 1}
    assert values(nnx.grad(lambda m: wave(m) + m.x)(m)) == pytest.approx(want)


@pytest.mark.parametrize(
    "around", [nnx.grad, lambda f: nnx.grad(nnx.jit(f)), lambda f: nnx.jit(nnx.grad(f))]
)
def test_what_only_the_forward_rule_writes(around):
    @nnx.custom_vjp
    def f(m):
        return plain(m)

    def forward(m):
        m.calls += 1
        return plain(m), ()

    f.defvjp(forward, lambda _, g: nnx.State({"x": g[1]}))
    m = Wave()
    assert values(around(f)(m)) == {"x": 1, "y": 0}
    if around is nnx.grad:
        assert int(m.calls) == 1
    f(m)
    assert not isinstance(m.calls.value, jax.core.Tracer)


def test_structure_changes_in_both_or_an_error():
    @nnx.custom_vjp
    def f(m):
        m.new = nnx.Param(m.x * 2)
        return m.x * 1

    def forward(m):
        m.new = nnx.Param(m.x * 2)
        return m.x * 1, m

    f.defvjp(forward, lambda _, g: nnx.State({"x": g[1]}))
    m = Wave()
    assert values(nnx.grad(f)(m)) == {"x": 1, "y": 0} and float(m.new) == 2

    f.defvjp(lambda m: (m.x * 1, ()), lambda _, g: nnx.State({"x": g[1]}))
    with pytest.raises(
        nnx.GraphError, match="`m.other` is a new Param after|`m.new` is a new Param"
    ):
        nnx.grad(f)(Wave())


# -- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward, backward, message",
    [
        (lambda m: plain(m), None, r"fwd must return \(value, residuals\), got float32\[\]"),
        (None, lambda r, g: (1, 2), "returned 2 gradients for 1"),
        (None, lambda r, g: (jnp.ones(3),), r"of `m` is float32\[3\], but `m` is a Wave"),
        (None, lambda r, g: nnx.State({"xx": g[1]}), r"a value at `xx`(.|\n)*'x'"),
        (None, lambda r, g: nnx.State({"x": jnp.ones(3)}), r"float32\[3\] for `m\.x`, which is"),
        (None, lambda r, g: nnx.State({"x": jnp.ones((), jnp.float16)}), r"float16\[\] for `m\.x`"),
    ],
)
def test_rules_that_do_not_fit(forward, backward, message):
    @nnx.custom_vjp
    def f(m):
        m.calls += 1
        return plain(m)

    f.defvjp(forward or (lambda m: (plain(m), ())), backward or (lambda r, g: (None,)))
    m = Wave()
    with pytest.raises((TypeError, nnx.GraphError), match=message):
        nnx.grad(f)(m)
    assert int(m.calls) == 0


def test_misuse():
    f = nnx.custom_vjp(plain)
    with pytest.raises(AttributeError, match=r"plain(.|\n)*plain\.defvjp\(fwd, bwd\)"):
        f(Wave())
    with pytest.raises(ValueError, match="symbolic_zeros"):
        f.defvjp(None, None, symbolic_zeros=True)
    f.defvjp(lambda m: (plain(m), ()), lambda r, g: None)
    outer = Node(v=nnx.Param(jnp.ones(())))

    @nnx.custom_vjp
    def writes(m):
        outer.v.value = m.x
        return plain(m)

    writes.defvjp(lambda m: (writes(m), ()), lambda r, g: None)
    with pytest.raises(nnx.TraceContextError):
        nnx.grad(writes)(Wave())
    with pytest.raises(nnx.TraceContextError):
        writes(Wave())


# -- arguments that are not differentiated -------------------------------------------------------


class Base(nnx.Module):
    def __init__(self):
        self.x = nnx.Param(jnp.array(2.0))


def power(n, m):
    """Asks for the value of `n`, as Python."""
    return m.x.value if n == 1 else m.x.value**n


def power_fwd(n, m):
    return power(n, m), (m.x.value, n if isinstance(n, int) else 0)


def power_bwd(n, residuals, g):
    x, _ = residuals
    return (nnx.State({"x": g[1] * n * x ** (n - 1)}),)


@pytest.mark.parametrize("around", [lambda f: f, nnx.jit, nnx.remat], ids=["", "jit", "remat"])
@pytest.mark.parametrize("options", [{"nondiff_argnums": (0,)}, {"nondiff_argnums": 0},
                                     {"nondiff_argnums": (-2,)}, {"nondiff_argnames": "n"},
                                     {"nondiff_argnames": ("n",)}])  # fmt: skip
def test_numbers_reach_the_function_as_python_has_them(options, around):
    f = nnx.custom_vjp(power, **options)
    f.defvjp(power_fwd, power_bwd)
    for n in (1, 3):
        run = around(lambda m, n=n: f(n, m))
        assert float(run(Base())) == 2**n
        assert float(nnx.grad(run)(Base()).x.value) == n * 2 ** (n - 1)


@pytest.mark.parametrize("value", [2, 2.0, True, "mean", None, (1, "a"), jnp.sin, np.float32])
def test_what_is_static_reaches_rules_as_jax_gives_it(value):
    """The same objects as `jax.custom_vjp` hands over, in the function and in both rules."""

    def run(custom_vjp):
        seen = []

        @functools.partial(custom_vjp, nondiff_argnums=(0,))
        def f(option, x):
            seen.append(option)
            return x * 2.0

        def fwd(option, x):
            seen.append(option)
            return x * 2.0, None

        def bwd(option, residuals, g):
            seen.append(option)
            return (g,)

        f.defvjp(fwd, bwd)
        f(value, 1.0)
        jax.grad(lambda x: f(value, x))(1.0)
        return seen

    for ours in run(nnx.custom_vjp):
        assert type(ours) is type(value) and ours == value
    assert all(theirs == value for theirs in run(jax.custom_vjp))


def test_an_array_is_an_input_also_where_it_is_not_differentiated():
    """As in 0.12 and older: it may be traced, which numbers may not."""

    @functools.partial(nnx.custom_vjp, nondiff_argnums=(0,))
    def f(scale, m):
        return m.x * scale

    f.defvjp(lambda scale, m: (f(scale, m), scale),
             lambda scale, residuals, g: (nnx.State({"x": 10.0 * residuals * g[1]}),))  # fmt: skip
    grads = nnx.jit(lambda m, scale: nnx.grad(lambda m: f(scale, m))(m))(Base(), jnp.array(3.0))
    assert float(grads.x.value) == 30
