"""What JAX says of a function that does not fit its transform, told with paths and a cure."""

from typing import Any

import jax.numpy as jnp
import pytest

from refax import nnx
from tests.transforms.test_messages import OURS

X = jnp.ones((2, 3))


class Model(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones(3))
        self.blocks = [nnx.Linear(3, 3, rngs=nnx.Rngs(0))]

    def __call__(self, x: Any) -> Any:
        return self.blocks[0](x) * self.w


class OfIntegers(nnx.Module):
    def __init__(self) -> None:
        self.blocks = [{"table": nnx.Param(jnp.arange(3))}]


def same(m: Any, x: Any) -> Any:
    return x


def wider(m: Any, x: Any = None) -> Any:
    m.w.value = jnp.ones(4)
    return m if x is None else x


def other_dtype(m: Any, x: Any = None) -> Any:
    m.blocks[0].bias.value = m.blocks[0].bias.value.astype(jnp.int32)
    return m if x is None else x


def carried(function: Any, **options: Any) -> Any:
    return nnx.scan(function, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), **options)


def mapped(function: Any = same, in_axes: Any = (None, 0), *more: Any, **options: Any) -> Any:
    return nnx.vmap(function, in_axes, **options)(Model(), X, *more)


def below(v: Any) -> Any:
    return v[0] < 3


