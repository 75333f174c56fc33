"""Errors of the verbs: each says what, where (the path), and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..objects.errors import StructureError, path_string


def number_of_leaves(expected: int, given: int) -> StructureError:
    return StructureError(
        f"nnx.merge: the GraphDef has {expected} leaves, but the list has {given}.\n"
        "Cure: pass all of them, in the order of jax.tree.leaves(state); where a Variable holds "
        "several arrays, pass the State itself."
    )


def leaf_missing(path: Iterable[Any], more: int) -> StructureError:
    others = f" (and {more} more)" if more else ""
    return StructureError(
        f"nnx.merge: no value for `{path_string(path)}`{others} in the States that were given.\n"
        "Cure: pass every State that nnx.split returned, nnx.merge(graphdef, *states)."
    )


def other_shapes(leaves: list[tuple[tuple, tuple, tuple]]) -> StructureError:
    shown = ", ".join(f"`{path_string(p)}` {old} → {new}" for p, old, new in leaves[:3])
    more = f" and {len(leaves) - 3} more" if len(leaves) > 3 else ""
    return StructureError(
        f"nnx.merge: the State has other shapes than the object that was split: {shown}{more}.\n"
        "Cure: merge the State with the GraphDef that it came with; to resize arrays on purpose, "
        "merge first and assign them: `model.kernel.value = new`."
    )
