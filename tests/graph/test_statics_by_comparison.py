"""Statics without a hash: a plain dataclass, a set, a dict subclass are compared by `==`."""

import collections
import copy
import dataclasses
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx


@dataclasses.dataclass
class Config:
    n: int = 3
    names: list = dataclasses.field(default_factory=lambda: ["a", "b"])


class Table(dict):
    pass


class Model(nnx.Module):
    def __init__(self, config):
        self.config = config
        self.inner = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.inner.config = config


X = jnp.ones((1, 3))
MAKERS = {
    "a dataclass": (Config, lambda c: setattr(c, "n", 4), "config"),
    "deep inside": (Config, lambda c: c.names.append("c"), "config"),
    "a set": (lambda: {1, 2}, lambda c: c.add(3), "config"),
    "a dict subclass": (lambda: Table(a=1), lambda c: c.update(a=2), "config"),
    "in a tuple": (lambda: (1, Config()), lambda c: setattr(c[1], "n", 4), "config"),
    "text of NumPy": (lambda: np.array(["a", "b"]), lambda c: c.__setitem__(0, "c"), "config"),
    "dates": (lambda: np.array(["2026"], "M8[D]"), lambda c: c.__setitem__(0, "2027"), "config"),
    "objects": (lambda: np.array([1, "b"], object), lambda c: c.__setitem__(0, 2), "config"),
    "records": (lambda: np.array([(1, 2)], "i4,f4"), lambda c: c["f0"].fill(2), "config"),
    "bytes in a tuple": (lambda: (np.array([b"a"]),), lambda c: c[0].fill(b"c"), "config"),
}
each = pytest.mark.parametrize("make, change, place", MAKERS.values(), ids=MAKERS.keys())


def counted(function):
    traces = []

    def call(model, x):
        traces.append(1)
        return function(model, x)

    return nnx.jit(call), traces


def same(a, b) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@each
def test_equal_ones_are_one_structure_and_changed_ones_are_not(make, change, place):
    f, traces = counted(lambda model, x: model.inner(x))
    f(Model(make()), X)
    f(Model(make()), X)
    assert len(traces) == 1
    assert nnx.graphdef(Model(make())) == nnx.graphdef(Model(make()))
    other = make()
    change(other)
    f(Model(other), X)
    assert len(traces) == 2
    assert f"model.{place}" in f.explain(), f.explain()
    assert nnx.graphdef(Model(make())) != nnx.graphdef(Model(other))


@each
def test_a_change_in_place_is_seen(make, change, place):
    f, traces = counted(lambda model, x: model.inner(x))
    model = Model(make())
    before = nnx.graphdef(model)
    f(model, X)
    f(model, X)
    assert len(traces) == 1
    change(model.config)
    f(model, X)
    assert len(traces) == 2
    assert nnx.graphdef(model) != before
    assert same(nnx.merge(before, nnx.state(model)).config, make())  # as it was then


@each
def test_verbs_and_transforms(make, change, place):
    model = Model(make())
    graphdef, state = nnx.split(model)
    assert same(nnx.merge(graphdef, state).config, model.config)
    assert same(nnx.clone(model).config, model.config)
    deep = copy.deepcopy(model)
    assert same(deep.config, model.config) and deep.config is not model.config
    assert pickle.loads(pickle.dumps(graphdef)) == graphdef
    assert same(nnx.eval_shape(lambda: Model(make())).config, model.config)
    stacked = nnx.vmap(lambda key: Model(make()), axis_size=2)(None)
    assert same(stacked.config, model.config)
    assert nnx.scan(lambda m, x: m.inner(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(
        stacked, X
    ).shape == (1, 3)
    nnx.grad(lambda m: m.inner(X).sum())(model)
    nnx.cond(True, lambda m: m.inner(X), lambda m: m.inner(X), model)
    nnx.remat(lambda m: m.inner(X))(model)


def test_the_field_is_named():
    f, _ = counted(lambda model, x: x)
    f(Model(Config()), X)
    f(Model(Config(4)), X)
    assert "model.config.n: 3 → 4" in f.explain()


def test_an_attribute_that_is_assigned_an_equal_one():
    f, traces = counted(lambda model, x: x)
    model = Model(Config())
    f(model, X)
    model.config = Config()
    f(model, X)
    assert len(traces) == 1


def test_what_has_a_hash_of_its_own_is_static_with_all_that_is_in_it():
    class Remembered(collections.OrderedDict):
        def __hash__(self):
            return hash(tuple(self))

    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    model.arguments = Remembered(rngs=nnx.Rngs(1), table=np.ones(3))
    assert len(nnx.to_flat_state(nnx.state(model))) == 2
    assert nnx.jit(lambda m: m.kernel.value)(model).shape == (3, 3)
    assert nnx.clone(model).arguments is model.arguments


class Raises:
    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("not me")


@dataclasses.dataclass
class WithArray:
    table: object


def test_what_cannot_be_compared_is_an_error_with_its_path():
    for bad in (Raises(), WithArray(np.ones(3))):
        model = Model(Config())
        model.inner.bad = bad
        with pytest.raises(nnx.UnhashableStaticError, match=r"`inner.bad` is a \w+(.|\n)*Cure: "):
            nnx.jit(lambda m: 0)(model)


class Identity:
    __hash__ = None
    __eq__ = object.__eq__


def test_what_equals_itself_only():
    f, traces = counted(lambda model, x: x)
    thing = Identity()
    model = Model(Config())
    model.thing = thing
    f(model, X)
    f(model, X)
    assert len(traces) == 1
    model.thing = Identity()
    f(model, X)
    assert len(traces) == 2


@dataclasses.dataclass
class Layers:
    first: object
    n: int = 1


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: object
    n: int = 1


@dataclasses.dataclass(slots=True)
class Slotted:
    first: object
    n: int = 1


HELD = {
    "a Module": lambda: nnx.Linear(3, 3, rngs=nnx.Rngs(0)),
    "a Variable": lambda: nnx.Param(jnp.ones(2)),
    "a list": lambda: [1, nnx.Linear(3, 3, rngs=nnx.Rngs(0))],
    "a tuple": lambda: (1, nnx.Linear(3, 3, rngs=nnx.Rngs(0))),
    "a dict": lambda: {None: 1, "b": nnx.Linear(3, 3, rngs=nnx.Rngs(0))},
}
RECORDS = {
    "a dataclass": Layers,
    "a frozen dataclass": Frozen,
    "a dataclass with slots": Slotted,
    "a namespace": lambda first: types.SimpleNamespace(first=first),
    "a list subclass": lambda first: type("Items", (list,), {})([first]),
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("verb", [nnx.split, nnx.clone, nnx.state, nnx.jit(lambda m: 1)])
def test_objects_in_a_record_are_not_lost_silently(verb, record, held):
    model = Model(Config())
    model.inner.layers = record(held())
    with pytest.raises(nnx.errors.StructureError, match=r"inner\.layers` is a .* but it holds"):
        verb(model)
    model.inner.layers = nnx.static(model.inner.layers)
    assert len(jax.tree.leaves(nnx.state(model))) == 2


def test_a_configuration_with_keys_that_cannot_be_sorted():
    model = Model(Config(names={None: 1, "b": [2]}))
    assert nnx.jit(lambda m: m.inner(X))(model).shape == (1, 3)
