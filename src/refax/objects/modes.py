"""Mode switches: the keywords by which a program of NNX chooses among its several semantics.

refax has one semantics. So a switch is *accepted*, and nothing else happens, where that one gives
what the switch stands for; otherwise there is one error that says so. A switch is a keyword of
`DEFAULTS` with the value True, False or None (= the default). It never reaches the function that a
transform takes, and is never a piece of metadata, an attribute or a stream of random keys; such a
keyword with any other value is what it would be without this page.

`graph=`          how objects are seen: True, as a graph; False, as trees, in which nothing is
                  shared. Shared objects are right in both.
`graph_updates=`  whether changes of structure leave a transform. They do.
`hijax=`, `ref=`  whether `jax.jit` and its like write a Variable back. Only those of nnx do.
`mutable=`        whether a Variable can be written. It can.
`eager_sharding=` whether an annotated Variable is placed when it is made, where a mesh is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypedDict

import jax

from .arguments import checked as checked
from .arguments import unfit

Switch: TypeAlias = bool | None


class Modes(TypedDict, total=False):
    """The switches of a transform."""

    graph: Switch
    graph_updates: Switch


_FOR_JAX = ("hijax", "is_hijax", "ref", "use_ref", "has_ref")
_MUTABLE = ("mutable", "is_mutable")
# What each switch is by itself: the value that a Variable shows of it, too.
OF_VARIABLES = dict.fromkeys(_FOR_JAX, False) | dict.fromkeys((*_MUTABLE, "eager_sharding"), True)
DEFAULTS: dict[str, bool] = {"graph": True, "graph_updates": True, **OF_VARIABLES}
_WRITTEN_BACK = (
    "asks for Variables that `jax.jit` and the other transforms of JAX write back. Those of refax "
    "are written back by the transforms of nnx, and are plain values to those of JAX.\n"
    "Cure: leave it out, and use nnx.jit (nnx.grad, nnx.scan, …) where a function writes Variables."
)
_IMMUTABLE = (
    "asks for Variables that cannot be written, and those of refax always can.\n"
    "Cure: leave it out; for plain values, nnx.pure(nnx.state(model))."
)
# Of these, refax's semantics gives the default only. All others are accepted.
_REFUSED = dict.fromkeys(_FOR_JAX, _WRITTEN_BACK) | dict.fromkeys(_MUTABLE, _IMMUTABLE)
_WITH_SCOPES = {**DEFAULTS, "scopes": True}  # which is no keyword of anything
# Contexts of JAX, of each thread: a function that was traced under another value is traced again.
_SETTINGS = {name: jax.make_user_context(value) for name, value in _WITH_SCOPES.items()}


def check_modes(**switches: Switch) -> None:
    """Raise for a switch that is refused."""
    for name, value in switches.items():
        if name in _REFUSED and value is not None and value != DEFAULTS[name]:
            raise ValueError(f"{name}={value} {_REFUSED[name]}")


def without_modes(keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keywords that are no switches, once the switches among them were checked."""
    if DEFAULTS.keys().isdisjoint(keywords):
        return keywords
    switches = {
        n: v for n, v in keywords.items() if n in DEFAULTS and (v is None or isinstance(v, bool))
    }
    check_modes(**switches)
    return {name: value for name, value in keywords.items() if name not in switches}


class Setting(AbstractContextManager[Any]):
    """A switch that was set for all that follows; with `with`, until the end of the block."""

    def __init__(self, name: str, value: bool):
        if not isinstance(value, bool):
            raise unfit(value, "True or False", "a bool of Python.")
        check_modes(**{name: value})
        self._context = _SETTINGS[name](value)
        self._context.__enter__()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)


def set_graph_mode(value: bool, /) -> Setting:
    """Set `graph=` for all that follows, or in a `with` block; both values are accepted.

    Example:
        >>> from refax import nnx
        >>> with nnx.set_graph_mode(False):
        ...     model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    """
    return Setting("graph", value)


def set_graph_updates(value: bool, /) -> Setting:
    """Set `graph_updates=` for all that follows, or in a `with` block; both are accepted."""
    return Setting("graph_updates", value)


def use_eager_sharding(value: bool, /) -> Setting:
    """Set `eager_sharding=` for all that follows, or in a `with` block.

    Example:
        >>> from refax import nnx
        >>> with nnx.use_eager_sharding(False):
        ...     inside = nnx.using_eager_sharding()
        >>> inside, nnx.using_eager_sharding()
        (False, True)
    """
    return Setting("eager_sharding", value)


def using_eager_sharding() -> bool:
    """Whether annotated Variables are placed when they are made, where a mesh is set."""
    return _SETTINGS["eager_sharding"].value


def use_scopes(value: bool, /) -> Setting:
    """Whether operations are named by the path of their Module, for all that follows or a block.

    They are unless this says otherwise: `model.blocks.3.attention.query/dot_general` in profiles,
    HLO dumps and messages of XLA. What was traced under the other value is traced again.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> step = nnx.jit(lambda model, x: model(x))
        >>> "model/dot_general" in step.lower(model, jnp.ones(2)).as_text(debug_info=True)
        True
        >>> with nnx.use_scopes(False):
        ...     text = step.lower(model, jnp.ones(2)).as_text(debug_info=True)
        >>> "model/dot_general" in text
        False
    """
    return Setting("scopes", value)


def using_scopes() -> bool:
    """Whether operations are named by the path of the Module that made them."""
    return _SETTINGS["scopes"].value


def use_hijax(value: bool, /) -> Setting:
    """Set `hijax=`, of which only False is accepted."""
    return Setting("hijax", value)


def using_hijax() -> bool:
    """False: no Variable is written back by `jax.jit`."""
    return _SETTINGS["hijax"].value


def use_refs(value: bool, /) -> Setting:
    """Set `ref=`, of which only False is accepted; once called `use_mutable_arrays`."""
    return Setting("ref", value)


use_mutable_arrays = use_refs


def using_refs() -> bool:
    """False: no Variable holds a `jax.Ref` by itself."""
    return _SETTINGS["ref"].value


class VarDefaults(dict[str, bool], AbstractContextManager[Any]):
    """The switches of new Variables, by name or as attributes; also a context manager."""

    hijax: property = property(lambda self: self["hijax"])
    ref: property = property(lambda self: self["ref"])

    def __exit__(self, *error: object) -> None:
        pass


@checked
def var_defaults(*, hijax: Switch = None, ref: Switch = None) -> VarDefaults:
    """The switches of new Variables; sets them too, of which only False is accepted.

    Example:
        >>> from refax import nnx
        >>> nnx.var_defaults().hijax
        False
    """
    check_modes(hijax=hijax, ref=ref)
    return VarDefaults(hijax=using_hijax(), ref=using_refs())
