"""Metadata: the immutable, hashable mapping that a Variable keeps beside its value.

It is immutable so that it can stand in a GraphDef and in a JAX treedef as it is, and so that
"nothing changed" is one `is`. Writing `variable.name = x` replaces the whole mapping.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic

from jax.core import Tracer

from .arguments import Hooks, checked
from .modes import without_modes
from .statics import frozen
from .type_names import A

GET_HOOK, SET_HOOK = "on_get_value", "on_set_value"
SHARED = "captured"  # metadata of a Variable that `nnx.capture` records in: it has no copies
# One annotation under three names: Flax 0.11's, and the two of 0.12. It is kept under the one that
# it was given by, and found by all.
_ANNOTATION = ("sharding", "sharding_names", "out_sharding")


def _stored(items: Mapping[str, Any], name: Any) -> Any:
    """The name under which an entry is, or would be, kept."""
    if name in _ANNOTATION and name not in items:
        return next((known for known in _ANNOTATION if known in items), name)
    return name


class Metadata(Mapping[str, Any]):
    def __init__(self, items: Mapping[str, Any]):
        self.items_: dict[str, Any] = {}
        for name, value in without_modes(items).items():
            self.items_[_stored(self.items_, name)] = value
        for name, value in self.items_.items():
            if any(isinstance(x, Tracer) for x in _parts(value)):
                raise TypeError(
                    f"The metadata {name!r} of a Variable is a traced array. Metadata is static: "
                    "it stays when the trace is gone.\nCure: keep arrays in a Variable's value."
                )

    @functools.cached_property
    def keys_(self) -> dict[str, Any]:
        """The entries by type and content: `1` and `True` are two, equal functions are one."""
        return {k: frozen(v) for k, v in self.items_.items()}

    @functools.cached_property
    def _hash(self) -> int:
        try:
            return hash(frozenset(self.keys_.items()))
        except TypeError:
            return hash(frozenset(self.items_))

    def __getitem__(self, name: str) -> Any:
        return self.items_[_stored(self.items_, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def __contains__(self, name: object) -> bool:
        return _stored(self.items_, name) in self.items_

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Metadata) and self.keys_ == other.keys_

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Metadata({self.items_!r})"

    def __reduce__(self) -> Any:
        return (Metadata, (self.items_,))

    def with_items(self, **items: Any) -> Metadata:
        return Metadata({**self.items_, **{_stored(self.items_, k): v for k, v in items.items()}})

    def without(self, name: str) -> Metadata:
        name = _stored(self.items_, name)
        return Metadata({k: v for k, v in self.items_.items() if k != name})


def _parts(value: Any) -> Any:
    cls = type(value)
    return value if cls is tuple or cls is list else value.values() if cls is dict else (value,)


EMPTY = Metadata({})
_NONE: Mapping[str, Any] = {}


class VariableMetadata(Generic[A]):
    """A value on its way into a Variable, with metadata: what `with_metadata` makers return."""

    __slots__ = ("metadata", "raw_value")

    @checked
    def __init__(self, raw_value: A, metadata: Mapping[str, Any] = _NONE, **hooks: Any):
        self.raw_value: A = raw_value
        self.metadata: Mapping[str, Any] = {**metadata, **_chained(hooks)} if hooks else metadata


@checked
def with_metadata(
    initializer: Callable[..., A],
    on_set_value: Hooks = (),
    on_get_value: Hooks = (),
    on_create_value: Hooks = (),
    on_add_axis: Hooks = (),
    on_remove_axis: Hooks = (),
    **metadata: Any,
) -> Callable[..., VariableMetadata[A]]:
    """Wrap an initializer so that the Variable made from its value gets this metadata.

    Args:
        initializer: makes the value.
        on_set_value, on_get_value, on_create_value, on_add_axis, on_remove_axis: a hook, or several
            that are called one after the other; also known as `set_value_hooks`, ….
        **metadata: as of a Variable.

    Example:
        >>> from refax import nnx
        >>> init = nnx.with_metadata(nnx.initializers.lecun_normal(), sharding=("in", "out"))
        >>> layer = nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0))
        >>> layer.kernel.sharding
        ('in', 'out')
    """
    hooks = {
        SET_HOOK: on_set_value,
        GET_HOOK: on_get_value,
        "on_create_value": on_create_value,
        "on_add_axis": on_add_axis,
        "on_remove_axis": on_remove_axis,
    }
    for name in hooks:
        older = f"{name.removeprefix('on_')}_hooks"
        hooks[name] = metadata.pop(older, hooks[name])
    metadata |= _chained(hooks)

    def wrapped(*args: Any, **kwargs: Any) -> VariableMetadata[A]:
        return VariableMetadata(initializer(*args, **kwargs), metadata)

    wrapped.__wrapped__ = initializer  # type: ignore[attr-defined]
    return wrapped


def _chained(hooks: Mapping[str, Any]) -> dict[str, Callable]:
    """One hook for each name that has any."""
    chained: dict[str, Callable] = {}
    for name, given in hooks.items():
        given = (given,) if callable(given) else tuple(given)
        if len(given) > 1:
            chained[name] = functools.partial(_in_turn, given, name.endswith("_value"))
        elif given:
            chained[name] = given[0]
    return chained


def _in_turn(hooks: tuple[Callable, ...], passes_value: bool, variable: Any, *args: Any) -> Any:
    """Call each; a hook of values gets what the one before returned."""
    for hook in hooks:
        result = hook(variable, *args)
        args = (result,) if passes_value else args
    return args[0] if passes_value else None
