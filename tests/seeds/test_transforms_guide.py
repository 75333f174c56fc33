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
    Weights = CountingWeights
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
    Weights = CountingWeights
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
    weights = CountingWeights(jnp.zeros((2, 3)), jnp.zeros((3,)), jnp.array(0))
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
    Weights = CountingWeights
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


# -- Random state --------------------------------------------------------------------------------


class NoisyWeights(nnx.Module):
    def __init__(self, kernel, bias, count, seed):
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)
        self.count = Count(count)
        self.rngs = nnx.Rngs(noise=seed)


NoisyWeights.__name__ = "Weights"


def test_random_state(capsys):
    Weights = NoisyWeights
    weights = Weights(
        kernel=random.uniform(random.key(0), (2, 3)),
        bias=jnp.zeros((3,)),  # left out
        count=jnp.array(0),  # left out
        seed=random.split(random.key(0), num=10),
    )
    x = random.normal(random.key(1), (10, 2))

    def noisy_vector_dot(weights: Weights, x: jax.Array):
        assert weights.kernel.ndim == 2, "Batch dimensions not allowed"
        assert x.ndim == 1, "Batch dimensions not allowed"
        weights.count += 1
        y = x @ weights.kernel + weights.bias
        return y + random.normal(weights.rngs.noise(), y.shape)

    state_axes = nnx.StateAxes({nnx.RngState: 0, (nnx.Param, Count): None})
    y1 = nnx.vmap(noisy_vector_dot, in_axes=(state_axes, 0))(weights, x)
    y2 = nnx.vmap(noisy_vector_dot, in_axes=(state_axes, 0))(weights, x)

    print(jnp.allclose(y1, y2))

    assert printed(capsys) == ["False"]
    assert y1.shape == (10, 3) and weights.count == 2
    assert not np.allclose((y1 - y2)[0], (y1 - y2)[1])  # each row has noise of its own
    np.testing.assert_array_equal(weights.rngs.noise.count.value, jnp.full(10, 2))


def test_split_rngs(capsys):
    Weights = NoisyWeights
    weights = Weights(
        kernel=random.uniform(random.key(0), (2, 3)),
        bias=jnp.zeros((3,)),  # left out
        count=jnp.array(0),  # left out
        seed=0,  # left out
    )
    x = random.normal(random.key(1), (10, 2))

    state_axes = nnx.StateAxes({nnx.RngState: 0, (nnx.Param, Count): None})

    @nnx.split_rngs(splits=10)  # left out: "use the nnx.split_rngs decorator before nnx.vmap"
    @nnx.vmap(in_axes=(state_axes, 0))
    def noisy_vector_dot(weights: Weights, x: jax.Array):
        assert weights.kernel.ndim == 2, "Batch dimensions not allowed"
        assert x.ndim == 1, "Batch dimensions not allowed"
        weights.count += 1
        y = x @ weights.kernel + weights.bias
        return y + random.normal(weights.rngs.noise(), y.shape)

    y1 = noisy_vector_dot(weights, x)
    y2 = noisy_vector_dot(weights, x)

    print(jnp.allclose(y1, y2))

    assert printed(capsys) == ["False"]
    assert weights.rngs.noise.key.shape == () and weights.rngs.noise.count == 2
    assert weights.rngs.noise().shape == ()  # usable outside


# -- Mutable Module cannot be passed by closure --------------------------------------------------


def test_closures(capsys):
    class Counter(nnx.Module):
        def __init__(self):
            self.count = nnx.Param(jnp.array(0))

        def increment(self):
            self.count += jnp.array(1)

    counter = Counter()

    @nnx.jit  # left out
    def f(x):
        counter.increment()  # left out
        return 2 * x

    try:  # left out
        y = f(3)
    except Exception as e:
        print(type(e).__name__, e, sep="\n")  # left out

    name, message, *_ = printed(capsys)
    assert name == "TraceContextError"
    assert "`Counter.count`" in message
    assert counter.count == 0

    # "f should accept counter as an argument"
    @nnx.jit
    def f(counter, x):
        counter.increment()
        return 2 * x

    y = f(counter, 3)
    assert y == 6 and counter.count == 1


