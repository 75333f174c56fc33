"""`capture(method_outputs=…)`: what every public method of every Module returned.

What is right is what a model says whose methods note their outputs themselves, in a plain list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

Intermediate = nnx.Intermediate
X = jnp.arange(6.0).reshape(3, 2) / 7


class Base(nnx.Module):
    """Methods of all kinds; `noted` is given what each public one returns, with its path."""

    constant = jnp.tanh  # a function that is kept, and no method

    def __init__(self, path: tuple, noted: list | None):
        self.path, self.note = nnx.static(path), nnx.static(lambda name, y: y)
        if noted is not None:
            self.note = nnx.static(lambda name, y: noted.append(((*path, name), y)) or y)
        self.scale = nnx.Param(jnp.full(2, 1.0 + len(path)))

    def inherited(self, x: Any) -> Any:
        return self.note("inherited", x * self.scale.value)

    @property
    def doubled(self) -> Any:
        return 2 * self.scale.value

    @staticmethod
    def plain(x: Any) -> Any:
        return x + 1

    @classmethod
    def of_class(cls, x: Any) -> Any:
        return x - 1

    def _private(self, x: Any) -> Any:
        return x * self.doubled

    def text(self) -> str:
        return "no array"

    def nothing(self) -> None:
        return None


class Inner(Base):
    def pair(self, x: Any, *, shift: float = 0.0) -> dict[str, Any]:
        return self.note("pair", {"a": x + shift, "b": (self._private(x),)})

    def inherited(self, x: Any) -> Any:
        return self.note("inherited", super().inherited(x) if False else x + self.scale.value)

    def __call__(self, x: Any) -> Any:
        self.text(), self.nothing(), self.plain(x), self.of_class(x)
        return self.note("__call__", self.pair(self.inherited(x), shift=0.5)["b"][0])


class Outer(Base):
    def __init__(self, path: tuple = (), noted: list | None = None):
        super().__init__(path, noted)
        self.first = Inner((*path, "first"), noted)
        self.others = [Inner((*path, "others", i), noted) for i in range(2)]

    def features(self, x: Any) -> Any:
        return self.note("features", self.others[1].pair(self.first(self.first(x)))["a"])

    def __call__(self, x: Any) -> Any:
        return self.note("__call__", self.features(x) + self.others[0].inherited(x))


def expected_of(call: Callable[[Any], Any]) -> dict[tuple, list[Any]]:
    """path → the outputs, from the model that notes them itself."""
    noted: list[tuple[tuple, Any]] = []
    call(Outer((), noted))
    found: dict[tuple, list[Any]] = {}
    for path, y in noted:
        found.setdefault(path, []).append(y)
    return found


def found_in(state: nnx.State) -> dict[tuple, list[Any]]:
    return {path: list(v.value) for path, v in nnx.to_flat_state(state).items()}


def assert_same(actual: dict[tuple, list[Any]], expected: dict[tuple, list[Any]]) -> None:
    assert set(actual) == set(expected)
    for path, outputs in expected.items():
        assert jax.tree.structure(actual[path]) == jax.tree.structure(outputs), path
        for a, b in zip(jax.tree.leaves(actual[path]), jax.tree.leaves(outputs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=str(path))


PER_INDEX = nnx.StateAxes({Intermediate: 0, ...: None})
TRANSFORMS: dict[str, Callable[[Any, Any], Any]] = {
    "eager": lambda m, x: m(x),
    "jit": lambda m, x: nnx.jit(lambda m, x: m(x))(m, x),
    "remat": lambda m, x: nnx.remat(lambda m, x: m(x))(m, x),
    "grad": lambda m, x: nnx.grad(lambda m, x: m(x).sum())(m, x),
    "vjp": lambda m, x: nnx.vjp(lambda m, x: m(x), m, x)[0],
    "cond": lambda m, x: nnx.cond(True, lambda m, x: m(x), lambda m, x: m(-x), m, x),
    "jit of grad of remat": nnx.jit(
        lambda m, x: nnx.grad(lambda m, x: nnx.remat(lambda m, x: m(x))(m, x).sum())(m, x)
    ),
}
LOOPS: dict[str, Callable[[Any, Any], Any]] = {
    "vmap": lambda m, x: nnx.vmap(lambda m, x: m(x), in_axes=(PER_INDEX, 0))(m, x),
    "jit of vmap": nnx.jit(nnx.vmap(lambda m, x: m(x), in_axes=(PER_INDEX, 0))),
    "scan": lambda m, x: nnx.scan(
        lambda m, c, x: (c, m(x)), in_axes=(PER_INDEX, nnx.Carry, 0), out_axes=(nnx.Carry, 0)
    )(m, 0.0, x)[1],
}


@pytest.mark.parametrize("name", [*TRANSFORMS, *LOOPS])
@pytest.mark.parametrize("around", [True, False], ids=["capture around", "capture inside"])
def test_every_public_method_that_runs_is_recorded(name: str, around: bool) -> None:
    if name in TRANSFORMS:
        run, expected = TRANSFORMS[name], expected_of(lambda m: m(X))
    else:
        run = LOOPS[name]
        each = [expected_of(lambda m, x=x: m(x)) for x in X]
        expected = jax.tree.map(lambda *rows: jnp.stack(rows), *each)
    model = Outer()
    before = jax.tree.leaves(nnx.state(model))
    if around:
        _, state = nnx.capture(run, method_outputs=Intermediate)(model, X)
    elif name in LOOPS:
        inside = nnx.vmap(
            nnx.capture(lambda m, x: m(x), method_outputs=Intermediate), in_axes=(None, 0)
        )
        _, state = inside(model, X)
    else:
        _, state = nnx.jit(nnx.capture(run, method_outputs=Intermediate))(model, X)
    assert_same(found_in(state), expected)
    assert jax.tree.leaves(nnx.state(model)) == before or all(
        map(np.array_equal, jax.tree.leaves(nnx.state(model)), before)
    )
    assert type(model.first) is Inner and not hasattr(model, "__captures__")


def test_the_method_that_is_captured_is_recorded_too() -> None:
    _, state = nnx.capture(Outer().features, method_outputs=Intermediate)(X)
    assert_same(found_in(state), expected_of(lambda m: m.features(X)))


def test_a_model_that_is_called_twice_and_a_model_in_two_arguments() -> None:
    def twice(m: Any, part: Any) -> Any:
        return m(X) + part(X) + m(X)

    model = Outer()
    _, state = nnx.capture(twice, method_outputs=Intermediate)(model, model.first)
    assert_same(found_in(state), expected_of(lambda m: twice(m, m.first)))


def test_models_in_containers_have_the_path_in_the_argument() -> None:
    def run(models: Any) -> Any:
        return models["a"][0].features(X)

    _, state = nnx.capture(run, method_outputs=Intermediate)({"a": [Outer()], "b": Outer()})
    expected = {("a", 0, *p): y for p, y in expected_of(lambda m: m.features(X)).items()}
    assert_same(found_in(state), expected)


def test_hooks_of_the_user_run_before_what_is_recorded() -> None:
    model = Outer()
    with nnx.add_forward_hook(model.first, lambda m, args, kwargs, y: y * 0):
        _, state = nnx.capture(model, method_outputs=Intermediate)(X)
        np.testing.assert_array_equal(state["first"]["__call__"].value[0], 0 * X)
    assert type(model.first) is Inner


def test_a_transformed_method_is_recorded_once() -> None:
    class Jitted(nnx.Module):
        @nnx.jit
        def step(self, x: Any) -> Any:
            self.sow(Intermediate, "inside", x)
            return 2 * x

        @nnx.remat
        def __call__(self, x: Any) -> Any:
            return self.step(x) + 1

    _, state = nnx.capture(Jitted(), method_outputs=Intermediate)(X)
    expected = {("step",): [2 * X], ("inside",): [X], ("__call__",): [2 * X + 1]}
    assert_same(found_in(state), expected)


def test_layers_with_loops_of_their_own() -> None:
    rnn = nnx.RNN(nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0)))
    y, state = nnx.capture(rnn, method_outputs=Intermediate)(X[None])
    [(carry, output)] = state["cell"]["__call__"].value
    np.testing.assert_allclose(jnp.swapaxes(output, 0, 1), y, rtol=1e-6)
    np.testing.assert_array_equal(carry, output)
    assert [v.shape for v in state["cell"]["dense_i"]["__call__"].value] == [(3, 1, 3)]
    np.testing.assert_array_equal(rnn(X[None]), y)
    _, state = nnx.capture(lambda r: (r(X[None]), r(X[None, :2])), method_outputs=Intermediate)(rnn)
    [(_, three), (_, two)] = state["cell"]["__call__"].value
    np.testing.assert_array_equal(three, output)
    np.testing.assert_allclose(two, output[:2], rtol=1e-6)
    stack = nnx.Stack(lambda rngs: nnx.Linear(2, 2, rngs=rngs), 3, rngs=nnx.Rngs(0))
    y, state = nnx.capture(stack, method_outputs=Intermediate)(X)
    [outputs] = state["blocks"]["__call__"].value
    x = X
    for block, output in zip(stack, outputs, strict=True):
        x = block(x)
        np.testing.assert_allclose(output, x, rtol=1e-5)


class Sower(nnx.Module):
    def __call__(self, x: Any) -> Any:
        known = [
            self.sow(Intermediate, "a", x),
            self.sow(nnx.Cache, "b", x, lambda a, b: a + b, lambda: 0.0),
        ]
        return self.perturb("p", x), known


def test_only_what_is_asked_for_is_recorded_and_sow_says_so() -> None:
    model = Sower()
    (y, known), a = nnx.capture(model, Intermediate)(X)
    assert known == [True, False] and list(a) == ["a"]
    (y, known), p, b = nnx.capture(model, nnx.Perturbation, nnx.Cache)(X)
    assert known == [False, True] and list(b) == ["b"] and vars(model) == {}
    np.testing.assert_array_equal(p["p"].value, 0 * X)
    np.testing.assert_array_equal(b["b"].value, X)
    assert model(X)[1] == [True, True]  # and outside of a capture all is, on the model


def test_a_capture_inside_another() -> None:
    model = Sower()

    def inner(m: Any, x: Any) -> Any:
        _, a = nnx.capture(m, Intermediate)(x)
        return a["a"].value[0] + m(x)[0]

    _, a, b = nnx.capture(inner, Intermediate, nnx.Cache)(model, X)
    assert [v.shape for v in a["a"].value] == [X.shape]  # the call outside of the inner capture
    np.testing.assert_array_equal(b["b"].value, 2 * X)  # that type is the outer one's in both
    assert vars(model) == {}


def test_copies_that_record_and_copies_that_are_returned() -> None:
    def run(m: Any, x: Any) -> Any:
        graphdef, state = nnx.split(m)
        copied = nnx.merge(graphdef, state)
        copied(x)
        return nnx.clone(m)

    copied, a = nnx.capture(run, Intermediate)(Sower(), X)
    np.testing.assert_array_equal(a["a"].value[0], X)
    assert vars(copied) == {}


def test_gradients_of_perturbations_for_each_example() -> None:
    class Squared(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.arange(1.0, 3.0))

        def __call__(self, x: Any) -> Any:
            y = self.perturb("y", x * self.w)
            self.sow(Intermediate, "y_squared", y**2)
            return jnp.sum(y**2)

    @nnx.capture(nnx.Perturbation)
    def zeros(m: Any, x: Any) -> Any:
        graphdef, records, params = nnx.split(m, Intermediate, nnx.Param)
        return nnx.vmap(
            lambda records, params, x: nnx.merge(graphdef, records, params)(x), in_axes=(0, None, 0)
        )(records, params, x)

    def one(m: Any, p: Any, x: Any) -> Any:
        def loss(m: Any, p: Any, x: Any) -> Any:
            return nnx.capture(m, Intermediate, init=p)(x)

        (_, of_p), sown = nnx.grad(loss, argnums=(0, 1), has_aux=True)(m, p, x)
        return nnx.merge_state(of_p, sown)

    model = Squared()
    _, p = zeros(model, X)
    found = nnx.jit(nnx.vmap(one, in_axes=(None, 0, 0)))(model, p, X)
    np.testing.assert_allclose(found["y"].value, 2 * X * model.w.value, rtol=1e-6)
    np.testing.assert_allclose(found["y_squared"].value[0], (X * model.w.value) ** 2, rtol=1e-6)


@pytest.mark.parametrize("wrong", ["Intermediate", 3, jnp.ndarray, X])
def test_a_type_is_a_type_of_variables(wrong: Any) -> None:
    for make in (
        lambda: nnx.capture(Sower(), wrong),
        lambda: nnx.capture(Sower(), method_outputs=wrong),
    ):
        with pytest.raises(TypeError, match="(var_types|method_outputs).* must be a class of Var"):
            make()
