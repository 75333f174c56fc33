"""Rngs: every form of seed, the numbers themselves, forks, splits and their undoing."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Node

pytestmark = pytest.mark.usefixtures("strict_numerics")


def data(key) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def same(a, b) -> bool:
    return np.array_equal(data(a), data(b))


# -- numbers -------------------------------------------------------------------------------------


def test_key_n_is_fold_in_of_n():
    rngs = nnx.Rngs(3, dropout=jax.random.key(7))
    for n in range(3):
        assert same(rngs(), jax.random.fold_in(jax.random.key(3), n))
        assert same(rngs.dropout(), jax.random.fold_in(jax.random.key(7), n))
    assert rngs.default.count == 3
    assert same(rngs.dropout.last(), jax.random.fold_in(jax.random.key(7), 2))


SEEDS = {
    "int": (lambda: 5, lambda: jax.random.key(5)),
    "numpy integer": (lambda: np.int64(5), lambda: jax.random.key(5)),
    "integer array": (lambda: jnp.array(5), lambda: jax.random.key(5)),
    "unsigned array": (lambda: jnp.uint32(5), lambda: jax.random.key(5)),
    "key": (lambda: jax.random.key(5), lambda: jax.random.key(5)),
    "other generator": (
        lambda: jax.random.key(5, impl="rbg"),
        lambda: jax.random.key(5, impl="rbg"),
    ),
    "old-style key": (lambda: jax.random.PRNGKey(5), lambda: jax.random.key(5)),
    "keys": (
        lambda: jax.random.split(jax.random.key(5), 4),
        lambda: jax.random.split(jax.random.key(5), 4),
    ),
    "old-style keys": (
        lambda: jax.random.split(jax.random.PRNGKey(5), 4),
        lambda: jax.random.split(jax.random.key(5), 4),
    ),
    "Variable": (lambda: nnx.Variable(jnp.array(5)), lambda: jax.random.key(5)),
    "stream": (lambda: nnx.Rngs(5).default, lambda: jax.random.key(5)),
}


@pytest.mark.parametrize("form", SEEDS)
def test_forms_of_seeds(form):
    seed, key = (make() for make in SEEDS[form])
    rngs = nnx.Rngs(noise=seed)
    assert same(rngs.noise.key.value, key)
    assert rngs.noise.key.shape == rngs.noise.count.shape == key.shape
    assert rngs.noise.count.dtype == jnp.uint32
    assert jax.random.key_impl(rngs.noise.key.value) == jax.random.key_impl(key)


@pytest.mark.parametrize("form", ["integer array", "key", "old-style key", "keys"])
def test_traced_seeds(form):
    seed, key = (make() for make in SEEDS[form])
    out = jax.jit(lambda s: nnx.Rngs(s).default.key.value)(seed)
    assert same(out, key)


def test_a_vmapped_integer_seed():
    keys = jax.vmap(lambda s: nnx.Rngs(s).params())(jnp.arange(3))
    for i in range(3):
        assert same(keys[i], nnx.Rngs(i).params())


@pytest.mark.parametrize("bad", [jnp.arange(5), jnp.array(0.5), np.zeros((3, 3), np.uint32)])
def test_what_is_no_seed(bad):
    with pytest.raises(ValueError, match=r"A seed is.*shape|split\(jax\.random\.key"):
        nnx.Rngs(bad)


def test_the_numbers_of_the_peer():
    flax = pytest.importorskip("flax.nnx")
    ours, theirs = nnx.Rngs(0, noise=4), flax.Rngs(0, noise=4)
    for name in ("params", "noise", "dropout"):
        assert same(ours[name](), theirs[name]())
    np.testing.assert_array_equal(ours.normal((3,)), theirs.normal((3,)))
    np.testing.assert_array_equal(ours.noise.uniform((3,)), theirs.noise.uniform((3,)))
    a, b = ours.fork(), theirs.fork()
    assert same(a(), b()) and same(a.noise(), b.noise())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the peer's older spelling
        a, b = ours.fork(split=3), theirs.fork(split=3)
    assert same(a.default.key.value, b.default.key[...])
    assert same(ours(), theirs())


# -- streams -------------------------------------------------------------------------------------


def test_names_fall_back_to_default():
    rngs = nnx.Rngs(0, noise=1)
    assert rngs.params is rngs.default is rngs["params"] is rngs["default"]
    assert rngs.noise is rngs["noise"]
    assert same(rngs.params(), jax.random.fold_in(jax.random.key(0), 0))
    assert same(rngs(), jax.random.fold_in(jax.random.key(0), 1))  # one count for both names


def test_no_default():
    rngs = nnx.Rngs(params=0, dropout=1)
    for missing in (lambda: rngs.noise, lambda: rngs["noise"], lambda: rngs()):
        with pytest.raises(AttributeError, match=r"'params', 'dropout'"):
            missing()
    assert not hasattr(rngs, "noise")
    with pytest.raises(AttributeError, match="none"):
        nnx.Rngs()()


def test_made_from_a_mapping_or_another_rngs():
    assert same(nnx.Rngs({"params": 3}).params(), nnx.Rngs(params=3).params())
    assert same(nnx.Rngs({"a": 1}, b=2).b(), nnx.Rngs(2)())
    a = nnx.Rngs(0, x=1)
    b = nnx.Rngs(a)
    assert list(b) == ["default", "x"] and b.x is not a.x


def test_as_a_mapping():
    rngs = nnx.Rngs(0, dropout=1)
    assert list(rngs) == ["default", "dropout"] and len(rngs) == 2
    assert "dropout" in rngs and "noise" not in rngs
    assert dict(rngs.items()) == {"default": rngs.default, "dropout": rngs.dropout}


def test_samplers():
    rngs = nnx.Rngs(0, noise=1)
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        rngs.normal((2, 3)), jax.random.normal(jax.random.fold_in(key, 0), (2, 3))
    )
    np.testing.assert_array_equal(
        rngs.params.randint((4,), 0, 10),
        jax.random.randint(jax.random.fold_in(key, 1), (4,), 0, 10),
    )
    noise = jax.random.key(1)
    np.testing.assert_array_equal(
        rngs.noise.bernoulli(0.5, shape=(8,)),
        jax.random.bernoulli(jax.random.fold_in(noise, 0), 0.5, (8,)),
    )
    for name in ("uniform", "truncated_normal", "gumbel", "categorical", "permutation", "bits"):
        assert callable(getattr(rngs, name)) and callable(getattr(rngs.noise, name))
    assert rngs.default.count == 2 and rngs.noise.count == 1


def test_state_of_streams():
    model = Node(rngs=nnx.Rngs(0, dropout=1))
    assert type(model.rngs.dropout.key) is nnx.RngKey
    assert type(model.rngs.dropout.count) is nnx.RngCount
    keys, counts = nnx.state(model, nnx.RngKey, nnx.RngCount)
    assert len(keys.flat_state()) == len(counts.flat_state()) == 2
    assert len(nnx.state(model, "dropout").flat_state()) == 2
    assert len(nnx.state(model, nnx.RngState).flat_state()) == 4


def test_under_jit_the_count_moves_on():
    rngs = nnx.Rngs(0)
    f = nnx.jit(lambda rngs: rngs.normal((2,)))
    a, b = f(rngs), f(rngs)
    assert not np.array_equal(a, b) and rngs.default.count == 2
    expected = nnx.Rngs(0)
    np.testing.assert_allclose(a, expected.normal((2,)), rtol=1e-6)
    np.testing.assert_allclose(b, expected.normal((2,)), rtol=1e-6)


def test_drawing_from_an_outer_stream_in_a_trace_is_refused():
    rngs = nnx.Rngs(0)
    with pytest.raises(nnx.TraceContextError):
        jax.jit(lambda: rngs())()
    assert rngs.default.count == 0


# -- fork ----------------------------------------------------------------------------------------


def test_fork_is_independent():
    rngs = nnx.Rngs(0, dropout=1)
    fork = rngs.fork()
    assert same(fork.default.key.value, jax.random.fold_in(jax.random.key(0), 0))
    assert fork.default.count == 0 and rngs.default.count == 1 and rngs.dropout.count == 1
    assert not same(fork(), rngs())
    assert fork.dropout.tag == "dropout" and list(fork) == list(rngs)
    stream = rngs.dropout.fork()
    assert type(stream) is nnx.RngStream and stream.tag == "dropout"


@pytest.mark.parametrize("spelling", ["splits", "split", "method"])
def test_fork_with_splits(spelling):
    rngs = nnx.Rngs(0, dropout=1)
    fork = rngs.split(5) if spelling == "method" else rngs.fork(**{spelling: 5})
    for stream in (fork.default, fork.dropout):
        assert stream.key.shape == stream.count.shape == (5,)
    expected = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 5)
    assert same(fork.default.key.value, expected)
    assert rngs.fork(splits=(2, 3)).dropout.key.shape == (2, 3)
    assert rngs.dropout.fork(splits=4).key.shape == (4,)
    assert rngs.dropout.split(4).key.shape == (4,)


def test_fork_with_a_mapping():
    rngs = nnx.Rngs(0, dropout=1, noise=2)
    fork = rngs.fork(splits={"dropout": 5, "noise": (2, 2), ...: None})
    assert fork.default.key.shape == ()
    assert fork.dropout.key.shape == (5,) and fork.noise.key.shape == (2, 2)
    assert rngs.fork(split={...: 3}).noise.key.shape == (3,)
    assert rngs.fork(splits={"dropout": 2}).noise.key.shape == ()


# -- split_rngs and its kin ----------------------------------------------------------------------


def make_model() -> Node:
    return Node(a=Node(rngs=nnx.Rngs(0, dropout=1)), b=nnx.Rngs(dropout=2))


def shapes(model) -> list[tuple]:
    return [
        model.a.rngs.default.key.shape,
        model.a.rngs.dropout.key.shape,
        model.b.dropout.key.shape,
    ]


def test_split_rngs_as_a_function():
    model = make_model()
    cell = model.b.dropout.key
    backups = nnx.split_rngs(model, splits=5)
    assert shapes(model) == [(5,)] * 3 and model.b.dropout.key is cell
    assert model.b.dropout.count.shape == (5,)
    expected = jax.random.split(jax.random.fold_in(jax.random.key(2), 0), 5)
    assert same(cell.value, expected)
    nnx.restore_rngs(backups)
    assert shapes(model) == [()] * 3
    assert same(cell.value, jax.random.key(2)) and model.b.dropout.count == 1
    nnx.split_rngs(model, splits=5)
    assert not same(cell.value, expected)  # the next split gives other keys


def test_split_rngs_as_a_context_manager():
    model = make_model()
    with nnx.split_rngs(model, splits=(2, 3), only="dropout"):
        assert shapes(model) == [(), (2, 3), (2, 3)]
    assert shapes(model) == [()] * 3
    assert model.a.rngs.default.count == 0 and model.a.rngs.dropout.count == 1


def test_split_rngs_as_a_decorator():
    model = make_model()
    seen = []

    @nnx.split_rngs(splits=4)
    def f(model, x, *, rngs):
        seen.append((shapes(model), rngs.default.key.shape))
        return x

    rngs = nnx.Rngs(7)
    assert f(model, 3, rngs=rngs) == 3
    assert seen == [([(4,)] * 3, (4,))]
    assert shapes(model) == [()] * 3 and rngs.default.key.shape == ()
    assert f.__name__ == "f"


@pytest.mark.parametrize("form", ["context", "decorator"])
def test_streams_are_lowered_back_on_errors(form):
    model = make_model()

    def fails(model):
        assert model.b.dropout.key.shape == (3,)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        if form == "context":
            with nnx.split_rngs(model, splits=3):
                fails(model)
        else:
            nnx.split_rngs(splits=3)(fails)(model)
    assert shapes(model) == [()] * 3


def test_squeeze():
    model = make_model()
    with nnx.split_rngs(model, splits=1, squeeze=True):
        assert shapes(model) == [()] * 3
        assert not same(model.b.dropout.key.value, jax.random.key(2))
    assert same(model.b.dropout.key.value, jax.random.key(2))
    with pytest.raises(ValueError, match="squeeze"):
        nnx.split_rngs(model, splits=2, squeeze=True)


def test_splitting_twice_is_refused_and_leaves_the_streams_alone():
    model = make_model()
    nnx.split_rngs(model.b, splits=2)
    with pytest.raises(ValueError, match=r"`b\.dropout`.*split already.*\(2,\)"):
        nnx.split_rngs(model, splits=5)
    assert shapes(model) == [(), (), (2,)]
    nnx.split_rngs(model, splits=5, only=nnx.Not(nnx.PathContains("b")))
    assert shapes(model) == [(5,), (5,), (2,)]


def test_streams_that_are_split_as_wanted_are_left_alone():
    model = make_model()
    model.b = model.b.fork(splits=5)
    keys = model.b.dropout.key.value
    with nnx.split_rngs(model, splits=5):
        assert shapes(model) == [(5,)] * 3 and same(model.b.dropout.key.value, keys)
        model.b.dropout.count.value = model.b.dropout.count + jnp.uint32(1)
    assert shapes(model) == [(), (), (5,)]
    assert (model.b.dropout.count.value == 1).all()


def test_a_stream_shared_by_two_arguments_is_split_once():
    rngs = nnx.Rngs(0)

    @nnx.split_rngs(splits=2)
    def f(a, b):
        return a.default.key.shape, b.r.default.key.shape

    assert f(rngs, Node(r=rngs)) == ((2,), (2,))
    assert rngs.default.key.shape == () and rngs.default.count == 1


def test_split_rngs_inside_jit():
    model = make_model()

    @nnx.jit
    def f(model):
        with nnx.split_rngs(model, splits=3):
            return model.b.dropout.key.value

    assert f(model).shape == (3,)
    assert shapes(model) == [()] * 3 and model.b.dropout.count == 1


def test_split_rngs_of_an_outer_object_in_a_trace_is_refused():
    model = make_model()
    with pytest.raises(nnx.TraceContextError):
        jax.jit(lambda: nnx.split_rngs(model, splits=3) and None)()
    assert shapes(model) == [()] * 3


def test_fork_rngs():
    model = make_model()
    before = model.b.dropout.key.value
    backups = nnx.fork_rngs(model)
    assert shapes(model) == [()] * 3 and not same(model.b.dropout.key.value, before)
    nnx.restore_rngs(backups)
    assert same(model.b.dropout.key.value, before) and model.b.dropout.count == 1
    with nnx.fork_rngs(model, split={"dropout": 3, ...: None}):
        assert shapes(model) == [(), (3,), (3,)]
        assert not same(model.a.rngs.default.key.value, jax.random.key(0))
    with nnx.fork_rngs(model, split={"dropout": 3, ...: 2}, only=nnx.PathContains("a")):
        assert shapes(model) == [(2,), (3,), ()]
    with nnx.fork_rngs(model, split=2, only="default"):
        assert shapes(model) == [(2,), (), ()]
    seen = []
    nnx.fork_rngs(split=2)(lambda m: seen.append(shapes(m)))(model)
    assert seen == [[(2,)] * 3] and shapes(model) == [()] * 3


def test_backup_and_restore():
    model = make_model()
    model.b.dropout()
    backups = nnx.backup_keys(model, only="dropout")
    a = [model.b.dropout(), model.a.rngs()]
    nnx.restore_rngs(backups)
    assert model.b.dropout.count == 1 and same(model.b.dropout(), a[0])
    assert model.a.rngs.default.count == 1


def test_reseed():
    model = make_model()
    model.b.dropout()
    nnx.reseed(model, dropout=42)
    keys = [jax.random.fold_in(jax.random.key(42), i) for i in range(2)]
    for stream, key in zip((model.a.rngs.dropout, model.b.dropout), keys, strict=True):
        assert same(stream.key.value, key) and stream.count == 0
    assert same(model.a.rngs.default.key.value, jax.random.key(0))
    nnx.split_rngs(model, splits=3)
    nnx.reseed(model, dropout=jax.random.key(42))
    assert same(model.b.dropout.key.value, jax.random.split(keys[1], 3))
    with pytest.raises(ValueError, match=r"'dropout'.*\(3,\).*\(2,\)"):
        nnx.reseed(model, dropout=jax.random.split(jax.random.key(1), 2))
