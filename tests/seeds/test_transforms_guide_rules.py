"""The second half of the transforms guide: random state, rules and limitations, axis metadata.

As in `test_transforms_guide.py`, comments say which lines the document leaves out, and what the
document prints is what is asserted.
"""

import jax
import numpy as np
from jax import numpy as jnp
from jax import random

from refax import nnx
from tests.seeds.test_transforms_guide import Count, printed

# -- Random state --------------------------------------------------------------------------------


class NoisyWeights(nnx.Module):
    def __init__(self, kernel, bias, count, seed):
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)
        self.count = Count(count)
        self.rngs = nnx.Rngs(noise=seed)


NoisyWeights.__name__ = "Weights"


def test_random_state(capsys):
    class Weights(NoisyWeights):
        pass

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
    class Weights(NoisyWeights):
        pass

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
    def f(x):  # pyright: ignore[reportRedeclaration]
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
    @nnx.jit  # type: ignore[no-redef]
    def f(counter, x):
        counter.increment()
        return 2 * x

    y = f(counter, 3)  # type: ignore[call-arg]
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
    class Weights(ShardedWeights):
        pass

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
    class Weights(ShardedWeights):
        pass

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
