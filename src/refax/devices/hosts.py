"""`assert_equal_on_hosts`: whether all processes of a program hold the same objects.

What belongs to a process alone, and what stands on several devices, must be the same everywhere; of
an array that is spread, each part has its own holders. A process works out a checksum of every part
that it holds. If all is well, what goes over the network is 40 bytes of each process, whatever the
model: of each part, the first holder counts (holders - 1) times, the others -1 times, so that the
sum over all processes is 0 only where holders agree. If not, the checksums are compared by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..graph.walk import key_name
from ..objects.variable import raw
from ..objects.watch import is_array
from ..verbs.hosts import fail_together, fingerprint, said_by_all
from ..verbs.layouts import object_plan
from ..verbs.names import dotted_name

_VERB = "assert_equal_on_hosts"
_SHOWN = 8  # differences in a message


def assert_equal_on_hosts(obj: Any, /) -> None:
    """Raise on all processes if the arrays of an object are not the same on all of them.

    Every process must call it. It tells what would go wrong silently, or hang, later on: another
    seed, another checkpoint, a parameter more. With a single process, it does nothing.

    Args:
        obj: a model, an optimizer, a container of them. Arrays may be a process's own or spread
            over the devices of several; then the copies of each part are compared.

    Raises:
        AssertionError: on every process, with the names that differ, and in what.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> nnx.assert_equal_on_hosts(model)
    """
    if jax.process_count() == 1:
        return
    facts, held, total = {}, dict[str, dict[str, Any]](), 0
    with fail_together(_VERB):
        for name, array in _arrays_of(obj):
            facts[name] = {"shape": [str(array.shape)], "dtype": [str(array.dtype)]}
            spread = isinstance(array, jax.Array) and not array.is_fully_addressable
            layout = getattr(array.sharding, "spec", "another") if spread else "of each process"
            held[name] = {"layout": [str(layout)]}
            for part, checksum, weight in _parts_of(array, spread):
                held[name].setdefault(f"value{part}", []).append(checksum)
                total += weight * _number(f"{name}{part} {checksum}")
    said = said_by_all(f"{_number(json.dumps(facts)):020} {total % 2**64:020}")
    structures, totals = zip(*(map(int, text.split()) for text in said), strict=True)
    if len(set(structures)) == 1 and sum(totals) % 2**64 == 0:
        return
    text = json.dumps({name: {**fact, **held[name]} for name, fact in facts.items()})
    lines = list(_differences([json.loads(told) for told in said_by_all(text)]))
    more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    listed = "".join(f"\n  {line[:130]}" for line in [*lines[:_SHOWN], *more])
    raise AssertionError(
        f"{_VERB}: not the same on all {len(said)} processes, by name:{listed}\n"
        "Cure: the same seed, checkpoint and settings on every process, or nnx.make_sharded, which "
        "makes one array for all."
    )


def _arrays_of(obj: Any) -> Iterator[tuple[str, Any]]:
    plan = object_plan(obj, _VERB)
    leaves, paths = plan.leaves(), plan.graphdef.paths
    for leaf in paths.order:
        for below, value in jax.tree.leaves_with_path(raw(leaves[leaf])):
            if is_array(value) or isinstance(value, Number):
                name = dotted_name((*paths.leaves[leaf], *map(key_name, below)))
                yield name or "value", value if is_array(value) else np.asarray(value)


def _parts_of(array: Any, spread: bool) -> Iterator[tuple[str, int, int]]:
    """(which part, checksum, weight in the sum over all processes) of each part held here."""
    if not spread:
        yield "", _checksum(array), -1 if jax.process_index() else jax.process_count() - 1
        return
    where = array.sharding.devices_indices_map(array.shape)
    holders: dict[str, list[Any]] = {}
    for device, index in where.items():
        holders.setdefault(_bounds(index), []).append(device)
    for shard in array.addressable_shards:  # the index in a shard of keys has an axis too many
        first, *others = holders[part := _bounds(where[shard.device])]
        weight = len(others) if shard.device == first else -1
        yield part, _checksum(shard.data), weight


def _bounds(index: tuple[slice, ...]) -> str:
    if all(part == slice(None) for part in index):
        return ""
    return str([f"{s.start or 0}:{s.stop or ''}" for s in index]).replace("'", "")


def _checksum(array: Any) -> int:
    if isinstance(array, jax.ShapeDtypeStruct):
        return 0
    key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return fingerprint(jax.random.key_data(array) if key else array)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _differences(tables: list[dict[str, dict[str, list[Any]]]]) -> Iterator[str]:
    """One line for each name that differs: the first fact by which it does, and who has what."""
    for name in dict.fromkeys(name for table in tables for name in table):
        if lacking := [str(i) for i, table in enumerate(tables) if name not in table]:
            yield f"{name}: missing on process {', '.join(lacking)}"
            continue
        for fact in dict.fromkeys(fact for table in tables for fact in table[name]):
            who: dict[Any, dict[str, None]] = {}  # only those who hold a part have a value of it
            for process, table in enumerate(tables):
                for value in table[name].get(fact, []):
                    who.setdefault(value, {})[str(process)] = None
            if len(who) > 1:
                shown = [(f"{v} " if isinstance(v, str) else "", ", ".join(who[v])) for v in who]
                told = "; ".join(f"{value}on process {on}" for value, on in shown)
                yield f"{name}: {fact} differs: {told}"
                break
