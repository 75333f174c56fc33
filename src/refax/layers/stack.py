"""Stack: n blocks of one structure as one scanned layer, compiled as one block."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from .._jax_compat import TRACE
from ..graph.graphdef import GraphDef
from ..graph.rebuild import rebuild
from ..lift.arguments import is_object, stops
from ..lift.axis_names import AxisName
from ..lift.closures import reads_objects
from ..lift.places import outline
from ..objects import arguments as fit
from ..objects.errors import describe_value, path_string
from ..objects.node import new_pytree
from ..objects.placing import placed_by_annotation
from ..objects.statics import static_key, static_value
from ..objects.variable import Variable, raw, set_raw_value, trace_of
from ..objects.variable_types import Param
from ..transforms.carry import Carry
from ..transforms.differences import difference_between
from ..transforms.grad import remat as rematerialized
from ..transforms.prefixes import StateAxes
from ..transforms.scan import scan
from ..transforms.vmap import vmap
from ..verbs.layouts import leaves_of, plan_of
from ..verbs.module import Module
from ..verbs.names import named_variables
from ..verbs.pytree import Pytree
from ..verbs.rngs import Rngs, RngStream
from ..verbs.scopes import rename_stacked
from ..verbs.spmd import PARTITION_NAME
from ..verbs.updating import update
from .options import keep_options
from .sequential import has_rngs

# An object passed to the call goes from block to block, as it would in a loop over a list. Its
# parameters do not: what is carried is kept for the way back once a block.
_PASSED_ON = StateAxes({Param: None, ...: Carry})

Remat = Annotated[
    bool | Callable[..., bool],
    fit.Fits(
        "True, False or a policy of what to keep",
        lambda x: fit.is_bool(x) or callable(x),
        "such as jax.checkpoint_policies.dots_saveable.",
    ),
]


class Stack(Module):
    """n blocks of one structure, one after the other: `for block in blocks: x = block(x)`.

    The blocks are one object, `blocks`, each Variable of which has a leading axis of size n; a
    `nnx.scan` goes over it. So a program has one block in it, and takes about as long to compile,
    whatever n is. Everything else is as in a loop over a list of blocks: each has its own
    parameters, its own random streams, its own statistics and caches, which it updates.

    Args:
        make_block: makes one block: a class or function that is called with `rngs` (by name if it
            has a parameter of that name, by position else; without arguments if `rngs` is None).
            A block takes x (any pytree) and returns the next x, of the same shapes and dtypes.
        n: the number of blocks.
        rngs: block i is made with part i of `rngs.fork(splits=n)`.
        remat: True to compute the inside of each block again on the way back, instead of keeping
            it; or what of it to keep, a policy such as `jax.checkpoint_policies.dots_saveable`.
        unroll: how many blocks one step of the loop runs, as in `jax.lax.scan`.
        outputs: blocks return (x, y); the call returns (x, ys), the ys stacked.
        per_block: arguments of the call (names, or positions, where x is 0) with a leading axis
            of size n, of which each block gets its own part. Every block gets all of the others.
        transform_metadata: `{nnx.PARTITION_NAME: name}` names the leading axis in the `sharding`
            annotations of the parameters; it is None there otherwise.

    Raises:
        ValueError: (of the call) a block returns another form than it got.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> class Block(nnx.Module):
        ...     def __init__(self, features, rngs):
        ...         self.norm = nnx.LayerNorm(features, rngs=rngs)
        ...         self.linear = nnx.Linear(features, features, rngs=rngs)
        ...
        ...     def __call__(self, x):
        ...         return x + self.linear(nnx.relu(self.norm(x)))
        >>> stack = nnx.Stack(lambda rngs: Block(8, rngs), 4, rngs=nnx.Rngs(0))
        >>> stack.blocks.linear.kernel.shape, stack(jnp.ones((2, 8))).shape
        ((4, 8, 8), (2, 8))
        >>> stack[3].linear.kernel.shape, len(stack[:2]), len(stack.to_list())
        ((8, 8), 2, 4)
    """

    remat: bool | Callable[..., bool] = False
    unroll: fit.Size | bool = 1
    outputs: bool = False
    per_block: Sequence[str | int] = ()
    partition_name: str | None = None

    @fit.checked
    def __init__(
        self,
        make_block: Callable[..., Any],
        n: fit.Count,
        *,
        rngs: Rngs | RngStream | None = None,
        remat: Remat = False,
        unroll: fit.Size | bool = 1,
        outputs: bool = False,
        per_block: Sequence[str | int] = (),
        transform_metadata: fit.Metadata | None = None,
    ):
        self._set_options(remat, unroll, outputs, per_block, transform_metadata)
        if isinstance(make_block, Pytree) or not callable(make_block):
            raise fit.ArgumentError(
                f"Stack: make_block is {describe_value(make_block)}, but must make blocks.\n"
                "Cure: nnx.Stack(Block, n, rngs=rngs) or nnx.Stack(lambda rngs: Block(8, rngs), n, "
                "rngs=rngs); for blocks that exist, nnx.Stack.from_list(blocks)."
            )
        self.n = n
        make = functools.partial(_make, make_block)
        given = () if rngs is None else (rngs.fork(splits=n),)
        self.blocks: Any = vmap(make, axis_size=n, transform_metadata=self._metadata)(*given)
        if not isinstance(self.blocks, Pytree):
            raise fit.ArgumentError(
                f"Stack: make_block returned {describe_value(self.blocks)}, not a block.\n"
                "Cure: return a Module."
            )

    @classmethod
    def from_list(cls, blocks: Iterable[Any], **options: Any) -> Stack:
        """The Stack of these blocks, with copies of their values. Keywords as for `Stack`.

        Raises:
            ValueError: blocks that differ in more than the values of their arrays, or that share
                a Variable; with the path.

        Example:
            >>> from refax import nnx
            >>> rngs = nnx.Rngs(0)
            >>> stack = nnx.Stack.from_list([nnx.Linear(2, 2, rngs=rngs) for _ in range(3)])
            >>> stack.blocks.kernel.shape
            (3, 2, 2)
        """
        blocks = list(blocks)
        if not blocks:
            raise fit.ArgumentError(
                "Stack.from_list: no block was given, so there is nothing to take the structure "
                "from.\nCure: nnx.Stack(make_block, 0, rngs=rngs)."
            )
        self = new_pytree(cls)
        self._set_options(**options)
        self.n = len(blocks)
        self.blocks = stack_blocks(blocks, AxisName(self._metadata))
        return self

    @fit.checked
    def _set_options(
        self,
        remat: Remat = False,
        unroll: fit.Size | bool = 1,
        outputs: bool = False,
        per_block: Sequence[str | int] = (),
        transform_metadata: fit.Metadata | None = None,
    ) -> None:
        per_block = tuple(per_block)
        partition_name = (transform_metadata or {}).get(PARTITION_NAME)
        keep_options(self, locals())

    @property
    def _metadata(self) -> dict[str, Any]:
        return {PARTITION_NAME: self.partition_name}

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """x after all blocks; with `outputs`, (x, what the blocks returned beside it, stacked).

        Args:
            x: any pytree of arrays.
            *args, **kwargs: for every block. Arrays and objects may differ from call to call; the
                rest (`deterministic=True`, a Python number) is static, as in a plain call. What
                blocks do to the state of an object, such as `rngs`, the next block sees.
        """
        n = self._here()
        leaves = jax.tree.leaves((args, kwargs), is_leaf=stops)
        # A function that reads objects may see others at the next call: no program of it is kept.
        reads = any(reads_objects(x) for x in leaves if not _is_dynamic(x))
        arguments = jax.tree.map(
            lambda x: x if _is_dynamic(x) else _Static(static_key(x)), (args, kwargs), is_leaf=stops
        )

        def axis(path: Any, leaf: Any) -> Any:
            name = path[1].idx + 1 if path[0].idx == 0 else path[1].key
            if name not in self.per_block:
                return _PASSED_ON if is_object(leaf) else None
            if not stops(leaf) and np.shape(leaf)[:1] != (n,):
                where = jax.tree_util.keystr(path[2:])
                raise fit.ArgumentError(
                    f"Stack: the argument {name!r}{where} is {describe_value(leaf)}, but it is in "
                    f"per_block, so its first axis must be that of the {n} blocks."
                )
            return 0

        axes = jax.tree_util.tree_map_with_path(axis, arguments, is_leaf=stops)
        # Where no loop is left, XLA would find the two computations equal and keep the first.
        unrolled = self.unroll is True or n <= self.unroll
        options = _Static(static_key((self.outputs, self.remat, unrolled)))
        run = scan(
            functools.partial(_step) if reads else _step,
            length=n,
            unroll=self.unroll,
            in_axes=(0, Carry, axes, None),
            out_axes=(Carry, 0) if self.outputs else Carry,
            transform_metadata=self._metadata,
        )
        rename_stacked(self.blocks)
        return run(self.blocks, x, arguments, options)

    def _here(self) -> int:
        """How many blocks are here: under `shard_map` over their axis, a device has some of all."""
        first = jax.tree.leaves([raw(leaf) for leaf in plan_of(self.blocks).leaves()[:1]])
        return np.shape(first[0])[0] if first else self.n

    def vmap(self, f: Callable[[Any], Any]) -> Any:
        """`f(block)` of every block, as one `nnx.vmap`; results are stacked, changes are kept.

        Example:
            >>> from refax import nnx
            >>> stack = nnx.Stack(
            ...     lambda rngs: nnx.MultiHeadAttention(2, 8, decode=True, rngs=rngs),
            ...     3,
            ...     rngs=nnx.Rngs(0),
            ... )
            >>> stack.vmap(lambda attention: attention.init_cache((1, 16, 8)))
            >>> stack.blocks.cached_key.shape
            (3, 1, 16, 2, 4)
        """
        rename_stacked(self.blocks)
        return vmap(f, axis_size=self._here(), transform_metadata=self._metadata)(self.blocks)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self.n))

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """Block number `index`, or the Stack of a slice: new objects, with copies of the values.

        What is done to them does not reach the Stack; to change a block, put it back:
        `stack[3] = block`.
        """
        axis = AxisName(self._metadata)
        if not isinstance(index, slice):
            return take_blocks(self.blocks, self._number(index), axis)
        part = copy.copy(self)
        part.n = len(range(self.n)[index])
        part.blocks = take_blocks(self.blocks, index, axis)
        return part

    def __setitem__(self, index: SupportsIndex, block: Any) -> None:
        """Give block number `index` the values of `block`, which must be like the others."""
        put_block(self.blocks, self._number(index), block, AxisName(self._metadata))

    def _number(self, index: SupportsIndex) -> int:
        number = operator.index(index)
        if not -self.n <= number < self.n:
            raise IndexError(f"Stack: there is no block {number}, it has {self.n} blocks.")
        return number % self.n

    def to_list(self) -> list[Any]:
        """The blocks, each an object of its own with a copy of its values."""
        return list(self)


def _make(make_block: Callable[..., Any], *rngs: Any) -> Any:
    by_name = rngs and has_rngs(make_block)
    block = make_block(rngs=rngs[0]) if by_name else make_block(*rngs)
    check_own(block)
    return block


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """A static value among arrays: a pytree without leaves, compared as static attributes are."""

    key: tuple  # see `static_key`


def _is_dynamic(value: Any) -> bool:
    return stops(value) or isinstance(value, (jax.Array, np.ndarray, np.generic))


def _step(block: Any, x: Any, arguments: Any, options: _Static) -> Any:
    """One block, as the body of the scan."""
    outputs, remat, prevent_cse = static_value(options.key)

    def call(block: Any, x: Any, arguments: Any) -> Any:
        args, kwargs = jax.tree.map(
            lambda leaf: static_value(leaf.key) if isinstance(leaf, _Static) else leaf,
            arguments,
            is_leaf=lambda leaf: isinstance(leaf, _Static) or stops(leaf),
        )
        return block(x, *args, **kwargs)

    if remat is not False:
        policy = None if remat is True else remat
        call = rematerialized(call, policy=policy, prevent_cse=prevent_cse)
    result = call(block, x, arguments)
    if outputs and not (isinstance(result, tuple) and len(result) == 2):
        raise fit.ArgumentError(
            f"Stack: outputs=True, but the block returned {describe_value(result)}.\n"
            "Cure: return (x, y), or make the Stack with outputs=False."
        )
    if not outputs and isinstance(result, tuple) and not isinstance(x, tuple):
        raise fit.ArgumentError(
            f"Stack: the block returned a tuple of {len(result)}, but was given one "
            f"{describe_value(x)}, and each block gets what the one before returned.\n"
            "Cure: if it is (x, y), with y for the caller, make the Stack with outputs=True."
        )
    return result


# -- Blocks of one structure as one block, whose arrays have a leading axis; and the way back -----

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
