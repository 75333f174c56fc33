"""What `nnx.capture` records in, where a transform maps or scans: a place for each index or step.

A Module that a transform broadcasts or carries keeps its values, but each index records its own. So
the Variables that are recorded in are mapped over axis 0, unless a lift type says another one. What
was recorded before the call has no such axis: it waits outside, and comes back before the new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ..objects.variable import Variable
from .arguments import is_captured
from .prefix import Groups, is_record, position


def records_of(leaves: Sequence[Any]) -> dict[int, Variable]:
    """The Variables that are recorded in, by leaf."""
    if not is_captured():
        return {}
    return {i: x for i, x in enumerate(leaves) if is_record(x)}


def with_axis(groups: Groups, records: dict[int, Variable]) -> Groups:
    """The groups, with an axis for each record that has none."""
    entries, of_leaf = list(groups.entries), list(groups.of_leaf)
    for leaf in records:
        if not isinstance(entries[of_leaf[leaf]], int):
            of_leaf[leaf] = position(entries, 0)
    return Groups(entries, of_leaf)


@contextlib.contextmanager
def recorded_apart(records: dict[int, Variable]) -> Iterator[None]:
    """Lists of what was recorded are empty in the block, and are continued after it."""
    before = {i: dict(record.value) for i, record in records.items()}
    for i, record in records.items():
        record.value = {k: x for k, x in before[i].items() if not isinstance(x, tuple)}
    try:
        yield
    finally:
        for i, record in records.items():
            new, lists = record.value, {k: x for k, x in before[i].items() if isinstance(x, tuple)}
            record.value = {**lists, **new, **{k: x + new.get(k, ()) for k, x in lists.items()}}
