"""What an attribute is, data or static: it keeps that, and static attributes hold no data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Dense, Node

DATA = {
    "an array": lambda: jnp.ones(2),
    "a NumPy array": lambda: np.ones(2),
    "a key": lambda: jax.random.key(0),
    "a Variable": lambda: nnx.Param(jnp.ones(2)),
    "a Module": lambda: Dense(1, 1),
    "a State": lambda: nnx.state(Dense(1, 1)),
    "a list of arrays": lambda: [1, jnp.ones(2)],
    "a tuple in a dict": lambda: {"a": ("text", nnx.Param(1.0))},
}
NOT_DATA = {
    "a number": 2.0,
    "a string": "relu",
    "a tuple": (1, (2, None)),
    "a function": jnp.tanh,
    "a form": jax.ShapeDtypeStruct((2,), jnp.float32),
    "a list": [1, 2],
}


class Annotated(nnx.Module):
    part: nnx.Static[object]

    def __init__(self, part):
        self.part = part


@nnx.dataclass
class Fields(nnx.Module):
    part: object = nnx.static()


class Marked(nnx.Module):
    def __init__(self, part):
        self.part = nnx.static(part)


@pytest.mark.parametrize("make", DATA.values(), ids=list(DATA))
def test_a_static_attribute_takes_no_data(make):
    with pytest.raises(nnx.StructureError, match=r"`Marked\.part` is marked static, but .*\nCure:"):
        Marked(make())
    model = Marked("text")
    with pytest.raises(ValueError, match=r"`Marked\.part`"):
        model.part = make()
    assert model.part == "text" and not jax.tree.leaves(model)
    model.part = nnx.data(value := make())  # said anew
    assert jax.tree.leaves(nnx.state(model)) and model.part is value


@pytest.mark.parametrize("cls", [Annotated, Fields])
@pytest.mark.parametrize("make", DATA.values(), ids=list(DATA))
def test_data_that_a_class_calls_static_is_found_at_the_first_use(cls, make):
    model = cls(make())
    for use in (nnx.split, nnx.state, nnx.jit(lambda model: None), jax.tree.leaves):
        with pytest.raises(ValueError, match=rf"`{cls.__name__}\.part` is marked static"):
            use(Node(model=model) if use is not jax.tree.leaves else model)
    with pytest.raises(ValueError, match=rf"`{cls.__name__}\.part`"):
        nnx.check_pytree(model)


@pytest.mark.parametrize("value", NOT_DATA.values(), ids=list(NOT_DATA))
@pytest.mark.parametrize("cls", [Marked, Annotated, Fields])
def test_a_static_attribute_takes_everything_else(cls, value):
    model = cls(value)
    nnx.check_pytree(model)
    assert not jax.tree.leaves(model)
    assert nnx.merge(*nnx.split(model)).part == value
    assert nnx.jit(lambda m: jnp.ones(()) * (m.part == value))(model) == 1


def test_data_that_is_put_into_a_static_container_is_found():
    model = Marked([])
    nnx.check_pytree(model)
    model.part.append(jnp.ones(2))
    for use in (nnx.check_pytree, nnx.state):
        with pytest.raises(ValueError, match=r"`Marked\.part` .* float32\[2\]"):
            use(model)


@pytest.mark.parametrize("container", [list, tuple, lambda items: dict(enumerate(items))])
def test_a_mark_inside_a_container_is_an_error(container):
    model = Node()
    with pytest.raises(nnx.StructureError, match=r"`Node\.items` is given a \w+ .*\nCure:"):
        model.items = container([1, nnx.data(2)])
    assert not hasattr(model, "items")
    model.items = nnx.List([1, nnx.data(2)])
    assert jax.tree.leaves(model) == [2]


# -- reassignment ----------------------------------------------------------------------------------


def test_marks_overrule_what_an_attribute_was():
    model = Node(a=jnp.array(1.0), b="text", c=nnx.data(3.14))
    model.a = "now text"  # it had no mark, so it follows its value
    model.b = nnx.data(42)
    model.c = nnx.static(0.5)
    assert jax.tree.leaves(model) == [42]
    model.b = 43
    assert jax.tree.leaves(model) == [43]


def test_what_is_not_an_array_follows_its_value():
    """A constant in the place of a parameter or a layer is a constant."""
    model = Node(scale=nnx.Param(jnp.ones(2)), act=Dense(1, 1), gone=jnp.ones(1), n=1)
    model.scale, model.act, model.n = 1.0, jnp.tanh, jnp.ones(3)
    del model.gone
    model.gone = "text"
    assert set(nnx.state(model)) == {"n"}
    nnx.jit(lambda m: m.act(m.n) * m.scale)(model)