# By transform and mistake: the call, and what its message has in it.
MISTAKES: dict[str, tuple[Any, ...]] = {
    "scan: carry, shape": (
        lambda: carried(lambda c, x: (jnp.ones(5), x))(jnp.ones(3), X), "`carry`", "float32[5]"),
    "scan: carry, dtype below": (
        lambda: carried(lambda c, x: ({"a": c["a"].astype(int)}, x))({"a": jnp.ones(2)}, X),
        "`carry['a']`", "float32[2]", "int32[2]"),
    "scan: carry, containers": (
        lambda: carried(lambda c, x: ((c, c), x))(jnp.ones(2), X), "(float32[2], float32[2])"),
    "scan: carry, Variable": (
        lambda: carried(lambda m, x: (wider(m), x))(Model(), X), "`m.w`", "float32[4]"),
    "scan: carry, dtype of Variable": (
        lambda: carried(lambda m, x: (other_dtype(m), x))(Model(), X), "`m.blocks[0].bias`"),
    "scan: sizes": (
        lambda: carried(lambda c, x: (c, x[0]))(1.0, (X, jnp.ones(5))), "x[0] (float32[2,3]",
        "x[1] (float32[5]"),
    "scan: nothing to scan": (
        lambda: nnx.scan(lambda c: (c, 1.0), in_axes=(nnx.Carry,), out_axes=(nnx.Carry, 0))(1.0),
        "length=…"),
    "scan: length": (lambda: carried(lambda c, x: (c, x), length=7)(1.0, X), "7", "[2]"),
    "scan: one result": (lambda: carried(lambda c, x: c)(1.0, X), "2 entries"),
    "scan: a number": (lambda: carried(lambda c, x: (c, x))(1.0, 2.0), "`x` is float 2.0"),
    "scan: no array": (lambda: carried(lambda c, x: (c, {"a": "s"}))(1.0, X), "[0]['a']`", "str"),
    "scan: in_axes": (
        lambda: nnx.scan(same, in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))(1.0, X),
        "`in_axes` is not a prefix"),
    "while_loop: carry, shape": (
        lambda: nnx.while_loop(below, lambda v: (v[0] + 1, jnp.ones(7)), (0, X)), "`carry[1]`",
        "float32[7]"),
    "while_loop: carry, Variable": (
        lambda: nnx.while_loop(below, lambda v: (v[0], wider(v[1])), (0, Model())), "`v[1].w`"),
    "while_loop: carry, containers": (
        lambda: nnx.while_loop(below, list, (0, 1)), "`carry`", "[int32[], int32[]]"),
    "while_loop: several booleans": (
        lambda: nnx.while_loop(lambda v: v > 0, lambda v: v, X), "boolean scalar", "jnp.any"),
    "fori_loop: carry, shape": (
        lambda: nnx.fori_loop(0, 3, lambda i, v: (v[0], jnp.ones(7)), (0, X)), "`carry[1]`"),
    "fori_loop: carry, Variable": (
        lambda: nnx.fori_loop(0, 3, lambda i, m: wider(m), Model()), "`m.w`", "float32[4]"),
    "fori_loop: nothing returned": (
        lambda: nnx.fori_loop(0, 3, lambda i, m: None, Model()), "was Model and becomes None"),
    "fori_loop: bounds": (lambda: nnx.fori_loop(0, 1.5, lambda i, m: m, 0), "int32 and float32"),
    "cond: shapes": (
        lambda: nnx.cond(True, same, lambda m, x: x[0], Model(), X), "`result`", "float32[2,3]"),
    "cond: containers": (
        lambda: nnx.cond(True, same, lambda m, x: (x, x), Model(), X), "`result`"),
    "cond: Variable": (
        lambda: nnx.cond(True, wider, same, Model(), X), "`m.w`", "`wider`", "`same`"),
    "cond: dtype of Variable": (
        lambda: nnx.cond(True, same, other_dtype, Model(), X), "`m.blocks[0].bias`", "int32[3]"),
    "cond: several booleans": (lambda: nnx.cond(X > 0, same, same, Model(), X), "(2, 3)", "where"),
    "switch: shapes": (
        lambda: nnx.switch(0, [same, lambda m, x: x[0]], Model(), X), "`result`", "float32[3]"),
    "switch: index": (lambda: nnx.switch(1.5, [same, same], Model(), X), "astype(int)"),
    "vmap: sizes": (lambda: mapped(same, 0), "m.w (float32[3], axis 0)", "x (float32[2,3]"),
    "vmap: sizes of arrays": (
        lambda: nnx.vmap(lambda x, d: x)(X, {"a": jnp.ones(5)}), "d['a'] (float32[5]"),
    "vmap: no such axis": (lambda: mapped(same, (None, 5)), "`x` is float32[2,3]", "no axis 5"),
    "vmap: nothing": (lambda: mapped(same, None), "axis_size=…", "test_common_mistakes.py"),
    "vmap: too few axes": (
        lambda: mapped(lambda m, x, y: x, (None, 0), X), "length 2", "length 3"),
    "vmap: axes by other keys": (
        lambda: nnx.vmap(same, (None, {"b": 0}))(Model(), {"a": X}), "in_axes[1]", "('a',)"),
    "vmap: out_axes=None": (lambda: mapped(out_axes=None), "at vmap out_axes,", "out_axes=0"),
    "vmap: out_axes": (lambda: mapped(out_axes=(0, 0)), "`out_axes` is not a prefix"),
    "vmap: axis_size": (lambda: mapped(axis_size=9), "9", "argument x"),
    "vmap: no array": (lambda: mapped(lambda m, x: "a"), "'a'"),
    "grad: no scalar": (
        lambda: nnx.grad(lambda m, x: m(x))(Model(), X), "float32[2,3]", "has_aux"),
    "grad: two values": (lambda: nnx.grad(lambda m, x: (m(x).sum(), x))(Model(), X), "(loss, aux)"),
    "grad: nothing": (lambda: nnx.grad(lambda m: None)(Model()), "None", "has_aux"),
    "grad: integer": (lambda: nnx.grad(lambda m: 1)(Model()), "int32", "float32"),
    "grad: aux": (lambda: nnx.grad(lambda m: 1.0, has_aux=True)(Model()), "(loss, aux)"),
    "grad: by integers": (
        lambda: nnx.grad(lambda m, x: 1.0 * m.w.sum(), argnums=1)(Model(), jnp.arange(3)),
        "no derivative: x (int32[3])"),
    "grad: Param of integers": (
        lambda: nnx.grad(lambda m: 1.0 * m.blocks[0]["table"].sum())(OfIntegers()),
        "no derivative: m.blocks[0].table (int32[3])"),
    "jvp: shapes": (lambda: nnx.jvp(lambda x: x, (X,), (X[0],)), "(2, 3)", "(3,)"),
    "jvp: dtypes": (lambda: nnx.jvp(lambda x: x, (X,), (X.astype(int),)), "int32"),
    "jit: no array": (
        lambda: nnx.jit(lambda m, x: {"a": [x, "s"]})(Model(), X), "`result['a'][1]`", "str"),
    "jit: no array goes in": (lambda: nnx.jit(same)(Model(), object()), "`x` holds object"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("inside", [False, True], ids=["eager", "in jit"])
def test_a_mistake(name: str, inside: bool) -> None:
    call, *words = MISTAKES[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        nnx.jit(lambda: call())() if inside else call()
    text = str(caught.value).split("\n-----")[0]
    assert text.count("\nCure: ") == 1, text
    for word in words:
        assert word in text, text
    for word in {*OURS, "xs[", "carries[", "operands[", "args[0]"} - {"carry["}:
        assert word not in text, text


def test_errors_of_the_users_own_stay_as_they_are() -> None:
    def raises(m: Any) -> Any:
        raise ValueError("Pred must be a scalarity", 3)

    for transform in (nnx.jit, nnx.remat, nnx.grad):
        with pytest.raises(ValueError) as caught:
            transform(raises)(Model())
        assert caught.value.args == ("Pred must be a scalarity", 3)
