"""What editors, prompts and documentation tools ask of every public name and of what it makes."""

import copy
import inspect
import pydoc
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import pytest

from refax import nnx

NAMES = [name for name in dir(nnx) if not name.startswith("_")]
OF_CODE = [
    n for n in NAMES if inspect.isfunction(getattr(nnx, n)) or inspect.isclass(getattr(nnx, n))
]


@pytest.mark.parametrize("name", OF_CODE)
def test_hints_and_help_of_a_name(name):
    named = getattr(nnx, name)
    typing.get_type_hints(named)
    for method in vars(named).values() if inspect.isclass(named) else ():
        if inspect.isfunction(method):
            typing.get_type_hints(method)
    assert name in pydoc.render_doc(named) or named.__name__ in pydoc.render_doc(named)
    if inspect.isfunction(named):
        inspect.signature(named)


def layer() -> nnx.Linear:
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def grown() -> nnx.List:
    made = nnx.List([1])
    made.name = "of a subclass"
    return made


MADE: dict[str, Callable[[], object]] = {
    "Module": layer,
    "State": lambda: nnx.state(layer()),
    "FlatState": lambda: nnx.to_flat_state(nnx.state(layer())),
    "GraphDef": lambda: nnx.graphdef(layer()),
    "Rngs": lambda: nnx.Rngs(0),
    "Param": lambda: nnx.Param(jnp.ones(1)),
    "Optimizer": lambda: nnx.Optimizer(layer(), optax.adam(0.1), wrt=nnx.Param),
    "List": lambda: nnx.List([1, layer()]),
    "List with attributes": grown,
    "Dict": lambda: nnx.Dict(a=1),
    "Sequential": lambda: nnx.Sequential(layer()),
    "MultiMetric": lambda: nnx.MultiMetric(loss=nnx.metrics.Average()),
    "jit": lambda: nnx.jit(lambda m: m),
    "grad": lambda: nnx.grad(lambda m: jnp.zeros(())),
    "StateAxes": lambda: nnx.StateAxes({...: 0}),
    "DiffState": lambda: nnx.DiffState(0, nnx.Param),
    "Stack": lambda: nnx.Stack(lambda rngs: nnx.Linear(2, 2, rngs=rngs), 2, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_a_prompt_asks_of_an_object(kind):
    thing = MADE[kind]()
    assert all(isinstance(name, str) for name in dir(thing))
    inspect.getmembers(thing)
    pydoc.render_doc(thing)
    assert repr(thing) and f"{thing}"
    copy.copy(thing)
    copy.deepcopy(thing)


FACTORIES = [
    name
    for name in dir(nnx.initializers)
    if inspect.isfunction(f := getattr(nnx.initializers, name))
    and not {"key", "shape"} <= {*inspect.signature(f).parameters}
    and not name.startswith("_")
]


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_in_the_place_of_an_initializer(name):
    factory = getattr(nnx.initializers, name)
    with pytest.raises(ValueError, match="(?s)kernel_init is to make an array of shape"):
        nnx.Linear(2, 2, kernel_init=factory, rngs=nnx.Rngs(0))


def test_the_cure_of_a_factory():
    with pytest.raises(ValueError, match=r"Cure: call it: kernel_init=lecun_normal\(\)\."):
        nnx.Linear(2, 2, kernel_init=nnx.initializers.lecun_normal, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("result", [0.0, 1, None, jnp.ones(3), jax.random.key(0)])
def test_an_initializer_that_makes_another_shape(result):
    with pytest.raises(ValueError, match="kernel_init is to make an array of shape"):
        nnx.Linear(2, 2, kernel_init=lambda *_: result, rngs=nnx.Rngs(0))