# -- Consistent aliasing -------------------------------------------------------------------------


def test_consistent_aliasing(capsys):
    class Weights(nnx.Module):
        def __init__(self, array: jax.Array):
            self.param = nnx.Param(array)

    m = Weights(jnp.arange(10))
    arg1 = {"a": {"b": m}, "c": m}
    arg2 = [(m, m), m]

    @nnx.vmap(in_axes=(0, 1))
    def f(arg1, arg2): ...  # left out: the body

    try:  # left out
        f(arg1, arg2)
    except ValueError as e:
        print(e)  # left out

    lines = printed(capsys)
    assert lines[0] == (
        "Inconsistent aliasing detected. The following nodes have different prefixes:"
    )
    # In the document the type is that of the other library, and the text has lost the arguments
    # and paths in front of "param" and half of the places.
    assert lines[1] == f"Node: {nnx.Param}"
    assert lines[2:7] == [
        "  arg1['a']['b'].param: 0",
        "  arg1['c'].param: 0",
        "  arg2[0][0].param: 1",
        "  arg2[0][1].param: 1",
        "  arg2[1].param: 1",
    ]


def test_consistent_aliasing_between_inputs_and_outputs(capsys):
    class Weights(nnx.Module):  # left out: as above
        def __init__(self, array: jax.Array):
            self.param = nnx.Param(array)

    m = Weights(jnp.arange(10))
    arg1 = {"a": {"b": m}, "c": m}

    @nnx.vmap(in_axes=0, out_axes=1)
    def f(arg1):
        return arg1

    try:  # left out
        f(arg1)  # left out
    except ValueError as e:
        print(e)  # left out

    lines = printed(capsys)
    assert lines[0] == (
        "Inconsistent aliasing detected. The following nodes have different prefixes:"
    )
    assert lines[1] == f"Node: {nnx.Param}"
    places = [line.strip() for line in lines if line.startswith("  ")]
    assert places == [
        "arg1['a']['b'].param: 0",
        "arg1['c'].param: 0",
        "result['a']['b'].param: 1",
        "result['c'].param: 1",
    ]


# -- Axis metadata -------------------------------------------------------------------------------


class ShardedWeights(nnx.Module):
    def __init__(self, array: jax.Array, sharding: tuple[str | None, ...]):
        self.param = nnx.Param(array, sharding=sharding)


ShardedWeights.__name__ = "Weights"


def test_axis_metadata(capsys):
    Weights = ShardedWeights
    m = Weights(jnp.ones((3, 4, 5)), sharding=("a", "b", None))

    @nnx.vmap(in_axes=1, transform_metadata={nnx.PARTITION_NAME: "b"})
    def f(m: Weights):
        print(f"Inner {m.param.shape = }")
        print(f"Inner {m.param.sharding = }")

    f(m)  # left out

    print(f"Outter {m.param.shape = }")
    print(f"Outter {m.param.sharding = }")
    assert printed(capsys) == [
        "Inner m.param.shape = (3, 5)",
        "Inner m.param.sharding = ('a', None)",
        "Outter m.param.shape = (3, 4, 5)",
        "Outter m.param.sharding = ('a', 'b', None)",
    ]


def test_axis_metadata_of_modules_made_inside(capsys):
    Weights = ShardedWeights

    @nnx.vmap(out_axes=1, axis_size=4, transform_metadata={nnx.PARTITION_NAME: "b"})
    def init_vmap():
        return Weights(jnp.ones((3, 5)), sharding=("a", None))

    m = init_vmap()
    print(f"Outter {m.param.shape = }")
    print(f"Outter {m.param.sharding = }")
    assert printed(capsys) == [
        "Outter m.param.shape = (3, 4, 5)",
        "Outter m.param.sharding = ('a', 'b', None)",
    ]
