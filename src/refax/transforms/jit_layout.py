"""How the leaves and arguments of a jitted call are laid out when some are donated or sharded.

The inner function then takes two arguments, what is kept and what is donated, each a triple
(values by group, positional, keyword), and its groups are by (sharding, donated).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ..lift import errors
from ..lift.arguments import put_back
from ..lift.array_prefix import without_objects
from ..lift.call import Call, one_group
from ..lift.prefix import (
    FilterPrefix,
    Groups,
    OutputRules,
    all_entries,
    broadcast,
    group_leaves,
    occurrences,
)
from .jit_options import Options


class Entry(NamedTuple):
    """The group of a leaf."""

    sharding: Any
    donated: bool


class Layout(NamedTuple):
    groups: Groups
    rules: OutputRules | None
    donated: tuple[bool, ...]  # by group
    donate_at: frozenset[int]
    donate_names: frozenset[str]
    shardings: dict[str, Any]  # for jax.jit

    @property
    def donates(self) -> bool:
        return bool(self.donate_at or self.donate_names)

    def inputs(self, grouped: list, tree: Any) -> tuple:
        """The arguments of the inner function."""
        if not self.donates:
            return grouped, tree
        args, kwargs = tree
        kept = (
            [None if d else g for g, d in zip(grouped, self.donated, strict=True)],
            tuple([None if i in self.donate_at else a for i, a in enumerate(args)]),
            {k: v for k, v in kwargs.items() if k not in self.donate_names},
        )
        given = (
            [g if d else None for g, d in zip(grouped, self.donated, strict=True)],
            tuple([a if i in self.donate_at else None for i, a in enumerate(args)]),
            {k: v for k, v in kwargs.items() if k in self.donate_names},
        )
        return kept, given

    def inner(self, pure: Callable) -> Callable:
        """`pure`, taking its arguments as `inputs` gives them."""
        if not self.donates:
            return pure

        def inner(kept: Any, given: Any) -> Any:
            pairs = zip(kept[0], given[0], self.donated, strict=True)
            grouped = [g if d else k for k, g, d in pairs]
            pairs = enumerate(zip(kept[1], given[1], strict=True))
            args = tuple(g if i in self.donate_at else k for i, (k, g) in pairs)
            return pure(grouped, (args, {**kept[2], **given[2]}))

        inner.__name__, inner.__qualname__ = pure.__name__, pure.__qualname__
        return inner


def layout_of(
    function: Callable,
    call: Call,
    options: Options,
    shift: int,
    static_at: Sequence[int],
    donate_at: frozenset[int],
    donate_names: frozenset[str],
) -> Layout:
    """The layout of a call.

    Args:
        function: for the names of its arguments.
        call: its arguments, statics left out.
        options: of the jit.
        shift: 1 if a bound object is the first argument.
        static_at: positions of static arguments, which have no sharding.
        donate_at, donate_names: which arguments are donated.
    """
    if not options.sharded and not donate_at and not donate_names:
        return Layout(one_group(call.plan), None, (False,), donate_at, donate_names, {})
    args, kwargs = put_back(call.tree, call.roots)
    prefix = _in_prefix(options.in_shardings, len(args), shift, static_at)
    found = broadcast(prefix, args, "in_shardings", _is_sharding)
    by_name = [
        ((jax.tree_util.DictKey(k), *path), obj, entry)
        for k, v in kwargs.items()
        for path, obj, entry in broadcast(None, v, "in_shardings")
    ]
    labels = errors.argument_names(function, len(args))
    places = occurrences(found, call.numbers, labels)
    places += occurrences(by_name, call.numbers, ())
    known = all_entries((options.in_shardings, options.out_shardings), _is_sharding)
    sharded = group_leaves(call.plan, places, known)
    # A leaf that any donated argument reaches is donated: its Variable gets the new value.
    given: set[int] = set()
    for path, obj, _ in [*found, *by_name]:
        at = getattr(path[0], "idx", None)
        if at in donate_at or (at is None and path[0].key in donate_names):
            root = call.plan.graphdef.roots[call.numbers[id(obj)]]
            given.update(leaf for _, leaf in call.plan.graphdef.all_paths(root))
    half = len(sharded.entries)
    entries = [Entry(e, donated) for donated in (False, True) for e in sharded.entries]
    of_leaf = [g + half * (leaf in given) for leaf, g in enumerate(sharded.of_leaf)]
    groups = Groups(entries, of_leaf)
    rules, shardings = None, {}
    donated = tuple(e.donated for e in entries)
    if options.sharded:
        out_prefix = jax.tree.map(_kept, options.out_shardings, is_leaf=_is_sharding)
        kept = tuple(o._replace(prefix=_kept(o.prefix)) for o in places)
        rules = OutputRules(kept, out_prefix, groups.entries, lambda entry: entry.sharding)
        shardings = _shardings(options, prefix, len(args), groups, donate_at, donate_names)
    return Layout(groups, rules, donated, donate_at, donate_names, shardings)


def _in_prefix(prefix: Any, count: int, shift: int, static_at: Sequence[int]) -> Any:
    """`in_shardings` with an entry for every argument, also the bound object and the statics."""
    if not isinstance(prefix, (tuple, list)) or _is_sharding(prefix):
        return prefix
    entries = list(prefix)
    if len(entries) + shift + len(static_at) == count:
        given = iter(entries)
        entries = [None if i < shift or i in static_at else next(given) for i in range(count)]
    elif len(entries) + shift == count:
        entries = [None] * shift + entries
    if len(entries) != count:
        raise errors.prefix_mismatch(
            "in_shardings", prefix, f"It has {len(prefix)} entries for {count - shift} arguments."
        )
    return tuple(entries)


def _shardings(
    options: Options,
    prefix: Any,
    count: int,
    groups: Groups,
    donate_at: frozenset[int],
    donate_names: frozenset[str],
) -> dict[str, Any]:
    """The keywords for `jax.jit`."""
    by_group = [entry.sharding for entry in groups.entries]
    args = without_objects(prefix)
    out = (without_objects(options.out_shardings), by_group, None)
    if not donate_at and not donate_names:
        return {"in_shardings": (by_group, (args, None)), "out_shardings": out}
    per_argument = args if isinstance(args, tuple) else (args,) * count

    def half(donated: bool) -> Any:
        return (
            [e.sharding if e.donated is donated else None for e in groups.entries],
            tuple(s if (i in donate_at) is donated else None for i, s in enumerate(per_argument)),
            None,
        )

    return {"in_shardings": (half(False), half(True)), "out_shardings": out}


def _is_sharding(value: Any) -> bool:
    kinds = (jax.sharding.Sharding, jax.sharding.PartitionSpec, FilterPrefix)
    return value is None or isinstance(value, kinds)


def _kept(prefix: Any) -> Any:
    """A prefix of shardings as one of groups."""
    if isinstance(prefix, FilterPrefix):
        return prefix.map_entries(lambda e: Entry(e, False))
    return Entry(prefix, False)
