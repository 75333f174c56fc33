"""`scan`: carry, scanned and broadcast leaves, of arguments and of the objects in them.

`jax.lax.scan` gets three things: what is carried, what is scanned (its axis moved to the front) and
what is broadcast (closed over). Of the objects, only scanned Variables that the body wrote are
stacked; a read-only one goes in and does not come out. What is broadcast is not written, but for
the counts of random streams (`BroadcastCounts`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..lift.arguments import Slot, is_slot, named_like, put_back, unbind
from ..lift.axis_names import AxisName
from ..lift.call import Call, pure_function
from ..lift.errors import PrefixError
from ..lift.inside import leaves_out
from ..lift.prefix import FilterPrefix, OutputRules, spread
from ..objects.arguments import Count
from ..objects.errors import describe_value
from ..objects.modes import Switch
from ..objects.statics import static_key
from .bound import by_position, decorator_or_function, lifted, with_self
from .carry import Carry, check_carry, is_carry
from .mapped import BroadcastCounts, check_sizes, leaf_entries, mapped_call


@decorator_or_function
def scan(
    f: Callable[..., Any],
    *,
    length: Count | None = None,
    reverse: bool = False,
    unroll: Count | bool = 1,
    _split_transpose: bool = False,
    in_axes: Any = (Carry, 0),
    out_axes: Any = (Carry, 0),
    transform_metadata: Mapping[str, Any] | None = None,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> Callable[..., Any]:
    """`jax.lax.scan` for functions of objects, as a transform of the body.

    Args:
        f: the body, or a method. By default (carry, x) → (carry, y).
        length, reverse, unroll: as in `jax.lax.scan`.
        in_axes: one entry per argument: `nnx.Carry` for at most one, an int for what is scanned
            over that axis, None for what every step sees whole; prefixes and `nnx.StateAxes` (also
            with `nnx.Carry` for a part of an object). A tuple with one entry fewer than the
            arguments of a method leaves `self` out, which is broadcast.
        out_axes: of the result: `nnx.Carry` in one place if an argument is carried, ints for what
            is stacked along that axis.
        transform_metadata: `{nnx.PARTITION_NAME: name}` keeps annotations in step; so any other
            key does the metadata of that name, such as `nickname=('a', 'b')`.

    Called eagerly it compiles once per structure, not at each call.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> layers = nnx.vmap(lambda key: nnx.Linear(3, 3, rngs=nnx.Rngs(key)))(
        ...     jax.random.split(jax.random.key(0), 4)
        ... )
        >>> forward = nnx.scan(
        ...     lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
        ... )
        >>> forward(layers, jnp.ones((2, 3))).shape
        (2, 3)
    """
    named = AxisName.of(transform_metadata)
    options = dict(length=length, reverse=reverse, unroll=unroll, _split_transpose=_split_transpose)

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        function, bound = unbind(f)
        args = by_position(f, args, kwargs, in_axes)
        args, prefix, _ = with_self(wrapped, bound, args, {}, in_axes, None)
        prefix = prefix if isinstance(prefix, tuple) else (prefix,) * len(args)
        carried = _carried(prefix, out_axes)
        prefixes, explain = (prefix, out_axes), functools.partial(check_sizes, "scan")
        make = functools.partial(_loop, prefixes, carried, options, named)
        key = ("scan", named and named.names, *map(static_key, options.values()))
        return mapped_call(
            function, args, {}, prefixes, "in_axes", make, key, explain, is_leaf=_is_entry,
            placed=named is not None and named.places,
        )  # fmt: skip

    wrapped = lifted(f, run)
    return wrapped


def _is_entry(value: Any) -> bool:
    return value is None or isinstance(value, FilterPrefix) or is_carry(value)


def _carried(prefix: tuple, out_axes: Any) -> int | None:
    """Which argument is carried; checks that the result has a place for it."""
    places = [i for i, entry in enumerate(prefix) if is_carry(entry)]
    outs = [e for e in (out_axes if isinstance(out_axes, tuple) else (out_axes,)) if is_carry(e)]
    entries = jax.tree.leaves((prefix, out_axes), is_leaf=_is_entry)
    below = sum(map(is_carry, entries)) > len(places) + len(outs)
    if len(places) > 1 or len(outs) > 1 or len(places) != len(outs) or below:
        raise PrefixError(
            f"scan: in_axes={prefix!r} has nnx.Carry for {len(places)} arguments and "
            f"out_axes={out_axes!r} for {len(outs)} results"
            f"{', not counting those inside of containers' if below else ''}.\n"
            "Cure: one whole argument and one whole result may be nnx.Carry; to carry several "
            "things, put them into one tuple. (To carry only the state of an object, use "
            "nnx.StateAxes({...: nnx.Carry}), which needs no result.)"
        )
    if any(entry is None for entry in jax.tree.leaves(out_axes, is_leaf=_is_entry)):
        raise PrefixError(
            "scan: out_axes has None, but every step returns a value of its own.\n"
            "Cure: stack it with an int, or carry it to get the last one."
        )
    return places[0] if places else None


def _moved(value: Any, source: int, destination: int) -> Any:
    if source == destination:
        return value
    return jax.tree.map(lambda x: jnp.moveaxis(x, source, destination), value)


def _loop(
    prefixes: tuple[tuple, Any],
    carried: int | None,
    options: dict[str, Any],
    named: AxisName | None,
    call: Call,
    rules: OutputRules,
    function: Callable,
) -> Callable:
    """The pure function of (values by group, tree): one `jax.lax.scan`."""
    (prefix, out_axes), entries = prefixes, rules.entries
    form, graphdef = call.form(function), call.graphdef
    lift_type = "nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None})"
    counts = BroadcastCounts(graphdef, form.groups, rules, "scan", "step", lift_type)
    always = tuple(map(is_carry, entries))
    pure = pure_function(
        function, form, always=always, rules=rules, axis_name=named, returned=counts.check
    )

    def run(grouped: Sequence[Sequence[Any]], tree: Any) -> Any:
        carry_tree = None if carried is None else tree[0][carried]
        inputs, structure = jax.tree.flatten((grouped, tree))
        axes = leaf_entries(rules, prefix, grouped, tree[0], _is_entry)
        carry_in = (_where(is_carry, entries, grouped), carry_tree)
        if sum(map(is_carry, axes)) != len(jax.tree.leaves(carry_in)):
            raise PrefixError(
                "scan: a lift type has nnx.Carry for an array, which has no place to be carried "
                "to.\nCure: carry the whole argument, or keep the array in an nnx.Variable."
            )
        scanned = [_moved(x, e, 0) for x, e in zip(inputs, axes, strict=True) if _is_axis(e)]
        counted = counts.values(grouped)

        def body(carries: Any, xs: Any) -> Any:
            carry, _ = carries
            last_step, slices = iter(jax.tree.leaves(carry)), iter(xs)
            full = [
                next(last_step) if is_carry(e) else next(slices) if _is_axis(e) else whole
                for whole, e in zip(inputs, axes, strict=True)
            ]
            result, out, change = counts.run(pure, structure.unflatten(full), axes)
            new_tree, ys = _split_result(result, out_axes)
            new_tree = input_slots(new_tree, graphdef.roots)
            before = (carry[0], carry_tree)
            check_carry(form, rules, "scan", before, out, new_tree, change)
            new_carry = (_where(is_carry, entries, out), new_tree)
            left = counts.left(counted, out, change)
            return (new_carry, left), (ys, _where(_is_axis, entries, out), change)

        body = named_like(function, body)
        (last, left), (ys, stacked, change) = jax.lax.scan(
            body, (carry_in, counted), scanned, **options
        )
        y_leaves, y_def = jax.tree.flatten(ys)
        y_axes = spread(_split_result(out_axes, out_axes)[1], ys, "out_axes", _is_entry)
        moved = [_moved(y, 0, axis) for y, axis in zip(y_leaves, y_axes, strict=True)]
        carry = put_back(last[1], [Slot(r) for r in graphdef.roots])
        leaving = [*leaves_out(change, graphdef), *([()] * len(entries))]
        out = [
            c if is_carry(e) else _moved(s, 0, e) if _is_axis(e) else [left[leaf] for leaf in b]
            for c, s, e, b in zip(last[0], stacked, entries, leaving, strict=False)
        ]
        return _join_result(carry, y_def.unflatten(moved), out_axes), out, change

    return run


def _is_axis(entry: Any) -> bool:
    return isinstance(entry, int)


def _where(kind: Callable[[Any], bool], entries: Sequence[Any], groups: Sequence[Any]) -> list[Any]:
    """The groups whose entry is of a kind; None for the others."""
    return [g if kind(e) else None for g, e in zip(groups, entries, strict=True)]


def _split_result(result: Any, out_axes: Any) -> tuple[Any, tuple]:
    """(the carried part of a result, the rest)."""
    if not isinstance(out_axes, tuple):
        result, out_axes = (result,), (out_axes,)
    if not isinstance(result, tuple) or len(result) != len(out_axes):
        raise ValueError(
            f"scan: out_axes={out_axes!r} has {len(out_axes)} entries, but the body returned "
            f"{_returned(result)}.\nCure: return a tuple with one value for each entry."
        )
    pairs = [*zip(result, out_axes, strict=True)]
    carry = next((x for x, e in pairs if is_carry(e)), None)
    return carry, tuple(x for x, e in pairs if not is_carry(e))


def _returned(result: Any) -> str:
    if isinstance(result, (tuple, list)):
        return f"a {type(result).__name__} of {len(result)}"
    return "an object" if type(result) is Slot else describe_value(result)


def _join_result(carry: Any, ys: Any, out_axes: Any) -> Any:
    if not isinstance(out_axes, tuple):
        return carry if is_carry(out_axes) else ys[0]
    rest = iter(ys)
    return tuple(carry if is_carry(e) else next(rest) for e in out_axes)


def input_slots(tree: Any, roots: tuple[int, ...]) -> Any:
    """Slots of a result name records; those of arguments name roots. The carry must be the same."""
    numbers = {record: number for number, record in enumerate(roots)}
    return jax.tree.map(
        lambda x: Slot(numbers.get(x.number, -1 - x.number)) if is_slot(x) else x,
        tree,
        is_leaf=is_slot,
    )
