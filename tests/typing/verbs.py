"""What checkers know of verbs: the object's type goes through a GraphDef and back.

Read by pyright and mypy (`make types`), never run. A line with `type: ignore` must be an error.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: warn-unused-ignores

from typing import Any, assert_type

import jax

from refax import nnx


def split_and_merge(model: nnx.Linear) -> None:
    graphdef, state = nnx.split(model)
    assert_type(graphdef, nnx.GraphDef[nnx.Linear])
    assert_type(state, nnx.State)
    assert_type(nnx.split(model, ...), tuple[nnx.GraphDef[nnx.Linear], nnx.State])
    assert_type(
        nnx.split(model, nnx.Param, ...), tuple[nnx.GraphDef[nnx.Linear], nnx.State, nnx.State]
    )
    _, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ..., graph=True)
    assert_type(rest, nnx.State)
    _, a, b, c, d = nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState, ..., copy=False)
    assert_type(d, nnx.State)
    _, a, b, c, d, e = nnx.split(model, "a", "b", "c", "d", ...)
    graphdef, *states = nnx.split(model)
    assert_type(nnx.merge(graphdef, state), nnx.Linear)
    assert_type(nnx.merge(graphdef, params, rest, copy=False), nnx.Linear)
    assert_type(nnx.merge(graphdef, *states), nnx.Linear)
    assert_type(nnx.graphdef(model), nnx.GraphDef[nnx.Linear])
    _, one, another = nnx.split(model)  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    nnx.split(model, coppy=False)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.split()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.merge(model, state)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    nnx.merge(graphdef, state).typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def of_containers(encoder: nnx.Linear, decoder: nnx.Dropout) -> None:
    graphdef, state = nnx.split((encoder, decoder))
    assert_type(graphdef, nnx.GraphDef[tuple[nnx.Linear, nnx.Dropout]])
    one, other = nnx.merge(graphdef, state)
    assert_type(one, nnx.Linear)
    assert_type(other, nnx.Dropout)


def states(model: nnx.Linear) -> None:
    assert_type(nnx.state(model), nnx.State)
    assert_type(nnx.state(model, nnx.Param), nnx.State)
    assert_type(nnx.variables(model, nnx.Param), nnx.State)
    assert_type(nnx.pop(model, nnx.Intermediate), nnx.State)
    params, rest = nnx.state(model, nnx.Param, ...)
    assert_type(params, nnx.State)
    losses, metrics = nnx.pop(model, "losses", "metrics")
    assert_type(losses, nnx.State)
    assert_type(params.kernel, Any)
    assert_type(params.filter(nnx.Param), nnx.State)
    a, b = params.split(nnx.Param, ...)
    assert_type(a, nnx.State)
    nnx.update(model, params)
    nnx.update(model, params, rest)


def copies(model: nnx.Linear, pair: tuple[nnx.Linear, nnx.Dropout]) -> None:
    assert_type(nnx.clone(model), nnx.Linear)
    assert_type(nnx.clone(pair), tuple[nnx.Linear, nnx.Dropout])
    assert_type(nnx.view(model, deterministic=True), nnx.Linear)
    assert_type(nnx.with_attributes(model, rate=0.1), nnx.Linear)
    assert_type(nnx.eval_shape(lambda: nnx.Linear(1, 2, rngs=nnx.Rngs(0))), nnx.Linear)
    nnx.clone(model).typo  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    nnx.view(model, nnx.Dropout, oly=...)
    nnx.clone()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def pure_functions(model: nnx.Linear, x: jax.Array) -> None:
    graphdef, state = nnx.split(model)

    @jax.jit
    def forward(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(x)

    y, (graphdef, state) = nnx.call((graphdef, state))(forward(state, x))


class Pair(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.one = nnx.Linear(2, 2, rngs=rngs)
        self.other = nnx.Dropout(0.5, rngs=rngs)


def as_methods(model: Pair) -> None:
    """Of pyright; mypy would take a field of such a name for a mistake, so for it they are Any."""
    graphdef, state = model.split()
    assert_type(graphdef, nnx.GraphDef[Pair])  # type: ignore[assert-type]
    assert_type(model.split(nnx.Param, ...)[2], nnx.State)  # type: ignore[assert-type]
    assert_type(model.merge(graphdef, state), Pair)  # type: ignore[assert-type]
    assert_type(model.state(nnx.Param), nnx.State)  # type: ignore[assert-type]
    assert_type(model.pop(nnx.Intermediate), nnx.State)  # type: ignore[assert-type]
    assert_type(model.clone(), Pair)  # type: ignore[assert-type]
    assert_type(model.update(state), None)  # type: ignore[assert-type]
    model.split(coppy=False)  # pyright: ignore[reportCallIssue]
    model.clone().typo  # pyright: ignore[reportAttributeAccessIssue]
    model.clone(3)  # pyright: ignore[reportArgumentType]


def other_methods(model: Pair, x: jax.Array) -> None:
    assert_type(model.train(), None)
    assert_type(model.eval(dropout=True), None)
    assert_type(model.set_attributes(nnx.Dropout, rate=0.1), None)
    assert_type(model.sow(nnx.Intermediate, "x", x), bool)
    assert_type(model.perturb("x", x), jax.Array)
    for path, module in model.iter_modules():
        assert_type(path, tuple[Any, ...])
        assert_type(module, nnx.Module)
    for _, child in model.iter_children():
        assert_type(child, nnx.Module)
    for name, below in model.named_modules():
        assert_type(name, str)
        assert_type(below, nnx.Module)
    for _, param in model.named_parameters():
        assert_type(param, nnx.Param[Any])
    for _, variable in model.named_variables(nnx.BatchStat):
        assert_type(variable, nnx.Variable[Any])
    for _, value in nnx.iter_graph(model):
        assert_type(value, Any)
    for _, module in nnx.iter_modules(model):
        assert_type(module, nnx.Module)
    for _, param in nnx.named_parameters(model):
        assert_type(param, nnx.Param[Any])
    model.trian()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    model.sow(nnx.Intermediate, x)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    model.named_parameters(nnx.Param)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    model.iter_modules(3)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]


def maps(model: Pair, state: nnx.State) -> None:
    assert_type(nnx.map(lambda path, leaf: leaf, model), Pair)
    assert_type(nnx.map(lambda path, leaf: leaf, state), nnx.State)
    assert_type(nnx.as_pure(model), Pair)
    assert_type(nnx.map_state(lambda path, leaf: leaf, state), nnx.State)
    assert_type(nnx.filter_state(state, nnx.Param), nnx.State)
    assert_type(nnx.to_pure_dict(state), dict[Any, Any])
    assert_type(nnx.get_abstract_model(lambda: model), tuple[nnx.GraphDef[Pair], nnx.State])
    nnx.map(model, lambda path, leaf: leaf)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nnx.map_state(state, lambda path, leaf: leaf)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
