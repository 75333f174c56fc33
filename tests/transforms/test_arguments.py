"""Every transform takes the arguments of its JAX counterpart, by position and by name."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from refax.nnx import Carry

COUNTERPARTS = {
    "jit": jax.jit,
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "vjp": jax.vjp,
    "jvp": jax.jvp,
    "custom_vjp": functools.partial(jax.custom_vjp.__init__, None),  # without self
    "remat": jax.checkpoint,
    "vmap": jax.vmap,
    "pmap": jax.pmap,
    "shard_map": jax.shard_map,
    "cond": jax.lax.cond,
    "switch": jax.lax.switch,
    "while_loop": jax.lax.while_loop,
    "fori_loop": jax.lax.fori_loop,
    "checkify": checkify.checkify,
    "eval_shape": jax.eval_shape,
    "make_jaxpr": jax.make_jaxpr,
}


def of_kinds(f, *kinds):
    return [p.name for p in inspect.signature(f).parameters.values() if p.kind in kinds]


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_every_argument_of_the_counterpart_is_taken(name):
    ours, theirs = getattr(nnx, name), COUNTERPARTS[name]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    open_ended = of_kinds(ours, inspect.Parameter.VAR_KEYWORD)
    missing = [p for p in of_kinds(theirs, *named) if p not in of_kinds(ours, *named)]
    missing = [p for p in missing if p not in ("fun", "f")]
    assert not missing or open_ended, missing
    # In the same order, where JAX takes them by position.
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    order = of_kinds(theirs, *positional)[1:]
    mine = of_kinds(ours, *positional)[1:]
    assert mine[: len(order)] == order[: len(mine)]


def test_arguments_of_rules():
    """Of `defvjp`, beside the two rules."""
    f = nnx.custom_vjp(jnp.sin)
    for name in of_kinds(jax.custom_vjp.defvjp, inspect.Parameter.POSITIONAL_OR_KEYWORD)[3:]:
        f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g,), **{name: False})
        assert float(jax.grad(f)(2.0)) == 1


@pytest.mark.parametrize("name", ["jit", "grad", "value_and_grad", "remat", "vmap", "pmap",
                                  "make_jaxpr", "checkify", "custom_vjp"])  # fmt: skip
def test_the_function_by_name_is_the_function_by_position(name):
    def square(x):
        return (x**2).sum()

    transform = getattr(nnx, name)
    for word in ("f", "fun"):
        wrapped = transform(**{word: square})
        assert wrapped.__wrapped__ is square and wrapped.__name__ == "square"
        if name == "custom_vjp":
            wrapped.defvjp(lambda x: (square(x), x), lambda x, g: (g * x,))
        x = jnp.ones(1)
        jax.tree.map(np.testing.assert_allclose, _numbers(wrapped(x)),
                     _numbers(transform(square)(x) if name != "custom_vjp" else 1.0))  # fmt: skip


def _numbers(result):
    return [x for x in jax.tree.leaves(result) if isinstance(x, (jax.Array, float))]


# -- keyword arguments that a prefix names by position -------------------------------------------


class Scale(nnx.Module):
    def __init__(self, key, size=2.0, *, offset=None):
        self.w = nnx.Param(jax.random.normal(key, (2,)) * size)
        if offset is not None:
            self.w.value = self.w + offset

    def __call__(self, x, y=1.0, *, z=None):
        out = self.w * x * y
        return out if z is None else out + z


KEYS = jax.random.split(jax.random.key(0), 4)
NORMAL = jax.vmap(lambda key: jax.random.normal(key, (2,)))(KEYS)
SPELLINGS = {
    "by position": lambda make: make(KEYS, 2.0),
    "a default": lambda make: make(KEYS),
    "the last by name": lambda make: make(KEYS, size=2.0),
    "all by name": lambda make: make(key=KEYS, size=2.0),
    "in another order": lambda make: make(size=2.0, key=KEYS),
    "by name, and a default": lambda make: make(key=KEYS),
}
AXES = nnx.StateAxes({nnx.Param: 0, ...: None})


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("transform", [nnx.vmap, nnx.pmap])
def test_a_mapped_constructor(transform, spelling):
    class Stack(Scale):
        __init__ = transform(Scale.__init__, in_axes=(AXES, 0, None))

    class WithoutSelf(Scale):
        __init__ = transform(Scale.__init__, in_axes=(0, None))

    made = SPELLINGS[spelling](Stack).w
    np.testing.assert_allclose(made.value, 2 * NORMAL, rtol=1e-6)
    if spelling in ("by position", "all by name", "in another order"):
        made = SPELLINGS[spelling](WithoutSelf).w  # full but for self
        np.testing.assert_allclose(made.value, 2 * NORMAL, rtol=1e-6)


def test_a_mapped_constructor_with_one_argument():
    class Stack(Scale):
        __init__ = nnx.vmap(Scale.__init__, in_axes=(0,))

    class Transposed(nnx.Module):
        @nnx.vmap(in_axes=(1,))
        def __init__(self, w):
            self.w = nnx.Param(w)

    class Streams(nnx.Module):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(nnx.StateAxes({...: 0}), 0))
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)

    assert Stack(key=KEYS).w.shape == Stack(KEYS).w.shape == (4, 2)
    w = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(Transposed(w=w).w.value, w.T)
    np.testing.assert_array_equal(Transposed(w).w.value, w.T)
    assert Streams(rngs=nnx.Rngs(0)).linear.kernel.shape == (3, 2, 2)


def f(x, y=2.0, z=1.0, *, k=1.0):
    return x * y * z * k


def test_arguments_of_vmap_by_name():
    x, y = jnp.arange(6.0).reshape(2, 3), jnp.arange(6.0).reshape(3, 2) + 1
    whole = jax.vmap(f, in_axes=(0, 1))(x, y)
    for call in (
        lambda g: g(x, y),
        lambda g: g(x, y=y),
        lambda g: g(y=y, x=x),
        lambda g: g(x, y, k=jnp.ones(2)),  # keyword-only: axis 0, as in JAX
        lambda g: g(x, y=y, k=jnp.ones(2)),
    ):
        np.testing.assert_array_equal(call(nnx.vmap(f, in_axes=(0, 1))), whole)
    gap = nnx.vmap(f, in_axes=(0, None, None))(x, z=3.0)  # `y` has its default
    np.testing.assert_array_equal(gap, x * 6)
    # As JAX: what in_axes does not name is mapped over axis 0.
    for axes, args, named in (
        (1, (x,), {"y": jnp.ones(3)}),
        ((0,), (x,), {"y": jnp.ones((2, 1))}),
        (None, (x,), {"y": jnp.ones((5, 1, 1))}),
    ):
        ours, theirs = (v(f, in_axes=axes)(*args, **named) for v in (nnx.vmap, jax.vmap))
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        nnx.vmap(f, in_axes=(0, 1), axis_size=2)(y=y)
    with pytest.raises(nnx.GraphError, match=r"size 3: y \(float32\[3\], axis 0\)"):
        nnx.vmap(f, in_axes=(0, 0))(x, y=jnp.ones(3))
    with pytest.raises(nnx.GraphError, match="`in_axes` is not a prefix"):
        nnx.vmap(f, in_axes=(0, 0, 0, 0))(x, y=x)


def test_objects_by_name():
    model = nnx.vmap(Scale)(KEYS)
    for axes in ((None, 0), (None, AXES)):
        run = nnx.vmap(lambda x, model: model(x), in_axes=axes)
        np.testing.assert_array_equal(run(jnp.ones(2), model=model), model.w.value)
    with pytest.raises(
        nnx.GraphError, match=r"(?s)Inconsistent aliasing.*again.w: None.*model.w: 0"
    ):
        nnx.vmap(lambda model, again: None, in_axes=(0, None))(model, again=model)
    mapped = nnx.vmap(model.__call__, in_axes=(None, 0))  # a bound method: without self
    np.testing.assert_allclose(
        mapped(1.0, y=jnp.arange(4.0)), NORMAL * 2 * jnp.arange(4.0)[:, None]
    )


def test_arguments_of_scan_by_name():
    def body(c, x, k=1.0, *, w=2.0):
        return c + x * k * w, c

    x = jnp.arange(3.0)
    expected = jax.lax.scan(lambda c, x: body(c, x), 0.0, x)
    scan = nnx.scan(body, in_axes=(Carry, 0, None))
    for result in (scan(0.0, x, 1.0), scan(0.0, x), scan(0.0, x=x), scan(x=x, c=0.0, k=1.0)):
        jax.tree.map(np.testing.assert_array_equal, result, expected)
    with pytest.raises(TypeError, match=r"\['w'\] are keyword-only"):
        scan(0.0, x, w=3.0)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        scan(0.0)


# -- States and dicts of entries -----------------------------------------------------------------


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])


class Layer(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.arange(32.0).reshape(4, 8))
        self.parts = {"bias": nnx.Param(jnp.arange(4.0))}


def total(m):
    return m.kernel.sum() + m.parts.bias.sum() if isinstance(m, nnx.State) else (
        m.kernel.sum() + m.parts["bias"].sum())  # fmt: skip


ENTRIES = {
    "dict": lambda entries: entries,
    "State": nnx.State,
    # As `nnx.get_partition_spec` gives them; numbers in Variables would be arrays.
    "State of Variables": lambda entries: nnx.map_state(
        lambda _, e: e if e is None or isinstance(e, int) else nnx.Param(e), nnx.State(entries)
    ),
}
OF = {"object": lambda m: m, "State": nnx.state, "list": lambda m: [m]}


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("kind", ENTRIES)
def test_entries_of_an_object_by_path(kind, of):
    """For an object or a State, in every transform that takes a prefix of the arguments."""
    model = Layer()
    argument = OF[of](model)

    def wrapped(entries):
        entries = ENTRIES[kind](entries)
        return [entries] if of == "list" else entries

    def run(m):
        return total(m[0] if of == "list" else m)

    axes = wrapped({"kernel": 1, "parts": {"bias": None}})
    expected = model.kernel.value.sum(0) + 6
    np.testing.assert_allclose(nnx.vmap(run, in_axes=(axes,))(argument), expected)
    np.testing.assert_allclose(nnx.scan(run, in_axes=(axes,), out_axes=0)(argument), expected)
    specs = wrapped({"kernel": P("data"), "parts": {"bias": P()}})
    sharded = nnx.shard_map(
        lambda m: run(m)[None], mesh=mesh(), in_specs=(specs,), out_specs=P("data")
    )
    np.testing.assert_allclose(sharded(argument), model.kernel.value.sum(1) + 6)
    to = functools.partial(NamedSharding, mesh())
    shardings = wrapped({"kernel": to(P(None, "data")), "parts": {"bias": to(P())}})
    jitted = nnx.jit(run, in_shardings=(shardings,))
    assert float(jitted(argument)) == float(run(argument))
    placed, _ = jitted.lower(argument).compile().input_shardings
    assert {s.spec for s in jax.tree.leaves(placed)} == {P(None, "data"), P()}


def test_entries_that_leave_a_place_out():
    with pytest.raises(nnx.GraphError, match=r"of \{kernel: 0\} matches `m\.parts\.bias`"):
        nnx.vmap(total, in_axes=({"kernel": 0},))(Layer())


# -- shard_map -----------------------------------------------------------------------------------


def test_a_sharded_function_that_returns_nothing():
    count = nnx.Variable(jnp.zeros(4))

    def add(count, x):
        count += x

    run = nnx.shard_map(add, mesh=mesh(), in_specs=P("data"), out_specs=None)
    assert run(count, jnp.arange(4.0)) is None and run(count, jnp.arange(4.0)) is None
    np.testing.assert_array_equal(count.value, 2 * jnp.arange(4.0))
    for shard_map in (nnx.shard_map, jax.shard_map):
        both = shard_map(lambda x: (x, None), mesh=mesh(), in_specs=P("data"),
                         out_specs=(P("data"), None))(jnp.arange(4.0))  # fmt: skip
        np.testing.assert_array_equal(both[0], jnp.arange(4.0))
        assert both[1] is None
        assert shard_map(lambda x: None, mesh=mesh(), in_specs=P("data"),
                         out_specs=None)(jnp.ones(4)) is None  # fmt: skip


def test_specs_are_inferred_on_explicit_axes():
    explicit = mesh(AxisType.Explicit)
    x = jax.device_put(jnp.ones((4, 2)), NamedSharding(explicit, P("data")))
    model = Layer()
    model.kernel.value = jax.device_put(model.kernel.value, NamedSharding(explicit, P("data")))
    model.parts["bias"].value = jax.device_put(model.parts["bias"].value,
                                               NamedSharding(explicit, P()))  # fmt: skip
    seen = []

    def run(m, x):
        seen.append((m.kernel.shape, m.parts["bias"].shape, x.shape))
        m.kernel.value = m.kernel * 2
        return x

    nnx.shard_map(run, mesh=explicit, out_specs=P("data"))(model, x)
    assert seen == [((1, 8), (4,), (1, 2))]
    np.testing.assert_array_equal(jax.device_get(model.kernel.value).sum(), 2 * 31 * 16)
    for shard_map in (nnx.shard_map, jax.shard_map):
        with pytest.raises(TypeError, match="in_specs"):
            shard_map(lambda x: x, mesh=mesh(), out_specs=P("data"))(jnp.ones(4))


# -- other arguments -----------------------------------------------------------------------------


def test_static_arguments_of_remat():
    def run(m, x, times, *, flag=False):
        assert isinstance(times, int) and isinstance(flag, bool)
        return (m.kernel.sum() * x if flag else x) * times

    model = Layer()
    for options, args, named in (
        ({"static_argnums": 2}, (model, 1.0, 3), {}),
        ({"static_argnums": (2,)}, (model, 1.0), {"times": 3}),
        ({"static_argnames": ("times", "flag")}, (model, 1.0, 3), {"flag": True}),
        ({"static_argnames": ["times", "flag"]}, (model, 1.0), {"times": 3, "flag": True}),
    ):
        expected = run(*args, **named)
        assert float(nnx.remat(run, **options)(*args, **named)) == float(expected)
        assert float(nnx.jit(nnx.remat(run, **options), **options)(*args, **named)) == expected
    with pytest.raises(ValueError, match="remat: static_argnames=.time., but must be"):
        nnx.remat(run, static_argnames="time")


def test_axis_environment_of_make_jaxpr():
    jaxpr = nnx.make_jaxpr(lambda m: jax.lax.psum(m.kernel.value, "i"), (), [("i", 3)])(Layer())
    assert "psum" in str(jaxpr)


IN_A_CLASS = {
    "jit": nnx.jit,
    "jit with arguments": nnx.jit(inline=True),
    "remat": nnx.remat,
    "remat with arguments": nnx.remat(prevent_cse=False),
    "vmap": nnx.vmap(in_axes=0, axis_size=3),
    "scan": nnx.scan(in_axes=0, out_axes=0),
    "pmap": nnx.pmap(in_axes=0),
    "shard_map": lambda f: nnx.shard_map(f, mesh=mesh(), in_specs=P("data"), out_specs=P("data")),
    "jit of vmap": lambda f: nnx.jit(nnx.vmap(f)),
    "remat of jit of remat": lambda f: nnx.remat(nnx.jit(nnx.remat(f))),
    "vmap of cond": lambda f: nnx.vmap(lambda *args: nnx.cond(True, f, f, *args)),
}


@pytest.mark.parametrize("name", IN_A_CLASS)
def test_as_a_decorator_of_anything_in_a_class(name):
    transform = IN_A_CLASS[name]

    class Model(nnx.Module):
        @transform
        def __init__(self, w):
            self.w = nnx.Param(w)
            self.calls = nnx.Variable(0 * w)

        @transform
        def __call__(self, x):
            self.calls += 1
            return self.w * x

        @staticmethod
        @transform
        def static(x):
            return 2.0 * x

        @classmethod
        def of_class(cls, x):
            return transform(lambda x: 3.0 * x)(x)

    count = 4 if name == "shard_map" else 3
    model, x = Model(jnp.ones(count)), jnp.arange(float(count))
    for _ in range(2):
        np.testing.assert_array_equal(model(x), x)
    np.testing.assert_array_equal(model.calls.value, [2] * count)
    np.testing.assert_array_equal(Model.static(x), 2 * x)
    np.testing.assert_array_equal(model.static(x), 2 * x)
    np.testing.assert_array_equal(Model.of_class(x), 3 * x)
