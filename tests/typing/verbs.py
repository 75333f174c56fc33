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
