"""`find_nonfinite`: planted faults are named in every transform, and what is meant is no alarm."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx

X = jnp.array([[0.0, 0.0], [1.0, -2.0]])


class Fault(nnx.Module):
    """(rows, 2) → (rows, 2); `plant` has the fault."""

    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(2))

    def plant(self, x: Any) -> Any:
        raise NotImplementedError

    def __call__(self, x: Any) -> Any:
        return self.scale * self.plant(x)


class Log(Fault):
    def plant(self, x: Any) -> Any:
        return jnp.log(x - 3)


class Overflow(Fault):
    def plant(self, x: Any) -> Any:
        half = (x + 40).astype(jnp.float16)
        return (half * half * half).astype(jnp.float32)


class Cast(Fault):
    def plant(self, x: Any) -> Any:
        return (1e6 * (x + 9)).astype(jnp.float16).astype(jnp.float32)


class Norm(Fault):
    def plant(self, x: Any) -> Any:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Masked(Fault):
    def plant(self, x: Any) -> Any:
        kept = jnp.array([1.0, 0.0])
        return jax.nn.softmax(x + (1 - kept) * -jnp.inf)


class Power(Fault):
    def plant(self, x: Any) -> Any:
        return (x - 9) ** 0.5


class Root(Fault):
    """Finite, but not its derivative at 0."""

    def plant(self, x: Any) -> Any:
        return jnp.sqrt(x * x)


class Guarded(Fault):
    """The derivative of what `where` leaves out is 0 * inf."""

    def plant(self, x: Any) -> Any:
        return jnp.where(x > 0, jnp.sqrt(jnp.abs(x)), 0.0)


class Known(NamedTuple):
    kind: str
    operation: str
    becomes: str = ""


FORWARD: dict[type[Fault], Known] = {
    Log: Known("nan", "log"),
    Overflow: Known("inf", "mul"),
    Cast: Known("inf", "convert_element_type"),
    Norm: Known("nan", "div"),
    Masked: Known("nan", "mul"),
    Power: Known("nan", "pow"),
}
BACKWARD: dict[type[Fault], Known] = {
    Root: Known("inf", "div", "mul"),
    Guarded: Known("inf", "div", "mul"),
}


class Model(nnx.Module):
    def __init__(self, fault: type[Fault]) -> None:
        self.first, self.bad = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0)), fault()
        self.first.kernel[...] = jnp.eye(2)

    def __call__(self, x: Any) -> Any:
        return self.bad(self.first(x))


def call(model: Any, x: Any) -> Any:
    return model(x)


def total(model: Any, x: Any) -> Any:
    return jnp.sum(model(x))


def pure(transform: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """The transform of plain JAX, of a function of the model's State."""

    def run(model: Any, x: Any) -> Any:
        graphdef, state = nnx.split(model)
        return transform(lambda state, x: nnx.merge(graphdef, state)(x).sum())(state, x)

    return run


def over_rows(model: Any, x: Any) -> Any:
    return nnx.scan(
        lambda m, c, x: (c, m(x)), in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0)
    )(model, 0.0, x)[1]


def chosen(model: Any, x: Any) -> Any:
    return nnx.cond(x.sum() < 9, call, lambda m, x: x, model, x)


def in_while(model: Any, x: Any) -> Any:
    return nnx.while_loop(lambda c: c[2] < 1, lambda c: (c[0], c[0](c[1]), c[2] + 1), (model, x, 0))


@nnx.custom_vjp
def own_rule(model: Any, x: Any) -> Any:
    return model(x)


own_rule.defvjp(lambda m, x: (m(x), None), lambda _, g: (g[0][0], g[1]))

