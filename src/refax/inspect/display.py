"""`display`: objects to look at, by treescope in a notebook and as text elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any


def display(*objects: Any) -> None:
    """Show objects: folding and coloured by treescope in a notebook, else their `repr` on stdout.

    Reports and tables, which are text, are shown as they are. Lines of a `repr` fit in 80 columns.

    Args:
        *objects: Modules, Variables, States, arrays, or anything else.

    Example:
        >>> from refax import nnx
        >>> nnx.display(nnx.Variable(1.0))
        Variable( # 1 (4 B)
          value=Array(1., dtype=float32)
        )
    """
    if _in_notebook() and importlib.util.find_spec("treescope") is not None:
        import treescope

        for value in objects:
            if hasattr(value, "_repr_html_"):  # a report: treescope would show it as a string
                importlib.import_module("IPython.display").display(value)
            else:
                treescope.display(value, ignore_exceptions=True, autovisualize=True)
        return
    for value in objects:
        print(repr(value))


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this; one that does has loaded IPython."""
    library = sys.modules.get("IPython")
    shell = library.get_ipython() if library is not None else None
    return shell is not None and "IPKernelApp" in shell.config
