"""Programs for checkers: all that an array can do, with a Variable on either side."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

BINARY = "+ - * / // % ** @ << >> & | ^ < <= == != > >=".split()
UNARY = "- + ~ abs".split()
OTHERS = ["x", "2", "nnx.BatchStat(x)", "param"]  # an array, a number, other Variables
HEAD = """
from typing import Any, assert_type

import jax
import jax.numpy as jnp
from refax import nnx

def matrix(param: nnx.Param[jax.Array], x: jax.Array) -> None:
"""


def operators() -> str:
    """Each operator gives an array, whatever is beside the Variable, and on whichever side."""
    lines = [
        f"    assert_type({left} {operator} {right}, jax.Array)"
        for operator, other in product(BINARY, OTHERS)
        for left, right in (("param", other), (other, "param"))
        if not (left == "2" and operator in "==!=")  # which an int takes for its own, a bool
    ]
    in_place = [f"    param {operator}= x" for operator in BINARY[:13]]
    unary = [f"    assert_type({operator}(param), jax.Array)" for operator in UNARY]
    return "\n".join(
        [HEAD, *lines, *unary, *in_place, "    assert_type(param, nnx.Param[jax.Array])\n"]
    )


def attributes() -> str:
    """What an array has, a Variable has, of the same type."""
    other = {"sharding", "flat"}  # of a Variable its annotation; not declared of an array either
    names = [n for n in dir(jax.Array) if not n.startswith("_") and n not in other]
    lines = [f"    print(param.{name}, x.{name})" for name in names]
    return "\n".join([HEAD, *lines]) + "\n"


def functions() -> str:
    """What takes an array takes a Variable: every function of `jax.numpy` of one argument."""
    lines = []
    for name in dir(jnp):
        if isinstance(getattr(np, name, None), np.ufunc) and callable(getattr(jnp, name)):
            count = getattr(np, name).nin
            lines.append(f"    jnp.{name}({', '.join(['param'] * count)})")
    return "\n".join([HEAD, *lines]) + "\n"


def programs() -> dict[str, str]:
    return {f"variable_{f.__name__}": f() for f in (operators, attributes, functions)}
