"""`capture`: what a call sowed, by path, under every transform; and the model as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")

Intermediate = nnx.Intermediate


class Features(nnx.Intermediate):
    pass


class Model(nnx.Module):
    """Sows under the name of its method, as published models do."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 3, rngs=rngs)
        self.blocks = [nnx.Linear(3, 3, rngs=rngs) for _ in range(2)]

    def features(self, x):
        h = jnp.tanh(self.first(x))
        self.sow(Intermediate, "features", h)
        return h

    def __call__(self, x, y):
        x, y = self.features(x), self.features(y)
        for block in self.blocks:
            x = block(x)
        return jnp.sum((self.perturb("difference", x - y)) ** 2)


class Scale(nnx.Module):
    def __init__(self, factor):
        self.factor = nnx.Param(factor)

    def __call__(self, x):
        y = x * self.factor
        self.sow(Intermediate, "y", y)
        return y


X = jnp.arange(4.0)


def shapes(state):
    return {path: jax.tree.map(jnp.shape, v.value) for path, v in nnx.to_flat_state(state).items()}


def test_capture_returns_the_result_and_what_was_sown():
    model = Model(nnx.Rngs(0))
    expected = [jnp.tanh(model.first(x)) for x in (X, X + 1)]
    attributes = list(vars(model))
    loss, state = nnx.capture(model, Intermediate)(X, X + 1)
    assert set(shapes(state)) == {("features",)}
    for found, h in zip(state["features"].value, expected, strict=True):
        np.testing.assert_array_equal(found, h)
    np.testing.assert_array_equal(loss, nnx.clone(model)(X, X + 1))
    assert list(vars(model)) == attributes


def test_the_forms_of_capture():
    model = Model(nnx.Rngs(0))

    @nnx.capture(Intermediate)
    def decorated(model, x):
        return model.features(x)

    @nnx.capture
    def by_default(x, *, model):
        return model.features(x)

    for h, state in (
        nnx.capture(model.features, Intermediate)(X),
        nnx.capture(lambda models, x: models["a"].features(x), Intermediate)({"a": model}, X),
        decorated(model, X),
        by_default(X, model=model),
    ):
        assert list(shapes(state).values()) == [((3,),)]
        np.testing.assert_array_equal(jax.tree.leaves(state)[0], h)
    assert decorated.__name__ == "decorated"


def test_an_object_that_comes_twice_has_its_path_in_the_first():
    model = nnx.Sequential(Scale(2.0))
    captured = nnx.capture(lambda model, part: model(X) + part(X), Intermediate)
    _, state = captured(model, model.layers[0])
    assert shapes(state) == {("layers", 0, "y"): ((4,), (4,))}


def test_a_sown_name_does_not_hide_a_method():
    model = Model(nnx.Rngs(0))
    model.features(X)
    h = model.features(X)
    np.testing.assert_array_equal(nnx.pop(model, Intermediate)["features"].value[1], h)


def test_each_state_has_one_type():
    class Sower(nnx.Module):
        def __call__(self, x):
            self.sow(Intermediate, "a", x)
            self.sow(Features, "b", x)
            return self.perturb("c", x)

    model = Sower()
    _, a, b, c = nnx.capture(model, Intermediate, Features, nnx.Perturbation)(X)
    assert [list(shapes(s)) for s in (a, b, c)] == [[("a",)], [("b",)], [("c",)]]
    _, b = nnx.capture(model, Features)(X)
    assert list(shapes(b)) == [("b",)] and vars(model) == {}


def test_what_was_sown_before_is_put_aside_and_comes_back():
    model = Scale(2.0)
    model(X)
    kept = model.y
    _, state = nnx.capture(model, Intermediate)(X + 1)
    assert len(state["y"].value) == 1 and model.y is kept
    np.testing.assert_array_equal(kept.value[0], 2 * X)


def test_the_model_is_as_before_after_an_error():
    model = Scale(2.0)

    def fails(model, x):
        model(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        nnx.capture(fails, method_outputs=Intermediate)(model, X)
    assert list(vars(model)) == ["factor"] and type(model) is Scale


def test_outputs_of_every_module_without_its_help():
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.PReLU())
    first = model.layers[0](X)
    y, state = nnx.capture(model, method_outputs=Intermediate)(X)
    assert shapes(state) == {
        ("__call__",): ((3,),),
        ("layers", 0, "__call__"): ((3,),),
        ("layers", 2, "__call__"): ((3,),),
    }
    np.testing.assert_array_equal(state["layers"][0]["__call__"].value[0], first)
    np.testing.assert_array_equal(state["__call__"].value[0], y)
    only = nnx.capture(model, method_outputs=Features, filter=nnx.PathContains(2))
    assert list(shapes(only(X)[1])) == [("layers", 2, "__call__")]
    only = nnx.capture(model, Intermediate, method_outputs=Features, filter=nnx.Linear)
    assert shapes(only(X)[1]) == {}
    assert set(vars(model)) == {"layers"}


def test_outputs_that_are_no_arrays_are_left_out():
    class Names(nnx.Module):
        def __call__(self, x):
            return {"name": "x", "value": x}

    result, state = nnx.capture(Names(), method_outputs=Intermediate)(X)
    assert result["name"] == "x" and shapes(state) == {}


