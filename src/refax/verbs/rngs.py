"""Random streams inside objects: split, forked, shared and reseeded, for a time or in a copy.

Random state is ordinary state, so every verb here only looks for the streams below an object and
gives them other keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Literal, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np

from ..graph.filters import All, Filter, to_predicate
from ..objects.arguments import Size, checked
from ..objects.errors import path_string
from ..objects.modes import Switch, without_modes
from ..objects.type_names import F, O, Path
from ..objects.variable import Variable, all_or_none, set_raw_value
from .copying import clone
from .iteration import BEFORE, children_as_made, iter_graph, visit
from .random_streams import Rngs as Rngs
from .random_streams import RngStream as RngStream
from .random_streams import as_key, check_names, splits_of

Policy = (
    Literal["match_shape", "scalars_only"] | Callable[[Path, jax.Array, tuple[int, ...]], jax.Array]
)
Splits = Size | Sequence[Size] | Mapping[Filter, Size | Sequence[Size] | None] | None


def iter_streams(node: Any, only: Filter = ...) -> list[tuple[tuple, RngStream]]:
    """Every (path, stream) below `node` whose key the filter matches.

    Raises:
        ValueError: the filter names a stream that is not among those that there are. (Where there
            is none at all, nothing is to be done: a model may be made without.)
    """
    matches = to_predicate(only)
    streams = [(path, value) for path, value in iter_graph(node) if isinstance(value, RngStream)]
    if streams:
        check_names((matches,), streams)
    return [(path, stream) for path, stream in streams if matches((*path, "key"), stream.key)]


class SplitBackups(list[Any]):
    """What `split_rngs` and `fork_rngs` return: backups of the streams, and a context manager."""

    def __enter__(self) -> SplitBackups:
        return self

    def __exit__(self, *error: Any) -> None:
        restore_rngs(self)


@checked
def backup_keys(node: Any, /, *, only: Filter = ..., graph: Switch = None) -> SplitBackups:
    """The keys and counts of all streams below `node`, for `restore_rngs`."""
    return SplitBackups(
        [(stream, stream.key.value, stream.count.value) for _, stream in iter_streams(node, only)]
    )


@checked
def restore_rngs(backups: Sequence[tuple[RngStream, Any, Any]], /) -> None:
    """Put the streams back to where `backup_keys`, `split_rngs` or `fork_rngs` found them."""
    with all_or_none(_cells(stream for stream, *_ in backups)):
        for stream, key, count in backups:
            stream.key.value = key
            stream.count.value = count


def _cells(streams: Iterable[RngStream]) -> list[Variable]:
    return [cell for stream in streams for cell in (stream.key, stream.count)]


@checked
def reseed(
    node: Any, /, *, policy: Policy = "match_shape", graph: Switch = None, **stream_keys: Any
) -> None:
    """Put the streams of these names below `node` to where a model made with these seeds has them.

    Every stream gets a key of its own. The streams that layers keep are forks: number i, in the
    order in which the attributes were assigned, gets key number i of the seed, and the count 0. A
    single `nnx.Rngs` that is kept beside them is where they were forked from: it gets the seed
    itself, and goes on behind their keys.

    Args:
        node: an object graph, or a pytree of them.
        policy: what a stacked stream gets from one key: "match_shape", the key split into as many;
            "scalars_only", an error; or a function (path, key, shape) → keys.
        graph: accepted, without effect.
        **stream_keys: name → seed, as for `nnx.Rngs`; an array of keys for streams of its shape.

    Raises:
        ValueError: a name that no stream has, or keys of another shape than the stream's.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=42))
        >>> y = dropout(jnp.ones(8))
        >>> nnx.reseed(dropout, dropout=42)
        >>> bool((dropout(jnp.ones(8)) == y).all())
        True
    """
    streams: list[tuple[tuple, RngStream]] = []
    of_rngs: set[int] = set()  # ids of the streams that an Rngs holds
    for path, value, when in visit(node, children_as_made):
        if isinstance(value, Rngs):
            of_rngs.update(id(stream) for _, stream in value.items())
        elif isinstance(value, RngStream) and when == BEFORE:
            streams.append((path, value))
    stream_keys = dict(without_modes(stream_keys))
    check_names(stream_keys, streams)
    fresh: list[tuple[RngStream, jax.Array, int]] = []
    for name, seed in stream_keys.items():
        key = as_key(seed)
        named = [(path, stream) for path, stream in streams if stream.tag == name]
        roots = [s for path, s in named if id(s) in of_rngs or not path]
        root = roots[0] if len(roots) == 1 and roots[0].key.shape == key.shape else None
        if root is not None:
            fresh.append((root, key, len(named) - 1))
        forks = [(path, stream) for path, stream in named if stream is not root]
        for i, (path, stream) in enumerate(forks):
            fresh.append((stream, _as_stacked(path, _key_number(i, key), stream, policy), 0))
    with all_or_none(_cells(stream for stream, *_ in fresh)):
        for stream, key, count in fresh:
            stream.key.value = key
            stream.count.value = jnp.full(key.shape, count, jnp.uint32)


def _key_number(i: int, keys: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), i).reshape(keys.shape)


def _as_stacked(path: tuple, key: jax.Array, stream: RngStream, policy: Any) -> jax.Array:
    """The new key of a stream, or as many as it has."""
    shape = stream.key.shape
    if key.shape == shape:
        return key
    given = f"reseed: the stream {stream.tag!r} (`{path_string(path)}`) has keys of shape {shape}"
    if key.shape:
        raise ValueError(
            f"{given}, the new ones have {key.shape}.\nCure: pass one key, or as many."
        )
    if policy == "scalars_only":
        raise ValueError(
            f"{given}, and policy='scalars_only' takes single keys only.\n"
            "Cure: policy='match_shape', which splits the new key; or a function (path, key, "
            "shape) → keys."
        )
    if policy == "match_shape":
        return jax.random.split(key, shape)
    return policy(path, key, shape)


def _renew(node: Any, only: Filter, splits: Any, squeeze: bool = False) -> SplitBackups:
    """Other keys for the streams, of each as many as `splits` says; and what they had."""
    renewed: list[tuple[RngStream, Any]] = []
    for path, stream in iter_streams(node, only):
        wanted = splits_of(splits, (*path, "key"), stream.key)
        shape = () if _on_axes(wanted) else stream.key.value.shape
        if shape and shape != wanted:
            raise ValueError(
                f"split_rngs: the stream `{path_string(path)}` is split already, it has keys of "
                f"shape {shape}.\nCure: leave it out with only=…, or restore it first."
            )
        if not shape:  # one that is split as wanted already stays as it is
            renewed.append((stream, wanted))
    backups = SplitBackups()
    with all_or_none(_cells(stream for stream, _ in renewed)):
        for stream, wanted in renewed:
            key, count = stream.key.value, stream.count.value
            if _on_axes(wanted):  # a stacked stream too, each of its keys
                own: Any = functools.partial(_key_on_axes, names=wanted)
                for _ in key.shape:
                    own = jax.vmap(own)
                fresh = own(key, count)
            else:
                fresh = stream() if wanted is None else jax.random.split(stream(), wanted)
            fresh = fresh.reshape(()) if squeeze else fresh
            # Restoring keeps the count moved on by one: the next split gives other keys.
            backups.append((stream, key, count + jnp.uint32(1)))
            set_raw_value(stream.key, fresh)
            set_raw_value(stream.count, jnp.zeros(fresh.shape, jnp.uint32))
    return backups


def _on_axes(splits: Any) -> bool:
    return isinstance(splits, (str, tuple, list)) and bool(splits) and isinstance(splits[0], str)


def _key_on_axes(key: jax.Array, count: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Of the next key of a stream, split along named axes, the part that belongs here."""
    try:
        sizes, at = map(jax.lax.axis_size, names), map(jax.lax.axis_index, names)
        return jax.random.split(jax.random.fold_in(key, count), tuple(sizes))[tuple(at)]
    except NameError as error:
        raise ValueError(
            f"split_rngs: splits={names} names an axis that is not there ({error}).\nCure: a "
            "number of keys; or an axis of the nnx.shard_map, or nnx.vmap(axis_name=…), around "
            "the call."
        ) from None


