"""A Variable stands wherever an array can: every operator, against the same on the array."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from refax.objects import operators as table
from tests.models import Node

pytestmark = pytest.mark.usefixtures("strict_numerics")

FLOATS = (jnp.array([[1.5, -2.0], [3.0, 4.0]]), jnp.array([[2.0, 0.5], [-1.0, 3.0]]))
INTEGERS = (jnp.array([[5, 12], [3, 7]]), jnp.array([[2, 1], [3, 2]]))

BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "matmul": operator.matmul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "divmod": divmod,
    "pow": operator.pow,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
}
ON_INTEGERS = {"lshift", "rshift", "and", "or", "xor", "pow", "floordiv", "mod", "divmod"}
IN_PLACE = sorted(set(BINARY) - {"divmod", "lt", "le", "eq", "ne", "gt", "ge"})


def operands(name: str):
    return INTEGERS if name in ON_INTEGERS else FLOATS


def assert_same(got, expected):
    assert type(got) is type(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_table_here_has_every_operator():
    assert set(BINARY) == {*table._BINARY, *table._COMPARE}


@pytest.mark.parametrize("name", BINARY)
def test_binary(name):
    f = BINARY[name]
    a, b = operands(name)
    expected = f(a, b)
    assert_same(f(nnx.Param(a), b), expected)
    assert_same(f(a, nnx.Param(b)), expected)  # the reflected form
    assert_same(f(nnx.Param(a), nnx.BatchStat(b)), expected)
    assert_same(f(np.asarray(a), nnx.Param(b)), expected)
    assert_same(f(nnx.Param(a), np.asarray(b)), expected)


@pytest.mark.parametrize("name", sorted(set(BINARY) - {"matmul"}))
def test_binary_with_python_scalars(name):
    f = BINARY[name]
    a, _ = operands(name)
    scalar = 2 if name in ON_INTEGERS else 2.0
    assert_same(f(nnx.Param(a), scalar), f(a, scalar))
    assert_same(f(scalar, nnx.Param(a)), f(scalar, a))


@pytest.mark.parametrize("name", BINARY)
def test_binary_on_tracers(name):
    f = BINARY[name]
    a, b = operands(name)
    expected = jax.jit(f)(a, b)
    assert_same(jax.jit(f)(nnx.Param(a), b), expected)
    numpy = np.asarray(a)  # NumPy's operators must not ask a tracer for its values
    assert_same(jax.jit(lambda v: f(numpy, v))(nnx.Param(b)), jax.jit(lambda v: f(numpy, v))(b))


def test_numpy_scalars_on_the_left_of_tracers():
    out = jax.jit(lambda v: np.float32(2) * v)(nnx.Param(jnp.ones(2)))
    np.testing.assert_array_equal(out, [2, 2])


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_keeps_the_cell(name):
    f = getattr(operator, "i" + name, None) or getattr(operator, f"i{name}_", None)
    f = getattr(operator, f"__i{name}__")
    a, b = operands(name)
    for other in (b, nnx.BatchStat(b)):
        v = nnx.Param(a, tag="kept")
        model = Node(v=v)
        model.v = f(model.v, other)
        assert model.v is v and v.tag == "kept"
        assert_same(v.value, BINARY[name](a, b))


def test_in_place_as_statements():
    model = Node(count=nnx.Variable(jnp.array(0)), m=nnx.Param(jnp.eye(2)))
    count, m = model.count, model.m
    model.count += 1
    model.count *= 4
    model.count -= 1
    model.m @= jnp.full((2, 2), 2.0)
    assert model.count is count and count == 3
    assert model.m is m
    np.testing.assert_array_equal(m.value, [[2, 2], [2, 2]])
    assert vars(model)["count"] is count


UNARY = {"neg": operator.neg, "pos": operator.pos, "abs": abs, "invert": operator.invert}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    f, a = UNARY[name], INTEGERS[0]
    assert_same(f(nnx.Param(a)), f(a))


def test_conversions():
    v = nnx.Variable(jnp.array(2))
    assert (int(v), float(v), complex(v), bool(v)) == (2, 2.0, 2 + 0j, True)
    assert [10, 20, 30][v] == 30
    assert list(range(v)) == [0, 1]
    assert round(nnx.Variable(jnp.array(1.234)), 1) == jnp.array(1.234).round(1)
    assert f"{nnx.Variable(jnp.array(1.5)):.2f}" == "1.50"
    with pytest.raises(ValueError):
        bool(nnx.Variable(jnp.ones(2)))
    with pytest.raises(TypeError):
        int(nnx.Variable(jnp.ones(2)))


def test_length_iteration_membership():
    v = nnx.Variable(jnp.array([[1, 2], [3, 4]]))
    assert len(v) == 2
    assert [row.tolist() for row in v] == [[1, 2], [3, 4]]
    first, second = v
    assert second.tolist() == [3, 4]
    assert 3 in nnx.Variable(jnp.array([1, 3])) and 5 not in nnx.Variable(jnp.array([1, 3]))
    with pytest.raises(TypeError):
        len(nnx.Variable(jnp.array(1)))


@pytest.mark.parametrize(
    "f",
    [
        jnp.sum,
        jnp.sin,
        jax.nn.relu,
        jax.nn.softmax,
        jnp.asarray,
        jnp.ones_like,
        lambda v: jnp.where(v > 0, v, 0.0),
        lambda v: jnp.concatenate([v, v]),
        lambda v: jnp.stack([v, v]),
        lambda v: jnp.einsum("ij,ij->i", v, v),
        lambda v: jnp.dot(v, v),
        lambda v: jnp.matmul(v, v),
        lambda v: jnp.maximum(v, 0.0),
        lambda v: jnp.full_like(v, 2.0),
        lambda v: jnp.array([v, v]),
        lambda v: jnp.take(v, jnp.array([0]), axis=0),
    ],
)
def test_functions_of_jax(f):
    a = FLOATS[0]
    assert_same(f(nnx.Param(a)), f(a))
    np.testing.assert_array_equal(jax.jit(f)(nnx.Param(a)), jax.jit(f)(a))


def test_functions_of_numpy():
    a = FLOATS[0]
    np.testing.assert_array_equal(np.asarray(nnx.Param(a)), np.asarray(a))
    np.testing.assert_array_equal(np.sin(nnx.Param(a)), np.sin(np.asarray(a)))
    assert np.asarray(nnx.Param(a), dtype=np.float64).dtype == np.float64
    assert np.array(nnx.Param(a)).flags.writeable
    np.testing.assert_allclose(nnx.Param(a), a)
    np.testing.assert_array_equal(np.stack([nnx.Param(a), nnx.Param(a)]), np.stack([a, a]))
    assert np.sum(nnx.Param(a)) == a.sum()


def test_jax_transforms_take_variables_as_arguments():
    v = nnx.Param(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(jax.vmap(lambda x: x * 2)(v), [2, 4])
    g = jax.grad(lambda v: (v * v).sum())(v)
    assert type(g) is nnx.Param
    np.testing.assert_array_equal(g.value, [2, 4])
    carry, _ = jax.lax.scan(lambda c, x: (c + x, None), jnp.array(0.0), v)
    assert carry == 3
