"""What `Module` adds: modes, iteration, `sow`, `perturb`; and copies, by Python's ways and ours."""

import copy
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Pair, Stateful, chain, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")

# -- modes ---------------------------------------------------------------------------------------


def test_train_and_eval_reach_everything_below():
    model = Node(a=Stateful(), parts=[{"b": Stateful()}], dense=Dense(1, 1))
    model.eval()
    for layer in (model.a, model.parts[0]["b"]):
        assert layer.deterministic is True and layer.use_running_average is True
    assert not hasattr(model.dense, "deterministic")
    model.train()
    assert model.a.deterministic is False and model.a.use_running_average is False
    model.eval(outputs=7)
    assert model.dense.outputs == 7 and model.a.deterministic is True


def test_train_and_eval_of_a_jitted_model_use_the_programs_of_before():
    model, traces = Stateful(), []

    @nnx.jit
    def f(m, x):
        traces.append(m.use_running_average)
        return m(x)

    for _ in range(3):
        model.train()
        f(model, jnp.ones((1, 2)))
        model.eval()
        f(model, jnp.ones((1, 2)))
    assert traces == [False, True]
    assert model.count == 3


def test_set_attributes_with_filters():
    model = Node(a=Stateful(), b=Stateful(), c=Node(deterministic=False))
    model.set_attributes(Stateful, deterministic=True)
    assert model.a.deterministic and model.b.deterministic and not model.c.deterministic
    model.set_attributes(nnx.PathContains("b"), deterministic=False)
    assert model.a.deterministic and not model.b.deterministic
    model.set_attributes(lambda path, m: path == ("c",), deterministic="x")
    assert model.c.deterministic == "x"


def test_set_attributes_of_a_name_that_nobody_has():
    model = Node(a=Stateful())
    with pytest.raises(ValueError, match=r"'determinstic'.*Did you mean 'deterministic'"):
        model.set_attributes(determinstic=True)
    model.set_attributes(determinstic=True, raise_if_not_found=False)
    assert "determinstic" not in vars(model.a)
    with pytest.raises(ValueError, match="Node"):
        model.set_attributes(Dense, deterministic=True)


def test_set_attributes_of_a_class_attribute():
    class Model(nnx.Module):
        mode = "a"

    model = Model()
    model.set_attributes(mode="b")
    assert model.mode == "b" and Model.mode == "a"


def test_set_attributes_in_shared_and_cyclic_graphs():
    shared = Stateful()
    model = Node(a=shared, b=[shared])
    model.a.up = model
    model.eval()
    assert shared.deterministic is True


# -- iteration -----------------------------------------------------------------------------------


def test_iter_modules_and_children():
    model = Block()
    found = list(model.iter_modules())
    assert [p for p, _ in found] == [("layers", 0), ("layers", 1), ("parts", "norm"), ()]
    assert found[-1][1] is model and found[2][1] is model.parts["norm"]
    model = Node(b=Dense(1, 1), a=Node(), items=[Dense(1, 1)])
    assert list(model.iter_children()) == [("a", model.a), ("b", model.b)]


def test_iter_modules_of_shared_and_cyclic_graphs():
    shared = Dense(1, 1)
    model = Node(a=shared, b=shared)
    model.me = model
    assert [p for p, _ in model.iter_modules()] == [("a",), ()]


# -- sow, perturb --------------------------------------------------------------------------------


class Sows(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(2))

    def __call__(self, x):
        y = x * self.w
        self.sow(nnx.Intermediate, "y", y)
        return y


def test_sow_and_pop():
    model = Sows()
    model(jnp.ones(2))
    model(jnp.full(2, 3.0))
    found = nnx.pop(model, nnx.Intermediate)
    assert [float(y[0]) for y in found["y"].value] == [1, 3]
    assert list(vars(model)) == ["w"]
    assert len(nnx.pop(model, nnx.Intermediate)) == 0


def test_sow_under_jit():
    model, f = Sows(), nnx.jit(lambda m, x: m(x))
    f(model, jnp.ones(2))
    f(model, jnp.ones(2))
    assert len(nnx.pop(model, nnx.Intermediate)["y"].value) == 2
    f(model, jnp.full(2, 5.0))
    [y] = model.y.value
    np.testing.assert_array_equal(y, [5, 5])


def test_sow_with_its_own_reduction_and_type():
    model = Node()
    for x in (1.0, 2.0):
        model.sow("test_sums", "total", x, reduce_fn=lambda a, b: a + b, init_fn=lambda: 10.0)
    assert model.total.value == 13
    assert type(model.total) is nnx.variable_type_from_name("test_sums")
    assert model.sow("intermediates", "other", 1.0)
    assert type(model.other) is nnx.Intermediate
    with pytest.raises(ValueError, match=r"`Node\.total` is a test_sums, not a Intermediate"):
        model.sow(nnx.Intermediate, "total", 1.0)


def test_perturb_gives_the_gradient_of_an_intermediate():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.full(2, 3.0))

        def __call__(self, x):
            h = self.perturb("h", x * self.w)
            return (h**2).sum()

    model = Model()
    x = jnp.array([1.0, 2.0])
    model(x)
    np.testing.assert_array_equal(model.h.value, [0, 0])
    assert type(model.h) is nnx.Perturbation
    grads = nnx.grad(lambda m, x: m(x), argnums=nnx.DiffState(0, nnx.Perturbation))(model, x)
    np.testing.assert_array_equal(grads["h"].value, 2 * x * 3)
    model.other = nnx.Param(jnp.ones(2))
    with pytest.raises(ValueError, match=r"`Model\.other` is a Param, not a Perturbation"):
        model.perturb("other", x)


