"""Modules are plain Python objects: attributes, classes of every kind, marks, surgery, cycles."""

import abc
import dataclasses
import enum
from functools import cached_property
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Stateful, Uncomparable, chain, paths_of

pytestmark = pytest.mark.usefixtures("strict_numerics")

T = TypeVar("T")


def leaf_paths(node) -> list[tuple]:
    return paths_of(nnx.state(node))


# -- plain objects -------------------------------------------------------------------------------


def test_vars_shows_the_users_attributes_only():
    model = Dense(2, 3)
    names = ["kernel", "bias", "inputs", "outputs"]
    assert list(vars(model)) == names
    nnx.jit(lambda m, x: m(x))(model, jnp.ones((1, 2)))
    nnx.split(model)
    model.marked = nnx.data(1.0)
    assert list(vars(model)) == [*names, "marked"]
    model.kernel = model.kernel
    del model.marked
    assert list(vars(model)) == names


def test_any_method_is_callable_and_the_constructor_makes_parameters():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        def encode(self, x):
            return x * self.w

        @staticmethod
        def double(x):
            return 2 * x

        @classmethod
        def make(cls):
            return cls()

    model = Model.make()
    np.testing.assert_array_equal(model.encode(model.double(jnp.ones(2))), [2, 2])


def test_properties_and_setters():
    class Model(nnx.Module):
        def __init__(self):
            self._scale = nnx.Param(jnp.ones(()))

        @property
        def scale(self):
            return self._scale.value

        @scale.setter
        def scale(self, x):
            self._scale.value = x

        @cached_property
        def size(self):
            return self.scale.size

    model = Model()
    model.scale = jnp.array(3.0)
    assert model.scale == 3
    assert leaf_paths(model) == [("_scale",)]
    before = nnx.graphdef(model)
    assert model.size == 1  # an attribute like any other from now on
    assert nnx.graphdef(model) != before
    assert nnx.merge(*nnx.split(model)).size == 1


def test_inheritance_mixins_abstract_classes():
    class Doubles:
        def double(self, x):
            return 2 * x

    class Base(nnx.Module, abc.ABC):
        rate = 0.5  # a class attribute is shared, no part of the graph

        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        @abc.abstractmethod
        def __call__(self, x): ...

    class Other(nnx.Module):
        def other(self):
            return "other"

    class Model(Doubles, Base, Other):
        def __init__(self):
            super().__init__()
            self.b = nnx.Param(jnp.zeros(2))

        def __call__(self, x):
            return self.double(x) * self.w + self.b

    with pytest.raises(TypeError, match="abstract"):
        Base()
    model = Model()
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(model, jnp.ones(2)), [2, 2])
    assert model.other() == "other" and model.rate == 0.5
    assert leaf_paths(model) == [("b",), ("w",)]


def test_generics():
    class Box(nnx.Module, Generic[T]):
        def __init__(self, item: T):
            self.item = item

    box = Box[nnx.Param](nnx.Param(jnp.ones(2)))
    assert leaf_paths(box) == [("item",)]
    assert nnx.jit(lambda b: b.item.sum())(box) == 2


def test_pytree_without_the_methods_of_module():
    class Data(nnx.Pytree):
        def __init__(self):
            self.x = nnx.Variable(jnp.ones(2))

    assert not isinstance(Data(), nnx.Module)
    assert not hasattr(Data(), "train")
    assert leaf_paths(Data()) == [("x",)]


# -- dataclasses ---------------------------------------------------------------------------------


def test_standard_dataclasses():
    @dataclasses.dataclass
    class Model(nnx.Module):
        size: int
        rate: float = 0.5
        w: nnx.Param = dataclasses.field(init=False)

        def __post_init__(self):
            self.w = nnx.Param(jnp.ones(self.size))

    model = Model(3)
    assert leaf_paths(model) == [("w",)]

    @nnx.jit
    def f(m):
        m.w *= m.rate
        return m

    assert f(model) is model
    np.testing.assert_array_equal(model.w.value, [0.5, 0.5, 0.5])
    assert nnx.clone(model).size == 3


def test_frozen_dataclasses():
    @dataclasses.dataclass(frozen=True)
    class Point(nnx.Pytree):
        x: jax.Array
        name: str = "p"

    p = Point(jnp.ones(2))
    q = jax.tree.map(lambda a: a + 1, p)
    assert type(q) is Point and q.name == "p"
    np.testing.assert_array_equal(q.x, [2, 2])
    np.testing.assert_array_equal(nnx.jit(lambda p: p.x + p.x)(p), [2, 2])


def test_refax_dataclasses_compare_by_identity():
    @nnx.dataclass
    class Model(nnx.Module):
        w: nnx.Param
        sizes: tuple = nnx.static(default=(1, 2))
        rate: float = nnx.data(default=0.5)
        items: list = nnx.data(default_factory=list)

    model, other = Model(nnx.Param(jnp.ones(2))), Model(nnx.Param(jnp.ones(2)))
    assert model != other and model == model
    assert len({model, other}) == 2
    assert leaf_paths(model) == [("rate",), ("w",)]
    assert model.items is not other.items
    assert repr(model).startswith("Model( # Param: 2 (8 B)")

    @nnx.dataclass(kw_only=True)
    class Keyword(nnx.Module):
        rate: float

    with pytest.raises(TypeError):
        Keyword(0.5)
    assert Keyword(rate=0.5).rate == 0.5


