"""Rows for objects: making a model, its verbs, its attributes and values, importing the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp

from .harness import Bound, Row, Work, fresh_interpreter
from .models import GPT, equinox_classes, equinox_model, initialize, nnx_classes, nnx_model

_LARGE = GPT(48)
_TIMES = 1000


def rows() -> Iterator[Row]:
    yield from (ConstructFirst(), ConstructAgain())
    yield Verb("split", 0.5, lambda nnx, m: lambda: nnx.split(m),
               lambda eqx, m: lambda: eqx.partition(m, eqx.is_array)[0])  # fmt: skip
    yield Verb("state", 0.5, lambda nnx, m: lambda: nnx.state(m, nnx.Param),
               lambda eqx, m: lambda: eqx.filter(m, eqx.is_array))  # fmt: skip
    yield Verb("update", 0.5, _update)
    yield Verb("merge", 2.0, _merge, _combine)
    yield Verb("clone", None, lambda nnx, m: lambda: nnx.clone(m))
    yield Verb("tree.flatten of a State", 0.3, lambda nnx, m: _flatten(nnx.state(m)),
               lambda eqx, m: _flatten(eqx.filter(m, eqx.is_array)))  # fmt: skip
    yield Verb("tree.flatten of a Module", 0.7, lambda nnx, m: _flatten(m),
               lambda eqx, m: _flatten(m))  # fmt: skip
    yield from (Toggle(), ReadValue(), WriteValue(), Import())


# -- making --------------------------------------------------------------------------------------


class ConstructAgain(Row):
    """Making the model a second time: every initializer is compiled already."""

    name = f"construct {GPT().name} again"
    bound = Bound(1.3)

    def comparable(self, result: Any) -> Any:
        return sorted(x.size for x in jax.tree.leaves(result[0]) if isinstance(x, jax.Array))

    def floor(self) -> Work:
        return self._work(initialize, lambda params: params["head"]["kernel"])

    def nnx(self, nnx: Any) -> Work:
        return self._work(nnx_classes(nnx)[GPT], lambda model: model.head.kernel.value)

    def equinox(self) -> Work:
        return self._work(equinox_classes()[GPT], lambda model: model.head.weight)

    def _work(self, make: Callable[[GPT], Any], last: Callable[[Any], jax.Array]) -> Work:
        def work() -> Any:
            model = make(GPT())
            return model, last(model).block_until_ready()

        return work


class ConstructFirst(Row):
    """Making the model for the first time in a new interpreter, imports not counted."""

    name = f"construct {GPT().name} for the first time"
    bound = Bound(1.3)
    gives_value = slow = True

    def floor(self) -> Work:
        return self._work("optax", "make = initialize")

    def nnx(self, nnx: Any) -> Work:
        return self._work(nnx.__name__, f"make = nnx_classes({nnx.__name__})[GPT]")

    def equinox(self) -> Work:
        return self._work("equinox", "make = equinox_classes()[GPT]")

    def _work(self, library: str, prepare: str) -> Work:
        return lambda: fresh_interpreter(
            f"import jax, {library}\nfrom benchmarks.models import *\n{prepare}",
            "jax.block_until_ready(jax.tree.leaves(make(GPT())))",
        )


class Import(Row):
    """`import jax, optax` and then the library, each in an interpreter of its own."""

    name = "import, over import jax, optax"
    bound = Bound(1.1)
    gives_value = True

    def floor(self) -> Work:
        return lambda: fresh_interpreter("", "import jax, optax")

    def nnx(self, nnx: Any) -> Work:
        return lambda: fresh_interpreter("", f"import jax, optax, {nnx.__name__}")

    def equinox(self) -> Work:
        return lambda: fresh_interpreter("", "import jax, optax, equinox")


# -- verbs ---------------------------------------------------------------------------------------


class Verb(Row):
    """A verb on a model of about 700 leaves; the floor flattens nested dicts of the same."""

    tolerance = 1e-3

    def __init__(
        self,
        name: str,
        milliseconds: float | None,
        nnx: Callable[[Any, Any], Work],
        equinox: Callable[[Any, Any], Work] | None = None,
    ):
        self.name = f"{name}, {_LARGE.leaves} leaves"
        self.bound = Bound(value=milliseconds and milliseconds * 1e-3)
        self._nnx, self._equinox = nnx, equinox

    def comparable(self, result: Any) -> Any:
        leaves = [x for x in jax.tree.leaves(result) if isinstance(x, jax.Array)]
        return [len(leaves), sum(float(jnp.sum(jnp.abs(x))) for x in leaves)]

    def floor(self) -> Work:
        return _flatten(initialize(_LARGE))

    def nnx(self, nnx: Any) -> Work:
        return self._nnx(nnx, nnx_model(nnx, _LARGE))

    def equinox(self) -> Work | None:
        if self._equinox is None:
            return None
        import equinox as eqx

        return self._equinox(eqx, equinox_model(_LARGE))


def _flatten(tree: Any) -> Work:
    return lambda: jax.tree.flatten(tree)[0]


def _update(nnx: Any, model: Any) -> Work:
    state = nnx.state(nnx_model(nnx, _LARGE))

    def work() -> Any:
        nnx.update(model, state)
        return model

    return work


def _merge(nnx: Any, model: Any) -> Work:
    graphdef, state = nnx.split(model)
    return lambda: nnx.merge(graphdef, state)


def _combine(eqx: Any, model: Any) -> Work:
    arrays, rest = eqx.partition(model, eqx.is_array)
    return lambda: eqx.combine(arrays, rest)


# -- attributes and values -----------------------------------------------------------------------


class Toggle(Row):
    """`model.train(); model.eval()`; Equinox makes two new models instead."""

    name = f"train(); eval(), {_LARGE.leaves} leaves"
    bound = Bound(value=1e-3)

    def nnx(self, nnx: Any) -> Work:
        model = nnx_model(nnx, _LARGE)

        def work() -> Any:
            model.train()
            training = model.blocks[0].dropout.deterministic
            model.eval()
            return training, model.blocks[-1].dropout.deterministic

        return work

    def equinox(self) -> Work:
        import equinox as eqx

        model = equinox_model(_LARGE)

        def work() -> Any:
            train = eqx.nn.inference_mode(model, False)
            test = eqx.nn.inference_mode(train, True)
            return train.blocks[0].dropout.inference, test.blocks[-1].dropout.inference

        return work


class _Cell:
    """What a Variable would be if nothing had to be known about it: the floor."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value


class ReadValue(Row):
    name = "read a Variable's value"
    bound = Bound(value=0.15e-6)
    calls = _TIMES

    def floor(self) -> Work:
        return self._work(_Cell(jnp.arange(3.0)))

    def nnx(self, nnx: Any) -> Work:
        return self._work(nnx.Param(jnp.arange(3.0)))

    def _work(self, cell: Any) -> Work:
        def work() -> Any:
            for _ in repeat(None, _TIMES):
                value = cell.value
            return value

        return work


class WriteValue(ReadValue):
    name = "write a Variable's value"
    bound = Bound(value=0.5e-6)

    def _work(self, cell: Any) -> Work:
        new = jnp.zeros(3)

        def work() -> Any:
            for _ in repeat(None, _TIMES):
                cell.value = new
            return cell.value

        return work
