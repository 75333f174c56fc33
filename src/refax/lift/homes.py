"""Homes: in which object, and under which keys in it, each leaf of a structure stands."""

from __future__ import annotations

from typing import NamedTuple

from ..graph.graphdef import LEAF, VARIABLE, WITH_IDENTITY, GraphDef, record_children


class Home(NamedTuple):
    record: int  # of the object
    keys: tuple = ()  # from there; through tuples, which are no objects


def homes(
    graphdef: GraphDef, kinds: tuple[int, ...] = WITH_IDENTITY
) -> tuple[list[Home], list[Home]]:
    """(by record, by leaf): the nearest record of these kinds, at it or above it.

    What has none above it is its own home.
    """
    records = graphdef.records
    of_leaf = [Home(i) for i, record in enumerate(records) if record[0] == VARIABLE]
    found: dict[int, Home] = {}
    for i, record in enumerate(records):
        home = found[i] = Home(i) if record[0] in kinds else found.get(i, Home(i))
        for key, child in zip(*record_children(record), strict=True):
            inside = Home(home.record, (*home.keys, key))
            if child is LEAF:
                of_leaf.append(inside)
            elif type(child) is int:
                found.setdefault(child, inside)
    return [found[i] for i in range(len(records))], of_leaf