# -- what an attribute is ------------------------------------------------------------------------


def test_data_and_static_by_value():
    class Color(enum.Enum):
        RED = 1

    model = Node(
        param=nnx.Param(jnp.ones(2)),
        array=jnp.ones(2),
        numpy=np.ones(2),
        key=jax.random.key(0),
        number=1,
        rate=0.5,
        flag=True,
        name="x",
        nothing=None,
        color=Color.RED,
        dtype=jnp.float32,
        function=jnp.tanh,
        sizes=(1, 2),
    )
    assert leaf_paths(model) == [("array",), ("key",), ("numpy",), ("param",)]
    copied = nnx.merge(*nnx.split(model))
    for name in ("number", "rate", "flag", "name", "nothing", "color", "dtype", "function"):
        assert getattr(copied, name) is getattr(model, name)
    assert copied.sizes == (1, 2)


def test_marks_overrule():
    model = Node()
    model.rate = nnx.data(2.0)
    model.layer = nnx.static("text")
    assert model.rate == 2.0 and model.layer == "text"
    assert leaf_paths(model) == [("rate",)]
    out = nnx.jit(lambda m: setattr(m, "rate", m.rate * 2))(model)
    assert out is None and model.rate == 4.0
    copied = nnx.clone(model)
    assert leaf_paths(copied) == [("rate",)]
    model.rate = 5.0  # the mark stays with the attribute
    assert leaf_paths(model) == [("rate",)]


class Annotated(nnx.Module):
    rate: nnx.Data[float]
    sizes: nnx.Static[tuple]
    later: "nnx.Data[float]"
    loader: "DataLoader"  # noqa: F821 - a name that only a type checker knows
    both: "nnx.Static[StaticName]"  # noqa: F821 - the same, within a mark

    def __init__(self):
        self.rate = 0.5
        self.sizes = (1, 2)
        self.later = 1.0
        self.loader = None
        self.both = 2.0


class Inherits(Annotated):
    more: nnx.Data[int]

    def __init__(self):
        super().__init__()
        self.more = 3


def test_annotations_mark():
    assert leaf_paths(Annotated()) == [("later",), ("rate",)]
    assert leaf_paths(Inherits()) == [("later",), ("more",), ("rate",)]


@pytest.mark.parametrize("value", [Uncomparable(), [Uncomparable()][0]])
def test_an_unhashable_static_is_an_error_with_its_path_at_the_first_use(value):
    model = Node(block=Node(layers=[Node(bad=value, w=nnx.Param(jnp.ones(2)))]))
    assert model.block.layers[0].bad is value  # as an attribute it is fine
    with pytest.raises(nnx.UnhashableStaticError) as caught:
        nnx.jit(lambda m: m.block.layers[0].w.sum())(model)
    text = str(caught.value)
    assert "`block.layers[0].bad`" in text and type(value).__name__ in text and "Cure" in text
    assert isinstance(caught.value, (ValueError, TypeError))


# -- surgery, sharing, cycles --------------------------------------------------------------------


def test_surgery_by_assignment():
    model = Node(a=Dense(2, 2), b=Stateful(2), c=Dense(2, 3))
    for name, module in vars(model).items():
        if isinstance(module, Dense):
            setattr(model, name, Node(base=module, extra=nnx.Param(jnp.zeros(()))))
    assert leaf_paths(model)[:3] == [("a", "base", "bias"), ("a", "base", "kernel"), ("a", "extra")]
    del model.b
    model.c = model.a
    assert len(nnx.find_duplicates(model)) == 1
    assert len(leaf_paths(model)) == 3


def test_shared_variables_and_nodes_are_one():
    layer = Dense(2, 2)
    model = Node(a=layer, b=layer, kernel=layer.kernel)
    assert leaf_paths(model) == [("a", "bias"), ("a", "kernel")]
    copied = nnx.merge(*nnx.split(model))
    assert copied.a is copied.b and copied.kernel is copied.a.kernel


def test_cycles():
    parent = Node(w=nnx.Param(jnp.ones(2)))
    child = Node(parent=parent, b=nnx.Param(jnp.zeros(2)))
    parent.children = [child]
    parent.self = parent
    assert leaf_paths(parent) == [("children", 0, "b"), ("w",)]
    copied = nnx.clone(parent)
    assert copied.self is copied and copied.children[0].parent is copied
    assert copied.w is not parent.w
    assert "same as" in repr(parent)

    @nnx.jit
    def f(m):
        m.children[0].parent.w += 1.0
        return m.self

    assert f(parent) is parent
    np.testing.assert_array_equal(parent.w.value, [2, 2])


def test_repr_is_capped():
    assert len(repr(chain(3000)).splitlines()) <= 500
    wide = Node(**{f"p{i}": nnx.Param(jnp.zeros(2)) for i in range(1000)})
    assert len(repr(wide).splitlines()) <= 500
    assert "block" in repr(Block()) and "Stateful(" in repr(Block())


def test_typed_keys_in_attributes():
    model = Node(key=jax.random.key(0), state=Count(jax.random.key(1)))

    @nnx.jit
    def draw(m):
        m.key, sub = jax.random.split(m.key)
        return jax.random.normal(sub, (2,))

    assert not np.array_equal(draw(model), draw(model))
    assert jnp.issubdtype(model.key.dtype, jax.dtypes.prng_key)
