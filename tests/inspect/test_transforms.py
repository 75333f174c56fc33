"""Capture, hooks, `sow` and `perturb` in every transform, for every kind of method.

What is right is said by a model without Modules: the values of one call, or of one for each index.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx

pytestmark = pytest.mark.filterwarnings("ignore::refax.nnx.RetraceWarning")
Intermediate, Perturbation = nnx.Intermediate, nnx.Perturbation
X = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
MESH = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


class Inner(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.array([0.5, 2.0]))

    def half(self, x: Any) -> Any:
        self.sow(Intermediate, "sown", 3 * x)
        return x / 2

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.half(x) * self.w[...])


class Outer(nnx.Module):
    def __init__(self) -> None:
        self.inner = Inner()

    def features(self, x: Any) -> Any:
        return self.inner(self.perturb("moved", x))

    def __call__(self, x: Any) -> Any:
        return self.features(x) + x


def expected_of(x: Any) -> dict[tuple, Any]:
    """path → what is recorded by one call, by hand."""
    inner = jnp.tanh(x / 2 * jnp.array([0.5, 2.0]))
    return {
        ("inner", "sown"): 3 * x, ("inner", "half"): x / 2, ("inner", "__call__"): inner,
        ("features",): inner, ("__call__",): inner + x,
    }  # fmt: skip


def call(m: Any, x: Any) -> Any:
    return m(x)


def loss(m: Any, x: Any) -> Any:
    return jnp.sum(m(x) ** 2)


@nnx.custom_vjp
def own_rule(m: Any, x: Any) -> Any:
    return m(x)


own_rule.defvjp(lambda m, x: (m(x), None), lambda _, g: (g[0][0], 2 * g[1]))


class Kind(NamedTuple):
    run: Callable[[Any, Any], Any]
    by_index: bool = False  # a call for each row, what is recorded stacked


def axes(of_records: Any) -> Any:
    return nnx.StateAxes({Intermediate: of_records, ...: None})


def scanned(m: Any, x: Any, axis: Any = None, body: Any = call) -> Any:
    return nnx.scan(
        lambda m, c, x: (c, body(m, x)), in_axes=(axis, nnx.Carry, 0), out_axes=(nnx.Carry, 0)
    )(m, 0.0, x)[1]


KINDS: dict[str, Kind] = {
    "eager": Kind(call),
    "jit": Kind(nnx.jit(call)),
    "jit of remat": Kind(nnx.jit(nnx.remat(call))),
    "remat": Kind(nnx.remat(call)),
    "grad": Kind(nnx.grad(loss)),
    "grad of remat": Kind(nnx.grad(nnx.remat(loss))),
    "value_and_grad": Kind(nnx.value_and_grad(loss)),
    "grad of jit": Kind(nnx.grad(nnx.jit(loss))),
    "vjp": Kind(lambda m, x: nnx.vjp(call, m, x)[1](x)),
    "jvp": Kind(lambda m, x: nnx.jvp(call, (m, x), (nnx.state(m, nnx.Param), x))),
    "cond": Kind(lambda m, x: nnx.cond(x.sum() < 9, call, lambda m, x: m(-x), m, x)),
    "switch": Kind(lambda m, x: nnx.switch(x.shape[0] - 2, [lambda m, x: m(-x), call], m, x)),
    "checkify": Kind(nnx.checkify(call)),
    "custom_vjp": Kind(own_rule),
    "grad of custom_vjp": Kind(nnx.grad(lambda m, x: own_rule(m, x).sum())),
    "a method": Kind(lambda m, x: nnx.jit(m.__call__)(x)),
    "the Module itself": Kind(lambda m, x: nnx.jit(nnx.remat(m))(x)),
    "a partial": Kind(lambda m, x: nnx.jit(functools.partial(m.__call__, x))()),
    "vmap": Kind(nnx.vmap(call, in_axes=(None, 0)), True),
    "vmap with axes": Kind(nnx.vmap(call, in_axes=(axes(0), 0)), True),
    "vmap of jit": Kind(nnx.vmap(nnx.jit(call), in_axes=(None, 0)), True),
    "jit of vmap": Kind(nnx.jit(nnx.vmap(call, in_axes=(None, 0))), True),
    "grad of vmap": Kind(
        nnx.grad(lambda m, x: nnx.vmap(call, in_axes=(None, 0))(m, x).sum()), True
    ),
    "vmap of grad": Kind(nnx.vmap(nnx.grad(loss), in_axes=(None, 0)), True),
    "scan": Kind(scanned, True),
    "scan with axes": Kind(functools.partial(scanned, axis=axes(0)), True),
    "scan of remat": Kind(lambda m, x: scanned(m, x, body=nnx.remat(call)), True),
    "jit of scan": Kind(nnx.jit(scanned), True),
    "scan that carries the Module": Kind(
        nnx.scan(lambda m, x: (m, m(x)), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0)), True
    ),
    "fori_loop": Kind(
        lambda m, x: nnx.fori_loop(0, 3, lambda i, c: (c[0], c[0](x[i]))[:1] * 2, (m, m)), True
    ),
    "shard_map": Kind(
        nnx.shard_map(
            call, mesh=MESH, out_specs=P("data"),
            in_specs=(nnx.StateSharding({Intermediate: P("data"), ...: P()}), P("data")),
        )
    ),
}  # fmt: skip


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7)


def rows(kind: Kind) -> dict[tuple, Any]:
    if not kind.by_index:
        return expected_of(X)
    each = [expected_of(x) for x in X]
    return {path: jnp.stack([e[path] for e in each]) for path in each[0]}


@pytest.mark.parametrize("name", KINDS)
def test_capture_of_methods_sow_and_perturb(name: str) -> None:
    kind, model = KINDS[name], Outer()
    before = jax.tree.leaves(nnx.state(model))
    wrapped = nnx.capture(kind.run, Intermediate, Perturbation, method_outputs=Intermediate)
    _, state, perturbations = wrapped(model, X)
    found = {path: v.value for path, v in nnx.to_flat_state(state).items()}
    assert set(found) == set(expected_of(X))
    for path, expected in rows(kind).items():
        [value] = found[path]
        close(value, expected)
    close(perturbations["moved"].value, 0 * X)
    assert list(vars(model)) == ["inner"] and type(model.inner) is Inner
    assert all(map(np.array_equal, jax.tree.leaves(nnx.state(model)), before))


@pytest.mark.parametrize("name", KINDS)
def test_what_was_recorded_before_stands_first(name: str) -> None:
    kind = KINDS[name]

    def twice(m: Any, x: Any) -> None:
        m.inner(x[0])
        kind.run(m, x)
        m.inner.half(x[1])

    _, state = nnx.capture(twice, method_outputs=Intermediate)(Outer(), X)
    first, inside, last = state["inner"]["half"].value
    close(first, X[0] / 2), close(inside, X / 2), close(last, X[1] / 2)
    assert len(state["inner"]["__call__"].value) == 2


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("shard_map", "jvp")])
def test_gradients_of_what_is_perturbed(name: str) -> None:
    """`init` gives the perturbation; what it changes is what a changed input would."""
    kind = KINDS[name]
    result, given = nnx.capture(kind.run, Perturbation)(Outer(), X)
    moved = jax.tree.map(lambda p: p + 0.25, given)
    again, same = nnx.capture(kind.run, Perturbation, init=moved)(Outer(), X)
    close(same["moved"].value, 0.25 + 0 * X)
    leaves = [jax.tree.leaves(r) for r in (result, again)]
    if name in ("eager", "jit", "remat", "vmap", "scan", "cond", "switch"):
        close(leaves[1][0], expected_of(X + 0.25)[("features",)] + X)
        gradient = nnx.grad(lambda p: nnx.capture(kind.run, init=p)(Outer(), X)[0].sum())
        w = jnp.array([0.5, 2.0])
        close(gradient(given)["moved"].value, w / 2 / jnp.cosh(X / 2 * w) ** 2)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ["__call__", "half", "features", ...], ids=str)
def test_hooks_of_each_method(name: str, method: Any) -> None:
    """A hook in a transform sees what is traced; what it returns replaces the output."""
    kind, model = KINDS[name], Outer()
    seen: list[tuple[str, int]] = []

    def note(*args: Any) -> None:
        *called, module, _, _, y = args
        seen.append((*(called or [method]), type(module).__name__, y.shape[-1]))

    run = nnx.capture(kind.run, Intermediate, Perturbation)  # a vmap would not let `sow` write
    with nnx.forward_hooks(model, note, method=method):
        run(model, X)
    every = [("half", "Inner", 2), ("__call__", "Inner", 2), ("features", "Outer", 2),
             ("__call__", "Outer", 2)]  # fmt: skip
    expected = [e for e in every if method in (e[0], ...)]
    assert [e for e in every if e in seen] == expected and set(seen) == set(expected)
    assert type(model) is Outer and type(model.inner) is Inner

    if method == "features":  # of the other class
        return
    with nnx.forward_hooks(model, lambda *a: 0 * a[-1], method=method, filter=Inner):
        _, state = nnx.capture(kind.run, method_outputs=Intermediate)(model, X)
    close(state["inner"]["__call__"].value[0], 0 * X)
    close(state["__call__"].value[0], X)


def test_a_while_loop_says_what_to_use() -> None:
    def run(m: Any, x: Any) -> Any:
        return nnx.while_loop(lambda c: c[2] < 3, lambda c: (c[0], c[0](c[1]), c[2] + 1), (m, x, 0))

    with pytest.raises(ValueError, match=r"while_loop: .*`c\[0\].__captures__(?s:.)*nnx.scan"):
        nnx.capture(run, method_outputs=Intermediate)(Outer(), X)
    (_, y, _), state = nnx.capture(run, nnx.Cache)(Outer(), X)
    assert y.shape == X.shape and not state


def test_hooks_before_a_method_and_methods_that_are_not_there() -> None:
    model = Outer()
    with nnx.add_forward_pre_hook(model.inner, lambda m, a, k: ((a[0] + 1,), k), method="half"):
        close(model.inner.half(X), (X + 1) / 2)
    with nnx.forward_hooks(model, pre=lambda name, m, a, k: ((0 * a[0],), k), method=...):
        close(model(X), 0 * X)
    for add in (nnx.add_forward_hook, nnx.add_forward_pre_hook):
        with pytest.raises(
            TypeError, match=r"Inner has no public method `whole`; it has: __call__, half"
        ):
            add(model.inner, print, method="whole")


def test_own_gradient_rules() -> None:
    (_, state), _ = nnx.value_and_grad(
        lambda x: (lambda y, s: (y.sum(), s))(
            *nnx.capture(own_rule, method_outputs=Intermediate)(Outer(), x)
        ),
        has_aux=True,
    )(X)
    for path, expected in expected_of(X).items():
        close(dict(nnx.to_flat_state(state))[path].value[0], expected)


def test_a_stack_that_is_called_twice() -> None:
    stack = nnx.Stack(lambda rngs: nnx.Linear(2, 2, rngs=rngs), 3, rngs=nnx.Rngs(0))
    _, state = nnx.capture(lambda s: (s(X), s(-X[:1])), method_outputs=Intermediate)(stack)
    for x, outputs in zip((X, -X[:1]), state["blocks"]["__call__"].value, strict=True):
        for block, output in zip(stack, outputs, strict=True):
            x = block(x)
            close(output, x)
