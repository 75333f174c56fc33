"""Reads of Variables that a traced function did not get as arguments: they become constants.

A later write to such a Variable is not seen by the compiled program, which in a library of
references is a trap. So `nnx.jit` collects these reads while it traces, and compares at each call.
"""

from __future__ import annotations

import weakref
from typing import Any

from jax.core import Tracer

from .stack import Stack

Reads = dict[int, tuple[weakref.ref, Any]]  # by id: the Variable, and the value that was read


COLLECTING = Stack()  # of Reads


def outer_read(variable: Any) -> None:
    """A Variable is read whose reads are watched (or that has hooks)."""
    reads = COLLECTING.items
    if reads and not isinstance(variable._value, Tracer):
        reads[-1].setdefault(id(variable), (weakref.ref(variable), variable._value))


def written_since(reads: Reads) -> Any | None:
    """A Variable that has another value than when it was read, if there is one."""
    for reference, value in reads.values():
        variable = reference()
        if variable is not None and variable._value is not value:
            return variable
    return None
