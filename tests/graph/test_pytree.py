"""Modules as JAX pytrees: value semantics in `jax.tree`, plain `jax.jit`, `grad`, `vmap`, …."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Pair, Stateful, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


def keystrs(tree, **options) -> list[str]:
    pairs = jax.tree_util.tree_leaves_with_path(tree, **options)
    return [jax.tree_util.keystr(path) for path, _ in pairs]


# -- jax.tree ------------------------------------------------------------------------------------


def test_tree_map_gives_a_new_module():
    model = Block()
    new = jax.tree.map(lambda x: x + jnp.ones_like(x), model)
    assert type(new) is Block and new is not model
    np.testing.assert_array_equal(new.tied.value, model.tied.value + 1)
    assert new.tied is new.layers[0].kernel
    assert type(new.layers) is list and type(new.parts["extra"]) is Pair
    assert new.name == "block" and new.activation is model.activation
    assert model.parts["norm"].count == 0 and new.parts["norm"].count == 1
    new.layers.append(Dense(2, 2))
    new.tied += 1.0
    assert len(model.layers) == 2


def test_leaves_are_in_the_order_of_the_state():
    model = Block()
    assert all(
        a is b
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(nnx.state(model)), strict=True)
    )
    assert len(jax.tree.leaves(model)) == 9  # the shared kernel is one leaf


def test_key_paths():
    model = Node(layers=[Dense(1, 1)], offset=jnp.ones(1), parts={"a": Count(jnp.array(0))})
    assert keystrs(model) == [
        "['layers'][0]['bias'].value",
        "['layers'][0]['kernel'].value",
        "['offset']",
        "['parts']['a'].value",
    ]
    assert keystrs({"m": Dense(1, 1)})[0] == "['m']['bias'].value"


def test_variables_as_leaves():
    model = Block()
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    kinds = jax.tree.map(lambda v: type(v).__name__, model, is_leaf=is_variable)
    assert type(kinds) is Block
    assert kinds.parts["norm"].count == "Count" and kinds.offset == "ArrayImpl"
    leaves = jax.tree.leaves(model, is_leaf=is_variable)
    assert sum(map(is_variable, leaves)) == 8
    assert keystrs(Dense(1, 1), is_leaf=is_variable) == ["['bias']", "['kernel']"]


def test_modules_as_leaves():
    modules = [Dense(1, 1), {"a": Stateful()}, jnp.ones(2)]
    names = jax.tree.map(
        lambda x: type(x).__name__, modules, is_leaf=lambda x: isinstance(x, nnx.Pytree)
    )
    assert names == ["Dense", {"a": "Stateful"}, "ArrayImpl"]
    nested = Node(a=Dense(1, 1))
    assert jax.tree.leaves(nested, is_leaf=lambda x: isinstance(x, nnx.Pytree)) == [nested]


def test_structure():
    assert jax.tree.structure(Dense(2, 3)) == jax.tree.structure(Dense(2, 3, seed=1))
    assert hash(jax.tree.structure(Dense(2, 3))) == hash(jax.tree.structure(Dense(2, 3)))
    assert jax.tree.structure(Dense(2, 3)) != jax.tree.structure(Dense(2, 4))
    model = Stateful()
    before = jax.tree.structure(model)
    model.eval()
    assert jax.tree.structure(model) != before
    model.train()
    assert jax.tree.structure(model) == before
    tagged = Node(w=nnx.Param(jnp.ones(1), tag="a"))
    assert jax.tree.structure(tagged) != jax.tree.structure(Node(w=nnx.Param(jnp.ones(1))))


def test_two_trees():
    a, b = Dense(2, 2), Dense(2, 2, seed=1)
    c = jax.tree.map(jnp.add, a, b)
    np.testing.assert_array_equal(c.kernel.value, a.kernel.value + b.kernel.value)
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), a, nnx.clone(a)))


def test_a_module_of_other_things_than_arrays():
    shapes = jax.tree.map(lambda x: x.shape, Dense(2, 3))
    assert shapes.kernel.value == (2, 3) and shapes.bias.value == (3,)
    assert jax.tree.leaves(jax.tree.map(lambda x: None, Dense(2, 3))) == []
    structs = jax.eval_shape(lambda m: m, Dense(2, 3))
    assert structs.kernel.value == jax.ShapeDtypeStruct((2, 3), jnp.float32)


def test_cycles_and_empty_modules():
    model = Node(w=nnx.Param(jnp.ones(1)))
    model.me = model
    new = jax.tree.map(lambda x: x + 1, model)
    assert new.me is new and new.w.value == 2
    assert jax.tree.leaves(Node()) == [] and type(jax.tree.map(lambda x: x, Node())) is Node


def test_changes_after_flattening_are_seen():
    model = Node(w=nnx.Param(jnp.ones(1)), x=jnp.ones(1), items=[])
    assert len(jax.tree.leaves(model)) == 2
    model.x = jnp.zeros(1)
    assert jax.tree.leaves(model)[1][0] == 0
    model.w.value = jnp.full(1, 5.0)
    assert jax.tree.leaves(model)[0][0] == 5
    model.items.append(nnx.Param(jnp.full(1, 7.0)))
    assert [float(x[0]) for x in jax.tree.leaves(model)] == [7, 5, 0]


def test_a_class_that_is_no_pytree_for_jax():
    class Opaque(nnx.Pytree, pytree=False):
        def __init__(self):
            self.x = jnp.ones(2)

    opaque = Opaque()
    assert jax.tree.leaves(opaque) == [opaque]


# -- plain JAX transforms ------------------------------------------------------------------------


def test_jit_has_value_semantics():
    model = Stateful()

    @jax.jit
    def f(model, x):
        y = model(x)
        model.extra = nnx.Param(x)
        return y, model

    y, new = f(model, jnp.ones((3, 2)))
    assert y.shape == (3, 2)
    assert model.count == 0 and not hasattr(model, "extra")
    assert new.count == 1 and new.extra.shape == (3, 2) and type(new) is Stateful


def test_jit_does_not_trace_again():
    traces = []

    @jax.jit
    def f(model, x):
        traces.append(1)
        return model(x)

    for seed in range(3):
        f(Dense(2, 2, seed=seed), jnp.ones((1, 2)))
    assert len(traces) == 1


def test_grad():
    model = Dense(2, 2)
    grads = jax.grad(lambda m, x: m(x).sum())(model, jnp.ones((3, 2)))
    assert type(grads) is Dense and type(grads.kernel) is nnx.Param
    np.testing.assert_array_equal(grads.kernel.value, jnp.full((2, 2), 3.0))
    new = jax.tree.map(lambda p, g: p - 0.1 * g, model, grads)
    np.testing.assert_allclose(new.bias.value, [-0.3, -0.3], rtol=1e-6)


def test_vmap():
    keys = jnp.arange(3)
    models = jax.vmap(lambda seed: Dense(2, 2, seed=seed))(keys)
    assert type(models) is Dense and models.kernel.shape == (3, 2, 2)
    y = jax.vmap(lambda m, x: m(x), in_axes=(0, None))(models, jnp.ones((1, 2)))
    assert y.shape == (3, 1, 2)


def test_scan_over_stacked_modules_and_as_carry():
    models = jax.vmap(lambda seed: Dense(2, 2, seed=seed))(jnp.arange(3))
    x = jnp.ones((1, 2))
    y, _ = jax.lax.scan(lambda x, m: (m(x), None), x, models)
    for i in range(3):
        x = Dense(2, 2, seed=i)(x)
    np.testing.assert_allclose(y, x, rtol=1e-6)

    def step(model, x):
        y = model(x)
        return model, y

    last, _ = jax.lax.scan(step, Stateful(), jnp.ones((4, 3, 2)))
    assert type(last) is Stateful and last.count == 4


def test_loops_and_branches():
    out = jax.lax.while_loop(
        lambda m: m.count.value < 5, lambda m: (m(jnp.ones((1, 2))), m)[1], Stateful()
    )
    assert out.count == 5
    out = jax.lax.cond(True, lambda m: jax.tree.map(lambda x: x + 1, m), lambda m: m, Dense(1, 1))
    assert out.bias.value == 1


def test_pmap_and_sharding():
    models = jax.vmap(lambda seed: Dense(2, 2, seed=seed))(jnp.arange(8))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = jax.device_put(models, sharding)
    assert type(placed) is Dense and placed.kernel.sharding == sharding
    y = jax.jit(jax.vmap(lambda m: m(jnp.ones((1, 2)))))(placed)
    assert y.shape == (8, 1, 2)


def test_eager_jax_checkpoint_and_custom_transforms():
    model = Dense(2, 2)
    f = jax.checkpoint(lambda m, x: m(x).sum())
    grads = jax.grad(f)(model, jnp.ones((3, 2)))
    np.testing.assert_array_equal(grads.bias.value, [3, 3])
    y, pullback = jax.vjp(lambda m: m(jnp.ones((1, 2))), model)
    (g,) = pullback(jnp.ones_like(y))
    assert type(g) is Dense
    _, tangent = jax.jvp(lambda m: m(jnp.ones((1, 2))), (model,), (model,))
    np.testing.assert_allclose(tangent, model(jnp.ones((1, 2))), rtol=1e-6)


def test_mixed_with_refax_transforms():
    model = Stateful()

    @nnx.jit
    def step(model, x):
        def loss(params, rest):
            inner = nnx.merge(graphdef, params, rest)
            return inner(x).sum(), nnx.state(inner, Count)

        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        grads, counts = jax.grad(loss, has_aux=True)(params, rest)
        nnx.update(model, counts)
        return grads

    grads = step(model, jnp.ones((3, 2)))
    assert isinstance(grads, nnx.State) and paths_of(grads) == [("scale",)]
    assert model.count == 1


def test_fields_of_a_dataclass_say_what_is_static():
    @dataclasses.dataclass
    class Item(nnx.Pytree):
        count: int = dataclasses.field(metadata={"static": False})
        name: str = dataclasses.field(metadata={"static": True})
        other: str = dataclasses.field(default="x", metadata={"note": "none of ours"})

    item = Item(10, "a")
    assert jax.tree.leaves(item) == [10]
    assert jax.tree.map(lambda x: x + 1, item).count == 11