def test_capturing_again_traces_nothing_again():
    model, traces = Model(nnx.Rngs(0)), []

    @nnx.jit
    def f(m, x, y):
        traces.append(1)
        return m(x, y)

    captured = nnx.capture(f, method_outputs=Intermediate)
    first, again = captured(model, X, X + 1), captured(model, X, X + 1)
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert len(shapes(again[1])) == 5


def test_gradients_of_intermediates():
    model = Model(nnx.Rngs(0))
    _, perturbations = nnx.capture(model, nnx.Perturbation)(X, X + 1)
    assert shapes(perturbations) == {("difference",): (3,)}

    @nnx.jit
    def step(model, perturbations, x, y):
        def loss(model, perturbations, x, y):
            return nnx.capture(model, Intermediate, init=perturbations)(x, y)

        grad = nnx.grad(loss, argnums=(0, 1), has_aux=True)
        (grads, of_perturbations), sown = grad(model, perturbations, x, y)
        return grads, nnx.merge_state(of_perturbations, sown)

    grads, found = step(model, perturbations, X, X + 1)
    h, g = found["features"].value
    for block in model.blocks:
        h = block(h)
    # compiled as a whole against operation by operation, float32
    np.testing.assert_allclose(found["difference"].value, 2 * (h - g), rtol=1e-5)
    assert set(grads) == {"first", "blocks"} and set(vars(model)) == {"first", "blocks"}


STEPS, Y = 4, jnp.ones((4, 3))


def stacked() -> Scale:
    return nnx.vmap(lambda factor: Scale(jnp.full(3, factor)))(jnp.arange(1.0, STEPS + 1))


PER_INDEX = nnx.StateAxes({Intermediate: 0, ...: None})
LOOPS = {
    "jit": lambda m, x: nnx.jit(lambda m, x: m(x))(m, x[0]),
    "remat": lambda m, x: nnx.remat(lambda m, x: m(x))(m, x[0]),
    "grad": lambda m, x: nnx.grad(lambda m, x: m(x).sum())(m, x[0]),
    "cond": lambda m, x: nnx.cond(True, lambda m, x: m(x), lambda m, x: m(-x), m, x[0]),
    "vmap": lambda m, x: nnx.vmap(lambda m, x: m(x), in_axes=(PER_INDEX, 0))(m, x),
    "vmap in jit": nnx.jit(nnx.vmap(lambda m, x: m(x), in_axes=(PER_INDEX, 0))),
    "scan": lambda m, x: nnx.scan(
        lambda m, c, x: (c, m(x)), in_axes=(PER_INDEX, nnx.Carry, 0), out_axes=(nnx.Carry, 0)
    )(m, 0.0, x)[1],
}


@pytest.mark.parametrize("name", LOOPS)
def test_capture_around_a_transform(name):
    model = Scale(jnp.full(3, 2.0))
    _, state = nnx.capture(LOOPS[name], method_outputs=Intermediate)(model, Y)
    mapped = "vmap" in name or "scan" in name
    for path in ("y", "__call__"):
        [y] = state[path].value
        np.testing.assert_array_equal(y, 2 * (Y if mapped else Y[0]))
    assert list(vars(model)) == ["factor"] and type(model) is Scale


def test_capture_around_a_scan_over_stacked_layers():
    scanned = nnx.scan(lambda m, x: m(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    _, state = nnx.capture(scanned, method_outputs=Intermediate)(stacked(), Y[0])
    expected = np.cumprod(np.arange(1.0, STEPS + 1))[:, None] * np.ones(3)
    np.testing.assert_array_equal(state["y"].value[0], expected)
    np.testing.assert_array_equal(state["__call__"].value[0], expected)


def test_capture_inside_of_transforms():
    def inner(m, x):
        return nnx.capture(m, Intermediate)(x)

    y, state = nnx.vmap(inner)(stacked(), Y)
    np.testing.assert_array_equal(state["y"].value[0], y)
    assert y.shape == (STEPS, 3)
    y, state = nnx.vmap(inner, in_axes=(None, 0))(Scale(2.0), Y)  # nothing stays on the model
    np.testing.assert_array_equal(state["y"].value[0], 2 * Y)
    graphdef, params = nnx.split(Scale(2.0))
    y, state = jax.jit(lambda params, x: inner(nnx.merge(graphdef, params), x))(params, Y)
    np.testing.assert_array_equal(state["y"].value[0], y)


def test_errors_of_capture():
    model = Scale(2.0)
    with pytest.raises(ValueError, match=r"no Module among the arguments of `.*<lambda>`\.\nCure"):
        nnx.capture(lambda x: model(x), Intermediate)(X)
    with pytest.raises(ValueError, match=r"two arguments sow Intermediate under .*'y'.*Scale"):
        nnx.capture(lambda a, b: (a(X), b(X)), Intermediate)(model, Scale(1.0))
    _, state = nnx.capture(lambda ms: ms["b"](X), Intermediate)({"a": model, "b": Scale(1.0)})
    with pytest.raises(ValueError, match=r"`init` has the path \('z', 'b', 'y'\), but no Mod"):
        nnx.capture(model, Intermediate, init=nnx.State({"z": state}))(X)
    assert list(vars(model)) == ["factor"]
    with pytest.raises(nnx.TraceContextError, match=r"`__captures__` of a Scale"):
        nnx.jit(lambda x: nnx.capture(model, Intermediate)(x))(X)
    assert list(vars(model)) == ["factor"]
