"""Plain containers in attributes, and registered pytrees, are part of the object graph."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Dense, Node, Pair, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")


def leaf_paths(node) -> list[tuple]:
    return paths_of(nnx.state(node))


def test_plain_containers_are_part_of_the_graph():
    model = Node(
        layers=[Dense(1, 1), (Dense(1, 1), "text")],
        parts={"b": nnx.Param(jnp.ones(())), "a": [jnp.ones(2), 3]},
        pair=Pair(nnx.Param(jnp.ones(())), Pair(1, jnp.ones(()))),
        arrays=(jnp.ones(1), jnp.ones(2)),
    )
    assert leaf_paths(model) == [
        ("arrays",),
        ("layers", 0, "bias"),
        ("layers", 0, "kernel"),
        ("layers", 1, 0, "bias"),
        ("layers", 1, 0, "kernel"),
        ("pair", "first"),
        ("pair", "second", "second"),
        ("parts", "a", 0),
        ("parts", "b"),
    ]
    copied = nnx.clone(model)
    assert type(copied.pair) is Pair and type(copied.layers[1]) is tuple
    assert copied.layers[1][1] == "text" and copied.parts["a"][1] == 3
    assert list(copied.parts) == ["b", "a"]


def test_changes_of_containers_are_seen():
    model = Node(layers=[Dense(1, 1)], parts={})
    for change, expected in [
        (lambda: model.layers.append(Dense(1, 1)), 4),
        (lambda: model.layers.pop(0), 2),
        (lambda: model.parts.update(x=nnx.Param(jnp.ones(()))), 3),
        (lambda: model.layers.__setitem__(0, nnx.Param(jnp.ones(()))), 2),
        (lambda: model.parts.clear(), 1),
        (lambda: model.layers.__delitem__(0), 0),
    ]:
        change()
        assert len(leaf_paths(model)) == expected
        assert nnx.jit(lambda m: len(jax.tree.leaves(nnx.state(m))))(model) == expected


def test_list_and_dict_of_nnx():
    model = Node(
        layers=nnx.List([Dense(1, 1)]), parts=nnx.Dict(a=nnx.Param(jnp.ones(())), b={"c": 1})
    )
    model.layers.append(nnx.Param(jnp.zeros(())))
    model.parts.new = nnx.Param(jnp.zeros(()))
    assert model.parts.a is model.parts["a"] and model.parts.new.value == 0
    assert leaf_paths(model) == [
        ("layers", 0, "bias"),
        ("layers", 0, "kernel"),
        ("layers", 1),
        ("parts", "a"),
        ("parts", "new"),
    ]
    copied = nnx.clone(model)
    assert type(copied.layers) is nnx.List and type(copied.parts) is nnx.Dict
    with pytest.raises(AttributeError, match=r"no entry 'missing'"):
        _ = model.parts.missing
    assert repr(nnx.List([1])) == "List([\n  1\n])"
    assert repr(nnx.Dict(a=1)) == "Dict({\n  'a': 1\n})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    weight: object
    note: str = dataclasses.field(metadata={"static": True}, default="n")


def test_registered_pytrees_are_part_of_the_graph():
    model = Node(part=Registered(nnx.Param(jnp.ones(2))), arrays=Registered(jnp.ones(2)))
    assert leaf_paths(model) == [("arrays",), ("part", "weight")]

    @nnx.jit
    def f(m):
        m.part.weight += 1.0
        return m.part.note

    with pytest.raises(TypeError):  # a string is no output of a jitted function
        f(model)
    nnx.jit(lambda m: setattr(m.part.weight, "value", jnp.zeros(2)))(model)
    np.testing.assert_array_equal(model.part.weight.value, [0, 0])
    assert nnx.clone(model).part.note == "n"