class _Verb(Protocol[O]):
    @overload
    def __call__(self, *args: O.args, **options: O.kwargs) -> Callable[[F], F]: ...
    @overload
    def __call__(self, node: Any, /, *args: O.args, **options: O.kwargs) -> Any: ...


def _with_decorator(verb: Callable[Concatenate[Any, O], Any]) -> _Verb[O]:
    """The verb, its arguments checked; for checkers: without `node` it gives a decorator."""
    return checked(verb)  # type: ignore[return-value]


@_with_decorator
def split_rngs(
    node: Any = ...,
    /,
    *,
    splits: Size | Sequence[Size] | str | Sequence[str],
    only: Filter = ...,
    squeeze: bool = False,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> Any:
    """Split the streams below an object, so that a transform can map them; then lower them back.

    As a function it returns backups for `restore_rngs`, which are a context manager too; as a
    decorator it splits the streams of every argument before the call and lowers them afterwards,
    also when the function raises. A lowered stream has moved on by one key; one that is split as
    wanted already, by `fork(splits=…)`, is left alone.

    Args:
        node: an object graph; left out, a decorator is returned.
        splits: how many keys, or their shape. Inside `nnx.shard_map` (or a vmap with an
            `axis_name`) also the names of axes: each device has the key of its place on them.
        only: which streams, by filter (a name is a tag filter).
        squeeze: with `splits=1`, drop the axis.

    Example:
        >>> from refax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> with nnx.split_rngs(rngs, splits=5):
        ...     rngs.default.key.shape
        (5,)
        >>> rngs.default.key.shape, int(rngs.default.count.value)
        ((), 1)
    """
    how: Any = splits
    if squeeze and (_on_axes(how) or np.prod(how) != 1):
        raise ValueError(
            f"split_rngs: squeeze=True drops an axis of size 1, but splits={splits}.\n"
            "Cure: leave one of them out."
        )

    return _function_or_decorator(node, lambda x: _renew(x, only, splits, squeeze))


@_with_decorator
def fork_rngs(
    node: Any = ...,
    /,
    *,
    only: Filter = ...,
    split: Splits = None,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> Any:
    """Like `split_rngs`, with independent streams instead of split ones (or per filter, `split`).

    Args:
        node: an object graph; left out, a decorator is returned.
        only: which streams.
        split: an int or shape to split, a mapping filter → int, shape or None.
    """
    if isinstance(split, Mapping):
        only = All(only, tuple(split))
    return _function_or_decorator(node, lambda x: _renew(x, only, split))


def _function_or_decorator(node: Any, verb: Callable[[Any], Any]) -> Any:
    """What a verb makes of `node`; or, where that is left out, a decorator.

    Its function gets what the verb makes of the arguments; where that is backups, the arguments
    themselves, whose streams are put back afterwards.
    """
    if node is not ...:
        return verb(node)

    def decorator(f: Callable) -> Callable:
        @functools.wraps(f)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = verb((args, kwargs))
            if isinstance(made, SplitBackups):
                with made:
                    return f(*args, **kwargs)
            args, kwargs = made
            return f(*args, **kwargs)

        return wrapped

    return decorator


@_with_decorator
def with_rngs(
    node: Any = ...,
    /,
    *,
    split: Splits = None,
    fork: Filter = None,
    broadcast: Splits = None,
    only: Filter = ...,
    graph: Switch = None,
    graph_updates: Switch = None,
) -> Any:
    """A view of an object graph whose streams are split, forked or broadcast; see `nnx.view`.

    What no rule matches is shared with the original, as the Variables that are not random state
    are. Each original stream that a rule matches moves on by one key.

    Args:
        node: an object graph or a container of them; left out, a decorator is returned, whose
            function gets such views of its arguments.
        split: how many streams, each with its key: an int or shape, or a mapping filter → int or
            shape.
        fork: a filter, or several: independent streams.
        broadcast: likewise to `split`, but all with one key.
        only: which streams the rules are for.
        graph, graph_updates: accepted, without effect.

    Raises:
        ValueError: two filters of rules match one stream (`...` and a mere int are for what the
            others leave), or one names no stream.

    Example:
        >>> from refax import nnx
        >>> rngs = nnx.Rngs(params=0, dropout=1)
        >>> view = nnx.with_rngs(rngs, split={"params": 4}, fork=...)
        >>> view.params.key.shape, view.dropout.key.shape, rngs.params.key.shape
        ((4,), (), ())
    """

    def entries(rule: Any) -> list[tuple[Filter, Any]]:
        shapes = rule if isinstance(rule, Mapping) else {...: rule}
        return [(f, shape) for f, shape in shapes.items() if shape is not None]

    forks = () if fork is None else fork if isinstance(fork, (list, tuple)) else (fork,)
    rules: list[tuple[str, Filter, Any]] = [
        *(("split", *entry) for entry in entries(split)),
        *(("fork", f, None) for f in forks),
        *(("broadcast", *entry) for entry in entries(broadcast)),
    ]
    predicates = [to_predicate(f) for _, f, _ in rules]

    def view(x: Any) -> Any:
        copy = clone(x, variables=False)
        streams = iter_streams(copy)
        check_names(predicates if streams else (), streams)
        renewals: list[tuple[RngStream, str, Any]] = []
        for path, stream in iter_streams(copy, only):
            matching = [r for r, p in zip(rules, predicates, strict=True)
                        if p((*path, "key"), stream.key)]  # fmt: skip
            named = [r for r in matching if r[1] is not ... and r[1] is not True] or matching
            if len(named) > 1:
                raise ValueError(
                    f"with_rngs: the stream `{path_string(path)}` is matched by several rules: "
                    f"{', '.join(f'{verb} {filter!r}' for verb, filter, _ in named)}.\n"
                    "Cure: name it in one of them; `...` takes what the others leave."
                )
            renewals += [(stream, verb, shape) for verb, _, shape in named]
        with all_or_none(_cells(stream for stream, *_ in renewals)):
            for stream, verb, shape in renewals:
                new = stream._renewed(verb, shape)
                stream.key, stream.count = new.key, new.count
        return copy

    return _function_or_decorator(node, view)
