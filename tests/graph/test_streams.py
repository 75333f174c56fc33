"""Streams inside objects: reseeded, split, shared and forked, against fold_in by hand."""

import inspect
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

SEED = jax.random.key(1)


def numbered(i: int, key: Any = SEED) -> Any:
    return jax.random.fold_in(key, i)


def same(a: Any, b: Any) -> bool:
    a, b = (jax.random.key_data(x.value if isinstance(x, nnx.Variable) else x) for x in (a, b))
    return a.shape == b.shape and bool((a == b).all())


class Net(nnx.Module):
    """Streams in attributes out of alphabetical order, in plain containers, nested and shared."""

    def __init__(self, rngs: nnx.Rngs):
        self.z = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(2, 2, rngs=rngs)
        self.list = [nnx.Dropout(0.5, rngs=rngs) for _ in range(12)]
        self.dict = {"q": nnx.Dropout(0.5, rngs=rngs), "b": [nnx.Dropout(0.5, rngs=rngs)]}
        self.attention = nnx.MultiHeadAttention(1, 2, dropout_rate=0.5, rngs=rngs)
        self.a = nnx.Sequential(nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
        self.again = self.list[3]
        self.me = self
        self.noise = rngs.noise.fork()


def streams(net: Any, tag: str = "dropout") -> list[nnx.RngStream]:
    found = [v for _, v in nnx.iter_graph(net) if isinstance(v, nnx.RngStream)]
    return [stream for stream in found if stream.tag == tag]


def make(seed: Any = 1) -> Net:
    return Net(nnx.Rngs(params=0, dropout=seed, noise=5))


HOW = {
    "eager": lambda net, **seeds: nnx.reseed(net, **seeds),
    "jit": lambda net, **seeds: nnx.jit(lambda net: nnx.reseed(net, **seeds))(net),
    "traced seed": lambda net, **seeds: nnx.jit(nnx.reseed)(net, **seeds),
}


@pytest.mark.parametrize("how", ["eager", "jit", "traced seed"])
@pytest.mark.parametrize("copy", ["itself", "clone", "merged", "unpickled"])
def test_a_reseeded_model_is_as_one_made_with_the_seed(how: str, copy: str) -> None:
    made, net = make(), make(seed=3)
    if copy == "clone":
        net = nnx.clone(net)
    elif copy == "merged":
        net = nnx.merge(*nnx.split(net))
    elif copy == "unpickled":
        net = pickle.loads(pickle.dumps(net))
    for stream in streams(net):
        stream()
    HOW[how](net, dropout=1)
    assert len(streams(net)) == 18
    for stream, expected in zip(streams(net), streams(made), strict=True):
        assert same(stream.key, expected.key) and int(stream.count) == 0
    assert same(net.z.rngs.key, numbered(0)) and same(net.dict["q"].rngs.key, numbered(13))
    assert same(net.noise.key, made.noise.key)  # the others stay


def test_masks_come_back() -> None:
    net, x = make(), jnp.ones(32)
    layers = [net.z, *net.list, *net.a.layers]
    before = [layer(x) for layer in layers]
    nnx.reseed(net, dropout=1)
    for layer, y in zip(layers, before, strict=True):
        np.testing.assert_array_equal(layer(x), y)
    assert len({tuple(y.tolist()) for y in before}) == len(layers)


@pytest.mark.parametrize("seed", [1, jnp.uint32(1), SEED, jax.random.PRNGKey(1), nnx.Param(1)])
def test_seeds_of_every_kind(seed: Any) -> None:
    net = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))
    nnx.reseed(net, dropout=seed)
    assert net.rngs is not None and same(net.rngs.key, numbered(0))


