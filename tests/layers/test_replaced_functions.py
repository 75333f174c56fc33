"""Functions that somebody replaces around a model, as libraries that quantize do, are reached.

Every layer × the function × how it is replaced (at its address, or by its code) × eagerly, under
jit, grad and vmap × the order: a call before may have been made with the other function. What is
right is what the layer gives when JAX keeps no program at all (`jax.disable_jit`).
"""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from refax import nnx
from tests.layers.case import Case, inputs_of
from tests.layers.cases import CASES

# The function, and layers that cannot do without it.
WITH_PRODUCTS = {
    "Linear", "LinearGeneral", "LinearGeneral with batch axis", "MultiHeadAttention", "LoRA",
    "LoRALinear", "Sequential", "LSTMCell", "GRUCell", "SimpleCell", "RNN",
}  # fmt: skip
FUNCTIONS: dict[str, tuple[Any, str, set[str]]] = {
    "dot_general": (lax, "dot_general", WITH_PRODUCTS),
    "conv_general_dilated": (lax, "conv_general_dilated", {"Conv"}),
    "einsum": (jnp, "einsum", {"MultiHeadAttention"}),
    "rsqrt": (lax, "rsqrt", {"LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm", "InstanceNorm"}),
    "mean": (jnp, "mean", {"LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm", "InstanceNorm"}),
    "take": (jnp, "take", {"Embed"}),
    "exp": (jnp, "exp", {"MultiHeadAttention"}),
    "tanh": (jnp, "tanh", {"SimpleCell"}),
    "sigmoid": (jax.nn, "sigmoid", {"LSTMCell", "GRUCell"}),
}  # fmt: skip

Context = Callable[[Callable[..., Any], Any, list[Any]], Any]


def _eager(call: Callable[..., Any], layer: Any, inputs: list[Any]) -> Any:
    return call(layer, *inputs)


def _jit(call: Callable[..., Any], layer: Any, inputs: list[Any]) -> Any:
    return jax.jit(lambda layer, *inputs: call(layer, *inputs))(layer, *inputs)


def _grad(call: Callable[..., Any], layer: Any, inputs: list[Any]) -> Any:
    def loss(layer: Any) -> Any:
        return sum(jnp.sum(x) for x in jax.tree.leaves(call(layer, *inputs)))

    return jax.tree.leaves(nnx.state(jax.grad(loss, allow_int=True)(layer), nnx.Param))


def _vmap(call: Callable[..., Any], layer: Any, inputs: list[Any]) -> Any:
    stacked = [jnp.stack([x, x]) for x in inputs]
    return jax.vmap(lambda *inputs: call(layer, *inputs))(*stacked)


CONTEXTS: dict[str, Context] = {"eager": _eager, "jit": _jit, "grad": _grad, "vmap": _vmap}


def changed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, and far from what it gives; no factor alone, which a softmax would not show."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return 2 * function(*args, **kwargs) + 0.5

    return replacement


@contextlib.contextmanager
def at_its_address(module: Any, name: str) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, changed(before))
    try:
        yield
    finally:
        setattr(module, name, before)


_BY_CODE: list[Callable[..., Any]] = []


def _call_replacement(*args: Any, **kwargs: Any) -> Any:
    from tests.layers.test_replaced_functions import _BY_CODE  # this code runs in JAX's module

    return _BY_CODE[-1](*args, **kwargs)


