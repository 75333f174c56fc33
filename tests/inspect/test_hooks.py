"""Forward hooks: on one object, with any transform, and gone without a trace."""

import copy
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")


def linear(seed: int = 0) -> nnx.Linear:
    return nnx.Linear(3, 3, rngs=nnx.Rngs(seed))


def double(module, args, kwargs, output):
    return 2 * output


def shift(module, args, kwargs):
    return (args[0] + 1.0,), kwargs


X = jnp.arange(3.0)


def test_a_hook_after_the_call_sees_it_and_may_replace_its_output():
    layer, other, seen = linear(), linear(), []
    expected = other(X)

    def hook(module, args, kwargs, output):
        seen.append((module, args, kwargs, output))

    first = nnx.add_forward_hook(layer, hook)
    second = nnx.add_forward_hook(layer, double)
    np.testing.assert_array_equal(layer(X, out_sharding=None), 2 * expected)
    [(module, args, kwargs, output)] = seen
    assert module is layer and args == (X,) and kwargs == {"out_sharding": None}
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(other(X), expected)  # hooks are an object's, not a class's
    second.remove()
    second.remove()  # twice is no mistake
    np.testing.assert_array_equal(layer(X), expected)
    first.remove()
    layer(X)
    assert len(seen) == 2


def test_a_hook_before_the_call_may_replace_its_arguments():
    layer = linear()
    expected = layer(X + 1)
    with nnx.add_forward_pre_hook(layer, shift), nnx.add_forward_pre_hook(layer, lambda *_: None):
        np.testing.assert_array_equal(layer(X), expected)
    np.testing.assert_array_equal(layer(X + 1), expected)


def test_hooks_leave_nothing_behind():
    layer = linear()
    attributes, graphdef = dict(vars(layer)), nnx.graphdef(layer)
    with nnx.add_forward_hook(layer, double):
        assert isinstance(layer, nnx.Linear) and type(layer).__name__ == "Linear"
        assert repr(layer).startswith("Linear(") and nnx.graphdef(layer) != graphdef
        assert set(vars(layer)) - set(attributes) == {"_refax_hooks"}
    assert vars(layer) == attributes and type(layer) is nnx.Linear
    assert nnx.graphdef(layer) == graphdef
    with pytest.raises(ZeroDivisionError), nnx.forward_hooks(layer, double):
        raise ZeroDivisionError
    assert vars(layer) == attributes and type(layer) is nnx.Linear


def test_objects_without_hooks_have_the_call_of_their_class():
    layer = linear()
    nnx.add_forward_hook(linear(), double)
    assert layer.__call__.__func__ is nnx.Linear.__dict__["__call__"]


def test_jit_traces_again_when_a_hook_is_added_and_not_when_it_is_called():
    layer, traces = linear(), []

    @nnx.jit
    def f(m, x):
        traces.append(1)
        return m(x)

    expected = f(layer, X)
    handle = nnx.add_forward_hook(layer, double)
    for _ in range(2):
        # compiled and eager: two orders of float32 sums over three terms
        np.testing.assert_allclose(f(layer, X), 2 * expected, rtol=1e-6)
    assert len(traces) == 2
    handle.remove()
    np.testing.assert_array_equal(f(layer, X), expected)
    assert len(traces) == 2  # the first program serves again
    with nnx.add_forward_hook(layer, double):
        np.testing.assert_allclose(nnx.jit(layer)(X), 2 * expected, rtol=1e-6)


def test_two_recorders_of_the_same_code_are_two_hooks():
    layer, f = linear(), nnx.jit(lambda m, x: m(x))
    for _ in range(2):
        seen = []
        with nnx.add_forward_hook(layer, lambda m, a, k, y, seen=seen: seen.append(y.shape)):
            f(layer, X)
        assert seen == [(3,)]


