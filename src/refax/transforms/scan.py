"""`scan`: carry, scanned and broadcast leaves, of arguments and of the objects in them.

`jax.lax.scan` gets three things: what is carried, what is scanned (its axis moved to the front) and
what is broadcast (closed over). Of the objects, only scanned Variables that the body wrote are
stacked; a read-only one goes in and does not come out. What is broadcast is not written, but for
the counts of random streams (`broadcast_counts.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..lift.arguments import Slot, is_slot, named_like, put_back, unbind
from ..lift.array_prefix import spread
from ..lift.axis_names import AxisName
from ..lift.call import CallForm, pure_function
from ..lift.errors import PrefixError
from ..lift.inside import leaves_out
from ..lift.places import place_of_leaf
from ..lift.prefix import FilterPrefix, OutputRules
from ..objects.errors import describe_value
from ..objects.statics import static_key
from .bound import by_position, decorator_or_function, lifted, with_self
from .broadcast_counts import (
    broadcast_counts,
    counts_left,
    drawn_differently,
    only_counts_written,
    run_with_counts,
    varying,
)
from .carry import Carry, check_carry, is_carry
from .mapped import MappedCall, check_sizes


@decorator_or_function
def scan(
    f: Callable,
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    in_axes: Any = (Carry, 0),
    out_axes: Any = (Carry, 0),
    transform_metadata: Mapping[str, Any] | None = None,
) -> Callable:
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
    options = {
        "length": length,
        "reverse": reverse,
        "unroll": unroll,
        "_split_transpose": _split_transpose,
    }

    def run(f: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        function, bound = unbind(f)
        args = by_position(f, args, kwargs, in_axes)
        args, prefix, _ = with_self(wrapped, bound, args, {}, in_axes, None)
        prefix = prefix if isinstance(prefix, tuple) else (prefix,) * len(args)
        carried = _carried(prefix, out_axes)
        mapped = MappedCall(function, args, {}, prefix, out_axes, "in_axes", is_leaf=_is_entry)

        def make(functions: tuple[Callable, ...]) -> Callable:
            form = mapped.call.form(function)
            return _loop(
                functions[0], form, mapped.rules, prefix, out_axes, carried, options, named
            )

        key = ("scan", named and named.names, *map(static_key, options.values()))
        return mapped.run(make, key, functools.partial(check_sizes, "scan"))

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
    for entry in jax.tree.leaves(out_axes, is_leaf=_is_entry):
        if entry is None:
            raise PrefixError(
                "scan: out_axes has None, but every step returns a value of its own.\n"
                "Cure: stack it with an int, or carry it to get the last one."
            )
    return places[0] if places else None


def _front(value: Any, axis: Any) -> Any:
    return jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), axis, 0), value) if axis else value


def _back(value: Any, axis: Any) -> Any:
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), value) if axis else value


def _loop(
    function: Callable,
    form: CallForm,
    rules: OutputRules,
    prefix: tuple,
    out_axes: Any,
    carried: int | None,
    options: dict[str, Any],
    named: AxisName | None,
) -> Callable:
    """The pure function of (values by group, tree): one `jax.lax.scan`."""
    entries = rules.entries
    always = tuple(is_carry(e) for e in entries)
    counts = broadcast_counts(form.graphdef, form.groups)
    check = only_counts_written(form.graphdef, rules, counts)
    pure = pure_function(
        function, form, always=always, rules=rules, axis_name=named, returned=check
    )
    roots = form.graphdef.roots

    def problem(leaf: int) -> PrefixError:
        place = place_of_leaf(form.graphdef, rules.arguments, leaf)
        cure = "nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None})"
        return drawn_differently(place, "scan", "step", cure)

    def run(grouped: Sequence[Sequence[Any]], tree: Any) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        axes = spread(prefix, tree[0], "args", _is_entry)
        carry_tree = None if carried is None else tree[0][carried]
        if sum(map(is_carry, axes)) != len(jax.tree.leaves(carry_tree)):
            raise PrefixError(
                "scan: a lift type has nnx.Carry for an array, which has no place to be carried "
                "to.\nCure: carry the whole argument, or keep the array in an nnx.Variable."
            )
        # The groups of values, then the arrays of the arguments, with the axis of each.
        inputs, all_axes = [*map(list, grouped), *leaves], [*entries, *axes]
        carry_in = [x if is_carry(e) else None for x, e in zip(inputs, all_axes, strict=True)]
        scanned = [
            _front(x, e) if isinstance(e, int) else None
            for x, e in zip(inputs, all_axes, strict=True)
        ]
        count = len(entries)
        counted = [grouped[c.group][c.index] for c in counts]

        def body(carries: Any, xs: Any) -> Any:
            carry, _ = carries
            full = [
                c if is_carry(e) else (x if isinstance(e, int) else whole)
                for c, x, whole, e in zip(carry, xs, inputs, all_axes, strict=True)
            ]
            arguments = (full[:count], treedef.unflatten(full[count:]))
            if counts:
                varies = [varying(e) for x, e in zip(full, all_axes, strict=True)
                          for _ in jax.tree.leaves(x)]  # fmt: skip
                done = run_with_counts(pure, arguments, varies, counts, form.graphdef, problem)
            else:
                done = pure(*arguments)
            result, out, change = done
            new_tree, ys = _split_result(result, out_axes)
            new_tree = input_slots(new_tree, roots)
            before = (carry[:count], carry_tree, jax.tree.leaves(carry[count:]))
            check_carry(form, rules, "scan", before, out, new_tree, change)
            new_leaves = iter(jax.tree.leaves(new_tree))
            new_carry = [o if is_carry(e) else None for o, e in zip(out, entries, strict=True)]
            new_carry += [next(new_leaves) if is_carry(e) else None for e in axes]
            stacked = [o if isinstance(e, int) else None for o, e in zip(out, entries, strict=True)]
            left = counts_left(counts, form.graphdef, counted, out, change)
            return (new_carry, left), (ys, stacked, change)

        body = named_like(function, body)
        (last, left), (ys, stacked, change) = jax.lax.scan(
            body, (carry_in, counted), scanned, **options
        )
        y_leaves, y_def = jax.tree.flatten(ys)
        y_axes = spread(_split_result(out_axes, out_axes)[1], ys, "out_axes", _is_entry)
        moved = y_def.unflatten(map(_back, y_leaves, y_axes))
        new_tree = jax.tree.structure(carry_tree).unflatten(jax.tree.leaves(last[count:]))
        result = _join_result(put_back(new_tree, [Slot(r) for r in roots]), moved, out_axes)
        new_counts = {c.leaf: value for c, value in zip(counts, left, strict=True)}
        leaving = [*leaves_out(change, form.graphdef), *([()] * count)]
        out = [
            g if is_carry(e) else _back(s, e) if isinstance(e, int) else [new_counts[i] for i in b]
            for g, s, e, b in zip(last[:count], stacked, entries, leaving[:count], strict=True)
        ]
        return result, out, change

    return run


def _split_result(result: Any, out_axes: Any) -> tuple[Any, Any]:
    """(the carried part of a result, the rest)."""
    if is_carry(out_axes):
        return result, ()
    if not isinstance(out_axes, tuple) or not any(map(is_carry, out_axes)):
        return None, result
    if not isinstance(result, tuple) or len(result) != len(out_axes):
        raise ValueError(
            f"scan: out_axes={out_axes!r} has {len(out_axes)} entries, but the body returned "
            f"{_returned(result)}.\nCure: return a tuple with one value for each entry."
        )
    place = next(i for i, e in enumerate(out_axes) if is_carry(e))
    return result[place], result[:place] + result[place + 1 :]


def _returned(result: Any) -> str:
    if isinstance(result, (tuple, list)):
        return f"a {type(result).__name__} of {len(result)}"
    return "an object" if type(result) is Slot else describe_value(result)


def _join_result(carry: Any, ys: Any, out_axes: Any) -> Any:
    if is_carry(out_axes):
        return carry
    if isinstance(out_axes, tuple) and any(map(is_carry, out_axes)):
        place = next(i for i, e in enumerate(out_axes) if is_carry(e))
        return (*ys[:place], carry, *ys[place:])
    return ys


def input_slots(tree: Any, roots: tuple[int, ...]) -> Any:
    """Slots of a result name records; those of arguments name roots. The carry must be the same."""
    numbers = {record: number for number, record in enumerate(roots)}
    return jax.tree.map(
        lambda x: Slot(numbers.get(x.number, -1 - x.number)) if is_slot(x) else x,
        tree,
        is_leaf=is_slot,
    )
