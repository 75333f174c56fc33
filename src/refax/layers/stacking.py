"""Blocks of one structure as one block, whose arrays have a leading axis; and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._jax_compat import TRACE
from ..graph.graphdef import GraphDef
from ..graph.rebuild import rebuild
from ..lift.axis_names import AxisName
from ..lift.places import outline
from ..objects.errors import describe_value, path_string
from ..objects.placing import placed_by_annotation
from ..objects.variable import Variable, raw, set_raw_value, trace_of
from ..transforms.differences import difference_between
from ..verbs.layouts import leaves_of
from ..verbs.names import named_variables
from ..verbs.updating import update

_SHARE = (
    "Cure: pass what is shared to the call, stack(x, shared); or give each block a copy of its own "
    "(nnx.clone)."
)


def stack_blocks(blocks: Sequence[Any], axis: AxisName) -> Any:
    """One block with the values of all, stacked; `axis` is the name of the new axis."""
    _check_unshared(blocks)
    graphdef, leaves = leaves_of(blocks[0])
    values = [_alike(blocks[0], "block 0", block, f"block {i}") for i, block in enumerate(blocks)]
    stacked = [
        _with_value(leaf, jax.tree.map(lambda *x: jnp.stack(x), *of_blocks))
        for leaf, *of_blocks in zip(leaves, *values, strict=True)
    ]
    variables = [leaf for leaf in stacked if isinstance(leaf, Variable)]
    axis.add(variables, [0] * len(variables))
    for v in variables if axis.places else ():
        if "sharding" in v._metadata:
            name = f"The stacked {type(v).__name__}"
            set_raw_value(v, placed_by_annotation(v._value, v._metadata, name))
    return rebuild(graphdef, stacked)[0]


def take_blocks(stacked: Any, index: int | slice, axis: AxisName) -> Any:
    """The block at an index, or the stacked blocks of a slice, as new objects."""
    graphdef, leaves = leaves_of(stacked)
    if not isinstance(index, slice):
        variables = [leaf for leaf in leaves if isinstance(leaf, Variable)]
        axis.remove(variables, [0] * len(variables), graphdef)
    taken = [_with_value(v, jax.tree.map(lambda x: x[index], raw(v))) for v in leaves]
    return rebuild(graphdef, taken)[0]


def put_block(stacked: Any, index: int, block: Any, axis: AxisName) -> None:
    """Write the values of a block into the stacked ones, in place."""
    present = take_blocks(stacked, index, axis)
    values = _alike(present, "the Stack's blocks", block, "the new block")
    graphdef, leaves = leaves_of(stacked)
    written = [
        _with_value(leaf, jax.tree.map(lambda x, y: x.at[index].set(y), raw(leaf), value))
        for leaf, value in zip(leaves, values, strict=True)
    ]
    update(stacked, rebuild(graphdef, written)[0])


def _with_value(leaf: Any, value: Any) -> Any:
    """A leaf that `leaves_of` made, with another value."""
    if not isinstance(leaf, Variable):
        return value
    set_raw_value(leaf, value)
    return leaf


def _alike(expected: Any, name: str, block: Any, other_name: str) -> list[Any]:
    """The values of `block`; raises if it differs from `expected` in more than those."""
    (graphdef, leaves), (other, others) = leaves_of(expected), leaves_of(block)
    for place, was, now in _differences(graphdef, leaves, other, others):
        raise ValueError(
            "Stack: the blocks must be alike but for the values of their arrays, and "
            f"`{place}` is {was} in {name} but {now} in {other_name}.\n"
            "Cure: make them alike, or keep blocks that are not in a plain list."
        )
    return [raw(leaf) for leaf in others]


def _differences(
    graphdef: GraphDef, leaves: list[Any], other: GraphDef, others: list[Any]
) -> Iterator[tuple[str, str, str]]:
    """(place, what is there, what is there in the other) of what differs; the values do not."""
    if graphdef != other:
        old, new = outline(graphdef, ["block"]), outline(other, ["block"])
        for place in {**old, **new}:
            found = difference_between(place, old.get(place), new.get(place))
            if found is not None:
                yield found
        unseen = "the order of its attributes, or what a function closes over"
        yield "block", "one thing", f"another ({unseen})"
    for path, leaf, same in zip(graphdef.paths.leaves, leaves, others, strict=True):
        was, now = (jax.tree.map(jax.typeof, raw(x)) for x in (leaf, same))
        if was != now:
            yield path_string(path, "block"), describe_value(was), describe_value(now)


def check_own(block: Any) -> None:
    """Raise if a block that is being made holds a Variable from outside."""
    for name, variable in named_variables(block):
        if trace_of(variable) is not TRACE.value:
            raise ValueError(
                f"Stack: make_block returned a block whose `{name}` is a "
                f"{type(variable).__name__} from outside, but in a Stack each block has its own.\n"
                f"{_SHARE}"
            )


def _check_unshared(blocks: Sequence[Any]) -> None:
    owner: dict[int, tuple[int, str]] = {}
    for i, block in enumerate(blocks):
        for name, variable in named_variables(block):
            first, first_name = owner.setdefault(id(variable), (i, name))
            if first != i:
                raise ValueError(
                    f"Stack.from_list: the {type(variable).__name__} at `blocks[{i}].{name}` is "
                    f"that at `blocks[{first}].{first_name}`, but in a Stack each block has its "
                    f"own.\n{_SHARE}"
                )