def test_rngs_are_the_root() -> None:
    rngs = nnx.Rngs(dropout=0, params=3)
    rngs.dropout()
    nnx.reseed(rngs, dropout=1)
    assert same(rngs.dropout.key, SEED) and int(rngs.dropout.count) == 0

    class Holds(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.rngs = rngs
            self.b = nnx.Dropout(0.5, rngs=rngs)
            self.a = nnx.Dropout(0.5, rngs=rngs)

    made, net = Holds(nnx.Rngs(dropout=1)), Holds(nnx.Rngs(dropout=2))
    nnx.reseed(net, dropout=1)
    assert same(net.rngs.dropout.key, SEED)
    assert same(net.rngs.dropout(), made.rngs.dropout())  # and no key that a layer has
    assert same(net.b.rngs.key, numbered(0)) and same(net.a.rngs.key, numbered(1))


def test_several_rngs_are_forks() -> None:
    pair = [nnx.Rngs(dropout=3), {"x": nnx.Rngs(dropout=3)}]
    nnx.reseed(pair, dropout=1)
    assert same(pair[0].dropout.key, numbered(0)) and same(pair[1]["x"].dropout.key, numbered(1))


def test_stacked_streams() -> None:
    made = nnx.Rngs(dropout=1).split(3)
    rngs = nnx.Rngs(dropout=2).split(3)
    nnx.reseed(rngs, dropout=1)
    assert same(rngs.dropout.key, made.dropout.key) and rngs.dropout.count.shape == (3,)
    keys = jax.random.split(jax.random.key(4), 3)
    nnx.reseed(rngs, dropout=keys)
    assert same(rngs.dropout.key, keys)

    stack = nnx.vmap(lambda key: make(key))(keys)
    again = nnx.vmap(lambda key: make(key))(jax.random.split(SEED, 3))
    nnx.reseed(again, dropout=keys)
    for stream, expected in zip(streams(again), streams(stack), strict=True):
        assert same(stream.key, expected.key)
    nnx.reseed(again, dropout=1)
    assert same(again.list[1].rngs.key, jax.random.split(numbered(2), 3))


def test_policies() -> None:
    rngs = nnx.Dict(a=nnx.Rngs(dropout=0).dropout.fork(split=(2, 3)))
    nnx.reseed(rngs, dropout=1, policy="match_shape")
    assert same(rngs.a.key, jax.random.split(numbered(0), (2, 3)))
    seen: list[Any] = []

    def policy(path: tuple, key: Any, shape: tuple) -> Any:
        seen.append((path, key, shape))
        return jnp.broadcast_to(key, shape)

    nnx.reseed(rngs, dropout=1, policy=policy)
    ((path, key, shape),) = seen
    assert path == ("a",) and same(key, numbered(0)) and shape == (2, 3)
    assert same(rngs.a.key, jnp.broadcast_to(key, (2, 3)))
    before = rngs.a.key.value
    with pytest.raises(ValueError, match=r"(?s)`a`.*\(2, 3\).*scalars_only.*match_shape"):
        nnx.reseed(rngs, dropout=2, policy="scalars_only")
    assert rngs.a.key.value is before


MISSPELT = {
    "reseed": lambda net: nnx.reseed(net, dropuot=1),
    "reseed, one of two": lambda net: nnx.reseed(net, dropout=1, dropuot=1),
    "split_rngs": lambda net: nnx.split_rngs(net, splits=2, only="dropuot"),
    "split_rngs, any of": lambda net: nnx.split_rngs(net, splits=2, only=("noise", "dropuot")),
    "split_rngs, all but": lambda net: nnx.split_rngs(net, splits=2, only=nnx.Not("dropuot")),
    "split_rngs, decorator": lambda net: nnx.split_rngs(splits=2, only="dropuot")(len)([net]),
    "fork_rngs": lambda net: nnx.fork_rngs(net, only="dropuot"),
    "fork_rngs, mapping": lambda net: nnx.fork_rngs(net, split={"dropuot": 2}),
    "backup_keys": lambda net: nnx.backup_keys(net, only="dropuot"),
    "with_rngs, split": lambda net: nnx.with_rngs(net, split={"dropuot": 2}),
    "with_rngs, fork": lambda net: nnx.with_rngs(net, fork="dropuot"),
    "with_rngs, forks": lambda net: nnx.with_rngs(net, fork=["noise", "dropuot"]),
    "with_rngs, broadcast": lambda net: nnx.with_rngs(net, broadcast={"dropuot": 2}),
    "with_rngs, only": lambda net: nnx.with_rngs(net, split=2, only="dropuot"),
    "Rngs.split": lambda net: net.rngs.split({"dropuot": 2}),
    "Rngs.fork": lambda net: net.rngs.fork(split={"dropuot": 2}),
    "Rngs.broadcast": lambda net: net.rngs.broadcast({"dropuot": 2}),
    "RNN": lambda net: nnx.RNN(net.cell, broadcast_rngs="dropuot")(jnp.ones((1, 2, 2))),
}


@pytest.mark.parametrize("how", MISSPELT)
def test_a_misspelt_stream_is_an_error_that_lists_what_there_is(how: str) -> None:
    net = make()
    net.rngs = nnx.Rngs(dropout=0, noise=1)
    net.cell = nnx.SimpleCell(2, 2, rngs=nnx.Rngs(0))
    net.cell.drop = net.z
    before = nnx.state(net, nnx.RngState)
    with pytest.raises(ValueError, match=r"(?s)'dropuot'.*Did you mean 'dropout'\?.*'dropout' \(`"):
        MISSPELT[how](net)
    jax.tree.map(np.testing.assert_array_equal, *(
        jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype != jnp.uint32 else x, s)
        for s in (before, nnx.state(net, nnx.RngState))
    ))  # fmt: skip


