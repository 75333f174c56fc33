"""`state_dict` and `load_state_dict`: names, tied arrays, stacks, dtypes, placement."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from refax import nnx


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.linear(x))


class Listed(nnx.Module):
    def __init__(self, n: int, rngs: nnx.Rngs):
        self.layers = [Block(rngs) for _ in range(n)]


class Stacked(nnx.Module):
    def __init__(self, n: int, rngs: nnx.Rngs):
        self.layers = nnx.Stack(Block, n, rngs=rngs)


class Tied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(5, 3, rngs=rngs)
        self.head = nnx.Linear(5, 3, use_bias=False, rngs=rngs)
        self.head.kernel = self.embed.embedding
        self.again = self.embed  # a shared module


def snapshot(obj):
    return jax.tree.map(lambda x: x, nnx.to_pure_dict(nnx.state(obj)))


def assert_untouched(obj, before):
    same = jax.tree.map(lambda a, b: a is b, nnx.to_pure_dict(nnx.state(obj)), before)
    assert all(jax.tree.leaves(same))


def test_names_are_those_of_named_variables():
    model = Listed(2, nnx.Rngs(0))
    names = [name for name, _ in nnx.named_variables(model)]
    found = nnx.state_dict(model)
    assert list(found) == names
    assert all(found[name] is nnx.get_path(model, name).value for name in names)
    assert list(nnx.state_dict(model, filter=nnx.Param)) == [n for n in names if "linear" in n]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nnx.Sequential(nnx.relu, nnx.BatchNorm(3, rngs=nnx.Rngs(0))),
        lambda: Tied(nnx.Rngs(0)),
        lambda: Stacked(3, nnx.Rngs(0)),
        lambda: nnx.Optimizer(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param),
        lambda: [nnx.Param(jnp.ones(2)), {"a.b": nnx.Param(jnp.zeros(3))}],
        lambda: nnx.Param({"q": jnp.ones((2, 2), jnp.int8), "scale": jnp.ones(2)}),
        lambda: nnx.Param(jnp.ones(3)),
        lambda: nnx.metrics.Average(),
    ],
)  # fmt: skip
def test_what_goes_out_comes_in_again(make):
    source, target = make(), make()
    values = nnx.state_dict(source)
    changed = {
        name: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x + jnp.ones((), x.dtype)
        for name, x in values.items()
    }
    assert nnx.load_state_dict(target, changed) == ([], [], {})
    for name, x in nnx.state_dict(target).items():
        assert x.dtype == changed[name].dtype
        assert (x == changed[name]).all(), name


def test_a_tied_array_has_every_name():
    model = Tied(nnx.Rngs(0))
    assert list(nnx.state_dict(model)) == ["again.embedding"]
    names = {"again.embedding", "embed.embedding", "head.kernel"}
    assert set(nnx.state_dict(model, aliases=True)) == names
    for name in names:
        new = jnp.full((5, 3), float(len(name)))
        assert nnx.load_state_dict(model, {name: new}) == ([], [], {})
        assert (model.head.kernel.value == new).all()
    same = dict.fromkeys(names, jnp.ones((5, 3)))
    nnx.load_state_dict(model, same)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"`embed.embedding` and `head.kernel` are one tied array"):
        nnx.load_state_dict(
            model, {"embed.embedding": jnp.ones((5, 3)), "head.kernel": jnp.zeros((5, 3))}
        )
    assert_untouched(model, before)


def test_what_update_takes_for_a_name_leads_to_the_array():
    """In brackets, and as a checkpoint boxes values."""
    for names in (
        ("layers[0].linear.kernel", "layers.0.linear.bias"),
        ("layers.0.linear.kernel.value", "['layers'][0].linear.bias"),
    ):
        listed = Listed(1, nnx.Rngs(0))
        shapes = [(2, 2), (2,)]
        new = {name: jnp.full(shape, 7.0) for name, shape in zip(names, shapes, strict=True)}
        loaded = nnx.load_state_dict(listed, new, strict=False)
        assert loaded.unexpected == []
        linear = listed.layers[0].linear
        assert (linear.kernel.value == 7).all() and (linear.bias.value == 7).all()


def test_a_tied_array_with_nan_is_one_value():
    model = Tied(nnx.Rngs(0))
    holes = np.where(np.arange(15).reshape(5, 3) % 2, np.nan, 1.0).astype(np.float32)
    nnx.load_state_dict(model, {"embed.embedding": holes, "head.kernel": holes.copy()})
    np.testing.assert_array_equal(model.head.kernel.value, holes)


def test_a_state_takes_weights():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    for state in (nnx.state(model), nnx.state(model, copy=False)):
        nnx.load_state_dict(state, {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
        assert all((leaf.value == 1).all() for _, leaf in state.flat_state())
    assert (model.kernel.value == 1).all()


def test_a_stack_takes_single_blocks_and_a_list_stacked_ones():
    listed, stacked = Listed(3, nnx.Rngs(0)), Stacked(3, nnx.Rngs(1))
    assert nnx.load_state_dict(stacked, nnx.state_dict(listed)) == ([], [], {})
    for i in range(3):
        for name, x in nnx.state_dict(listed.layers[i]).items():
            assert (nnx.state_dict(stacked.layers[i])[name] == x).all()
    fresh = Listed(3, nnx.Rngs(7))
    assert nnx.load_state_dict(fresh, nnx.state_dict(stacked)) == ([], [], {})
    for name, x in nnx.state_dict(fresh).items():
        assert (x == nnx.state_dict(listed)[name]).all()
    numbers = jnp.arange(3.0)[:, None] * jnp.ones(2)
    nnx.load_state_dict(stacked, {"layers.blocks.linear.bias": numbers}, strict=False)
    assert (stacked.layers[2].linear.bias.value == 2.0).all()


def test_a_stack_wants_as_many_blocks_as_it_has():
    stacked = Stacked(3, nnx.Rngs(1))
    before = snapshot(stacked)
    with pytest.raises(ValueError, match=r"`layers` stacks 3 blocks, but `linear.bias` is there"):
        nnx.load_state_dict(stacked, nnx.state_dict(Listed(2, nnx.Rngs(0))))
    uneven = nnx.state_dict(Listed(3, nnx.Rngs(0))) | {"layers.1.linear.bias": jnp.ones(7)}
    with pytest.raises(ValueError, match=r"arrays of several shapes: \[\(2,\), \(7,\)\]"):
        nnx.load_state_dict(stacked, uneven)
    assert_untouched(stacked, before)


def test_everything_that_does_not_fit_is_told_at_once():
    model = Listed(1, nnx.Rngs(0))
    before = snapshot(model)
    with pytest.raises(ValueError) as caught:
        nnx.load_state_dict(
            model,
            {
                "layers.0.linear.kernal": jnp.ones((2, 2)),
                "layers.0.linear.bias": jnp.ones(5),
                "layers.0.drop.rngs.count": jnp.array(1.5),
                "layers.0.drop.rngs.key": jnp.array(3),
                "other": 1.0,
            },
            strict=True,
        )
    text = str(caught.value)
    assert "missing: `layers.0.linear.kernel`. Did you mean 'layers.0.linear.kernal'?" in text
    assert "unexpected: `layers.0.linear.kernal`. Did you mean 'layers.0.linear.kernel'?" in text
    assert "unexpected: `other`." in text
    assert (
        "`layers.0.linear.bias` is float32[2] in the object but float32[5] in the mapping" in text
    )
    assert "`layers.0.drop.rngs.count` is uint32[] in the object but float32[] in" in text
    assert "`layers.0.drop.rngs.key`" in text
    assert "Cure: " in text
    assert_untouched(model, before)


def test_not_strict_says_what_was_left():
    model = Listed(1, nnx.Rngs(0))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"float32\[5\] in the mapping"):  # shapes always count
        nnx.load_state_dict(model, {"layers.0.linear.bias": jnp.ones(5)}, strict=False)
    assert_untouched(model, before)
    loaded = nnx.load_state_dict(
        model, {"layers.0.linear.bias": jnp.ones(2), "no.such": 1}, strict=False, filter=nnx.Param
    )
    assert loaded.missing == ["layers.0.linear.kernel"]
    assert loaded.unexpected == ["no.such"]
    assert (model.layers[0].linear.bias.value == 1).all()


def test_what_the_filter_leaves_out_is_neither_missing_nor_unexpected():
    model = Listed(1, nnx.Rngs(0))
    count = model.layers[0].drop.rngs.count.value
    everything = nnx.state_dict(model) | {"layers.0.drop.rngs.count": jnp.uint32(9)}
    assert nnx.load_state_dict(model, everything, filter=nnx.Param) == ([], [], {})
    assert model.layers[0].drop.rngs.count.value is count


def test_names_and_layouts_of_others():
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    theirs = {"net.fc.weight": np.arange(6.0).reshape(3, 2), "net.fc.bias": np.ones(3), "step": 3}
    options = {"transform": lambda name, x: x.T if name == "kernel" else x}
    table = {r"^net\.fc\.": "", r"weight$": "kernel"}
    loaded = nnx.load_state_dict(linear, theirs, rename=table, strict=False, **options)
    assert loaded.unexpected == ["step"]
    assert (linear.kernel.value == theirs["net.fc.weight"].T).all()

    def rename(name):
        return None if name == "step" else {"weight": "kernel"}.get(name[7:], name[7:])

    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert nnx.load_state_dict(linear, theirs, rename=rename, **options)[:2] == ([], [])
    dropped = {**table, "^(?!kernel|bias)": None}
    assert nnx.load_state_dict(linear, theirs, rename=dropped, **options)[:2] == ([], [])
    with pytest.raises(ValueError, match=r"are both renamed to `bias`"):
        nnx.load_state_dict(linear, {"a": np.ones(3), "b": np.zeros(3)}, rename=lambda _: "bias")


def test_the_report_on_a_large_model_is_short():
    class Large(nnx.Module):
        def __init__(self):
            self.layers = [nnx.Param(jnp.zeros(2, jnp.bfloat16)) for _ in range(500)]
            self.an_attribute_with_a_rather_long_name = {"k" * 300: nnx.Param(jnp.zeros(2))}

    model = Large()
    wide = {name: np.ones(2) for name in nnx.state_dict(model)}
    others = {f"an.unexpected.name.of.a.layer.{i}": np.ones(2) for i in range(3000)}
    for loaded, texts in (
        (nnx.load_state_dict(model, wide), ["float64 → bfloat16: ['layers.0'", "500 in all"]),
        (nnx.load_state_dict(model, others, strict=False), ["501 in all", "3,000 in all"]),
        (nnx.load_state_dict(model, {}, strict=False), ["missing=['an_att", "unexpected=[],"]),
    ):
        text = repr(loaded)
        assert len(text) < 1500 and all(len(line) <= 80 for line in text.splitlines()), text
        assert all(x in text.replace("\n    ", " ") for x in texts), text
    few = nnx.load_state_dict([model.layers[0]], {"0": np.ones(2), "b": 1}, strict=False)
    assert repr(few) == (
        "Loaded(\n  missing=[],\n  unexpected=['b'],\n  cast={float64 → bfloat16: ['0']},\n)"
    )


@pytest.mark.parametrize("length", [3, 300, 20_000])
def test_errors_about_many_names_are_bounded_and_quick(length):
    """Hundreds of each kind of misfit are told, then how many there are; long names are cut."""

    class Large(nnx.Module):
        def __init__(self):
            self.layers = {f"{'k' * length}{i}": nnx.Param(jnp.zeros(2)) for i in range(1500)}
            self.tied, self.stack = [self.layers] * 2, nnx.Stack(Block, 3, rngs=nnx.Rngs(0))

    model = Large()
    names = list(nnx.state_dict(model))
    given: dict = {name: np.ones(5 if i % 3 else 2) for i, name in enumerate(names[:600])}
    given |= {f"wrong.{'x' * length}{i}": 1.0 for i in range(600)}
    given |= {f"stack.{i}.linear.bias": np.ones(2) for i in range(2)}
    with pytest.raises(ValueError) as caught:
        nnx.load_state_dict(model, given, rename=lambda name: re.sub("wrong.x*[12]", "same", name))
    text = str(caught.value)
    assert len(text) <= 21_000, len(text)
    for what in (
        " values of the mapping do not fit the object; nothing was changed:",
        " is float32[2] in the object but float64[5] in the mapping", "more\n  missing: `",
        "missing: … and ", "unexpected: … and ", "stacks 3 blocks", "Cure: ",
    ):  # fmt: skip
        assert what in text, (what, text)


def test_dtypes():
    def model():
        return nnx.Linear(2, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    wide = {"kernel": np.full((2, 3), 1 / 3), "bias": np.ones(3, np.float16)}
    kept = model()
    cast = nnx.load_state_dict(kept, wide).cast
    assert cast == {"bias": (np.float16, jnp.bfloat16), "kernel": (np.float64, jnp.bfloat16)}
    assert kept.kernel.dtype == kept.bias.dtype == jnp.bfloat16
    taken = model()
    nnx.load_state_dict(taken, wide, dtype="file")
    assert (taken.kernel.dtype, taken.bias.dtype) == (jnp.float32, jnp.float16)  # x64 is off
    asked = model()
    nnx.load_state_dict(asked, wide, dtype=jnp.float16)
    assert asked.kernel.dtype == asked.bias.dtype == jnp.float16
    with pytest.raises(ValueError, match=r"complex64\[3\] in the mapping"):
        nnx.load_state_dict(model(), {**wide, "bias": np.ones(3, np.complex64)})


def test_a_loaded_array_is_nobody_elses():
    linear = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    mine = np.ones((2, 3), np.float32)
    nnx.load_state_dict(linear, {"kernel": mine})
    mine[:] = 5
    assert isinstance(linear.kernel.value, jax.Array)
    assert (linear.kernel.value == 1).all()


def test_placement_stays():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    linear = nnx.Linear(2, 8, rngs=nnx.Rngs(0))
    linear.kernel.value = jax.device_put(linear.kernel.value, sharding)
    host = NamedSharding(mesh, PartitionSpec(), memory_kind="unpinned_host")
    linear.bias.value = jax.device_put(linear.bias.value, host)
    nnx.load_state_dict(linear, {"kernel": np.ones((2, 8)), "bias": np.ones(8)})
    assert linear.kernel.value.sharding == sharding
    assert linear.bias.value.sharding == host


def test_an_abstract_model_is_filled_in():
    make = lambda: Listed(2, nnx.Rngs(0))  # noqa: E731
    model, abstract = make(), nnx.eval_shape(make)
    nnx.load_state_dict(abstract, nnx.state_dict(model))
    for name, x in nnx.state_dict(model).items():
        assert (nnx.state_dict(abstract)[name] == x).all()
    abstract.layers[0](jnp.ones((1, 2)))


def test_bare_arrays_and_tuples():
    class Bare(nnx.Module):
        def __init__(self):
            self.table = jnp.zeros(3)
            self.pair = (jnp.zeros(2), nnx.Param(jnp.zeros(2)))

    model = Bare()
    names = list(nnx.state_dict(model))
    assert names == ["pair.0", "pair.1", "table"]
    nnx.load_state_dict(model, {name: jnp.ones(3 if name == "table" else 2) for name in names})
    assert all((x == 1).all() for x in nnx.state_dict(model).values())
    assert (model.pair[0] == 1).all()


def test_not_from_another_trace():
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    before = snapshot(linear)

    @jax.jit
    def load(x):
        nnx.load_state_dict(linear, {"kernel": x, "bias": jnp.ones(3)})

    with pytest.raises(nnx.TraceContextError):
        load(jnp.ones((2, 3)))
    assert_untouched(linear, before)

    @nnx.jit
    def inside(linear, x):
        nnx.load_state_dict(linear, {"kernel": 2 * x, "bias": jnp.ones(3)})

    inside(linear, jnp.ones((2, 3)))
    assert (linear.kernel.value == 2).all()


def test_no_mapping():
    with pytest.raises(TypeError, match=r"mapping=\[1, 2\], but must be \{a string: anything, …\}"):
        nnx.load_state_dict(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), [1, 2])


def test_cycles_and_deep_names():
    class Ring(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.zeros(1))
            self.me = self
            self.by_key = {"a.b": nnx.Param(jnp.zeros(1)), (1, 2): nnx.Param(jnp.zeros(1))}

    ring = Ring()
    names = nnx.state_dict(ring)
    assert len(names) == 3
    nnx.load_state_dict(ring, {name: jnp.ones(1) for name in nnx.state_dict(ring, aliases=True)})
    assert all(x == 1 for x in nnx.state_dict(ring).values())
