"""What checkers know of objects: a class's own type, its arguments, its attributes.

Read by pyright and mypy (`make types`), never run. A line with `type: ignore` must be an error.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: warn-unused-ignores

import abc
import dataclasses
from typing import Generic, Protocol, Self, TypeVar, assert_type

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


class Base(nnx.Module, Generic[T]):
    """Of a kind of layer, with a default that a subclass narrows."""

    rate: float = 0.5

    def __init__(self, layer: T, *, size: int) -> None:
        self.layer = layer
        self.size = size

    @classmethod
    def of(cls, layer: T) -> Self:
        return cls(layer, size=1)

    @property
    def doubled(self) -> int:
        return 2 * self.size


class Derived(Base[nnx.Linear]):
    def __init__(self, layer: nnx.Linear, *, size: int, more: str = "") -> None:
        super().__init__(layer, size=size)
        self.more = more
        self.cached: nnx.Param[jax.Array] | None = None


class WithoutInit(Base[nnx.Dropout]):
    pass


def subclasses(linear: nnx.Linear, dropout: nnx.Dropout, x: jax.Array) -> None:
    derived = Derived(linear, size=1, more="a")
    assert_type(derived.layer, nnx.Linear)
    assert_type(derived.layer(x), jax.Array)
    assert_type(derived.doubled, int)
    assert_type(derived.rate, float)
    assert_type(derived.cached, nnx.Param[jax.Array] | None)
    assert_type(Derived.of(linear), Derived)
    assert_type(WithoutInit(dropout, size=1).layer, nnx.Dropout)
    assert_type(Base(3, size=1), Base[int])
    assert_type(nnx.clone(derived), Derived)
    assert_type(nnx.merge(*nnx.split(Base(linear, size=1))), Base[nnx.Linear])
    assert_type(nnx.jit(Base[int].of)(3), Base[int])
    takes_base(derived)
    derived.rate = 1.0
    derived.rate = "a"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    derived.doubled = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    derived.cached.value  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    derived.layer.typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    Derived(dropout, size=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Derived(linear)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Derived(linear, size="a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    WithoutInit(linear, size=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    WithoutInit()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    WithoutInit.of(linear)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    takes_base(linear)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Base[int]("a", size=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def takes_base(base: Base[nnx.Linear]) -> None: ...


@nnx.dataclass
class Affine(nnx.Module):
    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None = None
    name: str = nnx.static(default="affine", kw_only=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel
        return y if self.bias is None else y + self.bias


@nnx.dataclass
class Scaled(Affine):
    scale: float = 1.0
    stats: nnx.BatchStat[jax.Array] = dataclasses.field(
        default_factory=lambda: nnx.BatchStat(jnp.ones(2))
    )


@nnx.dataclass(frozen=False, eq=False)
class Holds(nnx.Pytree, Generic[T]):
    content: T
    count: int = dataclasses.field(default=0, init=False)


def dataclasses_of_variables(kernel: nnx.Param[jax.Array], x: jax.Array) -> None:
    scaled = Scaled(kernel, None, 2.0, name="a")
    assert_type(scaled, Scaled)
    assert_type(scaled(x), jax.Array)
    assert_type(scaled.kernel + 1, jax.Array)
    assert_type(scaled.name, str)
    assert_type(scaled.stats, nnx.BatchStat[jax.Array])
    assert_type(scaled.scale, float)
    assert_type(Holds(kernel), Holds[nnx.Param[jax.Array]])
    assert_type(Holds("a").content, str)
    assert_type(Affine(kernel=kernel).bias, nnx.Param[jax.Array] | None)
    assert_type(nnx.clone(scaled), Scaled)
    Affine()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Affine(x)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Affine(kernel, None, "a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Affine(kernel, nme="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Affine(kernel, name=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Affine(kernel, bias=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Affine(kernel).typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    Scaled(kernel, None, "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Scaled(kernel, stats=kernel)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Holds()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Holds(1, count=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Holds[int]("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Layer(Protocol):
    kernel: nnx.Param[jax.Array]

    def __call__(self, x: jax.Array, /) -> jax.Array: ...


class Sized(Protocol):
    @property
    def size(self) -> int: ...


class Encoding(nnx.Module, abc.ABC, Generic[T]):
    @property
    @abc.abstractmethod
    def width(self) -> int: ...

    @abc.abstractmethod
    def decode(self, code: T) -> jax.Array: ...


class Identity(Encoding[jax.Array]):
    @property
    def width(self) -> int:
        return 1

    def decode(self, code: jax.Array) -> jax.Array:
        return code


class Unfinished(Encoding[int]):
    def decode(self, code: int) -> jax.Array:
        return jnp.array(code)


def applied(layer: Layer, x: jax.Array) -> jax.Array:
    return layer(x) + layer.kernel.sum()


def size_of(sized: Sized) -> int:
    return sized.size


def decoded(encoding: Encoding[T], code: T) -> jax.Array:
    return encoding.decode(code)


def protocols(linear: nnx.Linear, affine: Affine, dropout: nnx.Dropout, x: jax.Array) -> None:
    assert_type(applied(affine, x), jax.Array)
    assert_type(size_of(Plain(3)), int)
    assert_type(decoded(Identity(), x), jax.Array)
    applied(dropout, x)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    applied(lambda x: x, x)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    size_of(linear)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    decoded(Identity(), "a")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    Unfinished()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
    Encoding()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
