"""Rngs: named streams of random keys, each a key and a count that are Variables like any other.

Key number n of a stream is `jax.random.fold_in(stream_key, n)`, so the same seeds give the same
numbers as in Flax NNX and a stream's place is one integer. Random state is ordinary state: it is
split, stacked, mapped and saved as any Variable is. What is done with the streams inside of other
objects stands in `rngs.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Concatenate, Self

import jax
import jax.numpy as jnp

from ..graph.filters import All, Filter, Not, WithTag, first_match, to_predicate
from ..graph.filters import Any as Any_
from ..objects.arguments import KNOWN, Fits, checked, is_array, unfit
from ..objects.errors import path_string, suggest
from ..objects.modes import without_modes
from ..objects.type_names import P
from ..objects.variable import Variable
from ..objects.variable_types import RngCount, RngKey
from .pytree import Pytree


def as_key(seed: Any) -> jax.Array:
    """A typed key (or an array of keys) from any form of seed."""
    if isinstance(seed, RngStream):
        return seed()
    if isinstance(seed, Variable):
        seed = seed.value
    if isinstance(seed, int):
        return jax.random.key(seed)
    if isinstance(seed, jax.Array) or is_array(seed):
        array = jnp.asarray(seed)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return array
        if array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer):
            return jax.random.key(array)
        if array.dtype == jnp.uint32 and array.ndim >= 1 and array.shape[-1] in (2, 4):
            return jax.random.wrap_key_data(array)
    cure = "for several streams at once, pass keys: jax.random.split(jax.random.key(0), n)."
    raise unfit(seed, "a seed: an int, an integer scalar, a random key or an array of keys", cure)


def _sampler(draw: Callable[Concatenate[Any, P], Any]) -> Callable[Concatenate[Any, P], jax.Array]:
    """A drawing function of jax.random as a method: the key is the next one."""

    def method(self: Any, *args: P.args, **kwargs: P.kwargs) -> jax.Array:
        return draw(self(), *args, **kwargs)

    name = method.__name__ = draw.__name__
    method.__doc__ = f"`jax.random.{name}` with the next key of the stream."
    return method


def _initializer(make: Callable[P, Any]) -> Callable[Concatenate[Any, P], Callable[..., jax.Array]]:
    """A maker of jax.nn.initializers as a method: what it makes takes no key."""

    def method(self: Any, *args: P.args, **kwargs: P.kwargs) -> Callable[..., jax.Array]:
        initializer = make(*args, **kwargs)
        return lambda *args, **kwargs: initializer(self(), *args, **kwargs)

    name = method.__name__ = make.__name__
    method.__doc__ = f"`jax.nn.initializers.{name}`: what it makes draws a (shape, dtype)."
    return method


class _Draws:
    """What a stream and several do alike: they give keys, numbers and other streams.

    The drawing functions of `jax.random` are methods, each with the next key of a stream; and the
    makers of `jax.nn.initializers`, whose initializers take no key.
    """

    __slots__ = ()

    def __call__(self) -> jax.Array:
        raise NotImplementedError

    def _renewed(self, verb: str, shape: Any) -> Self:
        """Other streams, of the next keys: `fork`, `split` or `broadcast`, as many as `shape`."""
        raise NotImplementedError

    def fork(self, *, split: Any = None, splits: Any = None, k: Any = None) -> Self:
        """Streams of their own, each from the next key of the one it comes from.

        Args:
            split: None for independent copies; an int or a shape for stacked streams; for an Rngs
                also a mapping filter → int, shape or None to say it per stream. `splits` and `k`
                are other spellings.

        Example:
            >>> from refax import nnx
            >>> nnx.Rngs(0).fork(split=5).default.key.shape
            (5,)
        """
        return self._renewed("fork", _given(split, splits, k))

    def split(self, k: Any = None, *, split: Any = None, splits: Any = None) -> Self:
        """Stacked streams, each slice with a key of its own.

        Args:
            k: an int or a shape; for an Rngs also a mapping filter → int or shape: a stream that no
                filter matches (or whose filter has None) is in both. `split`, `splits`: other
                spellings.

        Example:
            >>> from refax import nnx
            >>> rngs = nnx.Rngs(params=0, dropout=1).split({"dropout": 5})
            >>> rngs.dropout.key.shape, rngs.params.key.shape
            ((5,), ())
        """
        return self._renewed("split", _required("split", _given(k, split, splits)))

    def broadcast(self, k: Any = None, *, split: Any = None, splits: Any = None) -> Self:
        """Stacked streams, all slices of one with the same key; arguments as for `split`.

        Example:
            >>> from refax import nnx
            >>> stream = nnx.Rngs(dropout=0).dropout.broadcast(3)
            >>> stream.key.shape, bool((stream.key.value == stream.key.value[0]).all())
            ((3,), True)
        """
        return self._renewed("broadcast", _required("broadcast", _given(k, split, splits)))

    ball = _sampler(jax.random.ball)
    bernoulli = _sampler(jax.random.bernoulli)
    beta = _sampler(jax.random.beta)
    binomial = _sampler(jax.random.binomial)
    bits = _sampler(jax.random.bits)
    categorical = _sampler(jax.random.categorical)
    cauchy = _sampler(jax.random.cauchy)
    chisquare = _sampler(jax.random.chisquare)
    choice = _sampler(jax.random.choice)
    dirichlet = _sampler(jax.random.dirichlet)
    double_sided_maxwell = _sampler(jax.random.double_sided_maxwell)
    exponential = _sampler(jax.random.exponential)
    f = _sampler(jax.random.f)
    gamma = _sampler(jax.random.gamma)
    generalized_normal = _sampler(jax.random.generalized_normal)
    geometric = _sampler(jax.random.geometric)
    gumbel = _sampler(jax.random.gumbel)
    laplace = _sampler(jax.random.laplace)
    loggamma = _sampler(jax.random.loggamma)
    logistic = _sampler(jax.random.logistic)
    lognormal = _sampler(jax.random.lognormal)
    maxwell = _sampler(jax.random.maxwell)
    multinomial = _sampler(jax.random.multinomial)
    multivariate_normal = _sampler(jax.random.multivariate_normal)
    normal = _sampler(jax.random.normal)
    orthogonal = _sampler(jax.random.orthogonal)
    pareto = _sampler(jax.random.pareto)
    permutation = _sampler(jax.random.permutation)
    poisson = _sampler(jax.random.poisson)
    rademacher = _sampler(jax.random.rademacher)
    randint = _sampler(jax.random.randint)
    rayleigh = _sampler(jax.random.rayleigh)
    t = _sampler(jax.random.t)
    triangular = _sampler(jax.random.triangular)
    truncated_normal = _sampler(jax.random.truncated_normal)
    uniform = _sampler(jax.random.uniform)
    wald = _sampler(jax.random.wald)
    weibull_min = _sampler(jax.random.weibull_min)

    # Where both have a name (`normal`, `uniform`, …) it is the sampler.
    delta_orthogonal = _initializer(jax.nn.initializers.delta_orthogonal)
    variance_scaling = _initializer(jax.nn.initializers.variance_scaling)
    glorot_normal = xavier_normal = _initializer(jax.nn.initializers.glorot_normal)
    glorot_uniform = xavier_uniform = _initializer(jax.nn.initializers.glorot_uniform)
    he_normal = kaiming_normal = _initializer(jax.nn.initializers.he_normal)
    he_uniform = kaiming_uniform = _initializer(jax.nn.initializers.he_uniform)
    lecun_normal = _initializer(jax.nn.initializers.lecun_normal)
    lecun_uniform = _initializer(jax.nn.initializers.lecun_uniform)


# Every parameter of a model draws a key: as one compiled call that takes 8 µs, and not 90.
@functools.partial(jax.jit, inline=True)
def _draw(key: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.random.fold_in(key, count), count + jnp.uint32(1)


class RngStream(Pytree, _Draws):
    """One stream: a key and how many keys were drawn from it.

    Args:
        key: an int seed, an integer scalar (also traced), a random key, or an array of keys.
        tag: the name of the stream, found by filters: `nnx.state(model, 'dropout')`.
    """

    @checked
    def __init__(self, key: Any, *, tag: str = "default"):
        key = as_key(key)
        self.tag = tag
        self.key: RngKey[jax.Array] = RngKey(key, tag=tag)
        self.count: RngCount[jax.Array] = RngCount(jnp.zeros(key.shape, jnp.uint32), tag=tag)

    def __call__(self) -> jax.Array:
        """The next key.

        Raises:
            ValueError: the stream is stacked, outside of a transform that maps it.
        """
        try:
            key, self.count.value = _draw(self.key.value, self.count.value)
        except ValueError:
            if not self.key.value.shape:
                raise
            raise _stacked(self) from None
        return key

    def last(self) -> jax.Array:
        """The key that the latest call gave."""
        return jax.random.fold_in(self.key.value, self.count.value - jnp.uint32(1))

    def _renewed(self, verb: str, shape: Any) -> RngStream:
        key = self()
        if shape is not None:
            key = (jnp.broadcast_to if verb == "broadcast" else jax.random.split)(key, shape)
        return RngStream(key, tag=self.tag)


class Rngs(Pytree, _Draws):
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
        for name, seed in without_modes(streams).items():
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

    def _renewed(self, verb: str, shape: Any) -> Rngs:
        new, streams = Rngs(), self._streams()
        check_names(shape if isinstance(shape, Mapping) else (), streams.items())
        for name, stream in streams.items():
            own = splits_of(shape, (name,), stream.key)
            shared = own is None and verb != "fork"
            setattr(new, name, stream if shared else stream._renewed(verb, own))
        return new


def _given(*spellings: Any) -> Any:
    """What was given, under whichever name."""
    return next((x for x in spellings if x is not None), None)


def _required(verb: str, shape: Any) -> Any:
    if shape is None:
        raise TypeError(
            f"{verb}: how many streams? None was given.\nCure: rngs.{verb}(5), a shape, or a "
            f"mapping filter → int or shape, rngs.{verb}({{'dropout': 5}})."
        )
    return shape


def splits_of(splits: Any, path: tuple, key: Variable) -> tuple[int, ...] | None:
    """How many keys a stream is split into, or their shape: one for all, or by the first filter."""
    if isinstance(splits, Mapping):
        match = first_match(map(to_predicate, splits), path, key)
        splits = None if match is None else list(splits.values())[match]
    if splits is None:
        return None
    return tuple(splits) if isinstance(splits, (tuple, list)) else (splits,)


def check_names(filters: Iterable[Filter], streams: Iterable[tuple[Any, RngStream]]) -> None:
    """Raise where a filter names a stream, as strings do, that is not among (path, stream)."""
    found: dict[str, str] = {}
    for path, stream in streams:
        place = path_string(path if isinstance(path, tuple) else (path,))
        found.setdefault(stream.tag, place)
    todo: list[Any] = [to_predicate(f) for f in filters]
    for predicate in todo:  # which grows
        if isinstance(predicate, (Any_, All, Not)):
            todo += predicate.content
        elif isinstance(predicate, WithTag) and predicate.content[0] not in found:
            name = predicate.content[0]
            listed = ", ".join(f"{tag!r} (`{place}`)" for tag, place in found.items())
            raise ValueError(
                f"There is no random stream {name!r} here.{suggest(name, found)} There is: "
                f"{listed or 'none'}.\nCure: name one of these. A layer's stream has the name of "
                "the stream that it was forked from: 'default', where nnx.Rngs had no other."
            )


def _stacked(stream: RngStream) -> ValueError:
    return ValueError(
        f"The random stream {stream.tag!r} is stacked, its keys have the shape "
        f"{stream.key.value.shape}; a number is drawn with one key.\n"
        "Cure: map it with a transform (nnx.vmap, with axis 0 for it), or draw before it is split."
    )


class MissingStreamError(AttributeError, KeyError):
    """`rngs.name` and `rngs['name']` fail alike; the first must be known to `hasattr`."""

    __str__ = Exception.__str__


def _no_stream(name: str, streams: Mapping[str, Any]) -> AttributeError:
    known = ", ".join(map(repr, streams)) or "none"
    return MissingStreamError(
        f"Rngs has no stream {name!r} and no 'default' to stand in for it; it has: {known}.\n"
        f"Cure: make it with one, nnx.Rngs({name}=0) or nnx.Rngs(0)."
    )


KNOWN.append(
    (Rngs, Fits("nnx.Rngs", lambda x: isinstance(x, Rngs), "nnx.Rngs(0), or nnx.Rngs(key)."))
)
