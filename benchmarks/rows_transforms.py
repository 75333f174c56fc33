"""Rows for transforms: called eagerly, called in a jit, and what XLA makes of them.

Every transform does the same thing on all sides: to eight stacked layers, hand-written as a tuple
of arrays, or as a module with Params of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .harness import Bound, Row, Work
from .models import MLP, initialize, inputs

_SIZE = MLP(8, width=64, batch=16)
_TRUE = jnp.array(True)
_SECOND = jnp.array(1)


class Weights(NamedTuple):
    """Of stacked layers, for the floor; the NNX models have Params under the same names."""

    bias: jax.Array  # in the order of a State, so that gradients compare
    kernel: jax.Array


# -- what the transforms are applied to ----------------------------------------------------------


def _layer(layer: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ layer.kernel + layer.bias)


def _step(x: jax.Array, layer: Weights) -> tuple[jax.Array, None]:
    return _layer(layer, x), None


def _first(layers: Any, x: jax.Array) -> jax.Array:
    return x @ layers.kernel[0]


def _last(layers: Any, x: jax.Array) -> jax.Array:
    return x @ layers.kernel[-1]


def _go_on(carry: tuple) -> jax.Array:
    return carry[2] < _SIZE.layers


def _next(carry: tuple) -> tuple:
    layers, x, i = carry
    return layers, jax.nn.relu(x @ layers.kernel[i] + layers.bias[i]), i + 1


def _ith(i: Any, carry: tuple) -> tuple:
    return (*_next((*carry, i))[:2],)


def _loss(layers: Any, x: jax.Array) -> jax.Array:
    for i in range(_SIZE.layers):
        x = jax.nn.relu(x @ layers.kernel[i] + layers.bias[i])
    return (x**2).mean()


def _scanned_loss(scan: Callable) -> Callable:
    return lambda layers, x: (scan(layers, x) ** 2).mean()


def _lax_scan(layers: Weights, x: jax.Array) -> jax.Array:
    return jax.lax.scan(_step, x, layers)[0]


def _nnx_scan(nnx: Any) -> Callable:
    return nnx.scan(_layer, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)


class Transform(NamedTuple):
    """One program: hand-written, through an NNX namespace, and through Equinox if it has it."""

    name: str
    bound: float | None  # of an eager call
    floor: Callable[[Weights, jax.Array], Any]
    nnx: Callable[[Any], Callable[[Any, jax.Array], Any]]
    equinox: Callable[[Any], Callable[[Any, jax.Array], Any]] | None = None


TRANSFORMS = [
    Transform(
        "vmap",
        None,
        lambda w, x: jax.vmap(_layer, in_axes=(0, None))(w, x),
        lambda nnx: nnx.vmap(_layer, in_axes=(0, None)),
        lambda eqx: eqx.filter_vmap(_layer, in_axes=(0, None)),
    ),
    Transform("scan", 2.0, _lax_scan, _nnx_scan),
    Transform(
        "grad",
        1.2,
        lambda w, x: jax.grad(_loss)(w, x),
        lambda nnx: nnx.grad(_loss),
        lambda eqx: eqx.filter_grad(_loss),
    ),
    Transform(
        "grad of scan",
        None,
        lambda w, x: jax.grad(_scanned_loss(_lax_scan))(w, x),
        lambda nnx: nnx.grad(_scanned_loss(_nnx_scan(nnx))),
    ),
    Transform(
        "cond",
        2.0,
        lambda w, x: jax.lax.cond(_TRUE, _first, _last, w, x),
        lambda nnx: lambda w, x: nnx.cond(_TRUE, _first, _last, w, x),
    ),
    Transform(
        "switch",
        2.0,
        lambda w, x: jax.lax.switch(_SECOND, [_first, _last], w, x),
        lambda nnx: lambda w, x: nnx.switch(_SECOND, [_first, _last], w, x),
    ),
    Transform(
        "while_loop",
        2.0,
        lambda w, x: jax.lax.while_loop(_go_on, _next, (w, x, 0))[1],
        lambda nnx: lambda w, x: nnx.while_loop(_go_on, _next, (w, x, 0))[1],
    ),
    Transform(
        "fori_loop",
        2.0,
        lambda w, x: jax.lax.fori_loop(0, _SIZE.layers, _ith, (w, x))[1],
        lambda nnx: lambda w, x: nnx.fori_loop(0, _SIZE.layers, _ith, (w, x))[1],
    ),
]


def rows() -> Iterator[Row]:
    for kind in (Eager, Jitted, Instructions, TemporaryMemory):
        # Eagerly, the gradient of a scan would be traced anew at each call, on every side.
        yield from (kind(t) for t in TRANSFORMS if kind is not Eager or t.name != "grad of scan")
    yield NestedBranch()


# -- the rows ------------------------------------------------------------------------------------


class _Program(Row):
    """A transform applied to stacked layers and `x`; `_work` says what of it is measured."""

    what: str

    def __init__(self, transform: Transform):
        self.name = self.what.format(transform.name)
        self.transform = transform
        each = initialize(_SIZE)["layers"].values()
        self.weights = Weights(**jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
        self.x = inputs(_SIZE)[0]

    def _work(self, call: Callable, jit: Callable, layers: Any) -> Work:
        raise NotImplementedError

    def floor(self) -> Work:
        return self._work(self.transform.floor, jax.jit, self.weights)

    def nnx(self, nnx: Any) -> Work:
        class Layers(nnx.Module):
            def __init__(self, weights: Weights):
                self.kernel = nnx.Param(weights.kernel)
                self.bias = nnx.Param(weights.bias)

        return self._work(self.transform.nnx(nnx), nnx.jit, Layers(self.weights))

    def equinox(self) -> Work | None:
        if self.transform.equinox is None:
            return None
        import equinox as eqx

        class Layers(eqx.Module):
            bias: jax.Array
            kernel: jax.Array

        layers = Layers(kernel=self.weights.kernel, bias=self.weights.bias)
        return self._work(self.transform.equinox(eqx), eqx.filter_jit, layers)


class Eager(_Program):
    """Outside of any jit; the first call is not measured."""

    what = "eager {}, second call"

    def __init__(self, transform: Transform):
        super().__init__(transform)
        self.bound = Bound(transform.bound)

    def _work(self, call: Callable, jit: Callable, layers: Any) -> Work:
        return lambda: jax.block_until_ready(call(layers, self.x))


class Jitted(_Program):
    """Compiled once: what is measured is the call and the program."""

    what = "jitted {}"

    def _work(self, call: Callable, jit: Callable, layers: Any) -> Work:
        compiled = jit(call)
        return lambda: jax.block_until_ready(compiled(layers, self.x))


class _Compiled(_Program):
    gives_value = True
    min_rounds = 1
    bound = Bound(1.05)

    def _work(self, call: Callable, jit: Callable, layers: Any) -> Work:
        compiled = jit(call).lower(layers, self.x).compile()
        value = self._value(getattr(compiled, "compiled", compiled))
        return lambda: value

    def _value(self, compiled: Any) -> int:
        raise NotImplementedError


class Instructions(_Compiled):
    """The size of the program after XLA's passes."""

    what = "instructions of jitted {}"
    unit = ""

    def _value(self, compiled: Any) -> int:
        return sum(" = " in line for line in compiled.as_text().splitlines())


class TemporaryMemory(_Compiled):
    """What the program needs beside its arguments and results."""

    what = "temporary memory of jitted {}"
    unit = "B"

    def _value(self, compiled: Any) -> int:
        return compiled.memory_analysis().temp_size_in_bytes


class NestedBranch(Row):
    """How often the Python of a branch runs that stands in seven conditionals."""

    name = "traces of a branch nested 7 deep"
    unit = ""
    gives_value = True
    min_rounds = 1
    bound = Bound(1.0)

    def floor(self) -> Work:
        return self._traces(jax.lax.cond, jax.jit, lambda value: value)

    def nnx(self, nnx: Any) -> Work:
        return self._traces(nnx.cond, nnx.jit, nnx.Param)

    def _traces(self, cond: Callable, jit: Callable, wrap: Callable) -> Work:
        runs: list[int] = []

        def below(depth: int) -> Callable:
            def branch(v: Any, x: jax.Array) -> jax.Array:
                if depth == 7:
                    runs.append(depth)
                    return v * x
                return cond(x > depth, below(depth + 1), lambda v, x: x, v, x)

            return branch

        jit(below(0)).lower(wrap(jnp.ones(())), jnp.ones(()))
        return lambda: len(runs)