@contextlib.contextmanager
def by_its_code(module: Any, name: str) -> Iterator[None]:
    function = getattr(module, name)
    code = function.__code__
    original = types.FunctionType(code, function.__globals__, name, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    from tests.layers import test_replaced_functions as here  # the module that the code finds

    here._BY_CODE.append(changed(original))
    # Equal to what another test puts in, and not the same: it is not enough to compare code by ==.
    function.__code__ = _call_replacement.__code__.replace()
    try:
        yield
    finally:
        function.__code__ = code
        here._BY_CODE.pop()


def values(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def close(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.allclose(x, y, rtol=1e-3, atol=1e-4) for x, y in zip(a, b, strict=True))


def _is_python(name: str) -> bool:
    module, attribute, _ = FUNCTIONS[name]
    return isinstance(getattr(module, attribute), types.FunctionType)


WAYS = [(at_its_address, name) for name in FUNCTIONS]
WAYS += [(by_its_code, name) for name in FUNCTIONS if _is_python(name)]
# One row of the table for each layer: the others run the same code on other shapes.
LAYERS = list({re.split("[ ,]", case.name)[0]: case for case in reversed(CASES)}.values())
LAYERS = [case for case in LAYERS if case.name != "Bidirectional"]  # two RNNs


# Each calls the functions of another one as that does, and compiles for seconds.
LIKE_OTHERS = (
    "ConvTranspose", "GRUCell", "InstanceNorm", "LSTMCell", "LoRALinear", "OptimizedLSTMCell",
    "Sequential", "SpectralNorm", "WeightNorm",
)  # fmt: skip
MARKED = [
    pytest.param(case, marks=[pytest.mark.slow] if case.name.startswith(LIKE_OTHERS) else [])
    for case in LAYERS
]


@pytest.mark.parametrize("case", MARKED, ids=lambda case: case.name)
def test_a_replaced_function_is_reached_whatever_ran_before(case: Case) -> None:
    layer, inputs = case.make(nnx), inputs_of(case)
    if case.integers == 0:
        inputs = [jnp.asarray(x) for x in inputs]

    def call(layer: Any, *inputs: Any) -> Any:
        return nnx.clone(layer)(*inputs, **case.call)  # each call from the same state

    def run(context: Context) -> list[np.ndarray]:
        return values(context(call, layer, inputs))

    plain = {name: run(context) for name, context in CONTEXTS.items()}
    for way, name in WAYS:
        module, attribute, needed_by = FUNCTIONS[name]
        with way(module, attribute), jax.disable_jit():
            right = run(_eager)
        is_used = not close(right, plain["eager"])
        assert is_used or case.name not in needed_by, f"{case.name} does not use {name}"
        if not is_used:
            continue
        contexts = CONTEXTS if way is by_its_code else {"eager": _eager, "jit": _jit}
        for context in contexts.values():
            with way(module, attribute):
                replaced = run(context)
                with jax.disable_jit():
                    expected = run(context)
            assert close(replaced, expected), (name, way.__name__, context.__name__)
        for label, context in contexts.items():
            assert close(run(context), plain[label]), (name, way.__name__, label, "afterwards")


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_promote_dtype_may_be_replaced_at_its_address(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, inputs = case.make(nnx), inputs_of(case)
    before = values(nnx.clone(layer)(*inputs, **case.call))
    promote, called = nnx.nn.dtypes.promote_dtype, []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        called.append(kwargs)
        return promote(*args, **kwargs)

    monkeypatch.setattr(nnx.nn.dtypes, "promote_dtype", recorded)
    assert close(values(nnx.clone(layer)(*inputs, **case.call)), before)
    assert called


OWN = {"dot_general": lax.dot_general, "conv_general_dilated": lax.conv_general_dilated,
       "einsum_op": jnp.einsum, "attention_fn": nnx.dot_product_attention,
       "qkv_dot_general": lax.dot_general, "out_dot_general": lax.dot_general,
       "activation_fn": jnp.tanh, "gate_fn": jax.nn.sigmoid}  # fmt: skip
MAKERS: list[tuple[str, Callable[..., Any], Any]] = [
    ("dot_general", lambda **o: nnx.Linear(3, 4, rngs=nnx.Rngs(0), **o), (2, 3)),
    ("dot_general", lambda **o: nnx.LinearGeneral(3, (2, 2), rngs=nnx.Rngs(0), **o), (2, 3)),
    ("conv_general_dilated", lambda **o: nnx.Conv(3, 4, 2, rngs=nnx.Rngs(0), **o), (2, 5, 3)),
    ("einsum_op", lambda **o: nnx.Einsum("ab,bc->ac", (3, 4), rngs=nnx.Rngs(0), **o), (2, 3)),
    *(
        (name, lambda **o: nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0), **o), (2, 3, 4))
        for name in ("attention_fn", "qkv_dot_general", "out_dot_general")
    ),
    ("activation_fn", lambda **o: nnx.RNN(nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0), **o)), (2, 5, 3)),
    ("gate_fn", lambda **o: nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0), **o)), (2, 5, 3)),
]


@pytest.mark.parametrize(("option", "make", "shape"), MAKERS)
def test_a_function_of_ones_own_is_called_at_every_call(
    option: str, make: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    factor = [1.0]

    def own(*args: Any, **kwargs: Any) -> Any:
        return factor[0] * OWN[option](*args, **kwargs)

    layer, plain = make(**{option: own}), make()
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    before = np.asarray(layer(x))
    np.testing.assert_allclose(before, plain(x), rtol=1e-5, atol=1e-6)
    factor[0] = 2.0
    if "RNN" in type(layer).__name__:  # a loop is compiled; what its function reads is the user's
        layer = make(**{option: lambda *args, **kwargs: own(*args, **kwargs)})
    assert not np.allclose(layer(x), before, rtol=1e-2)


def test_a_stack_reaches_what_was_replaced_since(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = nnx.Stack(lambda rngs: nnx.Linear(3, 3, use_bias=False, rngs=rngs), 2, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3))
    before = np.asarray(stack(x))
    with monkeypatch.context() as patch:
        patch.setattr(lax, "dot_general", changed(lax.dot_general))
        replaced = np.asarray(stack(x))
        with jax.disable_jit():
            one_by_one = x
            for block in stack:
                one_by_one = 2 * (one_by_one @ block.kernel.value) + 0.5
        np.testing.assert_allclose(replaced, one_by_one, rtol=1e-6)
    np.testing.assert_allclose(stack(x), before, rtol=1e-6)
