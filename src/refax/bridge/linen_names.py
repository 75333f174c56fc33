"""The names that need Flax: it is imported when one of them is asked for, and not before."""

from __future__ import annotations

from typing import Any

from . import to_linen

_NAMES = ("ToLinen", "to_linen", "NNXMeta", "to_linen_var")


def __getattr__(name: str) -> Any:
    """`nnx.bridge` has this function too, so that its names are found the same way."""
    if name not in _NAMES:
        raise AttributeError(f"refax.nnx.bridge has no name {name!r}.\nCure: see dir(nnx.bridge).")
    try:
        to_linen.linen_classes()
        return getattr(to_linen, name)
    except ModuleNotFoundError as error:
        if error.name != "flax":
            raise
    return _needs_flax(name)


def __dir__() -> list[str]:
    return ["ToNNX", "lazy_init", *_NAMES]


def _needs_flax(name: str) -> Any:
    """What stands for a name as long as Flax is missing: the error comes where it is used."""

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(
            f"nnx.bridge.{name} makes a Linen module, and Flax is not installed.\n"
            "Cure: pip install flax; the other way round, nnx.bridge.ToNNX, needs no Flax."
        )

    return missing
