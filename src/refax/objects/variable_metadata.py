"""Metadata that comes with an initial value: `with_metadata`, and what it hands to a Variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

from .type_names import A

GET_HOOK, SET_HOOK = "on_get_value", "on_set_value"


class VariableMetadata(Generic[A]):
    """A value on its way into a Variable, with metadata: what `with_metadata` makers return."""

    __slots__ = ("metadata", "raw_value")

    def __init__(self, raw_value: A, metadata: dict[str, Any]):
        self.raw_value = raw_value
        self.metadata = metadata


def with_metadata(
    initializer: Callable[..., A],
    set_value_hooks: Any = (),
    get_value_hooks: Any = (),
    create_value_hooks: Any = (),
    add_axis_hooks: Any = (),
    remove_axis_hooks: Any = (),
    **metadata: Any,
) -> Callable[..., VariableMetadata[A]]:
    """Wrap an initializer so that the Variable made from its value gets this metadata.

    Example:
        >>> from refax import nnx
        >>> init = nnx.with_metadata(nnx.initializers.lecun_normal(), sharding=("in", "out"))
        >>> layer = nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0))
        >>> layer.kernel.sharding
        ('in', 'out')
    """
    hooks = {
        SET_HOOK: set_value_hooks,
        GET_HOOK: get_value_hooks,
        "on_create_value": create_value_hooks,
        "on_add_axis": add_axis_hooks,
        "on_remove_axis": remove_axis_hooks,
    }
    for name, given in hooks.items():
        sequence = (given,) if callable(given) else tuple(given)
        if sequence:
            metadata[name] = _chain(name, sequence)

    def wrapped(*args: Any, **kwargs: Any) -> VariableMetadata[A]:
        return VariableMetadata(initializer(*args, **kwargs), metadata)

    wrapped.__wrapped__ = initializer  # type: ignore[attr-defined]
    return wrapped


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
