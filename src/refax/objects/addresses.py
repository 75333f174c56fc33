"""What `refax.nnx` loads when it is asked for: its addresses, and what looks at or stores a model.

These eighty modules would be a quarter of what `from refax import nnx` takes. Checkers see them in
the face itself.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

from .errors import suggest
from .torch_names import of_public

_FACE = "refax.nnx"
_BELOW = {"wrappers": "bridge.wrappers", "initializers": "nn.initializers"}
_LATER = {  # modules of refax that a training step does without, and the public names in them
    "inspect.capture": "capture",
    "inspect.display": "display",
    "inspect.hooks": "add_forward_hook add_forward_pre_hook forward_hooks HookHandle",
    "inspect.nonfinite": "find_nonfinite NonfiniteReport",
    "inspect.profile": "ProfileRow profile_table ProfileTable",
    "inspect.tabulate": "tabulate",
    "weights.checkpoints": "Checkpoints",
    "weights.file_errors": "WeightsFileError",
    "weights.files": "inspect_file load save",
    "weights.export": "export",
    "weights.state_dict": "load_state_dict state_dict",
    "weights.torch_weights": "from_torch to_torch",
}
_MODULE_OF = {name: module for module, names in _LATER.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "__all__":  # for `from refax.nnx import *`
        return [public for public in __dir__() if not public.startswith("_")]
    if name in _MODULE_OF:
        found = getattr(importlib.import_module(f"refax.{_MODULE_OF[name]}"), name)
        setattr(sys.modules[_FACE], name, found)
        return found
    address = f"{_FACE}.{_BELOW.get(name, name)}"
    try:
        return importlib.import_module(address)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{address}.".startswith(f"{error.name}."):
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
    return sorted({*vars(face), *_BELOW, *_MODULE_OF, *below} - {"TYPE_CHECKING"})
