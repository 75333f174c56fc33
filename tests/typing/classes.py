"""What checkers know of objects: a class's own type, its arguments, its attributes.

Read by pyright and mypy (`make types`), never run. A line with `type: ignore` must be an error.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: warn-unused-ignores

import abc
import dataclasses
from typing import Generic, Protocol, TypeVar, assert_type

import jax
import jax.numpy as jnp
import optax

from refax import nnx

T = TypeVar("T")


class Block(nnx.Module):
    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(features, features, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(features))
        self.state = nnx.BatchStat(jnp.zeros(features))  # the name of a verb is free
        self.layers = nnx.List([self.linear])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        self.sow(nnx.Intermediate, "x", x)
        return x * self.scale

    def update(self, count: int) -> int:  # and for a method
        return count


def own_classes(rngs: nnx.Rngs, x: jax.Array) -> None:
    block = Block(3, rngs=rngs)
    assert_type(block, Block)
    assert_type(block.linear, nnx.Linear)
    assert_type(block.scale, nnx.Param[jax.Array])
    assert_type(block.layers[0], nnx.Linear)
    assert_type(block(x), jax.Array)
    assert_type(block.update(3), int)
    block.split(nnx.Param)
    block.typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    block.linear.typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    block.linaer = block.linear  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    block("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Block()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Block("3", rngs=rngs)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Block(3, rngs)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Block(3, rngs=rngs, more=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


class Empty(nnx.Module):
    pass


class Plain(nnx.Pytree):
    def __init__(self, size: int) -> None:
        self.size = size


def classes_without_more() -> None:
    assert_type(Empty(), Empty)
    Empty(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(Plain(1).size, int)
    Plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def layers(rngs: nnx.Rngs, x: jax.Array) -> None:
    linear = nnx.Linear(1, 2, rngs=rngs)
    assert_type(linear, nnx.Linear)
    assert_type(linear.kernel, nnx.Param[jax.Array])
    assert_type(linear(x), jax.Array)
    assert_type(nnx.Dropout(0.5), nnx.Dropout)
    assert_type(nnx.BatchNorm(3, rngs=rngs).mean, nnx.BatchStat[jax.Array])
    nnx.Linear(1, rngs=rngs)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.Linear(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nnx.Linear(1, 2, rngs=rngs, bias=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def streams() -> None:
    rngs = nnx.Rngs(0, dropout=1)
    assert_type(rngs, nnx.Rngs)
    assert_type(rngs(), jax.Array)
    assert_type(rngs.dropout, nnx.RngStream)
    assert_type(rngs["dropout"], nnx.RngStream)
    assert_type(rngs.dropout(), jax.Array)
    assert_type(rngs.normal((2,)), jax.Array)
    assert_type(rngs.dropout.bernoulli(0.5, (2,)), jax.Array)
    assert_type(rngs.randint((2,), minval=0, maxval=3), jax.Array)
    assert_type(rngs.lecun_normal()((2, 3), jnp.float32), jax.Array)
    assert_type(rngs.fork(split=3), nnx.Rngs)
    assert_type(rngs.dropout.split(3), nnx.RngStream)
    rngs.normal(shap=(2,))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    rngs.randint((2,))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    rngs.dropout(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


class Box(nnx.Module, Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


@nnx.dataclass
class Fields(nnx.Module):
    kernel: nnx.Param[jax.Array]
    size: int = 3
    shape: tuple[int, ...] = nnx.static(default=())
    rate: float = nnx.data(default=1.0, kw_only=True)


@nnx.dataclass(kw_only=True)
class Named(nnx.Module):
    size: int = 3
    kernel: nnx.Param[jax.Array]


@dataclasses.dataclass
class Standard(nnx.Module):
    size: int = 3


def generics_and_dataclasses(kernel: nnx.Param[jax.Array]) -> None:
    assert_type(Box(3), Box[int])
    assert_type(Box("a").content, str)
    assert_type(Box[float](3).content, float)
    fields = Fields(kernel, 1, (2, 3), rate=0.5)
    assert_type(fields, Fields)
    assert_type(fields.kernel, nnx.Param[jax.Array])
    assert_type(fields.rate, float)
    Fields(kernel)
    Fields()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Fields(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Fields(kernel, 1, (), 0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Fields(kernel, sise=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(Named(kernel=kernel), Named)
    Named(size=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Named(3, kernel)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(Standard(3).size, int)
    Standard("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def containers(linear: nnx.Linear, dropout: nnx.Dropout) -> None:
    assert_type(nnx.List([linear]), nnx.List[nnx.Linear])
    assert_type(nnx.List([linear])[0], nnx.Linear)
    empty = nnx.List()
    empty.append(linear)
    empty.append(dropout)
    assert_type(nnx.Dict(a=linear)["a"], nnx.Linear)
    assert_type(nnx.Dict({"a": dropout}).get("a"), nnx.Dropout | None)
    more = nnx.Dict()
    more["a"], more["b"] = linear, dropout
    nnx.Sequential(linear, nnx.relu, dropout)
    nnx.List([linear])[0].typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def optimizers(linear: nnx.Linear) -> None:
    optimizer = nnx.Optimizer(linear, optax.sgd(0.1), wrt=nnx.Param)
    assert_type(optimizer, nnx.Optimizer[nnx.Linear])
    assert_type(nnx.ModelAndOptimizer(linear, optax.sgd(0.1)).model, nnx.Linear)
    nnx.Optimizer(linear, wrt=nnx.Param)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


class Encoder(nnx.Module, abc.ABC):
    @abc.abstractmethod
    def encode(self, x: jax.Array) -> jax.Array: ...


class Half(Encoder):
    def encode(self, x: jax.Array) -> jax.Array:
        return x / 2


class Encodes(Protocol):
    def encode(self, x: jax.Array, /) -> jax.Array: ...


def encoded(encoder: Encodes, x: jax.Array) -> jax.Array:
    return encoder.encode(x)


def abstract_classes_and_protocols(x: jax.Array) -> None:
    assert_type(encoded(Half(), x), jax.Array)
    Encoder()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
    encoded(Empty(), x)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
