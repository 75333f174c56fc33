"""How the leaves and arguments of a jitted call are laid out when some are donated or sharded.

The inner function then takes each of them by position, as JAX wants what it donates: the values of
each group, the arguments, and what is kept and what is donated of those given by name. Each
sharding has two groups: of leaves that are kept, and of leaves that are donated. On several devices
each leaf is a group of its own, so that one trace serves every placement (`jit_places.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.tree_util import SequenceKey

from ..graph.graphdef import GraphDef
from ..lift import errors
from ..lift.arguments import named_like, slot_numbers
from ..lift.call import Call, group_by_prefix
from ..lift.errors import argument_place, place_under
from ..lift.faults import tell
from ..lift.places import check_outputs, inputs_by_place, inputs_of, results_by_place
from ..lift.prefix import (
    FilterPrefix,
    Groups,
    OutputRules,
    all_entries,
    by_path,
    for_arrays,
    for_result,
    sorting,
)
from ..objects.errors import clipped, describe_value
from ..objects.placing import mesh_set, misfit, more_places
from .jit_options import Options


class Donated(NamedTuple):
    """The arguments that are donated."""

    at: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.at or self.names)


class Names(inspect.Signature):
    """The signature of an inner function, by which JAX names what it compiles.

    JAX asks it, once a trace, which parameter each argument is for. So every leaf of an object is
    told to be one of its own, `model.blocks[3].kernel`.
    """

    def __init__(self, named: Callable[..., Iterator[tuple[str, Any]]]):
        super().__init__([inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)])
        self._named = named

    def bind(self, *inputs: Any, **_: Any) -> Any:
        found: dict[str, Any] = {}
        for name, value in self._named(*inputs):
            found[name if name not in found else f"{name} ({len(found)})"] = value
        return inspect.BoundArguments(self, cast(Any, found))


class Layout(NamedTuple):
    groups: Groups
    given: Donated
    donated: tuple[bool, ...] = (False,)  # by group
    rules: OutputRules | None = None
    keywords: dict[str, Any] = {}  # for jax.jit
    by_position: bool = True  # whether the inner function takes its arguments one by one
    first: int | None = None  # the group of the first leaf, where each is one of its own

    def inputs(self, call: Call) -> tuple:
        """The arguments of the inner function."""
        # Lists of one value each would cost JAX half as much again as the values.
        grouped: Any = call.values if self.first is not None else self.groups.take(call.values)
        if not self.by_position:
            return grouped, call.tree
        args, kwargs = call.tree
        named: tuple[dict, dict] = {}, {}
        for name, value in kwargs.items():
            named[name in self.given.names][name] = value
        return *grouped, *args, *named

    def inner(self, pure: Callable) -> Callable:
        """`pure`, taking its arguments as `inputs` gives them."""
        if not self.by_position and self.first is None:
            return pure

        def inner(*inputs: Any) -> Any:
            if not self.by_position:
                return pure(self._by_group(inputs[0]), inputs[1])
            *args, kept, given = inputs[self.count :]
            return pure(self._by_group(inputs[: self.count]), (tuple(args), {**kept, **given}))

        return named_like(pure, inner)

    @property
    def count(self) -> int:
        """How many arguments of the inner function come before those of the user's."""
        return len(self.donated) - (self.first or 0)

    def _by_group(self, values: Sequence[Any]) -> Sequence[Any]:
        return values if self.first is None else [*[()] * self.first, *((x,) for x in values)]

    def names(self, graphdef: GraphDef, roots: Sequence[str], labels: Sequence[str]) -> Names:
        """What the arguments of the inner function are called in XLA's programs and messages.

        Args:
            graphdef: of the objects.
            roots: their places, `model`.
            labels: the names of the positional arguments.
        """
        leaves = self.groups.take([place_under(path, roots) for path in graphdef.paths.leaves])

        def named(*inputs: Any) -> Iterator[tuple[str, Any]]:
            at = self.count
            grouped, tree = (inputs[:at], inputs[at:]) if self.by_position else inputs
            for places, values in zip(leaves, self._by_group(grouped), strict=True):
                yield from zip(places, values, strict=True)
            for path, value in jax.tree_util.tree_leaves_with_path(tree):
                if self.by_position:  # an argument, or in one of two dicts by name
                    kind = 0 if path[0].idx < len(tree) - 2 else 1
                    path = (SequenceKey(kind), *path[kind:])
                yield argument_place(path, labels), value

        return Names(named)

    def tell(self, error: Exception, call: Call, function: Callable) -> Exception | None:
        """What is wrong with the inputs of a call that raised: see `lift/faults.py`."""
        call.groups = self.groups
        if not self.by_position:
            return tell(error, call, function)

        donated = self._are_given(call)
        args = self.keywords.get("in_shardings", ())[self.count : -2] or None
        unfit = _unfit(inputs_by_place(call, function, args, _is_sharding), "in_shardings")
        return unfit or tell(error, call, function, donated)

    def _are_given(self, call: Call) -> list[bool]:
        """Whether each of `inputs_of` is donated."""
        args, kwargs = call.tree
        parts = [(a, i in self.given.at) for i, a in enumerate(args)]
        parts += [(kwargs[name], name in self.given.names) for name in sorted(kwargs)]
        donated = [self.donated[group] for group in self.groups.of_leaf]
        return donated + [gone for x, gone in parts for _ in jax.tree.leaves(x)]

    def given_inputs(self, call: Call, function: Callable) -> Iterator[tuple[str, Any]]:
        """(place, array) of each array that is donated."""
        pairs = zip(self._are_given(call), inputs_of(call, function), strict=True)
        return ((place, x) for gone, (place, v) in pairs if gone for x in jax.tree.leaves(v))


