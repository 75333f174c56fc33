"""What single layers do beyond the table: options, metadata, errors, Sequential, initializers."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers as jax_initializers
from jax.sharding import PartitionSpec as P

from refax import nnx
from refax.layers.dtypes import promote_dtype

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)


# -- options -------------------------------------------------------------------------------------


def test_only_options_that_differ_are_attributes() -> None:
    layer = nnx.Linear(6, 5, precision="highest", rngs=nnx.Rngs(0))
    assert set(vars(layer)) == {"kernel", "bias", "in_features", "out_features", "precision"}
    assert layer.use_bias is True and layer.dtype is None and layer.precision == "highest"
    layer.dtype = jnp.bfloat16  # still an ordinary attribute
    assert layer(X).dtype == jnp.bfloat16


@pytest.mark.parametrize("make", [nnx.Linear, nnx.LinearGeneral], ids=lambda make: make.__name__)
def test_dot_general_and_promote_dtype_are_called(make: Any) -> None:
    calls: list[str] = []

    def dot_general(x: Any, y: Any, dimensions: Any, **options: Any) -> jax.Array:
        calls.append("dot_general")
        assert options == {"precision": "highest", "preferred_element_type": jnp.float32}
        return jax.lax.dot_general(x, y, dimensions, **options)

    def promote(args: Any, *, dtype: Any) -> Any:
        calls.append("promote_dtype")
        return promote_dtype(args, dtype=dtype)

    layer = make(
        6,
        5,
        dot_general=dot_general,
        promote_dtype=promote,
        precision="highest",
        preferred_element_type=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    np.testing.assert_allclose(layer(X), make(6, 5, rngs=nnx.Rngs(0))(X), rtol=1e-6, atol=1e-6)
    assert calls == ["promote_dtype", "dot_general"]


def test_dot_general_cls_makes_the_function() -> None:
    layer = nnx.LinearGeneral(6, 5, dot_general_cls=lambda: jax.lax.dot_general, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(X), nnx.LinearGeneral(6, 5, rngs=nnx.Rngs(0))(X))


def test_preferred_element_type() -> None:
    layer = nnx.Linear(
        6, 5, use_bias=False, dtype=jnp.bfloat16, preferred_element_type=jnp.float32,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    assert layer(X).dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda **o: nnx.Linear(6, 5, rngs=nnx.Rngs(0), **o), ("kernel", "bias")),
        (lambda **o: nnx.LinearGeneral(6, (5, 2), rngs=nnx.Rngs(0), **o), ("kernel", "bias")),
        (lambda **o: nnx.Embed(6, 5, rngs=nnx.Rngs(0), **o), ("embedding",)),
        (lambda **o: nnx.LayerNorm(6, rngs=nnx.Rngs(0), **o), ("scale", "bias")),
        (lambda **o: nnx.RMSNorm(6, rngs=nnx.Rngs(0), **o), ("scale",)),
        (lambda **o: nnx.BatchNorm(6, rngs=nnx.Rngs(0), **o), ("scale", "bias")),
    ],
)
def test_metadata_by_argument_and_by_initializer(make: Any, names: tuple[str, ...]) -> None:
    init = nnx.with_metadata(nnx.initializers.ones, sharding=("x",))
    layer = make(
        **{f"{n}_metadata": {"tag": n} for n in names}, **{f"{n}_init": init for n in names}
    )
    for name in names:
        parameter = vars(layer)[name]
        assert (parameter.tag, parameter.sharding) == (name, ("x",))
        assert isinstance(parameter.value, jax.Array)


def test_a_stack_of_layers_called_as_one_says_so() -> None:
    layers = jax.vmap(lambda key: nnx.Linear(6, 5, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 3)
    )
    with pytest.raises(ValueError, match="stack of layers"):
        layers(X)
    y = jax.vmap(lambda layer, x: layer(x), (0, None))(layers, X)
    assert y.shape == (3, 2, 3, 5)


def test_linear_general_beside_einsum() -> None:
    layer = nnx.LinearGeneral((6, 2), (4, 5), axis=(-1, 0), rngs=nnx.Rngs(0))
    expected = np.einsum("ibk,kiop->bop", X, layer.kernel.value)
    np.testing.assert_allclose(layer(X), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="names 1 axes"):
        nnx.LinearGeneral((6, 2), 5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="leading"):
        nnx.LinearGeneral(6, 5, batch_axis={1: 2}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(6,\), but its axes \(-1, 0\)"):
        nnx.LinearGeneral((6, 2), 5, axis=(-1, 0), rngs=nnx.Rngs(0))(X[0, 0])


def test_embed_looks_up_and_attends() -> None:
    embed = nnx.Embed(7, 6, rngs=nnx.Rngs(0))
    table = embed.embedding.value
    rows = embed(jnp.array([0, 6, -1, 7]))
    np.testing.assert_array_equal(rows[:3], table[jnp.array([0, 6, 6])])
    assert jnp.isnan(rows[3]).all()
    np.testing.assert_allclose(embed.attend(X), X @ np.asarray(table).T, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="must be integers, but it is float32"):
        embed(X)
    with pytest.raises(ValueError, match="features=6"):
        embed.attend(X[..., :5])
    half = nnx.Embed(7, 6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(jnp.array([1])).dtype == half.attend(X).dtype == jnp.bfloat16


@pytest.mark.parametrize("indices", [[0, 5, -1, -7], [[3]], 2])
def test_embed_of_one_row_gives_that_row_for_any_index(indices: Any) -> None:
    embed = nnx.Embed(1, 6, rngs=nnx.Rngs(0))
    rows = embed(jnp.array(indices))
    expected = np.broadcast_to(embed.embedding.value[0], (*np.shape(indices), 6))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(jax.jit(lambda e, i: e(i))(embed, jnp.array(indices)), expected)


MAKERS = [
    "constant", "delta_orthogonal", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform",
    "kaiming_normal", "kaiming_uniform", "lecun_normal", "lecun_uniform", "normal", "ones_init",
    "orthogonal", "truncated_normal", "uniform", "variance_scaling", "xavier_normal",
    "xavier_uniform", "zeros_init",
]  # fmt: skip
ARGUMENTS = {"constant": (2.0,), "variance_scaling": (1.0, "fan_in", "normal")}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("shape", [5, np.int32(5), (5,), [3, 4], (1, 3, 4)], ids=str)
def test_initializers_take_what_those_of_jax_do_and_a_number_for_a_shape(
    name: str, shape: Any
) -> None:
    key, arguments = jax.random.key(0), ARGUMENTS.get(name, ())
    plain = {
        "ones_init": lambda: jax_initializers.ones,
        "zeros_init": lambda: jax_initializers.zeros,
    }
    theirs = plain.get(name) or getattr(jax_initializers, name)
    as_tuple = (5,) if np.ndim(shape) == 0 else tuple(shape)
    try:
        expected = theirs(*arguments)(key, as_tuple)
    except ValueError:
        with pytest.raises(ValueError):
            getattr(nnx.initializers, name)(*arguments)(key, shape)
        return
    actual = getattr(nnx.initializers, name)(*arguments)(key, shape)
    assert actual.shape == as_tuple and actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_an_initializer_keeps_the_dtype_that_it_was_made_with() -> None:
    for make in (nnx.initializers.uniform, nnx.initializers.truncated_normal):
        init = make(1.0, jnp.bfloat16)
        assert init(jax.random.key(0), (3,)).dtype == jnp.bfloat16
        assert init(jax.random.key(0), (3,), jnp.float32).dtype == jnp.float32


def test_shapes_and_axes_that_programs_read() -> None:
    rngs = nnx.Rngs(0)
    einsum = nnx.Einsum("...i,io->...o", (2, 3), (3,), rngs=rngs)
    assert (einsum.kernel_shape, einsum.bias_shape) == ((2, 3), (3,))
    assert nnx.Einsum("...i,io->...o", (2, 3), rngs=rngs).bias_shape is None
    assert nnx.Conv(2, 4, (3, 3), feature_group_count=2, rngs=rngs).kernel_shape == (3, 3, 1, 4)
    transposed = nnx.ConvTranspose(2, 4, 3, transpose_kernel=True, rngs=rngs)
    assert transposed.kernel_shape == (3, 4, 2)
    assert nnx.GroupNorm(4, 2, rngs=rngs).feature_axis == -1
    linear = nnx.Linear(2, 3, rngs=rngs)
    assert nnx.WeightNorm(linear, rngs=rngs).scale_init is nnx.initializers.ones
    halves = nnx.initializers.constant(0.5)
    assert nnx.WeightNorm(linear, scale_init=halves, rngs=rngs).scale_init is halves


# -- Sequential ----------------------------------------------------------------------------------


def test_sequential_passes_tuples_and_mappings_as_arguments() -> None:
    model = nnx.Sequential(
        lambda x: (x, x + 1), lambda a, b: {"c": a, "d": b}, lambda c, d: [c, d], len
    )
    assert model(1) == 2
    assert nnx.Sequential(lambda x, *, scale: x * scale)(2, scale=3) == 6
    assert nnx.Sequential()(5) == 5
    assert nnx.Sequential(lambda: {1: 2}, lambda mapping: mapping)() == {1: 2}


def test_sequential_gives_rngs_to_the_layers_that_take_them() -> None:
    rngs = nnx.Rngs(dropout=0)
    model = nnx.Sequential(nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.Dropout(0.5), nnx.relu)
    y = model(X, rngs=rngs)
    assert int(rngs.dropout.count.value) == 1
    nested = nnx.Sequential(model)
    np.testing.assert_array_equal(nested(X, rngs=nnx.Rngs(dropout=0)), y)


def test_sequential_is_a_plain_list_that_may_change() -> None:
    model = nnx.Sequential(nnx.Linear(6, 6, rngs=nnx.Rngs(0)))
    call = nnx.jit(lambda model, x: model(x))
    before = call(model, X)
    model.layers.append(jnp.negative)
    np.testing.assert_array_equal(call(model, X), -before)
    with pytest.raises(TypeError, match=r"layers\[0\] is a int"):
        nnx.Sequential(3)(1)  # type: ignore[arg-type]


def test_identity() -> None:
    assert nnx.Identity(6, rngs=nnx.Rngs(0))(X, 1, mask=None) is X
    assert (nnx.identity(X) == X).all()


# -- initializers and dtypes ---------------------------------------------------------------------

MAKERS: list[tuple[str, tuple]] = [
    *[(name, ()) for name in ("glorot_normal", "he_uniform", "lecun_normal", "orthogonal")],
    *[("normal", (0.3,)), ("truncated_normal", (0.3,)), ("uniform", (0.3,)), ("constant", (0.3,))],
    ("variance_scaling", (0.5, "fan_avg", "normal")),
]


@pytest.mark.skipif(
    os.environ.get("REFAX_TESTS") == "quick",
    reason="less optimized, a compiled product may round otherwise",
)
@pytest.mark.parametrize(("name", "args"), MAKERS, ids=[name for name, _ in MAKERS])
def test_initializers_give_the_bits_of_jax(name: str, args: tuple) -> None:
    init = getattr(nnx.initializers, name)(*args)
    plain = getattr(jax_initializers, name)(*args)
    key = jax.random.key(3)
    mine, its = (f(key, (7, 13), jnp.float32) for f in (init, plain))
    assert mine.dtype == its.dtype
    np.testing.assert_array_equal(mine, its)


@pytest.mark.skipif(os.environ.get("REFAX_TESTS") != "quick", reason="they run as they are")
def test_the_tests_of_bits_pass_in_a_process_that_optimizes() -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REFAX_", "XLA_", "PYTEST_"))}
    files = (__file__, str(Path(__file__).parent.parent / "graph" / "test_eager_sharding.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-k", "bits_of_jax or every_spelling", *files]
    run = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "skipped" not in run.stdout, run.stdout
    assert int(re.findall(r"(\d+) passed", run.stdout)[0]) >= len(MAKERS) + 10


def test_a_maker_gives_one_function_per_arguments() -> None:
    assert nnx.initializers.uniform(0.1) is nnx.initializers.uniform(0.1)
    assert nnx.initializers.uniform(0.1) is not nnx.initializers.uniform(0.2)
    assert nnx.initializers.constant(jnp.ones(3))(None, (2, 3)).shape == (2, 3)
    with pytest.raises(TypeError):
        nnx.initializers.uniform(width=3)
    assert nnx.initializers.ones(None, [2, 3], jnp.int32).dtype == jnp.int32
    assert pickle.loads(pickle.dumps(nnx.initializers.zeros)) is nnx.initializers.zeros
    assert nnx.initializers.zeros_init() is nnx.initializers.zeros
    assert nnx.initializers.ones_init() is nnx.initializers.ones


def test_promote_dtype() -> None:
    x, y = jnp.ones(3), jnp.ones(3)
    same = promote_dtype((x, None, y))
    assert same[0] is x and same[1] is None and same[2] is y
    assert promote_dtype((x, y), dtype="float32")[0] is x
    assert promote_dtype([x], dtype=jnp.bfloat16)[0].dtype == jnp.bfloat16
    assert promote_dtype((jnp.arange(3), 2))[0].dtype == jnp.float32
    assert promote_dtype((jnp.arange(3),), inexact=False)[0].dtype == jnp.int32
    assert promote_dtype((nnx.Param(x), [1.0]))[0].dtype == jnp.float32
    with jax.numpy_dtype_promotion("standard"):
        mixed = promote_dtype((x.astype(jnp.bfloat16), x.astype(jnp.float16)))
    assert {a.dtype for a in mixed} == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match="dtype=int32 cannot hold fractions"):
        promote_dtype((x,), dtype=jnp.int32)


# -- a mesh with explicit axes -------------------------------------------------------------------


def test_layers_on_a_mesh_with_explicit_axes() -> None:
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"), axis_types=explicit)):

        def spec(x: jax.Array) -> tuple:
            return tuple(jax.typeof(x).sharding.spec)

        x = jax.device_put(jnp.ones((4, 3, 8)), P("data"))
        rngs = nnx.Rngs(0)
        up, down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        up.kernel.value = jax.device_put(up.kernel.value, P(None, "model"))
        up.bias.value = jax.device_put(up.bias.value, P("model"))
        down.kernel.value = jax.device_put(down.kernel.value, P("model", None))
        assert spec(up(x)) == ("data", None, "model")
        assert spec(down(up(x), out_sharding=P("data", None, None))) == ("data", None, None)
        embed = nnx.Embed(10, 8, rngs=rngs)
        ids = jax.device_put(jnp.ones((4, 3), int), P("data"))
        assert spec(embed(ids, out_sharding=P("data", None, None))) == ("data", None, None)
        for layer in (
            nnx.LayerNorm(8, rngs=rngs),
            nnx.BatchNorm(8, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.MultiHeadAttention(4, 8, dropout_rate=0.5, deterministic=False, rngs=rngs),
            embed.attend,
        ):
            assert spec(layer(x)) == ("data", None, None)
        norm = nnx.LayerNorm(8, rngs=rngs)
        assert spec(jax.grad(lambda x: norm(x).sum())(x)) == ("data", None, None)