# -- copies --------------------------------------------------------------------------------------


def rich() -> Node:
    """Sharing, a cycle, marks, containers, a typed key and a bare array."""
    layer = Dense(2, 2)
    shared = [nnx.Param(jnp.ones(2))]
    model = Node(
        a=layer,
        b=layer,
        kernel=layer.kernel,
        left=shared,
        right=Pair(shared, "x"),
        key=Count(jax.random.key(0), tag="k"),
        array=jnp.arange(3.0),
        bare_key=jax.random.key(1),
    )
    model.rate = nnx.data(2.0)
    model.up = Node(parent=model)
    return model


def cells_of(node) -> list[nnx.Variable]:
    return [v for _, v in nnx.iter_graph(node) if isinstance(v, nnx.Variable)]


def check_copy(new: Node, old: Node) -> None:
    assert type(new) is Node and new is not old
    assert new.a is new.b and new.kernel is new.a.kernel and new.a is not old.a
    assert new.left is new.right.first and new.right.second == "x"
    assert new.up.parent is new
    assert new.key.tag == "k" and new.rate == 2.0
    assert nnx.graphdef(new) == nnx.graphdef(old)
    assert not set(map(id, cells_of(new))) & set(map(id, cells_of(old)))
    for x, y in zip(jax.tree.leaves(nnx.state(new)), jax.tree.leaves(nnx.state(old)), strict=True):
        if not isinstance(x, float) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
    nnx.jit(lambda m: setattr(m.kernel, "value", m.kernel * 0.0))(new)
    assert (old.kernel.value != 0).any()


@pytest.mark.parametrize(
    "copy_of",
    [
        copy.deepcopy,
        nnx.clone,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: cloudpickle.loads(cloudpickle.dumps(m)),
        lambda m: nnx.merge(*nnx.split(m)),
        lambda m: jax.tree.map(lambda x: x, m),
    ],
    ids=["deepcopy", "clone", "pickle", "cloudpickle", "split and merge", "tree.map"],
)
def test_copies_keep_sharing_and_cycles(copy_of):
    model = rich()
    nnx.jit(lambda m: m.array.sum())(model)  # with a plan on it
    check_copy(copy_of(model), model)


def test_cloudpickle_of_a_local_class():
    class Local(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        def __call__(self, *x):
            return self.times(self.w + sum(x))

        def times(self, x, y=2.0):
            return x * y

    new = cloudpickle.loads(cloudpickle.dumps(Local()))
    np.testing.assert_array_equal(new(1.0), [4, 4])
    text = nnx.jit(lambda model: model()).lower(new).as_text(debug_info=True)
    assert "model.times/mul" in text
    np.testing.assert_array_equal(new.w.value, [1, 1])
    new.w += 1.0
    np.testing.assert_array_equal(nnx.jit(lambda m: m.w * 2.0)(new), [4, 4])


def test_shallow_copy_shares_what_is_below():
    model = Node(a=Dense(1, 1), left=[1])
    model.rate = nnx.data(2.0)
    new = copy.copy(model)
    assert new is not model and new.a is model.a and new.left is model.left
    new.extra = 1
    assert not hasattr(model, "extra")
    assert paths_of(nnx.state(new)) == paths_of(nnx.state(model))  # marks are copied too
    new.rate = nnx.static(3.0)
    assert ("rate",) in paths_of(nnx.state(model))


def test_deepcopy_copies_buffers_and_keeps_sharing_with_what_is_around():
    model = Dense(2, 2)
    new, kernel, again = copy.deepcopy([model, model.kernel, model])
    assert new is again and new.kernel is kernel
    assert kernel.value is not model.kernel.value
    kernel.value.delete()
    np.testing.assert_array_equal(model.kernel.shape, (2, 2))
    float(model.kernel.sum())


class Config:
    """A static value of the user's, hashable by identity."""


def test_deepcopy_of_static_values():
    shared = {"a"}
    model = Node(names=shared, again=[shared], config=Config(), f=jnp.tanh)
    new = copy.deepcopy(model)
    new.names.add("b")
    assert model.names == {"a"} and new.again[0] is new.names
    assert new.config is model.config and new.f is model.f
    del model.names, model.again, new.names, new.again
    assert nnx.graphdef(model) == nnx.graphdef(new)  # nothing is compiled twice


def test_deep_graphs():
    model = chain(2000)
    for new in (copy.deepcopy(model), nnx.clone(model)):
        assert len(paths_of(nnx.state(new))) == 2000


def test_a_copy_made_in_a_trace_may_be_written_there():
    model = Stateful()

    @jax.jit
    def f(x):
        total = 0
        for new in (copy.copy(model), nnx.clone(model), copy.deepcopy(model)):
            new.mode = "x"
            total += 1
        inner = nnx.clone(model)
        inner.count += 1
        inner = copy.deepcopy(model)
        inner.count += 1
        return inner.count.value + total

    assert f(0) == 4
    assert model.count == 0