def _unfit(parts: Iterable[tuple[str, Any, Any]], prefix: str) -> ValueError | None:
    """The error for the shardings, of (place, value, sharding), that do not fit; None if all do."""
    head, more = "", list[str]()
    for place, value, sharding in parts:
        mesh: Any = getattr(sharding, "mesh", None) or mesh_set()
        spec = getattr(sharding, "spec", sharding)
        known = isinstance(spec, PartitionSpec) and not mesh.empty
        for array in jax.tree.leaves(value) if known else ():
            if why := misfit(spec, jax.numpy.shape(array), mesh):
                place = f"`{clipped(place, 150)}` ({describe_value(array)})"
                more.append(f"{place}, {spec}: {why}")
                head = head or (
                    f"jit: {place} cannot have the sharding that {prefix} gives it, {spec} on the "
                    f"mesh {dict(mesh.shape)}: {why}."
                )
    cure = (
        "\nCure: a spec of no more axes than the array has, whose mesh axes divide its sizes; None "
        "for an axis that is whole."
    )
    return ValueError(head + more_places(more[1:], 1000) + cure) if head else None


def check_results(layout: Layout, call: Call) -> Callable[..., Any] | None:
    """For `pure_function(returned=…)`: results sorted, after a check that they fit their places."""
    if (rules := layout.rules) is None:
        return None

    def problem(entry: Any, value: Any) -> Any:
        return _unfit([("", value, entry)], "") and (entry, value)

    def error(place: str, kind: str, entry: Any, found: Any) -> Exception:
        return _unfit([(place, found[1], entry)], "out_shardings") or AssertionError(kind)

    checked = check_outputs(call.graphdef, rules, problem, error)

    def returned(result: Any, grouped: Any, change: Any) -> Any:
        if fault := _unfit(results_by_place(rules, result), rules.name):
            raise fault
        return sorting(rules)(*checked(result, grouped, change))

    return returned