TRANSFORMS: dict[str, Callable[[Any, Any], Any]] = {
    "eager": call,
    "nnx.jit": nnx.jit(call),
    "jax.jit": pure(jax.jit),
    "nnx.remat": nnx.remat(call),
    "jax.checkpoint of jit": pure(lambda f: jax.checkpoint(jax.jit(f))),
    "scan": over_rows,
    "jit of scan of remat": nnx.jit(lambda m, x: over_rows(m, x)),
    "cond": chosen,
    "while_loop": in_while,
    "fori_loop": lambda m, x: nnx.fori_loop(0, 2, lambda i, c: (c[0], c[0](c[1])), (m, x)),
    "vmap": nnx.vmap(call, in_axes=(None, 0)),
    "custom_vjp": own_rule,
    "shard_map": nnx.shard_map(
        call, mesh=jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(P(), P("d")), out_specs=P("d"),
    ),
}  # fmt: skip
GRADIENTS: dict[str, Callable[[Any, Any], Any]] = {
    "nnx.grad": nnx.grad(total),
    "jit of value_and_grad": nnx.jit(nnx.value_and_grad(total)),
    "jax.grad": pure(jax.grad),
    "grad of remat": nnx.grad(nnx.remat(total)),
    "grad of jit": nnx.grad(nnx.jit(total)),
    "grad of scan": nnx.grad(lambda m, x: over_rows(m, x).sum()),
    "grad of cond": nnx.grad(lambda m, x: chosen(m, x).sum()),
    "vjp": lambda m, x: nnx.vjp(call, m, x)[1](jnp.ones_like(x)),
    "jit of grad of remat of scan": nnx.jit(
        nnx.grad(nnx.remat(lambda m, x: over_rows(m, x).sum()))
    ),
}


def line_of(fault: type[Fault]) -> range:
    lines, first = inspect.getsourcelines(fault.plant)
    return range(first, first + len(lines))


def check(report: nnx.NonfiniteReport, fault: type[Fault], known: Known, name: str) -> None:
    assert report and report.kind == known.kind, (report, name)
    assert (report.operation, report.method) == (known.operation, f"{fault.__name__}.plant")
    assert report.path.endswith("bad"), report
    file, _, line = report.source.rpartition(":")
    assert file == __file__ and int(line) in line_of(fault)
    assert all(not (r.nan or r.inf) for r in report.inputs) or fault is Masked
    assert any(r.nan if report.kind == "nan" else r.inf for r in report.outputs)
    if known.becomes:
        assert report.becomes is not None and report.becomes.operation == known.becomes
    assert all(len(text) <= 80 for text in repr(report).splitlines()), report


@pytest.mark.parametrize("fault", FORWARD, ids=lambda f: f.__name__)
def test_faults_of_every_kind_in_every_transform(fault: type[Fault]) -> None:
    for name, run in TRANSFORMS.items():
        model = Model(fault)
        before = jax.tree.leaves(nnx.state(model))
        for again in range(1 + (name == "nnx.jit")):  # the second time it has a program
            report = nnx.find_nonfinite(run, model, X)
            check(report, fault, FORWARD[fault], f"{name}, {again}")
        assert report.phase == "forward"
        assert all(map(np.array_equal, jax.tree.leaves(nnx.state(model)), before))


@pytest.mark.parametrize("fault", BACKWARD, ids=lambda f: f.__name__)
def test_faults_of_gradients(fault: type[Fault]) -> None:
    for run in TRANSFORMS.values():
        if run is not TRANSFORMS["shard_map"]:
            assert not nnx.find_nonfinite(run, Model(fault), X)
    for name, run in GRADIENTS.items():
        report = nnx.find_nonfinite(run, Model(fault), X)
        check(report, fault, BACKWARD[fault], name)
        assert report.becomes is not None and report.becomes.phase == "backward"
        assert any("kernel" in place or "result" in place for place in report.results)


