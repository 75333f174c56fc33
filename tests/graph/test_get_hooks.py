"""A hook on reading is applied once, whatever carries the Variable there.

Each way to have a hook × each border that a Variable crosses; the right values are those of plain
arrays: a Variable that stores `a` and reads as `2 a + 1`.
"""

import copy
import pickle
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

A = np.arange(1.0, 4.0, dtype=np.float32)


def hook(_: Any, x: Any) -> Any:
    return 2 * x + 1


class Hooked(nnx.Param):
    def on_get_value(self, x: Any) -> Any:
        return 2 * x + 1


class Overridden(nnx.Param):
    def get_value(self, *, index: Any = ...) -> Any:
        value = 2 * self.get_raw_value() + 1
        return value if index is ... else value[index]


def later() -> nnx.Param:
    cell = nnx.Param(jnp.asarray(A))
    cell.on_get_value = hook
    return cell


def by_set_metadata() -> nnx.Param:
    cell = nnx.Param(jnp.asarray(A), tag=1)
    cell.set_metadata("on_get_value", hook)
    return cell


def by_initializer() -> nnx.Param:
    make = nnx.with_metadata(lambda key, shape: jnp.asarray(A), on_get_value=hook)
    return nnx.Param(make(jax.random.key(0), (3,)))


WAYS = {
    "keyword": lambda: nnx.Param(jnp.asarray(A), on_get_value=hook),
    "an assignment": later,
    "set_metadata": by_set_metadata,
    "with_metadata": by_initializer,
    "replace": lambda: nnx.Param(jnp.asarray(A)).replace(on_get_value=hook),
    "from_metadata": lambda: nnx.Param.from_metadata(jnp.asarray(A), {"on_get_value": hook}),
    "a method of the type": lambda: Hooked(jnp.asarray(A)),
    "get_value": lambda: Overridden(jnp.asarray(A)),
}
READ = 2 * A + 1

# What reads the Variable as an array.
READS = {
    "value": lambda v: v.value,
    "index": lambda v: v[...],
    "an operator": lambda v: v + 0,
    "jnp": jnp.negative,
    "jnp.sum": lambda v: jnp.sum(v) + jnp.zeros(3),
    "numpy": np.asarray,
    "jnp.asarray": jnp.asarray,
    "jax.jit": jax.jit(lambda v: v.value),
    "jnp in jax.jit": jax.jit(jnp.negative),
    "nnx.jit": lambda v: nnx.jit(lambda v: jnp.negative(v))(v),
    "jax.vmap": jax.vmap(lambda v: v.value),
    "eval of a State": lambda v: jax.jit(lambda s: s["a"].value)(nnx.State({"a": v})),
    "lax.cond": lambda v: jax.lax.cond(True, lambda v: v.value, lambda v: v.value, v),
    "lax.scan": lambda v: jax.lax.scan(lambda c, _: (c, c.value), v, length=2)[1][0],
}
RIGHT = {"jnp": -READ, "jnp in jax.jit": -READ, "nnx.jit": -READ, "jnp.sum": np.full(3, READ.sum())}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("way", WAYS)
def test_read_once(way, read):
    np.testing.assert_array_equal(READS[read](WAYS[way]()), RIGHT.get(read, READ))


# What gives the Variable again.
CARRIED = {
    "tree.map": lambda v: jax.tree.map(lambda x: x, v),
    "tree.unflatten": lambda v: jax.tree.unflatten(*jax.tree.flatten(v)[::-1]),
    "jax.jit": jax.jit(lambda v: v),
    "nnx.jit": lambda v: nnx.jit(lambda v: v)(v),
    "jax.device_put": jax.device_put,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda v: pickle.loads(pickle.dumps(v)),
    "cloudpickle": lambda v: cloudpickle.loads(cloudpickle.dumps(v)),
    "split and merge": lambda v: nnx.merge(*nnx.split(v)),
    "clone": nnx.clone,
    "state": lambda v: nnx.state(nnx.List([v]))[0],
    "replace": lambda v: v.replace(tag=3),
    "another Variable": lambda v: type(v)(v),
}


@pytest.mark.parametrize("carry", CARRIED)
@pytest.mark.parametrize("way", WAYS)
def test_carried_as_it_is(way, carry):
    v = WAYS[way]()
    carried = CARRIED[carry](v)
    np.testing.assert_array_equal(carried.raw_value, A)
    np.testing.assert_array_equal(carried.value, READ)
    np.testing.assert_array_equal(jnp.negative(carried), -READ)
    assert carried.type is v.type and isinstance(carried, nnx.Param)


@pytest.mark.parametrize("way", WAYS)
def test_it_passes_for_its_type(way):
    v = WAYS[way]()
    plain = v.type
    assert plain in (nnx.Param, Hooked, Overridden)
    assert type(v).__name__ == plain.__name__ and repr(v).startswith(plain.__name__ + "(")
    assert nnx.variable_name_from_type(type(v), allow_register=True)
    assert nnx.variable_name_from_type(type(v)) == nnx.variable_name_from_type(plain)
    assert [str(p) for p, _ in jax.tree_util.tree_leaves_with_path(v)] == [
        str(p) for p, _ in jax.tree_util.tree_leaves_with_path(nnx.Param(jnp.asarray(A)))
    ]


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_what_is_stored(way):
    model = nnx.List([WAYS[way]()])

    def loss(model):
        return jnp.sum(jnp.square(model[0]))

    expected = 2 * READ * 2
    np.testing.assert_allclose(nnx.grad(loss)(model)[0].raw_value, expected, rtol=1e-6)
    grads = jax.grad(lambda v: loss([v]))(model[0])
    np.testing.assert_allclose(grads.raw_value, expected, rtol=1e-6)
    stepped = jax.tree.map(lambda p, g: p - 0.5 * g, model[0], grads)
    np.testing.assert_allclose(stepped.raw_value, A - 0.5 * expected, rtol=1e-6)


def test_a_hook_that_is_taken_away():
    v = nnx.Param(jnp.asarray(A), on_get_value=hook)
    del v.on_get_value
    assert type(v) is nnx.Param
    np.testing.assert_array_equal(jnp.negative(v), -A)
    with_hook = jax.tree.map(lambda x: x, nnx.Param(jnp.asarray(A), on_get_value=hook))
    v.copy_from(with_hook)
    np.testing.assert_array_equal(jnp.negative(v), -READ)
    assert jax.tree.structure(v) == jax.tree.structure(with_hook)


def test_a_compiled_program_is_used_again():
    calls = []

    @jax.jit
    def f(v):
        calls.append(1)
        return v.value

    for scale in (1, 2):
        v = nnx.Param(jnp.asarray(A) * scale, on_get_value=hook)
        np.testing.assert_array_equal(f(v), 2 * A * scale + 1)
    assert len(calls) == 1
