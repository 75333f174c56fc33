"""What lift types are made for: random state, axis names; and lift types as values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Count, Node

pytestmark = pytest.mark.usefixtures("strict_numerics")

SIZE = 5
RANDOM_MAPPED = nnx.StateAxes({nnx.RngState: 0, ...: None})
ONES = jnp.ones((SIZE, 64))


def rows_differ(y) -> bool:
    return len({row.tobytes() for row in np.asarray(y)}) == len(y)


def draw(node, x):
    node.count += 1
    return x + node.rngs.noise.normal(x.shape)


def noisy(seed) -> Node:
    return Node(rngs=nnx.Rngs(noise=seed), count=Count(jnp.array(0)), w=nnx.Param(jnp.ones(3)))


# -- random state --------------------------------------------------------------------------------


def test_streams_split_by_hand():
    node = noisy(jax.random.split(jax.random.key(0), SIZE))
    f = nnx.vmap(draw, in_axes=(RANDOM_MAPPED, 0))
    first, second = f(node, ONES), f(node, ONES)
    assert rows_differ(first) and rows_differ(jnp.concatenate([first, second]))
    assert int(node.count) == 2 and node.rngs.noise.count.value.tolist() == [2] * SIZE


@pytest.mark.parametrize("transform", [nnx.vmap, nnx.scan], ids=["vmap", "scan"])
def test_split_rngs_over_a_function(transform):
    node = noisy(0)
    if transform is nnx.vmap:
        mapped = nnx.vmap(draw, in_axes=(RANDOM_MAPPED, 0))
    else:
        axes = nnx.StateAxes({nnx.RngState: 0, Count: nnx.Carry, ...: None})
        mapped = nnx.scan(draw, in_axes=(axes, 0), out_axes=0)
    f = nnx.split_rngs(splits=SIZE)(mapped)
    first, second = f(node, ONES), f(node, ONES)
    assert rows_differ(jnp.concatenate([first, second]))
    assert node.rngs.noise.key.shape == () and int(node.rngs.noise.count) == 2

    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), SIZE)
    rows = [jax.random.normal(jax.random.fold_in(key, 0), (64,)) for key in keys]
    np.testing.assert_allclose(first, ONES + jnp.stack(rows), rtol=1e-3)


def test_split_rngs_lowers_back_when_the_function_raises():
    node = noisy(0)

    @nnx.split_rngs(splits=SIZE)
    @nnx.vmap(in_axes=(RANDOM_MAPPED, 0))
    def fails(node, x):
        node.rngs.noise()
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        fails(node, ONES)
    assert node.rngs.noise.key.shape == () and node.rngs.noise.count.shape == ()
    draw(node, ONES)


def test_only_some_streams_are_split():
    node = Node(rngs=nnx.Rngs(params=0, noise=1))
    axes = nnx.StateAxes({"noise": 0, ...: None})

    @nnx.split_rngs(splits=SIZE, only="noise")
    @nnx.vmap(in_axes=(axes,), axis_size=SIZE)
    def f(node):
        return node.rngs.params.normal((8,)), node.rngs.noise.normal((8,))

    same, different = f(node)
    assert not rows_differ(same) and rows_differ(different)
    assert int(node.rngs.params.count) == 1 and int(node.rngs.noise.count) == 1


class Block(nnx.Module):
    """A stack of blocks, made by vmap over `__init__`, run by scan over `__call__`."""

    @nnx.split_rngs(splits=SIZE)
    @nnx.vmap(in_axes=(0,))
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_split_rngs_over_init():
    rngs = nnx.Rngs(0)
    stack = Block(rngs)
    assert rows_differ(stack.linear.kernel.value) and stack.dropout.rngs.key.shape == (SIZE,)
    assert int(rngs.default.count) == 1 and rngs.default.key.shape == ()
    first, second = stack(jnp.ones((4, 3))), stack(jnp.ones((4, 3)))
    assert first.shape == (4, 3) and not np.array_equal(first, second)
    assert stack.dropout.rngs.count.value.tolist() == [2] * SIZE


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda rngs: nnx.Linear(3, 3, rngs=rngs), lambda: nnx.Rngs(0).fork(splits=SIZE)),
        (lambda seed: nnx.Linear(3, 3, rngs=nnx.Rngs(seed)), lambda: jnp.arange(SIZE)),
        (
            lambda key: nnx.Linear(3, 3, rngs=nnx.Rngs(params=key)),
            lambda: jax.random.split(jax.random.key(0), SIZE),
        ),
        (
            lambda key: nnx.Linear(3, 3, rngs=nnx.Rngs(key)),
            lambda: jax.random.split(jax.random.PRNGKey(0), SIZE),
        ),
    ],
    ids=["fork", "traced seed", "typed keys", "old keys"],
)
def test_stacks_made_by_vmap(make, argument):
    stack = nnx.vmap(make)(argument())
    assert stack.kernel.shape == (SIZE, 3, 3) and rows_differ(stack.kernel.value)


def test_dropout_does_what_its_prefix_says():
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    call = nnx.vmap(lambda d, x: d(x), in_axes=(None, 0))
    same = call(dropout, ONES)  # one stream for all: one mask for all
    assert not rows_differ(same) and int(dropout.rngs.count) == 1
    with nnx.split_rngs(dropout, splits=SIZE):
        y = nnx.vmap(lambda d, x: d(x), in_axes=(RANDOM_MAPPED, 0))(dropout, ONES)
    assert rows_differ(y) and dropout.rngs.key.shape == ()
    carried = nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None})
    z = nnx.scan(lambda d, x: d(x), in_axes=(carried, 0), out_axes=0)(dropout, ONES)
    assert rows_differ(z) and int(dropout.rngs.count) == 2 + SIZE


# -- axis names ----------------------------------------------------------------------------------

NAMED = {nnx.PARTITION_NAME: "layers"}


class Annotated(nnx.Module):
    def __init__(self, seed):
        key = jax.random.key(seed)
        self.w = nnx.Param(jax.random.normal(key, (3, 4)), sharding=("in", None))
        self.bare = nnx.Param(jnp.ones(3))


@pytest.mark.parametrize("axis, outside", [(0, ("layers", "in", None)), (1, ("in", "layers", None)),
                                           (-1, ("in", None, "layers"))])  # fmt: skip
def test_names_of_objects_made_inside(axis, outside):
    axes = nnx.StateAxes({nnx.PathContains("w"): axis, ...: 0})
    stack = nnx.vmap(Annotated, out_axes=axes, transform_metadata=NAMED)(jnp.arange(2))
    assert stack.w.sharding == outside and stack.w.shape[axis] == 2
    assert not stack.bare.has_metadata("sharding")


def test_names_are_away_inside_and_back_outside():
    stack = nnx.vmap(Annotated, transform_metadata=NAMED)(jnp.arange(2))
    assert nnx.get_partition_spec(stack).w.value == P("layers", "in", None)

    def body(block, x):
        assert block.w.sharding == ("in", None) and block.w.shape == (3, 4)
        block.new = nnx.BatchStat(jnp.ones(4), sharding=("new",))
        block.w.value = block.w * 2.0
        return x + block.w.value.sum()

    nnx.vmap(body, in_axes=(0, None), transform_metadata=NAMED)(stack, jnp.ones(()))
    assert stack.w.sharding == ("layers", "in", None) and stack.new.sharding == ("layers", "new")
    del stack.new
    scanned = nnx.scan(body, in_axes=(0, nnx.Carry), out_axes=nnx.Carry, transform_metadata=NAMED)
    scanned(stack, jnp.ones(()))
    assert stack.w.sharding == ("layers", "in", None) and stack.new.sharding == ("layers", "new")
    shared = nnx.StateAxes({nnx.PathContains("w"): None, ...: 0})

    def untouched(block):
        assert block.w.sharding == ("layers", "in", None)

    nnx.vmap(untouched, in_axes=shared, transform_metadata=NAMED)(stack)


def test_without_transform_metadata_names_stay():
    stack = nnx.vmap(Annotated)(jnp.arange(2))
    assert stack.w.sharding == ("in", None)


def test_the_axis_of_another_name_is_an_error_and_nothing_changes():
    stack = nnx.vmap(Annotated, transform_metadata=NAMED)(jnp.arange(2))
    with pytest.raises(nnx.GraphError, match=r"\('layers', 'in', None\).*axis 0(.|\n)*'other'"):
        nnx.vmap(lambda m: None, transform_metadata={nnx.PARTITION_NAME: "other"})(stack)
    assert stack.w.sharding == ("layers", "in", None)


def test_hooks_see_axes_come_and_go():
    seen = []
    variable = nnx.Param(
        jnp.ones((2, 3)),
        on_add_axis=lambda v, axis, name: seen.append(("add", axis, name)),
        on_remove_axis=lambda v, axis, name: seen.append(("remove", axis, name)),
    )
    nnx.vmap(lambda v: None, transform_metadata=NAMED)(variable)
    assert seen == [("remove", 0, "layers"), ("add", 0, "layers")]


# -- lift types as values ------------------------------------------------------------------------


def test_lift_types_are_values():
    axes = nnx.StateAxes({nnx.Param: 0, (Count, "tag"): None, ...: nnx.Carry})
    again = nnx.StateAxes([(nnx.Param, 0), ((Count, "tag"), None), (..., nnx.Carry)])
    assert axes == again and hash(axes) == hash(again) and axes != nnx.StateAxes({nnx.Param: 0})
    assert axes.axes == (0, None, nnx.Carry)
    assert repr(axes) == "StateAxes({Param: 0, (Count, 'tag'): None, ...: nnx.Carry})"
    sharding = nnx.StateSharding({nnx.Param: P("data"), ...: P()})
    assert sharding.shardings == (P("data"), P()) and sharding != axes
    assert nnx.DiffState(0, nnx.Param) == nnx.DiffState(0) != nnx.DiffState(1)
    assert repr(nnx.DiffState(1, "lora")) == "DiffState(1, 'lora')"
    with pytest.raises(TypeError, match="argnum=.x., but must be an int"):
        nnx.DiffState("x")
    with pytest.raises(TypeError, match="must be a filter"):
        nnx.DiffState(0, 3)
    with pytest.raises(TypeError, match=r"axes=\{3: 0\}, but must be \{a filter: "):
        nnx.StateAxes({3: 0})


def test_a_state_of_axes():
    node = Node(a=nnx.Param(jnp.ones((2, 3))), b=nnx.Param(jnp.ones((3, 2))))
    axes = nnx.StateAxes(nnx.State({"a": 0, "b": 1}))
    assert nnx.vmap(lambda n: n.a + n.b, in_axes=axes)(node).shape == (2, 3)


# -- other metadata that has an entry for each axis ----------------------------------------------


class Nicknamed(nnx.Module):
    def __init__(self, seed=0):
        self.w = nnx.Param(jnp.ones((3, 4)), nickname=("A", "B"), sharding=("a", "b"))
        self.plain = nnx.Param(jnp.ones(3), nickname="no axes")


BOTH = {"nickname": "L", nnx.PARTITION_NAME: "layers"}


@pytest.mark.parametrize(
    "transform, axis",
    [(t, a) for t in ("vmap", "pmap", "scan") for a in (0, 1, 2, -1) if (t, a) != ("pmap", -1)],
)  # (jax.pmap takes no negative axes)
def test_every_key_of_transform_metadata_is_kept_in_step(transform, axis):
    axes = nnx.StateAxes({nnx.PathContains("w"): axis, ...: 0})
    stack = nnx.vmap(Nicknamed, out_axes=axes, transform_metadata=BOTH)(jnp.arange(2))
    position = axis % 3
    longer = tuple(np.insert(np.array(["A", "B"]), position, "L"))
    names = tuple(np.insert(np.array(["a", "b"], dtype=object), position, "layers"))
    assert (stack.w.nickname, stack.w.sharding) == (longer, names)
    seen = []

    def body(m):
        seen.append((m.w.nickname, m.w.sharding, m.w.shape, m.plain.nickname))
        m.new = nnx.Param(jnp.ones(4), nickname=("B",))

    axes = nnx.StateAxes({nnx.PathContains("w"): axis, ...: 0})
    run = {
        "vmap": lambda: nnx.vmap(body, in_axes=(axes,), transform_metadata=BOTH),
        "pmap": lambda: nnx.pmap(body, in_axes=(axes,), transform_metadata=BOTH),
        "scan": lambda: nnx.scan(body, in_axes=(axes,), out_axes=0, transform_metadata=BOTH),
    }[transform]()
    run(stack)
    assert set(seen) == {(("A", "B"), ("a", "b"), (3, 4), "no axes")}
    assert (stack.w.nickname, stack.w.sharding) == (longer, names)
    assert stack.new.nickname == ("L", "B") and stack.new.shape == (2, 4)


def test_one_key_alone_leaves_the_others():
    stack = nnx.vmap(Nicknamed, transform_metadata={"nickname": "L"})(jnp.arange(2))
    assert stack.w.nickname == ("L", "A", "B") and stack.w.sharding == ("a", "b")
    with pytest.raises(
        nnx.GraphError, match=r"`w`, a Param annotated \('L', 'A', 'B'\), is mapped over axis 0"
    ):
        nnx.vmap(lambda m: None, transform_metadata={"nickname": "M"})(stack)
    assert stack.w.nickname == ("L", "A", "B")


# -- axis names around a transform of JAX --------------------------------------------------------


@pytest.mark.parametrize("around", [jax.vmap, nnx.vmap], ids=["jax.vmap", "nnx.vmap"])
def test_transform_metadata_as_a_decorator(around):
    seen = []

    @around
    @nnx.transform_metadata(partition="layers")
    def make(seed):
        return Nicknamed(seed)

    @functools.partial(around, in_axes=(0, None), out_axes=1)
    @nnx.transform_metadata(in_axes=(0, None), out_axes=1, partition="layers")
    def run(m, x):
        seen.append(m.w.sharding)
        return nnx.Param(m.w.value * x, sharding=m.w.sharding)

    stack = make(jnp.arange(2))
    assert stack.w.sharding == ("layers", "a", "b") and stack.w.nickname == ("A", "B")
    new = run(stack, 3.0)
    assert seen == [("a", "b")] and stack.w.sharding == ("layers", "a", "b")
    assert new.sharding == ("a", "layers", "b") and new.shape == (3, 2, 4)
    with pytest.raises(nnx.GraphError, match="transform_metadata calls 'other'"):
        nnx.transform_metadata(lambda m: None, partition="other")(stack)


def test_transform_metadata_of_methods_and_by_name():
    class Layer(Nicknamed):
        @nnx.transform_metadata(in_axes=(0, None), partition="layers")
        def grow(self, x):
            self.new = nnx.Param(x, sharding=("new",))
            return self.w.sharding

    layer = Layer()
    layer.w.set_metadata(sharding=("layers", "a", "b"))
    assert layer.grow(jnp.ones(1)) == layer.grow(x=jnp.ones(1)) == ("a", "b")
    assert layer.new.sharding == ("layers", "new") and layer.w.sharding == ("layers", "a", "b")
