"""Plain pickle: functions by their public names, others told with their place; classes refused."""

import abc
import copy
import dataclasses
import functools
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import optax
import pytest

from refax import nnx
from tests.models import Node

FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (jax.nn, jnp, jax.lax, nnx)
    for name in sorted(vars(module))
    if not name.startswith("_")
    and callable(getattr(module, name))
    and not isinstance(getattr(module, name), type)
    and getattr(getattr(module, name), "__module__", "").startswith(("jax", "refax"))
    and "<locals>" not in getattr(getattr(module, name), "__qualname__", "")
}


def test_public_functions_go_by_name():
    lost = []
    for name, function in FUNCTIONS.items():
        try:
            if pickle.loads(pickle.dumps(function)) is not function:
                lost.append(name)
        except Exception as error:
            lost.append(f"{name}: {error}")
    assert len(FUNCTIONS) > 500
    assert lost == []


def same(one, other):
    pairs = zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True)
    return all(
        bool((a == b).all()) for a, b in pairs if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    )


@pytest.mark.parametrize("library", [pickle, cloudpickle])
def test_models_graphdefs_and_states(library):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(2, 3, rngs=rngs), nnx.relu, jnp.tanh, functools.partial(jax.nn.elu, alpha=2.0)
    )
    model.tied = model.layers[0].kernel
    back = library.loads(library.dumps(model))
    assert same(model, back) and back.tied is back.layers[0].kernel
    assert back.layers[1] is nnx.relu
    x = jnp.ones((1, 2))
    assert (back(x) == model(x)).all()
    graphdef, state = library.loads(library.dumps(nnx.split(model)))
    assert graphdef == nnx.graphdef(model)
    assert same(nnx.merge(graphdef, state), model)


def make_lambda():
    return lambda x: x


NAMELESS = {
    "an attribute": (lambda: Node(f=make_lambda()), "`Node.f`"),
    "in a list": (lambda: nnx.Sequential(nnx.relu, make_lambda()), "`Sequential.layers[1]`"),
    "in a dict of tuples": (lambda: Node(f={"a": (1, make_lambda())}), "`Node.f['a'][1]`"),
    "a partial": (lambda: Node(f=functools.partial(make_lambda(), 1)), "`Node.f.func`"),
    "an initializer": (lambda: Node(f=nnx.initializers.lecun_normal()), "`Node.f`"),
    "an optimizer": (
        lambda: nnx.Optimizer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param),
        "`Optimizer.tx.init`",
    ),
    "a GraphDef": (lambda: nnx.graphdef(Node(a=Node(f=make_lambda()))), "`a.f`"),
    "below": (lambda: Node(a=[Node(f=make_lambda())]), "`Node.f`"),
}


@pytest.mark.parametrize("make, place", NAMELESS.values(), ids=NAMELESS.keys())
def test_a_function_without_a_name_is_told_with_its_place(make, place):
    obj = make()
    with pytest.raises(pickle.PicklingError) as caught:
        pickle.dumps(obj)
    assert place in str(caught.value) and "Cure: cloudpickle.dumps" in str(caught.value)
    again = cloudpickle.loads(cloudpickle.dumps(obj))
    assert type(again) is type(obj)
    copy.copy(obj)
    copy.deepcopy(obj)


def test_slots_are_refused_where_the_class_is_made():
    with pytest.raises(TypeError, match=r"Slotted has __slots__ \(w\)(.|\n)*Cure: leave __slots__"):

        class Slotted(nnx.Module):
            __slots__ = ("w",)

    with pytest.raises(TypeError, match=r"leave out slots=True"):

        @dataclasses.dataclass(slots=True)
        class Data(nnx.Module):
            w: nnx.Param

    class Empty(nnx.Module):
        __slots__ = ()

    Empty().w = nnx.Param(jnp.ones(2))


@pytest.mark.parametrize("bases", [(nnx.Module,), (nnx.Module, abc.ABC), (nnx.Pytree,)])
def test_a_class_with_abstract_methods_cannot_be_instantiated(bases):
    class Base(*bases):
        @abc.abstractmethod
        def encode(self, x): ...

        @property
        @abc.abstractmethod
        def width(self): ...

    class Half(Base):
        def encode(self, x):
            return x

    class Whole(Half):
        width = 3

    for cls in (Base, Half):
        with pytest.raises(TypeError, match=r"abstract"):
            cls()
    assert Whole().encode(1) == 1
    assert nnx.clone(Whole()).width == 3
