"""Classes that programs subscribe: in annotations, as bases, at construction."""

import pickle
import subprocess
import sys
import typing
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx

T = TypeVar("T")


def model() -> nnx.Linear:
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def optimizer(cls=nnx.Optimizer):
    return cls(model(), optax.sgd(0.1), wrt=nnx.Param)


def train_state(cls=nnx.TrainState):
    graphdef, params = nnx.split(model(), nnx.Param)
    return cls.create(graphdef, params=params, tx=optax.sgd(0.1))


# (the subscripted class, its origin, a maker that takes either)
GENERICS = {
    "GraphDef": (nnx.GraphDef[nnx.Linear], lambda cls: nnx.graphdef(model())),
    "State": (nnx.State[str, nnx.Param], lambda cls: cls({"a": jnp.ones(2)})),
    "FlatState": (nnx.FlatState[nnx.Param], lambda cls: cls([(("a",), jnp.ones(2))])),
    "Variable": (nnx.Variable[jax.Array], lambda cls: cls(jnp.ones(2))),
    "Param": (nnx.Param[jax.Array], lambda cls: cls(jnp.ones(2))),
    "BatchStat": (nnx.BatchStat[jax.Array], lambda cls: cls(jnp.ones(2))),
    "VariableMetadata": (nnx.VariableMetadata[jax.Array], lambda cls: cls(jnp.ones(2), {})),
    "Optimizer": (nnx.Optimizer[nnx.Linear], optimizer),
    "ModelAndOptimizer": (nnx.ModelAndOptimizer[nnx.Linear], optimizer),
    "TrainState": (nnx.TrainState[nnx.Linear], train_state),
    "Sequential": (
        nnx.Sequential[jax.Array],
        lambda cls: cls(model(), nnx.Linear(3, 1, rngs=nnx.Rngs(0))),
    ),
    "List": (nnx.List[nnx.Linear], lambda cls: cls([model()])),
    "Dict": (nnx.Dict[nnx.Linear], lambda cls: cls(a=model())),
}


def shape_of(x):
    return [(str(path), np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(x)]


@pytest.mark.parametrize("name", GENERICS)
def test_subscripted_classes_are_the_class(name):
    alias, make = GENERICS[name]
    cls = typing.get_origin(alias)
    assert cls is getattr(nnx, name)
    plain, made = make(cls), make(alias)
    assert type(plain) is type(made) is cls and isinstance(made, cls)
    assert shape_of(plain) == shape_of(made)
    assert getattr(made, "__dict__", {}).keys() == getattr(plain, "__dict__", {}).keys()
    if isinstance(made, dict):
        assert set(made) == {"a"}
    if name in ("Optimizer", "ModelAndOptimizer", "TrainState"):
        return  # what optax returns are local functions
    assert shape_of(pickle.loads(pickle.dumps(made))) == shape_of(plain)


@pytest.mark.parametrize("name", [n for n in GENERICS if n not in ("GraphDef", "VariableMetadata")])
def test_subscripted_classes_are_bases(name):
    alias, make = GENERICS[name]
    namespace: dict = {}
    exec("class Derived(alias): pass", {"alias": alias}, namespace)
    derived = namespace["Derived"]
    assert derived.__mro__[1] is typing.get_origin(alias)
    assert isinstance(make(derived), typing.get_origin(alias))


class Pair(nnx.Module, Generic[T]):
    def __init__(self, first: T, second: T):
        self.first, self.second = first, second


def test_a_generic_module_of_ones_own():
    pair = Pair[nnx.Linear](model(), model())
    assert set(vars(pair)) == {"first", "second"}
    assert nnx.graphdef(pair) == nnx.graphdef(Pair(model(), model()))
    pickled = pickle.loads(pickle.dumps(pair))
    assert nnx.graphdef(pickled) == nnx.graphdef(pair)


def test_annotations_are_looked_up():
    @nnx.dataclass
    class Step(nnx.Module):
        graphdef: nnx.GraphDef[nnx.Linear]
        optimizer: nnx.Optimizer[nnx.Linear]
        params: nnx.State[str, nnx.Param]
        init: nnx.Initializer

    hints = typing.get_type_hints(Step)
    assert typing.get_args(hints["graphdef"]) == (nnx.Linear,)
    step = Step(nnx.graphdef(model()), optimizer(), nnx.state(model()), nnx.initializers.ones)
    assert int(nnx.jit(lambda s: s.optimizer.step + 1)(step)) == 1


@pytest.mark.slow
def test_checkers_see_the_parameters(tmp_path):
    (tmp_path / "use.py").write_text(
        "import jax, optax\n"
        "from refax import nnx\n"
        "def f(d: nnx.GraphDef[nnx.Linear], s: nnx.State[str, nnx.Param[jax.Array]],\n"
        "      v: nnx.Variable[jax.Array], o: nnx.Optimizer[nnx.Linear],\n"
        "      t: nnx.TrainState[nnx.Linear], q: nnx.Sequential[jax.Array],\n"
        "      p: nnx.ModelAndOptimizer[nnx.Linear], a: nnx.FlatState[jax.Array],\n"
        "      items: nnx.List[nnx.Linear], named: nnx.Dict[nnx.Linear],\n"
        "      init: nnx.Initializer) -> None:\n"
        "    reveal_type(v.value); reveal_type(items[0]); reveal_type(named['a'])\n"
        "    reveal_type(t.graphdef)\n"
        "class Own(nnx.Optimizer[nnx.Linear]): ...\n"
        "def g(f: nnx.F) -> nnx.F: return f\n"
        "def h(x: nnx.A) -> nnx.A: return x\n"
    )
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "use.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "0 errors" in run.stdout, run.stdout
    revealed = [x.rpartition(" is ")[2] for x in run.stdout.splitlines() if " is " in x]
    assert revealed == ['"Array"', '"Linear"', '"Linear"', '"GraphDef[Linear]"']
