"""Where a leaf is, in the words of the caller: the argument's name and the path in it."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.errors import path_string
from ..graph.graphdef import VARIABLE, GraphDef
from ..graph.representation import short
from .inside import Change
from .prefix import Occurrence


def place_of_leaf(graphdef: GraphDef, occurring: Sequence[Occurrence], leaf: int) -> str:
    """The first place at which an argument reaches a leaf, such as `model.blocks[0].kernel`."""
    for occurrence in occurring:
        found = [
            path
            for path, number in graphdef.all_paths(graphdef.roots[occurrence.number])
            if number == leaf
        ]
        if found:
            return path_string(min(found, key=lambda p: (len(p), str(p))), occurrence.place)
    return path_string(graphdef.paths.leaves[leaf])


def place_of_output(
    graphdef: GraphDef, occurring: Sequence[Occurrence], change: Change, group: int, index: int
) -> str:
    """The place of the value number `index` among those that leave in a group."""
    if change.graph is None:
        return place_of_leaf(graphdef, occurring, change.dirty[group][index])
    after = change.graph.graphdef
    leaf = change.graph.sources.index((group, index))
    known = [o for o in occurring if o.number < len(after.roots)]
    return place_of_leaf(after, known, leaf)


def outline(graphdef: GraphDef) -> dict[tuple, str]:
    """What stands where in a structure: {path: type or static value}, for comparing two of them."""
    lines: dict[tuple, str] = {}
    for path, record in zip(graphdef.paths.nodes, graphdef.records, strict=True):
        cls = record[1] if isinstance(record[1], type) else type(record[1])
        lines[path] = cls.__name__
    for path in graphdef.paths.leaves[sum(r[0] == VARIABLE for r in graphdef.records) :]:
        lines[path] = "an array"
    for path, key, _ in graphdef.statics():
        lines[path] = short(key[1])
    return lines