def layout_of(
    function: Callable,
    call: Call,
    options: Options,
    shift: int,
    static_at: Sequence[int],
    given: Donated,
    apart: bool = False,
) -> Layout:
    """The layout of a call.

    Args:
        function: for the names of its arguments.
        call: its arguments, statics left out.
        options: of the jit.
        shift: 1 if a bound object is the first argument.
        static_at: positions of static arguments, which have no sharding.
        given: which arguments are donated.
        apart: each leaf is a group of its own, and what is new is in the first group.
    """
    if not (options.sharded or given or apart):
        return Layout(call.groups, given, by_position=False)
    args, kwargs = call.tree
    prefix, rules = _rules(function, call, options, shift, static_at)
    # A leaf that any donated argument reaches is donated: its Variable gets the new value.
    objects = slot_numbers(
        ([a for i, a in enumerate(args) if i in given.at],
         [a for name, a in kwargs.items() if name in given.names])
    )  # fmt: skip
    graphdef, half = call.graphdef, len(rules.entries)
    reached = {leaf for n in objects for _, leaf in graphdef.all_paths(graphdef.roots[n])}
    if apart:
        donated = (*[False] * half, *[leaf in reached for leaf in range(len(call.values))])
        of_leaf: Sequence[int] = range(half, len(donated))
        entries = (*rules.entries, *[rules.entries[g] for g in call.groups.of_leaf])
    else:
        donated = (False,) * half + (True,) * half
        of_leaf = [g + half * (leaf in reached) for leaf, g in enumerate(call.groups.of_leaf)]
        entries = rules.entries * 2
    out_rules = None
    first = half if apart else None
    groups = [i - (first or 0) for i, gone in enumerate(donated) if gone]
    count = len(donated) - (first or 0)
    keywords: dict[str, Any] = {
        "donate_argnums": (*groups, *[count + i for i in given.at], count + len(args) + 1)
    }
    if options.sharded:
        arrays = for_arrays(prefix, args, "args", _is_sharding)
        by_argument = arrays if isinstance(arrays, tuple) else (arrays,) * len(args)
        keywords["in_shardings"] = (*entries[first or 0 :], *by_argument, None, None)
        # What is new leaves by the first group of its sharding, in which nothing is donated.
        out_rules = rules._replace(entries=entries, free=True)
        keywords["out_shardings"] = (for_result(out_rules), [*entries], None)
    if not (options.sharded or given):
        return Layout(Groups(entries, of_leaf), given, donated, by_position=False, first=first)
    return Layout(Groups(entries, of_leaf), given, donated, out_rules, keywords, first=first)


def _rules(
    function: Callable, call: Call, options: Options, shift: int, static_at: Sequence[int]
) -> tuple[Any, OutputRules]:
    """The prefix of the arguments, and the rules by it; the call gets its groups."""
    args, _ = call.tree
    prefix = _in_prefix(options.in_shardings, len(args), shift, static_at)
    prefix = tuple(map(by_path, prefix, args)) if isinstance(prefix, tuple) else prefix
    out, name = options.out_shardings, "in_shardings"
    rules = group_by_prefix(call, function, prefix, out, name, is_leaf=_is_sharding)
    if fault := _unfit(inputs_by_place(call, function, prefix, _is_sharding), name):
        raise fault
    for entry in all_entries(out, _is_sharding):
        mesh = mesh_set()
        if isinstance(entry, PartitionSpec) and (why := misfit(entry, None, mesh)):
            raise ValueError(
                f"jit: out_shardings has {entry}, on the mesh {dict(mesh.shape)}: {why}.\n"
                f"Cure: axes of that mesh, each once; it is given as {clipped(repr(out))}."
            )
    return prefix, rules


def places_of_leaves(
    function: Callable, call: Call, options: Options, shift: int, static_at: Sequence[int]
) -> list[tuple[int, Sharding]]:
    """(leaf, where `in_shardings` say that it lies) of the leaves of a call, if they do."""
    _rules(function, call, options, shift, static_at)
    entries: list[Any] = [call.groups.entries[group] for group in call.groups.of_leaf]
    mesh = mesh_set()
    found = enumerate(
        NamedSharding(mesh, e) if isinstance(e, PartitionSpec) else e for e in entries
    )
    return [(leaf, e) for leaf, e in found if isinstance(e, Sharding)]


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


def _is_sharding(value: Any) -> bool:
    kinds = (jax.sharding.Sharding, jax.sharding.PartitionSpec, FilterPrefix)
    return value is None or isinstance(value, kinds)
