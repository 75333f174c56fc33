"""What a function takes, asked of its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def has_keyword_arg(func: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of its own that can be given by this name.

    Example:
        >>> from refax import nnx
        >>> [nnx.helpers.has_keyword_arg(f, "x") for f in (lambda x: x, lambda **x: x)]
        [True, False]
    """
    parameter = inspect.signature(func).parameters.get(name)
    return parameter is not None and parameter.kind in _BY_NAME
