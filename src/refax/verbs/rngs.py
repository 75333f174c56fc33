"""Rngs: named streams of random keys, each a key and a count that are Variables like any other.

Key number n of a stream is `jax.random.fold_in(stream_key, n)`, so the same seeds give the same
numbers as in Flax NNX and a stream's place is one integer. Random state is ordinary state: it is
split, stacked, mapped and saved as any Variable is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..graph.filters import All, Filter, first_match, to_predicate
from ..objects.errors import path_string
from ..objects.variable import Variable, set_raw_value
from ..objects.variable_types import RngCount, RngKey
from .iteration import iter_graph
from .pytree import Pytree

# Drawing functions of jax.random whose first argument is the key, as methods of streams.
_SAMPLERS = """
    ball bernoulli beta binomial bits categorical cauchy chisquare choice dirichlet
    double_sided_maxwell exponential f gamma generalized_normal geometric gumbel laplace loggamma
    logistic lognormal maxwell multinomial multivariate_normal normal orthogonal pareto permutation
    poisson rademacher randint rayleigh t triangular truncated_normal uniform wald weibull_min
""".split()


def _as_key(seed: Any) -> jax.Array:
    """A typed key (or an array of keys) from any form of seed."""
    if isinstance(seed, RngStream):
        return seed()
    if isinstance(seed, Variable):
        seed = seed.value
    if isinstance(seed, int):
        return jax.random.key(seed)
    array = jnp.asarray(seed)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    if array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer):
        return jax.random.key(array)
    if array.dtype == jnp.uint32 and array.ndim >= 1 and array.shape[-1] in (2, 4):
        return jax.random.wrap_key_data(array)
    raise ValueError(
        f"A seed is an int, an integer scalar, a random key or an array of keys; got an array of "
        f"shape {array.shape} and dtype {array.dtype}.\n"
        "Cure: for several streams at once, pass keys: jax.random.split(jax.random.key(0), n)."
    )


class _Samplers:
    """The drawing functions of `jax.random`, each with the next key of a stream."""

    __slots__ = ()

    def __call__(self) -> jax.Array:
        raise NotImplementedError

    if TYPE_CHECKING:  # they are made below

        def __getattr__(self, name: str) -> Any: ...


def _sampler(name: str) -> Callable:
    draw = getattr(jax.random, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return draw(self(), *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"`jax.random.{name}` with the next key of the stream."
    return method


for _name in _SAMPLERS:
    if hasattr(jax.random, _name):
        setattr(_Samplers, _name, _sampler(_name))


# Every parameter of a model draws a key: as one compiled call that takes 8 µs, and not 90.
@functools.partial(jax.jit, inline=True)
def _draw(key: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.random.fold_in(key, count), count + jnp.uint32(1)


class RngStream(Pytree, _Samplers):
    """One stream: a key and how many keys were drawn from it.

    Args:
        key: an int seed, an integer scalar (also traced), a random key, or an array of keys.
        tag: the name of the stream, found by filters: `nnx.state(model, 'dropout')`.
    """

    def __init__(self, key: Any, *, tag: str = "default"):
        key = _as_key(key)
        self.tag = tag
        self.key = RngKey(key, tag=tag)
        self.count = RngCount(jnp.zeros(key.shape, jnp.uint32), tag=tag)

    def __call__(self) -> jax.Array:
        """The next key."""
        key, self.count.value = _draw(self.key.value, self.count.value)
        return key

    def last(self) -> jax.Array:
        """The key that the latest call gave."""
        return jax.random.fold_in(self.key.value, self.count.value - jnp.uint32(1))

    def fork(self, *, splits: Any = None, split: Any = None) -> RngStream:
        """A stream of its own from the next key; with `splits` (int or shape), stacked streams."""
        key, shape = self(), splits if splits is not None else split
        if shape is not None:
            key = jax.random.split(key, shape)
        return RngStream(key, tag=self.tag)

    def split(self, splits: Any) -> RngStream:
        """`fork(splits=…)`."""
        return self.fork(splits=splits)


class Rngs(Pytree, _Samplers):
    """Named streams of random keys.

    Args:
        default: the seed of the stream `default`, which stands in for names that are not there;
            or a mapping name → seed.
        **streams: name → seed. A seed is an int, an integer scalar (also traced), a typed or old
            style random key, or an array of keys for a stacked model.

    Example:
        >>> from refax import nnx
        >>> rngs = nnx.Rngs(0, dropout=1)
        >>> rngs.params().shape, rngs.dropout.count.value.dtype, rngs.normal((2,)).shape
        ((), dtype('uint32'), (2,))
    """

    def __init__(self, default: Any = None, /, **streams: Any):
        if isinstance(default, Rngs):
            default = default._streams()
        if isinstance(default, Mapping):
            streams = {**default, **streams}
        elif default is not None:
            streams = {"default": default, **streams}
        for name, seed in streams.items():
            if isinstance(seed, RngStream):
                seed = seed.key.value
            setattr(self, name, RngStream(seed, tag=name))

    def _streams(self) -> dict[str, RngStream]:
        return {k: v for k, v in vars(self).items() if isinstance(v, RngStream)}

    def __getitem__(self, name: str) -> RngStream:
        streams = vars(self)
        if name not in streams and "default" not in streams:
            raise _no_stream(name, self._streams())
        return streams[name if name in streams else "default"]

    def __getattr__(self, name: str) -> RngStream:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __call__(self) -> jax.Array:
        """The next key of the stream `default`."""
        return self["default"]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams())

    def __len__(self) -> int:
        return len(self._streams())

    def __contains__(self, name: object) -> bool:
        return name in self._streams()

    def items(self) -> Any:
        return self._streams().items()

    def fork(self, *, splits: Any = None, split: Any = None) -> Rngs:
        """Streams of their own, each from the next key of the one it comes from.

        Args:
            splits: None for independent copies; an int or a shape for stacked streams; a mapping
                filter → int, shape or None to say it per stream. `split` is another spelling.

        Example:
            >>> from refax import nnx
            >>> nnx.Rngs(0).fork(splits=5).default.key.shape
            (5,)
        """
        splits = splits if splits is not None else split
        forked = Rngs()
        for name, stream in self._streams().items():
            setattr(forked, name, stream.fork(splits=_splits_of(splits, (name,), stream.key)))
        return forked

    def split(self, splits: Any) -> Rngs:
        """`fork(splits=…)`."""
        return self.fork(splits=splits)


def _splits_of(splits: Any, path: tuple, key: Variable) -> Any:
    """How many keys a stream is split into: what is given for all, or by the first filter."""
    if not isinstance(splits, Mapping):
        return splits
    match = first_match(map(to_predicate, splits), path, key)
    return None if match is None else list(splits.values())[match]


def _no_stream(name: str, streams: Mapping[str, Any]) -> AttributeError:
    known = ", ".join(map(repr, streams)) or "none"
    return AttributeError(
        f"Rngs has no stream {name!r} and no 'default' to stand in for it; it has: {known}.\n"
        f"Cure: make it with one, nnx.Rngs({name}=0) or nnx.Rngs(0)."
    )


# -- streams inside objects ----------------------------------------------------------------------


def iter_streams(node: Any, only: Filter = ...) -> Iterator[tuple[tuple, RngStream]]:
    """Every (path, stream) below `node` whose key the filter matches."""
    matches = to_predicate(only)
    for path, value in iter_graph(node):
        if isinstance(value, RngStream) and matches((*path, "key"), value.key):
            yield path, value


Backup = list[tuple[RngStream, Any, Any]]


class SplitBackups(list):
    """What `split_rngs` and `fork_rngs` return: backups of the streams, and a context manager."""

    def __enter__(self) -> SplitBackups:
        return self

    def __exit__(self, *error: Any) -> None:
        restore_rngs(self)


def backup_keys(node: Any, /, *, only: Filter = ...) -> SplitBackups:
    """The keys and counts of all streams below `node`, for `restore_rngs`."""
    return SplitBackups(
        [(stream, stream.key.value, stream.count.value) for _, stream in iter_streams(node, only)]
    )


def restore_rngs(backups: Sequence[tuple[RngStream, Any, Any]], /) -> None:
    """Put the streams back to where `backup_keys`, `split_rngs` or `fork_rngs` found them."""
    for stream, key, count in backups:
        stream.key.value = key
        stream.count.value = count


def reseed(node: Any, /, *, policy: Any = None, **stream_keys: Any) -> None:
    """Give the streams of these names below `node` new keys, and set their counts to zero.

    A stacked stream gets as many keys from the new one, unless an array of keys is given.

    Example:
        >>> from refax import nnx
        >>> dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        >>> nnx.reseed(dropout, dropout=42)
        >>> int(dropout.rngs.count.value)
        0
    """
    del policy
    for _, stream in iter_streams(node):
        if stream.tag not in stream_keys:
            continue
        key = _as_key(stream_keys[stream.tag])
        shape = stream.key.value.shape
        if key.shape != shape:
            if key.shape:
                raise ValueError(
                    f"reseed: the stream {stream.tag!r} has keys of shape {shape}, the new ones "
                    f"have {key.shape}.\nCure: pass one key, or as many."
                )
            key = jax.random.split(key, shape)
        stream.key.value = key
        stream.count.value = jnp.zeros(shape, jnp.uint32)


def _renew(
    node: Any, only: Filter, new_key: Callable[..., jax.Array], split_to: tuple = ()
) -> SplitBackups:
    backups = SplitBackups()
    streams = [  # those that are split as wanted already stay as they are
        (path, stream)
        for path, stream in iter_streams(node, only)
        if not split_to or stream.key.value.shape != split_to
    ]
    for path, stream in streams:
        if shape := stream.key.value.shape:
            raise ValueError(
                f"split_rngs: the stream `{path_string(path)}` is split already, it has keys of "
                f"shape {shape}.\nCure: leave it out with only=…, or restore it first."
            )
    for path, stream in streams:
        key, count = stream.key.value, stream.count.value
        fresh = new_key(stream(), (*path, "key"), stream.key)
        # Restoring keeps the count moved on by one: the next split gives other keys.
        backups.append((stream, key, count + jnp.uint32(1)))
        set_raw_value(stream.key, fresh)
        set_raw_value(stream.count, jnp.zeros(fresh.shape, jnp.uint32))
    return backups


def split_rngs(
    node: Any = ..., /, *, splits: int | tuple[int, ...], only: Filter = ..., squeeze: bool = False
) -> Any:
    """Split the streams below an object, so that a transform can map them; then lower them back.

    As a function it returns backups for `restore_rngs`, which are a context manager too; as a
    decorator it splits the streams of every argument before the call and lowers them afterwards,
    also when the function raises. A lowered stream has moved on by one key; one that is split as
    wanted already, by `fork(splits=…)`, is left alone.

    Args:
        node: an object graph; left out, a decorator is returned.
        splits: how many keys, or their shape.
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
    shape = (splits,) if isinstance(splits, int) else tuple(splits)
    if squeeze and math.prod(shape) != 1:
        raise ValueError(
            f"split_rngs: squeeze=True drops an axis of size 1, but splits={splits}.\n"
            "Cure: leave one of them out."
        )

    def new_key(key: jax.Array, *_: Any) -> jax.Array:
        keys = jax.random.split(key, splits)
        return keys.reshape(()) if squeeze else keys

    return _function_or_decorator(node, lambda x: _renew(x, only, new_key, shape))


def fork_rngs(node: Any = ..., /, *, only: Filter = ..., split: Any = None) -> Any:
    """Like `split_rngs`, with independent streams instead of split ones (or per filter, `split`).

    Args:
        node: an object graph; left out, a decorator is returned.
        only: which streams.
        split: an int or shape to split, a mapping filter → int, shape or None.
    """

    if isinstance(split, Mapping):
        only = All(only, tuple(split))

    def new_key(key: jax.Array, path: tuple, cell: Variable) -> jax.Array:
        n = _splits_of(split, path, cell)
        return key if n is None else jax.random.split(key, n)

    return _function_or_decorator(node, lambda x: _renew(x, only, new_key))


def _function_or_decorator(node: Any, renew: Callable[[Any], SplitBackups]) -> Any:
    if node is not ...:
        return renew(node)

    def decorator(f: Callable) -> Callable:
        @functools.wraps(f)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with renew([*args, *kwargs.values()]):
                return f(*args, **kwargs)

        return wrapped

    return decorator
