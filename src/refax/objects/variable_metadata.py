"""Metadata that comes with an initial value: `with_metadata`, and what it hands to a Variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic

from .type_names import A

EMPTY: Mapping[str, Any] = {}
GET_HOOK, SET_HOOK = "on_get_value", "on_set_value"
SHARED = "captured"  # metadata of a Variable that `nnx.capture` records in: it has no copies


class VariableMetadata(Generic[A]):
    """A value on its way into a Variable, with metadata: what `with_metadata` makers return."""

    __slots__ = ("metadata", "raw_value")

    def __init__(self, raw_value: A, metadata: Mapping[str, Any] = EMPTY, **hooks: Any):
        self.raw_value = raw_value
        self.metadata = {**metadata, **_chained(hooks)} if hooks else metadata


def with_metadata(
    initializer: Callable[..., A],
    on_set_value: Any = (),
    on_get_value: Any = (),
    on_create_value: Any = (),
    on_add_axis: Any = (),
    on_remove_axis: Any = (),
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
    for older, name in zip(_OLDER_NAMES, hooks, strict=True):
        hooks[name] = metadata.pop(older, hooks[name])
    metadata |= _chained(hooks)

    def wrapped(*args: Any, **kwargs: Any) -> VariableMetadata[A]:
        return VariableMetadata(initializer(*args, **kwargs), metadata)

    wrapped.__wrapped__ = initializer  # type: ignore[attr-defined]
    return wrapped


_OLDER_NAMES = (
    "set_value_hooks", "get_value_hooks", "create_value_hooks", "add_axis_hooks",
    "remove_axis_hooks",
)  # fmt: skip


def _chained(hooks: Mapping[str, Any]) -> dict[str, Callable]:
    """One hook for each name that has any."""
    lists = {name: [given] if callable(given) else list(given) for name, given in hooks.items()}
    return {name: _chain(name, tuple(given)) for name, given in lists.items() if given}


def _chain(name: str, hooks: tuple[Callable, ...]) -> Callable:
    if len(hooks) == 1:
        return hooks[0]
    passes_value = name in (GET_HOOK, SET_HOOK, "on_create_value")

    def chained(variable: Any, *args: Any) -> Any:
        for hook in hooks:
            result = hook(variable, *args)
            args = (result,) if passes_value else args
        return args[0] if passes_value else None

    return chained
