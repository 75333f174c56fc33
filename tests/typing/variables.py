"""What checkers know of Variables: the type of the value, and what an array can do.

Read by pyright and mypy (`make types`), never run. A line with `type: ignore` must be an error.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true, reportUnusedExpression=false
# mypy: warn-unused-ignores

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np

from refax import nnx


def made_of(x: jax.Array, param: nnx.Param[jax.Array]) -> None:
    assert_type(nnx.Param(x), nnx.Param[jax.Array])
    assert_type(nnx.Param(x, sharding=("in", "out")), nnx.Param[jax.Array])
    assert_type(nnx.Variable(3), nnx.Variable[int])
    assert_type(nnx.Variable({"a": x}), nnx.Variable[dict[str, jax.Array]])
    assert_type(nnx.Param(param), nnx.Param[jax.Array])
    assert_type(nnx.BatchStat(param), nnx.BatchStat[jax.Array])
    assert_type(param.copy(), nnx.Param[jax.Array])
    assert_type(param.replace(2 * x), nnx.Param[jax.Array])
    nnx.Param()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    nnx.Param(x, "in")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def values(param: nnx.Param[jax.Array], table: nnx.Variable[dict[str, int]]) -> None:
    assert_type(param.value, jax.Array)
    assert_type(param[...], jax.Array)
    assert_type(param[0], jax.Array)
    assert_type(param[:, None], jax.Array)
    assert_type(param.get_value(), jax.Array)
    assert_type(table.value, dict[str, int])
    assert_type(table[...], dict[str, int])
    param.value = jnp.ones(2)
    param.value = 2 * param
    param[...] = 1.0
    param[0] = param[1]
    param.value = "a"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    param.tag = "encoder"
    assert_type(param.collection, Any)  # metadata


def operators(param: nnx.Param[jax.Array], other: nnx.Variable[jax.Array], x: jax.Array) -> None:
    assert_type(param + 1, jax.Array)
    assert_type(2.0 * param, jax.Array)
    assert_type(param @ x, jax.Array)
    assert_type(x @ param, jax.Array)
    assert_type(param / other, jax.Array)
    assert_type(param**2, jax.Array)
    assert_type(-param, jax.Array)
    assert_type(abs(param), jax.Array)
    assert_type(param < 1, jax.Array)
    assert_type(x >= param, jax.Array)
    assert_type(param == other, jax.Array)
    assert_type(param & other, jax.Array)
    assert_type(divmod(param, 2), tuple[jax.Array, jax.Array])
    assert_type(float(param), float)
    assert_type(len(param), int)
    assert_type(bool(param), bool)
    assert_type({param: 1}, dict[nnx.Param[jax.Array], int])
    param + "a"  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    param @ [x]  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]


def in_place(param: nnx.Param[jax.Array], count: nnx.Variable[int], x: jax.Array) -> None:
    param += x
    param -= 1
    param *= param
    param /= 2
    param **= 2
    assert_type(param, nnx.Param[jax.Array])
    count += 1
    assert_type(count, nnx.Variable[int])


def arrays(param: nnx.Param[jax.Array], x: jax.Array) -> None:
    assert_type(param.shape, tuple[int, ...])
    assert_type(param.ndim, int)
    assert_type(param.dtype, np.dtype)
    assert_type(param.T, jax.Array)
    assert_type(param.sum(axis=0), jax.Array)
    assert_type(param.reshape(-1), jax.Array)
    assert_type(param.astype(jnp.bfloat16), jax.Array)
    assert_type(param.at[0].set(1.0), jax.Array)
    assert_type(jnp.sin(param), jax.Array)
    assert_type(jnp.dot(param, x), jax.Array)
    assert_type(jax.nn.relu(param), jax.Array)
    assert_type(takes_what_is_like_an_array(param), jax.Array)
    assert_type(takes_an_array(param), jax.Array)
    param.sum(axs=0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def takes_what_is_like_an_array(x: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(x)


def takes_an_array(x: jax.Array) -> jax.Array:
    return x
