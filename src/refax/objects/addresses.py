"""The addresses below `refax.nnx` as attributes of it, loaded when they are asked for.

Fifty small modules would be a good part of what `from refax import nnx` takes.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType

from .errors import suggest
from .torch_names import of_public

_FACE = "refax.nnx"
_BELOW = {"wrappers": "bridge.wrappers", "initializers": "nn.initializers"}


def __getattr__(name: str) -> ModuleType:
    address = f"{_FACE}.{_BELOW.get(name, name)}"
    try:
        return importlib.import_module(address)
    except ModuleNotFoundError as error:
        if error.name != address:
            raise
        cure = of_public(name)
        near = ", which is PyTorch's." if cure else f".{suggest(name, __dir__())}"
        raise AttributeError(
            f"module {_FACE!r} has no attribute {name!r}{near}\n"
            f"Cure: {cure or 'take a name that dir(nnx) lists.'}"
        ) from None


def __dir__() -> list[str]:
    face = sys.modules[_FACE]
    below = {m.name for m in pkgutil.iter_modules(face.__path__)}
    return sorted({*vars(face), *_BELOW, *below} - {"TYPE_CHECKING"})