def test_a_model_without_streams_has_nothing_to_split() -> None:
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    assert nnx.split_rngs(linear, splits=2, only="dropout") == []
    assert nnx.with_rngs(linear, split={"dropout": 2}).kernel is linear.kernel
    with pytest.raises(ValueError, match=r"'dropout'.*none"):
        nnx.reseed(linear, dropout=1)


# -- with_rngs -----------------------------------------------------------------------------------


def test_with_rngs_by_rule() -> None:
    rngs = nnx.Rngs(params=0, dropout=1, noise=2, rest=3)
    view = nnx.with_rngs(
        rngs, split={"params": 4}, broadcast={"dropout": (2, 3)}, fork="noise", graph=False
    )
    assert same(view.params.key, jax.random.split(numbered(0, jax.random.key(0)), 4))
    assert same(view.dropout.key, jnp.broadcast_to(numbered(0), (2, 3)))
    assert view.dropout.count.shape == (2, 3)
    assert same(view.noise.key, numbered(0, jax.random.key(2))) and view.noise.key.tag == "noise"
    assert view.rest.key is rngs.rest.key and view.rest.count is rngs.rest.count
    assert [int(s.count) for _, s in rngs.items()] == [1, 1, 1, 0]
    assert all(s.key.shape == () for _, s in rngs.items())


def test_with_rngs_of_everything_and_of_the_rest() -> None:
    rngs = nnx.Rngs(params=0, dropout=1)
    assert nnx.with_rngs(rngs, split=2).dropout.key.shape == (2,)
    view = nnx.with_rngs(rngs, split={"params": 4}, fork=...)
    assert view.params.key.shape == (4,) and same(view.dropout.key, numbered(1))
    view = nnx.with_rngs(rngs, split=2, fork="params")
    assert view.params.key.shape == () and view.dropout.key.shape == (2,)
    view = nnx.with_rngs(rngs, split=2, only="params")
    assert view.params.key.shape == (2,) and view.dropout.key is rngs.dropout.key
    with pytest.raises(ValueError, match=r"`params`.*split 'params', broadcast 'params'"):
        nnx.with_rngs(rngs, split={"params": 2}, broadcast={"params": 2})


def test_with_rngs_of_a_model_shares_the_rest_and_its_structure() -> None:
    net = make()
    view = nnx.with_rngs(net, split={"dropout": 5})
    assert view is not net and view.me is view and view.again is view.list[3]
    assert view.linear.kernel is net.linear.kernel and view.noise.count is net.noise.count
    assert same(view.z.rngs.key, jax.random.split(numbered(0, net.z.rngs.key.value), 5))
    assert net.z.rngs.key.shape == () and int(net.z.rngs.count) == 1

    y = nnx.vmap(lambda net: net.z(jnp.ones(8)), in_axes=nnx.StateAxes({"dropout": 0, ...: None}))
    assert len({tuple(row) for row in y(view).tolist()}) > 1


def test_with_rngs_as_a_decorator() -> None:
    rngs = nnx.Rngs(0)

    @nnx.with_rngs(split=3)
    @nnx.vmap
    def sample(rngs: nnx.Rngs, *, scale: Any) -> Any:
        return rngs.normal() * scale

    expected = [
        jax.random.normal(numbered(0, k))
        for k in jax.random.split(numbered(0, jax.random.key(0)), 3)
    ]
    np.testing.assert_allclose(sample(rngs, scale=jnp.ones(3)), expected, rtol=1e-6)
    assert rngs.default.key.shape == () and int(rngs.default.count) == 1


def test_with_rngs_inside_jit() -> None:
    rngs = nnx.Rngs(0)
    keys = nnx.jit(lambda rngs: nnx.with_rngs(rngs, broadcast=2).default.key.value)(rngs)
    assert same(keys, jnp.broadcast_to(numbered(0, jax.random.key(0)), (2,)))
    assert int(rngs.default.count) == 1


# -- methods of Rngs and RngStream ----------------------------------------------------------------

