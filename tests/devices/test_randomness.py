"""Random numbers on several devices: GSPMD has those of one; shard_map tells masks alike."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx

X = jnp.ones((4, 16))


def mesh_of(data: int = 2, model: int = 4) -> jax.sharding.Mesh:
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


class Net(nnx.Module):
    def __init__(self, rngs=None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.first, self.second = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        return self.second(self.first(x) + x)


def call(net, x):
    return net(x)


def own_fold(net, x):
    key = jax.random.fold_in(net.first.rngs(), jax.lax.axis_index("data"))
    return x * jax.random.bernoulli(key, 0.5, x.shape)


def sharded(f, mesh=None, spec=P("data")):
    mesh = mesh_of() if mesh is None else mesh
    return nnx.shard_map(f, mesh=mesh, in_specs=(P(), spec), out_specs=spec)


def told(f, *args) -> tuple[np.ndarray, list[str]]:
    """What a call gives, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = np.asarray(f(*args))
    assert all(w.category is nnx.SameRandomnessWarning for w in caught)
    return result, [str(w.message) for w in caught]


@pytest.mark.parametrize("spec", [P("data"), P("data", "model"), P(None, "model")], ids=str)
def test_dropout_under_gspmd_has_the_masks_of_one_device(spec):
    forward = nnx.jit(call)
    alone = [forward(net := Net(), X), forward(net, X)]
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        net, x = nnx.make_sharded(Net), jax.device_put(X, NamedSharding(mesh, spec))
        for expected in alone:
            np.testing.assert_array_equal(forward(net, x), expected)


ALIKE = {
    "a call": lambda: (sharded(call), Net()),
    "in jit": lambda: (nnx.jit(sharded(call)), Net()),
    "remat": lambda: (sharded(lambda net, x: nnx.remat(call)(net, x)), Net()),
    "jit inside": lambda: (sharded(lambda net, x: nnx.jit(call)(net, x)), Net()),
    "scan": lambda: (sharded(call), nnx.Stack(Net, 2, rngs=nnx.Rngs(0))),
}


@pytest.mark.parametrize("case", ALIKE)
def test_masks_that_are_alike_are_told_with_the_cure(case):
    f, net = ALIKE[case]()
    y, [message] = told(f, net, X)
    np.testing.assert_array_equal(y[:2], y[2:])
    assert "first.rngs`" in message and "second.rngs`" in message and "shard_map" in message
    assert "'data'" in message and "Cure: @nnx.split_rngs(splits='data')" in message
    assert len(message) < 1000


def split_in_a_block(net, x):
    with nnx.split_rngs(net, splits="data"):
        return net(x)


ONE = {"data": 1, "model": 8}
FINE = {
    "split": (nnx.split_rngs(splits="data")(call), {}, {}),
    "split in a block": (split_in_a_block, {}, {}),
    "split, remat": (nnx.split_rngs(splits="data")(lambda n, x: nnx.remat(call)(n, x)), {}, {}),
    "folded by hand": (own_fold, {}, {}),
    "folded by hand in jit": (lambda net, x: nnx.jit(own_fold)(net, x), {}, {}),
    "nothing is drawn": (lambda net, x: (net.eval(), net(x))[1], {}, {}),
    "a key is drawn, no number": (lambda net, x: (net.first.rngs(), x)[1], {}, {}),
    "all see the same data": (call, {}, {"spec": P()}),
    "one device on the axis": (call, ONE, {}),
}


@pytest.mark.parametrize("case", FINE)
def test_no_false_alarm(case):
    f, shape, options = FINE[case]
    y, messages = told(sharded(f, mesh_of(**shape), **options), Net(), X)
    assert messages == [] and y.shape == X.shape
    if "split" in case or "folded" in case:
        assert not np.array_equal(y[:2], y[2:])


def test_streams_that_come_in_split():
    def draw(rngs, x):
        return jax.vmap(lambda stream: stream.normal((2, 16)))(rngs.default)[0] + x

    streams = nnx.StateSharding({nnx.RngState: P("data"), ...: P()})
    f = nnx.shard_map(
        nnx.vmap(lambda rngs, x: rngs.normal((2, 16)) + x, in_axes=(0, None)),
        mesh=mesh_of(),
        in_specs=(streams, P()),
        out_specs=P("data"),
    )
    y, messages = told(f, nnx.Rngs(0).fork(split=2), X[:2])
    assert messages == [] and not np.array_equal(y[0], y[1])


def test_split_along_axes_gives_the_keys_of_split_streams():
    """The keys of `split_rngs(splits=n)`, each where its part of the data is; and then the next."""
    nets = [nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(4)]
    by_axes = nnx.StateAxes({nnx.RngState: 0, ...: None})
    parts = X.reshape(2, 2, 16)
    on_axis = nnx.split_rngs(splits="data")(call)
    forms = [
        lambda: sharded(on_axis)(nets[0], X),
        lambda: nnx.jit(sharded(on_axis))(nets[1], X),
        lambda: nnx.vmap(on_axis, in_axes=(None, 0), axis_name="data")(nets[2], parts),
        lambda: nnx.split_rngs(splits=2)(nnx.vmap(call, in_axes=(by_axes, 0)))(nets[3], parts),
    ]
    for _ in range(2):
        results = [np.asarray(form()).reshape(4, 16) for form in forms]
        for result in results[:3]:
            np.testing.assert_array_equal(result, results[3])
        counts = [int(net.rngs.count.value) for net in nets]
        assert len(set(counts)) == 1
    assert counts == [2] * 4


def test_several_axes_and_stacked_streams():
    f = sharded(nnx.split_rngs(splits=("data", "model"))(call), spec=P("data", "model"))
    y, messages = told(f, Net(), X)
    parts = [y[i : i + 2, j : j + 4] for i in (0, 2) for j in (0, 4, 8, 12)]
    assert messages == [] and len({part.tobytes() for part in parts}) == 8
    stack = nnx.Stack(lambda rngs: nnx.Dropout(0.5, rngs=rngs), 2, rngs=nnx.Rngs(0))
    y, messages = told(sharded(nnx.split_rngs(splits="data")(call)), stack, X)
    assert messages == [] and not np.array_equal(y[:2], y[2:])
    assert stack.blocks.rngs.count.value.tolist() == [1, 1]


@pytest.mark.parametrize("where", ["outside", "another name"])
def test_an_axis_that_is_not_there(where):
    split = nnx.split_rngs(splits="rows")(call)
    f = split if where == "outside" else sharded(split)
    net = Net()
    with pytest.raises(ValueError, match=r"split_rngs: splits=.*rows(.|\n)*Cure: "):
        f(net, X)
    assert int(net.first.rngs.count.value) == 0