def test_a_hook_may_sow_under_a_transform():
    layer = linear()
    nnx.add_forward_hook(layer, lambda m, a, k, y: m.sow(nnx.Intermediate, "y", y) and None)
    out = nnx.jit(lambda m, x: m(x))(layer, X)
    np.testing.assert_array_equal(nnx.pop(layer, nnx.Intermediate)["y"].value[0], out)
    axes = nnx.StateAxes({nnx.Intermediate: 0, ...: None})
    out = nnx.vmap(lambda m, x: m(x), in_axes=(axes, 0))(layer, jnp.ones((4, 3)))
    np.testing.assert_array_equal(nnx.pop(layer, nnx.Intermediate)["y"].value[0], out)
    nnx.grad(lambda m, x: nnx.remat(lambda m, x: m(x))(m, x).sum())(layer, X)
    assert len(nnx.pop(layer, nnx.Intermediate)["y"].value) == 1


def test_a_hook_that_is_added_inside_a_transform_is_there_outside():
    layer = linear()
    expected = layer(X)

    @nnx.jit
    def add(m):
        nnx.add_forward_hook(m, double)

    add(layer)
    np.testing.assert_array_equal(layer(X), 2 * expected)

    @nnx.jit
    def with_hook(m, x):
        with nnx.forward_hooks(m, double):
            return m(x)

    other = linear()
    np.testing.assert_allclose(with_hook(other, X), 2 * expected, rtol=1e-6)  # order of the sums
    assert type(other) is nnx.Linear


def test_an_object_of_an_outer_trace_gets_no_hook():
    layer = linear()
    with pytest.raises(nnx.TraceContextError, match="_refax_hooks"):
        nnx.jit(lambda x: nnx.add_forward_hook(layer, double) and x)(X)
    assert type(layer) is nnx.Linear


@pytest.mark.parametrize(
    "copy_of",
    [
        nnx.clone,
        copy.copy,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: cloudpickle.loads(cloudpickle.dumps(m)),
        lambda m: nnx.merge(*nnx.split(m)),
        lambda m: jax.tree.map(lambda x: x, m),
    ],
    ids=["clone", "copy", "deepcopy", "pickle", "cloudpickle", "split and merge", "tree.map"],
)
def test_copies_have_the_hooks(copy_of):
    layer = linear()
    expected = 2 * layer(X)
    handle = nnx.add_forward_hook(layer, double)
    copied = copy_of(layer)
    handle.remove()
    np.testing.assert_array_equal(copied(X), expected)
    assert isinstance(copied, nnx.Linear) and type(layer) is nnx.Linear


def test_hooks_below_a_model_by_filter():
    shared = linear()
    model = nnx.Sequential(shared, nnx.relu, {"a": linear(1)}["a"], shared)
    seen = []

    def hook(module, args, kwargs, output):
        seen.append(type(module).__name__)

    with nnx.forward_hooks(model, hook):
        model(X)
    assert seen == ["Linear", "Linear", "Linear", "Sequential"]
    seen.clear()
    with nnx.forward_hooks(model, hook, filter=nnx.All(nnx.Linear, nnx.PathContains(0))):
        model(X)
    assert seen == ["Linear", "Linear"]  # one object, called twice
    seen.clear()
    with nnx.forward_hooks(model, pre=lambda m, a, k: seen.append(a), filter=nnx.Sequential):
        model(X)
    assert len(seen) == 1 and type(model) is nnx.Sequential


def test_classes_of_all_kinds_can_be_hooked():
    @nnx.dataclass
    class Scale(nnx.Module):
        factor: nnx.Data[float]

        @nnx.jit
        def __call__(self, x):
            return self.factor * x

    class Offset(Scale):
        def __call__(self, x):
            return super().__call__(x) + 1

    for cls, expected in ((Scale, 12.0), (Offset, 14.0)):
        module, calls = cls(3.0), []
        with nnx.add_forward_hook(module, lambda m, a, k, y, calls=calls: calls.append(1)):
            nnx.add_forward_hook(module, double)
            assert float(module(2.0)) == expected
            assert len(calls) == 1  # `super().__call__` is not another call of the object


def test_what_cannot_be_called_cannot_be_hooked():
    class Silent(nnx.Module):
        pass

    for value in (Silent(), nnx.Rngs(0), 3):
        with pytest.raises(TypeError, match=r"add_forward_hook.*(no public method|Module)"):
            nnx.add_forward_hook(value, double)