SHAPES = [4, (4,), (2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spelling", ["positional", "k", "split", "splits"])
@pytest.mark.parametrize("verb", ["fork", "split", "broadcast"])
def test_spellings(verb: str, spelling: str, shape: Any) -> None:
    if verb == "fork" and spelling == "positional":
        pytest.skip("fork takes keywords only")
    args, kwargs = ((shape,), {}) if spelling == "positional" else ((), {spelling: shape})
    full = (shape,) if isinstance(shape, int) else shape
    first = numbered(0)
    expected = (
        jnp.broadcast_to(first, full) if verb == "broadcast" else jax.random.split(first, full)
    )
    rngs, stream = nnx.Rngs(dropout=1), nnx.Rngs(dropout=1).dropout
    for new in (
        getattr(rngs, verb)(*args, **kwargs).dropout,
        getattr(stream, verb)(*args, **kwargs),
    ):
        assert same(new.key, expected) and new.count.shape == full and new.tag == "dropout"
        assert new.key.tag == new.count.tag == "dropout"
    assert int(rngs.dropout.count) == int(stream.count) == 1


@pytest.mark.parametrize("verb", ["split", "broadcast"])
def test_a_stream_that_no_filter_matches_is_in_both(verb: str) -> None:
    rngs = nnx.Rngs(params=0, dropout=1)
    for rest in ({}, {...: None}):
        new = getattr(rngs, verb)({"dropout": 4, **rest})
        assert new.dropout.key.shape == (4,) and new.params.count is rngs.params.count
    with pytest.raises(TypeError, match="how many"):
        getattr(rngs, verb)()


def test_drawing_from_a_stacked_stream_names_it() -> None:
    rngs = nnx.Rngs(dropout=0).split(3)
    with pytest.raises(ValueError, match=r"'dropout' is stacked.*\(3,\)"):
        rngs.dropout.normal(())


def test_a_missing_stream_by_item_and_by_attribute() -> None:
    rngs = nnx.Rngs(params=0)
    with pytest.raises(KeyError, match="'x'.*'params'"):
        rngs["x"]
    assert not hasattr(rngs, "x") and "x" not in rngs and "params" in rngs


INITIALIZERS = {
    name: ((), (3, 4, 8))
    for name in """
        delta_orthogonal glorot_normal glorot_uniform he_normal he_uniform kaiming_normal
        kaiming_uniform lecun_normal lecun_uniform xavier_normal xavier_uniform
    """.split()
} | {"variance_scaling": ((2.0, "fan_avg", "uniform"), (4, 8))}


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_draw_the_next_key(name: str, dtype: Any) -> None:
    if name == "delta_orthogonal" and dtype == jnp.bfloat16:
        pytest.skip("LAPACK has no QR decomposition of bfloat16")
    args, shape = INITIALIZERS[name]
    rngs = nnx.Rngs(0, params=1)
    rngs(), rngs.params()
    initializer = getattr(jax.nn.initializers, name)(*args)
    options = () if dtype is None else (dtype,)
    for stream, key in ((rngs, jax.random.key(0)), (rngs.params, SEED)):
        make = getattr(stream, name)(*args)
        for i in (1, 2):
            y = make(shape, *options)
            np.testing.assert_array_equal(y, initializer(numbered(i, key), shape, *options))
            assert y.dtype == (dtype or jnp.float32)
    assert int(rngs.default.count) == int(rngs.params.count) == 3


def test_initializers_take_the_options_of_jax() -> None:
    rngs = nnx.Rngs(0)
    y = rngs.lecun_normal(in_axis=0, out_axis=1, dtype=jnp.bfloat16)((4, 8))
    expected = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=1, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(y, expected(numbered(0, jax.random.key(0)), (4, 8)))
    assert nnx.jit(lambda rngs: rngs.he_normal()((2, 2)))(rngs).shape == (2, 2)
    assert int(rngs.default.count) == 2


def test_every_sampler_of_jax_is_a_method() -> None:
    takes_key = [
        name
        for name in dir(jax.random)
        if callable(f := getattr(jax.random, name))
        and not name.startswith("_")
        and inspect.isfunction(inspect.unwrap(f))
        and next(iter(inspect.signature(f).parameters), "") == "key"
        and name not in ("clone", "fold_in", "key_impl", "random_gamma_p", "split")
    ]
    assert len(takes_key) > 35
    assert not [name for name in takes_key if not hasattr(nnx.RngStream, name)]


@pytest.mark.parametrize("split", [3, (3,), [3], {"default": 3}, {"default": (3,)}])
def test_fork_rngs_leaves_alone_what_is_split_as_wanted(split):
    rngs = nnx.Rngs(0).split(3)
    before = rngs.default.key.value
    assert nnx.fork_rngs(rngs, split=split) == []
    assert rngs.default.key.value is before
    with pytest.raises(ValueError, match="split already"):
        nnx.fork_rngs(rngs, split=4)
