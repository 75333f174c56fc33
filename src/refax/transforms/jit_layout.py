"""How the leaves and arguments of a jitted call are laid out when some are donated or sharded.

The inner function then takes two arguments, what is kept and what is donated, each a triple
(values by group, positional, keyword), and its groups are by (sharding, donated).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ..lift import errors
from ..lift.arguments import named_like, slot_numbers
from ..lift.array_prefix import by_path, for_arrays, spread, without_objects
from ..lift.call import Call, occurrences_in, one_group
from ..lift.faults import inputs_of, tell
from ..lift.prefix import FilterPrefix, Groups, OutputRules, all_entries, group_leaves
from ..objects.errors import describe_value
from .jit_options import Options


class Entry(NamedTuple):
    """The group of a leaf."""

    sharding: Any
    donated: bool


class Donated(NamedTuple):
    """The arguments that are donated."""

    at: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.at or self.names)


class Layout(NamedTuple):
    groups: Groups
    rules: OutputRules | None
    donated: tuple[bool, ...]  # by group
    given: Donated
    shardings: dict[str, Any]  # for jax.jit

    def inputs(self, grouped: list, tree: Any) -> tuple:
        """The arguments of the inner function."""
        if not self.given:
            return grouped, tree
        args, kwargs = tree

        def half(donated: bool) -> tuple:
            return (
                [g if d is donated else None for g, d in zip(grouped, self.donated, strict=True)],
                tuple([a if (i in self.given.at) is donated else None for i, a in enumerate(args)]),
                {k: v for k, v in kwargs.items() if (k in self.given.names) is donated},
            )

        return half(False), half(True)

    def tell(self, error: Exception, call: Call, function: Callable) -> Exception | None:
        """What is wrong with the inputs of a call that raised: see `lift/faults.py`."""
        groups = self.groups
        call.groups = groups
        if not self.given:
            return self._unfit(call, function) or tell(error, call, function)

        def donated(leaf: int, path: tuple) -> bool:
            if leaf >= 0:
                return self.donated[groups.of_leaf[leaf]]
            inside, key = path[0].idx, path[1]
            return key.key in self.given.names if inside else key.idx in self.given.at

        return tell(error, call, function, ("kept", "given"), self.inputs, donated)

    def _unfit(self, call: Call, function: Callable) -> ValueError | None:
        """The error for a sharding that does not fit what it is for."""
        if not self.shardings:
            return None
        by_group, (args, _) = self.shardings["in_shardings"]
        entries = [by_group[group] for group in self.groups.of_leaf]
        entries += spread(args, call.tree[0], "in_shardings", _is_sharding)
        for (place, value), sharding in zip(inputs_of(call, function), entries):
            if not isinstance(sharding, jax.sharding.Sharding):
                continue
            for array in jax.tree.leaves(value):
                try:
                    sharding.shard_shape(jax.numpy.shape(array))
                except ValueError as error:
                    return ValueError(
                        f"jit: `{place}` ({describe_value(array)}) cannot have the sharding that "
                        f"in_shardings gives it: {error}.\n"
                        "Cure: a spec of no more axes than the array has, whose mesh axes divide "
                        "its sizes; None for an axis that is whole."
                    )
        return None

    def inner(self, pure: Callable) -> Callable:
        """`pure`, taking its arguments as `inputs` gives them."""
        if not self.given:
            return pure

        def inner(kept: Any, given: Any) -> Any:
            pairs = zip(kept[0], given[0], self.donated, strict=True)
            grouped = [g if d else k for k, g, d in pairs]
            pairs = enumerate(zip(kept[1], given[1], strict=True))
            args = tuple(g if i in self.given.at else k for i, (k, g) in pairs)
            return pure(grouped, (args, {**kept[2], **given[2]}))

        return named_like(pure, inner)


def layout_of(
    function: Callable,
    call: Call,
    options: Options,
    shift: int,
    static_at: Sequence[int],
    given: Donated,
) -> Layout:
    """The layout of a call.

    Args:
        function: for the names of its arguments.
        call: its arguments, statics left out.
        options: of the jit.
        shift: 1 if a bound object is the first argument.
        static_at: positions of static arguments, which have no sharding.
        given: which arguments are donated.
    """
    if not options.sharded and not given:
        return Layout(one_group(call.plan), None, (False,), given, {})
    args, kwargs = call.tree
    prefix = _in_prefix(options.in_shardings, len(args), shift, static_at)
    if isinstance(prefix, tuple):
        prefix = tuple(map(by_path, prefix, args))
    places = occurrences_in(call, function, prefix, "in_shardings", is_leaf=_is_sharding)
    known = all_entries((prefix, options.out_shardings), _is_sharding)
    sharded = group_leaves(call.plan, places, known)
    # A leaf that any donated argument reaches is donated: its Variable gets the new value.
    objects = slot_numbers(
        ([a for i, a in enumerate(args) if i in given.at],
         [a for name, a in kwargs.items() if name in given.names])
    )  # fmt: skip
    graphdef = call.plan.graphdef
    reached = {leaf for n in objects for _, leaf in graphdef.all_paths(graphdef.roots[n])}
    half = len(sharded.entries)
    entries = [Entry(e, donated) for donated in (False, True) for e in sharded.entries]
    of_leaf = [g + half * (leaf in reached) for leaf, g in enumerate(sharded.of_leaf)]
    groups = Groups(entries, of_leaf)
    rules, shardings = None, {}
    donated = tuple(e.donated for e in entries)
    if options.sharded:
        out_prefix = jax.tree.map(_kept, options.out_shardings, is_leaf=_is_sharding)
        kept = tuple(o._replace(prefix=_kept(o.prefix)) for o in places)
        rules = OutputRules(kept, out_prefix, groups.entries, lambda entry: entry.sharding)
        shardings = _shardings(options, prefix, args, groups, given)
    return Layout(groups, rules, donated, given, shardings)


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
    options: Options, prefix: Any, arguments: tuple, groups: Groups, given: Donated
) -> dict[str, Any]:
    """The keywords for `jax.jit`."""
    by_group = [entry.sharding for entry in groups.entries]
    args = for_arrays(prefix, arguments, "args", _is_sharding)
    out = (without_objects(options.out_shardings), by_group, None)
    if not given:
        return {"in_shardings": (by_group, (args, None)), "out_shardings": out}
    per_argument = args if isinstance(args, tuple) else (args,) * len(arguments)

    def half(donated: bool) -> Any:
        return (
            [e.sharding if e.donated is donated else None for e in groups.entries],
            tuple(s if (i in given.at) is donated else None for i, s in enumerate(per_argument)),
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
