"""Every snippet of the transforms guide, as it stands there: only the import is another.

Comments say which lines the document leaves out; they are the only ones added. What the document
prints is what is asserted.
"""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax import random

from refax import nnx


def printed(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


# -- Basic example -------------------------------------------------------------------------------


def basic_weights():
    class Weights(nnx.Module):
        def __init__(self, kernel: jax.Array, bias: jax.Array):
            self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)

    return Weights


def test_basic_example(capsys):
    class Weights(nnx.Module):
        def __init__(self, kernel: jax.Array, bias: jax.Array):
            self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)

    weights = Weights(
        kernel=random.uniform(random.key(0), (10, 2, 3)), bias=jnp.zeros((10, 3))
    )  # left out
    x = jax.random.normal(random.key(1), (10, 2))

    def vector_dot(weights: Weights, x: jax.Array):
        assert weights.kernel.ndim == 2, "Batch dimensions not allowed"
        assert x.ndim == 1, "Batch dimensions not allowed"
        return x @ weights.kernel + weights.bias

    y = nnx.vmap(vector_dot, in_axes=0, out_axes=1)(weights, x)

    print(f"{y.shape = }")

    assert printed(capsys) == ["y.shape = (3, 10)"]
    expected = np.einsum("bi,bij->jb", x, weights.kernel.value)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)

    # "in_axes=(0, 0) would have also worked"
    again = nnx.vmap(vector_dot, in_axes=(0, 0), out_axes=1)(weights, x)
    np.testing.assert_array_equal(again, y)


def test_objects_as_outputs():
    Weights = basic_weights()

    def create_weights(seed: jax.Array):
        return Weights(
            kernel=random.uniform(random.key(seed), (2, 3)),
            bias=jnp.zeros((3,)),  # left out
        )

    seeds = jnp.arange(10)
    weights = nnx.vmap(create_weights)(seeds)

    assert isinstance(weights, Weights)
    assert weights.kernel.shape == (10, 2, 3) and weights.bias.shape == (10, 3)
    np.testing.assert_array_equal(weights.kernel.value[3], random.uniform(random.key(3), (2, 3)))


# -- Transforming methods ------------------------------------------------------------------------


def test_transforming_methods(capsys):
    class WeightStack(nnx.Module):
        @nnx.vmap  # left out: "decorate __init__ with vmap to do the work of create_weights"
        def __init__(self, seed: jax.Array):
            self.kernel = nnx.Param(random.uniform(random.key(seed), (2, 3)))
            self.bias = nnx.Param(jnp.zeros((3,)))

        @nnx.vmap(in_axes=0, out_axes=1)
        def __call__(self, x: jax.Array):
            assert self.kernel.ndim == 2, "Batch dimensions not allowed"
            assert x.ndim == 1, "Batch dimensions not allowed"
            return x @ self.kernel + self.bias

    weights = WeightStack(jnp.arange(10))

    x = jax.random.normal(random.key(1), (10, 2))
    y = weights(x)

    print(f"{y.shape = }")

    assert printed(capsys) == ["y.shape = (3, 10)"]
    assert weights.kernel.shape == (10, 2, 3)


# -- State propagation ---------------------------------------------------------------------------


class Count(nnx.Variable):
    pass


class CountingWeights(nnx.Module):
    def __init__(self, kernel: jax.Array, bias: jax.Array, count: jax.Array):
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)
        self.count = Count(count)


CountingWeights.__name__ = "Weights"


def test_state_propagation():
    class Weights(CountingWeights):
        pass

    weights = Weights(
        kernel=random.uniform(random.key(0), (10, 2, 3)),
        bias=jnp.zeros((10, 3)),
        count=jnp.arange(10),  # left out
    )
    x = jax.random.normal(random.key(1), (10, 2))

    def stateful_vector_dot(weights: Weights, x: jax.Array):
        assert weights.kernel.ndim == 2, "Batch dimensions not allowed"
        assert x.ndim == 1, "Batch dimensions not allowed"
        weights.count += 1
        return x @ weights.kernel + weights.bias

    y = nnx.vmap(stateful_vector_dot, in_axes=0, out_axes=1)(weights, x)

    assert y.shape == (3, 10)
    assert repr(weights.count) == (
        "Count( # 10 (40 B)\n"
        "  value=Array([ 1,  2,  3,  4,  5,  6,  7,  8,  9, 10], dtype=int32)\n"
        ")"  # left out
    )


def test_graph_updates_propagation():
    class Weights(CountingWeights):
        some_property: list[str | int | bool]
        new_param: nnx.Param[jax.Array]

    weights = Weights(
        kernel=random.uniform(random.key(0), (10, 2, 3)),
        bias=jnp.zeros((10, 3)),
        count=jnp.arange(10),  # left out
    )
    x = jax.random.normal(random.key(1), (10, 2))

    def crazy_vector_dot(weights: Weights, x: jax.Array):
        assert weights.kernel.ndim == 2, "Batch dimensions not allowed"
        assert x.ndim == 1, "Batch dimensions not allowed"
        weights.count += 1
        y = x @ weights.kernel + weights.bias
        weights.some_property = ["a", 2, False]  # add attribute
        del weights.bias  # delete attribute
        weights.new_param = weights.kernel  # share reference
        return y

    kernel = weights.kernel
    y = nnx.vmap(crazy_vector_dot, in_axes=0, out_axes=1)(weights, x)

    assert y.shape == (3, 10)
    assert list(vars(weights)) == ["kernel", "count", "some_property", "new_param"]
    assert weights.some_property == ["a", 2, False]
    assert weights.new_param is weights.kernel is kernel
    np.testing.assert_array_equal(weights.count.value, jnp.arange(1, 11))


def test_changing_the_structure_in_jit_compiles_again_and_in_scan_is_an_error():
    """What the guide says about great power, in words."""

    class Weights(CountingWeights):
        items: list[jax.Array]

    weights = Weights(jnp.zeros((2, 3)), jnp.zeros((3,)), jnp.array(0))
    weights.items = []

    @nnx.jit
    def grow(weights):
        weights.items.append(weights.count.value)

    for _ in range(3):
        grow(weights)
    assert len(weights.items) == 3 and grow.traces.count == 3

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def scan_grow(weights, x):
        weights.new = nnx.Param(x)
        return weights

    with pytest.raises(ValueError, match="weights"):
        scan_grow(weights, jnp.arange(3.0))
    assert not hasattr(weights, "new")


# -- Transforming sub-states (lift types) --------------------------------------------------------


def test_lift_types():
    class Weights(CountingWeights):
        pass

    weights = Weights(
        kernel=random.uniform(random.key(0), (10, 2, 3)),
        bias=jnp.zeros((10, 3)),
        count=jnp.array(0),  # left out
    )
    x = jax.random.normal(random.key(1), (10, 2))

    def stateful_vector_dot(weights: Weights, x: jax.Array):
        assert weights.kernel.ndim == 2, "Batch dimensions not allowed"
        assert x.ndim == 1, "Batch dimensions not allowed"
        weights.count += 1
        return x @ weights.kernel + weights.bias

    state_axes = nnx.StateAxes({nnx.Param: 0, Count: None})  # broadcast Count
    y = nnx.vmap(stateful_vector_dot, in_axes=(state_axes, 0), out_axes=1)(weights, x)

    assert y.shape == (3, 10)
    assert repr(weights.count) == (
        "Count( # 1 (4 B)\n  value=Array(1, dtype=int32, weak_type=True)\n)"  # left out
    )
