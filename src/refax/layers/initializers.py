"""Initializers: functions (key, shape, dtype) → array, those of `jax.nn.initializers`.

Two differences show only in the time that a large model takes to construct. Most run as one
compiled program per shape and dtype, where JAX runs several; and a maker called twice with the same
arguments gives the same function, so that it is compiled once. The numbers are the same to the bit:
`normal` and `variance_scaling` run as JAX's do, operation by operation.

    >>> from refax import nnx
    >>> import jax
    >>> nnx.initializers.normal(stddev=0.02)(jax.random.key(0), (2, 3)).shape
    (2, 3)
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.nn import initializers as jax_initializers

from ..objects.errors import describe_value
from ..objects.type_names import Initializer as Initializer

# What the programs of initializers call, which a library may have replaced.
_DRAWS = (jax.random.normal, jax.random.uniform, jax.random.truncated_normal)
_CODE_OF = operator.attrgetter("__code__")
_CODE = list(map(_CODE_OF, _DRAWS))


def _initializer(name: str, initializer: Initializer, compiles: bool = True) -> Initializer:
    # `inline`: inside a trace the operations appear as if they had been called one by one.
    compiled = jax.jit(initializer, static_argnums=(1, 2), inline=True) if compiles else initializer

    @functools.wraps(initializer)
    def initialize(key: Any, shape: Any, dtype: Any = None, *options: Any, **more: Any) -> Any:
        given = () if dtype is None else (dtype,)
        try:
            shape = (operator.index(shape),) if np.ndim(shape) == 0 else tuple(shape)
            if options or more or [*map(_CODE_OF, _DRAWS)] != _CODE:  # such as `out_sharding`
                return initializer(key, shape, *given, *options, **more)
            return compiled(key, shape, *given)
        except (TypeError, ValueError) as e:
            kind = TypeError if isinstance(e, TypeError) else ValueError
            raise kind(
                f"initializers.{name}: it makes nothing of key={describe_value(key)}, shape="
                f"{shape!r}, dtype={dtype!r}: {e}\n"
                "Cure: init(key, shape, dtype), with a random key, sizes that are not negative (an "
                "int or a tuple) and a dtype."
            ) from e

    initialize.__module__ = __name__  # where pickle finds `zeros` and `ones`
    return initialize


def _maker(make: Callable[..., Initializer], compiles: bool = True) -> Callable[..., Initializer]:
    name = make.__name__

    @functools.lru_cache(maxsize=1024, typed=True)
    def cached(*args: Any, **kwargs: Any) -> Initializer:
        return _initializer(name, make(*args, **kwargs), compiles)

    @functools.wraps(make)
    def maker(*args: Any, **kwargs: Any) -> Initializer:
        try:
            return cached(*args, **kwargs)
        except TypeError:  # an argument that cannot be hashed, or a wrong one
            return _initializer(name, make(*args, **kwargs), compiles=False)

    maker.__module__ = __name__
    return maker


constant = _maker(jax_initializers.constant)
delta_orthogonal = _maker(jax_initializers.delta_orthogonal)
glorot_normal = _maker(jax_initializers.glorot_normal)
glorot_uniform = _maker(jax_initializers.glorot_uniform)
he_normal = _maker(jax_initializers.he_normal)
he_uniform = _maker(jax_initializers.he_uniform)
kaiming_normal = _maker(jax_initializers.kaiming_normal)
kaiming_uniform = _maker(jax_initializers.kaiming_uniform)
lecun_normal = _maker(jax_initializers.lecun_normal)
lecun_uniform = _maker(jax_initializers.lecun_uniform)
orthogonal = _maker(jax_initializers.orthogonal)
truncated_normal = _maker(jax_initializers.truncated_normal)
uniform = _maker(jax_initializers.uniform)
xavier_normal = _maker(jax_initializers.xavier_normal)
xavier_uniform = _maker(jax_initializers.xavier_uniform)

# XLA would merge their constant factors, and round differently.
normal = _maker(jax_initializers.normal, compiles=False)
variance_scaling = _maker(jax_initializers.variance_scaling, compiles=False)

zeros = _initializer("zeros", jax_initializers.zeros)
ones = _initializer("ones", jax_initializers.ones)


def zeros_init() -> Initializer:
    """The initializer `zeros`."""
    return zeros


def ones_init() -> Initializer:
    """The initializer `ones`."""
    return ones