class Block(nnx.Module):
    """One of several; a deep one overflows in half precision."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.full(2, 40.0, jnp.float16))

    def __call__(self, x: Any) -> Any:
        return x * self.scale


def test_the_block_of_a_stack() -> None:
    for options in ({}, {"remat": True}):
        model = nnx.Dict(blocks=nnx.Stack(Block, 4, rngs=nnx.Rngs(0), **options))
        x = jnp.ones((1, 2), jnp.float16)
        report = nnx.find_nonfinite(lambda model, x: model.blocks(x), model, x)
        assert (report.kind, report.operation, report.method) == ("inf", "mul", "Block.__call__")
        assert report.path == "model.blocks.blocks[*]" and report.loops == (("scan", 3),)
        assert (report.inputs[0].high, report.outputs[0].inf) == (64000.0, 2)
        assert "in step 3 of a scan" in repr(report)


def train_step(model: Any, optimizer: Any, x: Any) -> Any:
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
    optimizer.update(model, grads)
    return loss


@pytest.mark.parametrize(
    ("rate", "operation"), [(1e38, "mul"), (np.inf, None), (np.nan, None)], ids=str
)
def test_a_bad_learning_rate_at_step_7(rate: float, operation: str | None) -> None:
    """The step is named at which the update makes it, not the next, whose loss shows it."""

    def schedule(count: Any) -> Any:
        return jnp.where(count == 7, rate, 0.1)

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(schedule), wrt=nnx.Param)
    step, x = nnx.jit(train_step), jnp.ones((2, 2))
    model.bias[...] = jnp.full(1, 99.0)  # far from the aim
    done = 0
    while not (report := nnx.find_nonfinite(step, model, optimizer, x)):
        done += 1
        model.bias[...] = jnp.full(1, 99.0)
        assert jnp.isfinite(step(model, optimizer, x))
    assert done == 7 and {"model.kernel", "model.bias"} <= set(report.results)
    assert (report.path, report.method) == ("optimizer", "Optimizer.update")
    assert operation in (None, report.operation) and not any("result" in p for p in report.results)


def test_inputs_that_are_not_finite_are_named_by_path() -> None:
    model, optimizer = Model(Root), None
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    batch = {"x": X + 1, "name": "a batch"}

    def f(model: Any, optimizer: Any, batch: Any) -> Any:
        optimizer.update(model, nnx.grad(total)(model, batch["x"]))

    assert not nnx.find_nonfinite(f, model, optimizer, {"x": X + 1})
    assert not nnx.find_nonfinite(f, model, optimizer, batch)
    report = nnx.find_nonfinite(f, model, optimizer, {"x": (X + 1).at[1, 0].set(jnp.nan)})
    assert (report.path, report.operation) == ("batch['x']", "")
    assert report.inputs[0].nan == 1 and "model.first.kernel" in report.results
    kernel = model.first.kernel[...]
    model.first.kernel[...] = kernel.at[0, 1].set(jnp.nan)
    report = nnx.find_nonfinite(f, model, optimizer, {"x": X + 1})
    assert (
        report.path == "model.first.kernel"
        and "NaN in an input\n  of model.first.kernel\n" in repr(report)
    )
    report = nnx.find_nonfinite(lambda: total(model, X))
    assert report.inputs[0].nan == 1 and report.path == "Model.first.kernel"
    model.first.kernel[...] = kernel.at[0, 1].set(jnp.inf)
    report = nnx.find_nonfinite(model, X)
    assert (report.kind, report.path) == ("inf", "Model.first.kernel".replace("Model", "self"))
    assert report.becomes and report.becomes.operation == "dot_general"
    assert report.becomes.path.endswith("first")


MASK = jnp.array([[True, False], [True, True]])
MEANT: dict[str, Callable[[Any], Any]] = {
    "a mask by where": lambda x: jax.nn.softmax(jnp.where(MASK, x, -jnp.inf)),
    "a mask that is added": lambda x: jax.nn.softmax(x + jnp.where(MASK, 0.0, -jnp.inf)),
    "the logarithm of a mask": lambda x: jax.nn.softmax(x + jnp.log(MASK.astype(float))),
    "an infinity that is returned": lambda x: jnp.where(MASK, x, jnp.inf),
    "a running maximum": lambda x: jax.lax.fori_loop(
        0, 2, lambda i, c: jnp.maximum(c, x[i]), jnp.full(2, -jnp.inf)
    ),
    "a maximum of a part": lambda x: jnp.max(x, where=MASK, initial=-jnp.inf),
    "logsumexp": lambda x: jax.nn.logsumexp(jnp.where(MASK, x, -jnp.inf), axis=-1),
    "attention": lambda x: nnx.dot_product_attention(
        *[x[None, :, None, :]] * 3, mask=jnp.tril(jnp.ones((1, 1, 2, 2)))
    ),
    "a sigmoid that overflows": lambda x: 1 / (1 + jnp.exp(1000 + x)),
    "random numbers": lambda x: jax.random.normal(jax.random.key(0), (99,)).sum() + x,
    "integers": lambda x: jnp.argsort(x) + 2**30,
    "nothing": lambda x: None,
    "an empty array": lambda x: x[:0].sum(),
}


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_is_no_alarm(name: str) -> None:
    report = nnx.find_nonfinite(MEANT[name], X)
    assert not report and repr(report).startswith("All is finite")
    assert report.kind == report.path == report.operation == ""


def test_a_nan_is_told_of_wherever_it_is() -> None:
    report = nnx.find_nonfinite(lambda x: jnp.where(x > 0, jnp.log(x - 0.5), 0.0), X)
    assert report.operation == "log" and not report.results
    assert "does not reach the results" in repr(report)
    hidden = nnx.find_nonfinite(lambda x: jax.nn.softmax(jnp.where(x > 9, x, -jnp.inf)).sum(), X)
    assert (hidden.kind, hidden.operation) == ("nan", "sub") and hidden.inputs[0].inf
    both = nnx.find_nonfinite(lambda x: (jnp.where(x > 0, jnp.log(x - 3), 0.0), x / x), X)
    assert both.operation in ("log", "div") and "result[1]" in both.results


def test_everything_that_can_be_called() -> None:
    model = Model(Log)
    partial: Any = functools.partial(model.bad.plant)
    for f, args in ((model, (X,)), (model.bad, (X,)), (model.bad.plant, (X,)), (partial, (X,)),
                    (nnx.jit(model.bad), (X,)), (lambda: model(X), ())):  # fmt: skip
        report = nnx.find_nonfinite(f, *args)
        assert (report.operation, report.method) == ("log", "Log.plant")
    scaled = nnx.jit(lambda x, *, power, name: x**power / 0, static_argnames=("power", "name"))
    assert nnx.find_nonfinite(scaled, X + 1, power=2, name="a").operation == "div"
    with jax.debug_nans(True):
        assert nnx.find_nonfinite(model, X).operation == "log"
    assert nnx.find_nonfinite(lambda x: jnp.log(x), -1.0).kind == "nan"
    assert "NaN out of `log`, forward\n  of " in report._repr_html_()
    assert nnx.find_nonfinite(lambda k: jax.random.normal(k, (3,)) / 0, jax.random.key(0))


# -- what a function reads from its surroundings --------------------------------------------------

SHARED = {"scales": [jnp.array([1.0, jnp.nan])]}
LOOSE = nnx.Param(jnp.array(jnp.nan))


def test_constants_have_the_names_of_the_surroundings():
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    model.layers[0].kernel[0, 0] = jnp.nan
    local, x = jnp.array([jnp.nan]), jnp.ones(2)

    def apply(x):
        return model(x)

    kernel = "Sequential.layers[0].kernel"
    for function, path in (
        (apply, kernel),
        (nnx.jit(apply), kernel),
        (nnx.jit(lambda x: nnx.jit(apply)(x)), kernel),
        (nnx.grad(lambda x: apply(x).sum()), kernel),
        (lambda x: nnx.vmap(lambda x: model(x))(x[None]), kernel),
        (lambda x: x * local, "local"),
        (jax.jit(lambda x: x * local), "local"),
        (lambda x: x * SHARED["scales"][0], "SHARED['scales'][0]"),
        (lambda x: x * LOOSE, "LOOSE"),
    ):
        report = nnx.find_nonfinite(function, x)
        assert (report.kind, report.operation, report.path) == ("nan", "", path)
    report = nnx.find_nonfinite(lambda x: x * jnp.asarray([jnp.nan] * 2), x)
    assert report.kind == "nan" and ("constant" in report.path or report.operation)


MIXED = {1: 2, "a": 3}  # keys that cannot be sorted


def test_surroundings_that_are_no_pytree_are_passed_over():
    local = jnp.asarray([jnp.nan, 1.0])
    report = nnx.find_nonfinite(lambda x: x * MIXED[1] * local, jnp.ones(2))
    assert (report.kind, report.path) == ("nan", "local")
