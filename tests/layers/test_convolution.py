"""Conv, ConvTranspose, Einsum, pooling: grids of options, batch axes, paddings, errors."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from refax import nnx
from tests.layers.case import AFFINE
from tests.layers.cases_convolution import convolution, transposed

pytestmark = pytest.mark.usefixtures("strict_numerics")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 3)).astype(np.float32)
IMAGES = RNG.normal(size=(2, 5, 6, 2)).astype(np.float32)
# Sums of a few dozen products of numbers around one, in float32.
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)


def conv(*args: Any, lib: Any = nnx, **options: Any) -> Any:
    return lib.Conv(*args, **{"rngs": lib.Rngs(0), **AFFINE, **options})


def conv_transpose(*args: Any, lib: Any = nnx, **options: Any) -> Any:
    return lib.ConvTranspose(*args, **{"rngs": lib.Rngs(0), **AFFINE, **options})


def einsum(*args: Any, lib: Any = nnx, **options: Any) -> Any:
    return lib.Einsum(*args, **{"rngs": lib.Rngs(0), **AFFINE, **options})


def parameters(layer: Any) -> dict[str, np.ndarray]:
    params = {"kernel": layer.kernel, "bias": layer.bias}
    return {name: np.asarray(p, np.float64) for name, p in params.items() if p is not None}


@pytest.fixture
def peer() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield pytest.importorskip("flax.nnx")


# -- paddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "pads", "mode"),
    [
        ("SAME", ((1, 2),), "constant"),  # 4 places 2 apart, 4 wide: 10 of 7
        ("SAME_LOWER", ((2, 1),), "constant"),
        ("VALID", ((0, 0),), "constant"),
        ("CIRCULAR", ((1, 2),), "wrap"),
        ("REFLECT", ((1, 2),), "reflect"),
        ("CAUSAL", ((3, 0),), "constant"),
        (2, ((2, 2),), "constant"),
        ([2], ((2, 2),), "constant"),
        ([(1, 3)], ((1, 3),), "constant"),
    ],
    ids=str,
)
def test_each_padding_of_conv(padding: Any, pads: Any, mode: str) -> None:
    layer = conv(3, 5, 4, 2, padding=padding)
    expected = convolution(parameters(layer), X.astype(np.float64), pads, (2,), mode=mode)
    assert_close(layer(X), expected)


def test_same_padding_with_input_dilation_is_that_of_the_dilated_input() -> None:
    layer = conv(3, 5, 3, input_dilation=2)
    expected = convolution(parameters(layer), X.astype(np.float64), ((1, 1),), input_dilation=(2,))
    assert expected.shape == (2, 13, 5)
    assert_close(layer(X), expected)


@pytest.mark.parametrize(
    ("padding", "size", "low"),
    [("SAME", 14, 0), ("VALID", 15, 0), (1, 13, 1), (((0, 3),), 14, 2), ("CIRCULAR", 14, 0)],
    ids=str,
)
def test_each_padding_of_conv_transpose(padding: Any, size: int, low: int) -> None:
    layer = conv_transpose(3, 5, 3, 2, padding=padding)
    expected = transposed(
        parameters(layer),
        X.astype(np.float64),
        (size,),
        (low,),
        (2,),
        periodic=padding == "CIRCULAR",
    )
    assert_close(layer(X), expected)


@pytest.mark.parametrize("padding", ["CIRCULAR", (1, 0)], ids=str)
def test_a_transposed_kernel_gives_the_transpose_of_conv(padding: Any) -> None:
    """⟨Conv(x), y⟩ = ⟨x, ConvTranspose(y)⟩, for the same kernel and no bias."""
    x, y = RNG.normal(size=(1, 6, 4, 2)), RNG.normal(size=(1, 3, 2, 3))
    size, pads = (3, 1), ((1, 0), (0, 0)) if padding == (1, 0) else padding
    # In the transposed convolution numbers are zeros around y: the rest of window - 1.
    back = ((1, 2), (0, 1)) if padding == (1, 0) else padding
    options = {"use_bias": False}
    forward = conv(2, 3, size, 2, padding=pads, **options)
    backward = conv_transpose(3, 2, size, 2, padding=back, transpose_kernel=True, **options)
    backward.kernel.value = forward.kernel.value
    one = np.vdot(forward(x.astype(np.float32)), y)
    other = np.vdot(x, backward(y.astype(np.float32)))
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv(3, 5, 3, padding="WRAP"), "Conv: padding='WRAP' is none of 'SAME', "),
        (lambda: conv(3, 5, (3, 3), padding="CAUSAL"), "Conv: padding='CAUSAL' is none of"),
        (lambda: conv(3, 5, 3, padding=(1, 1)), r"Conv: padding=\(1, 1\) does not fit 1 spatial"),
        (lambda: conv(3, 5, 3, padding=[(1,)]), "an int, or 1 ints or pairs"),
        (lambda: conv_transpose(3, 5, 3, padding="REFLECT"), "'SAME', 'VALID', 'CIRCULAR'"),
        (lambda: conv(3, 5, (3, 3), (2,)), r"strides=\(2,\) has 1 entries for 2 spatial axes"),
        (lambda: conv(3, 5, 3, kernel_dilation=(1, 2)), r"kernel_dilation=\(1, 2\) has 2 ent"),
        (lambda: conv(3, 5, 3, input_dilation=(1, 2)), r"input_dilation=\(1, 2\) has 2 ent"),
        (lambda: conv(3, 5, 3, feature_group_count=2), "feature_group_count=2 does not divide"),
        (lambda: conv(3, 5, 3, mask=jnp.ones((3, 5))), r"mask .*\(3, 5\), .* \(3, 3, 5\)"),
        (lambda: conv(3, 5, (3, 3))(X[0]), r"\(7, 3\), .* 2 spatial axes"),
        (lambda: conv_transpose(3, 5, 3)(X[..., :2]), r"\(2, 7, 2\), .* in_features=3"),
        (lambda: nnx.max_pool(X, (2, 2, 2)), r"pooling: .*\(2, 7, 3\), .* 3 spatial axes"),
        (lambda: nnx.avg_pool(X, (2,), (2, 2)), "strides.* has 2 entries for 1 spatial axes"),
        (lambda: nnx.min_pool(X, (2,), padding="CIRCULAR"), "pooling: padding='CIRCULAR' is none"),
        (lambda: einsum("...a,ab", (3, 5)), "(?s)einsum_str='...a,ab' must name .*Cure"),
        (lambda: einsum("a,ab,b->b", (3, 5)), "must name the input, the kernel and the output"),
        (lambda: einsum(None, (3, 5))(X), "Einsum: there is no equation"),
        (lambda: einsum("nta,ab->ntb", (3, 5))(X[0]), r"the input has 3 axes, .* is \(7, 3\)"),
        (lambda: einsum("...a,abc->...b", (3, 5))(X), r"kernel has 3 axes, .* is \(3, 5\)"),
        (
            lambda: einsum("...a,hab->...hb", (2, 3, 5), (5,))(X),
            r"(?s)bias .*\(5,\), .*\(2, 5\).*Cure: bias_shape=\(2, 5\)",
        ),
    ],
)
def test_errors_name_the_argument_and_both_values(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stack_of_layers_called_as_one_says_so() -> None:
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> nnx.Conv:
        return nnx.Conv(3, 5, 3, kernel_init=nnx.initializers.ones, rngs=rngs)

    with pytest.raises(
        ValueError, match=r"(?s)\(2, 3, 3, 5\), .*stack of layers.*Cure: .*nnx.vmap"
    ):
        make(nnx.Rngs(0))(X)


# -- batch axes, options -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [conv, conv_transpose], ids=["Conv", "ConvTranspose"])
@pytest.mark.parametrize("batch", [(), (4,), (3, 1, 2), (0,), (2, 0)], ids=str)
def test_any_number_of_batch_axes(make: Any, batch: tuple[int, ...]) -> None:
    layer = make(2, 3, (3, 2), 2)
    x = RNG.normal(size=(*batch, 5, 4, 2)).astype(np.float32)
    y = layer(x)
    one_by_one = [layer(row)[None] for row in x.reshape(-1, 5, 4, 2)]
    rows = np.concatenate(one_by_one or [np.zeros((0, *y.shape[len(batch) :]))])
    assert_close(y, rows.reshape(*batch, *rows.shape[1:]))


def test_a_users_convolution_gets_only_what_is_used() -> None:
    seen = {}

    def fake(x: Any, kernel: Any, strides: Any, padding: Any, **options: Any) -> Any:
        seen.update(options, strides=strides, padding=padding)
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    layer = conv(3, 5, 3, 2, conv_general_dilated=fake)
    assert_close(layer(X), conv(3, 5, 3, 2)(X))
    assert seen["strides"] == (2,) and list(seen["padding"]) == [(1, 1)]
    assert "preferred_element_type" not in seen and "out_sharding" not in seen
    conv(3, 5, 3, conv_general_dilated=fake, preferred_element_type=jnp.float32)(X)
    assert seen["preferred_element_type"] == jnp.float32


def test_the_sum_may_be_wider_than_the_input() -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    wide = {"param_dtype": jnp.bfloat16, "use_bias": False, "preferred_element_type": jnp.float32}
    assert conv(3, 5, 3, **wide)(x).dtype == jnp.float32
    assert conv_transpose(3, 5, 3, **wide)(x).dtype == jnp.float32
    del wide["use_bias"]
    assert einsum("...a,ab->...b", (3, 5), **wide)(x).dtype == jnp.float32


def test_a_masked_weight_has_no_gradient() -> None:
    mask = np.tril(np.ones((3, 3, 5), np.float32))
    layer = conv(3, 5, 3, mask=mask)
    grads = nnx.grad(lambda layer: jnp.sum(layer(X)))(layer)
    assert set(grads) == {"kernel", "bias"}  # the mask is no parameter
    np.testing.assert_array_equal(np.asarray(grads["kernel"].value)[mask == 0], 0)
    assert np.all(np.asarray(grads["kernel"].value)[mask != 0] != 0)


def test_one_compiled_program_serves_equal_layers() -> None:
    layer, other = conv(3, 5, 3, padding="CIRCULAR"), conv(3, 5, 3, padding="CIRCULAR")
    layer(X)
    with jax.no_tracing():
        other(X)


# -- beside the peer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "padding", ["SAME", "VALID", "CIRCULAR", "REFLECT", 1, [(2, 0), 1]], ids=str
)
def test_conv_agrees_with_the_peer(padding: Any, peer: Any) -> None:
    for size, strides, dilation in [((3, 3), 1, 1), ((4, 1), (3, 1), 1), ((2, 3), (1, 2), (3, 1))]:
        args = (2, 3, size, strides)
        options = {"padding": padding, "kernel_dilation": dilation}
        mine, its = conv(*args, **options), conv(*args, lib=peer, **options)
        assert_close(mine(IMAGES), its(jnp.asarray(IMAGES)))


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", [(2, 0), 1]], ids=str)
def test_conv_transpose_agrees_with_the_peer(
    padding: Any, transpose_kernel: bool, peer: Any
) -> None:
    for size, strides, dilation in [((3, 3), (1, 2), 1), ((4, 1), (3, 2), 1), ((2, 4), 1, (3, 1))]:
        args = (2, 3, size, strides)
        options = {
            "padding": padding,
            "kernel_dilation": dilation,
            "transpose_kernel": transpose_kernel,
        }
        mine, its = conv_transpose(*args, **options), conv_transpose(*args, lib=peer, **options)
        assert_close(mine(IMAGES), its(jnp.asarray(IMAGES)))


# -- Einsum --------------------------------------------------------------------------------------


def _each_place(kernel: np.ndarray) -> np.ndarray:
    """X (n, t, a) times a matrix (a, b) of its own for each t, of a kernel (a, t, b)."""
    return np.stack([X[:, t] @ kernel[:, t] for t in range(X.shape[1])], axis=1)


@pytest.mark.parametrize(
    ("equation", "shape", "bias_shape", "expected"),
    [
        ("nta,hab->nthb", (8, 3, 5), (8, 5), lambda k, b: np.einsum("nta,hab->nthb", X, k) + b),
        (
            "nta,hab->nbth",
            (8, 3, 5),
            (5, 8),
            lambda k, b: np.einsum("nta,hab->nbth", X, k) + b[:, None],
        ),
        ("nta,tab->ntb", (7, 3, 5), (7, 5), lambda k, b: np.einsum("nta,tab->ntb", X, k) + b),
        ("...a,ab->b...", (3, 5), (5,), lambda k, b: np.moveaxis(X @ k + b, -1, 0)),
        ("nta,ta->n", (7, 3), (), lambda k, b: np.einsum("nta,ta->n", X, k) + b),
        # '...' stands for axes that the kernel has, too.
        ("n...a,a...b->n...b", (3, 7, 5), (7, 5), lambda k, b: _each_place(k) + b),
        ("...a,a...b->...b", (3, 7, 5), (7, 5), lambda k, b: _each_place(k) + b),
        ("...a,...ab->...b", (7, 3, 5), (7, 5), lambda k, b: _each_place(np.swapaxes(k, 0, 1)) + b),
        (
            "n...a,a...b->b...n",
            (3, 7, 5),
            (5, 7),
            lambda k, b: np.transpose(_each_place(k) + b.T, (2, 1, 0)),
        ),
        (
            "n...a,a...b->...bn",
            (3, 7, 5),
            (7, 5, 1),
            lambda k, b: np.transpose(_each_place(k) + b[..., 0], (1, 2, 0)),
        ),
    ],
)
def test_einsum_lays_the_bias_along_the_axes_of_the_kernel(
    equation: str, shape: Any, bias_shape: Any, expected: Any
) -> None:
    layer = einsum(equation, shape, bias_shape)
    params = parameters(layer)
    assert_close(layer(X), expected(params["kernel"], params["bias"]))


def test_einsum_equation_of_the_call_comes_first() -> None:
    layer = einsum(None, (3, 5), (5,))
    k, b = parameters(layer).values()
    assert_close(layer(X, "...a,ab->...b"), X @ k + b)
    layer = einsum("...a,ab->...b", (3, 5), (5,))
    k, b = parameters(layer).values()
    assert_close(layer(X, "nta, ab -> tnb"), np.swapaxes(X @ k + b, 0, 1))


def test_einsum_by_a_users_function() -> None:
    seen = []

    def product(equation: str, x: Any, kernel: Any, precision: Any) -> Any:
        seen.append(equation)
        return jnp.einsum(equation, x, kernel, precision=precision)

    layer = einsum("nta,ab->ntb", (3, 5), einsum_op=product)
    assert layer(X).shape == (2, 7, 5) and seen == ["nta,ab->ntb"]


# -- pooling -------------------------------------------------------------------------------------

REDUCTIONS = {"max_pool": np.max, "min_pool": np.min, "avg_pool": np.mean}


def pooled(x: np.ndarray, reduce: Any, window: Any, strides: Any, pads: Any) -> np.ndarray:
    """Each window by itself; of a padded element is NaN, and left out."""
    x = np.pad(x.astype(np.float64), [(0, 0), *pads, (0, 0)], constant_values=np.nan)
    sizes = [(n - w) // s + 1 for n, w, s in zip(x.shape[1:], window, strides)]
    y = np.zeros((x.shape[0], *sizes, x.shape[-1]))
    for n in np.ndindex(*sizes):
        places = (slice(s * i, s * i + w) for s, i, w in zip(strides, n, window))
        seen = x[:, *places].reshape(x.shape[0], math.prod(window), -1)
        inside = ~np.isnan(seen[0, :, 0])
        y[:, *n] = reduce(seen[:, inside], axis=1)
    return y


POOLINGS = [
    ((2, 3), None, "VALID", ((0, 0), (0, 0))),
    ((2, 3), (2, 2), "SAME", ((0, 1), (0, 1))),
    ((3, 1), (1, 2), [(1, 2), 0], ((1, 2), (0, 0))),
    ((3, 3), 2, 1, ((1, 1), (1, 1))),
]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize(("window", "strides", "padding", "pads"), POOLINGS)
def test_pooling_of_each_window(
    name: str, window: Any, strides: Any, padding: Any, pads: Any
) -> None:
    options = {"count_include_pad": False} if name == "avg_pool" else {}
    pool = partial(
        getattr(nnx, name), window_shape=window, strides=strides, padding=padding, **options
    )
    steps = np.broadcast_to(1 if strides is None else strides, 2)
    expected = pooled(IMAGES, REDUCTIONS[name], window, steps, pads)
    assert_close(pool(IMAGES), expected)
    assert_close(pool(IMAGES[0]), expected[0])
    assert_close(pool(IMAGES[:, None]), expected[:, None])
    np.testing.assert_allclose(nnx.Sequential(pool, pool)(IMAGES[:1]), pool(pool(IMAGES[:1])))


@pytest.mark.parametrize(("window", "strides", "padding", "pads"), POOLINGS)
def test_a_mean_that_counts_padding_counts_zeros(
    window: Any, strides: Any, padding: Any, pads: Any
) -> None:
    steps = np.broadcast_to(1 if strides is None else strides, 2)
    zeros = np.pad(IMAGES, [(0, 0), *pads, (0, 0)])
    expected = pooled(zeros, np.mean, window, steps, ((0, 0), (0, 0)))
    assert_close(nnx.avg_pool(IMAGES, window, strides, padding), expected)


@pytest.mark.parametrize(
    "pool",
    [
        nnx.max_pool,
        nnx.min_pool,
        nnx.avg_pool,
        partial(nnx.avg_pool, count_include_pad=False),
        lambda x, *layout: nnx.pool(x, 0.0, jax.lax.add, *layout),
    ],
    ids=["max", "min", "avg", "avg of elements", "sum"],
)
def test_gradient_of_pooling_is_that_of_finite_differences(pool: Any) -> None:
    with jax.enable_x64(True):
        # In steps of one, so that the small steps of the differences do not change who is first.
        x = jnp.asarray(RNG.permutation(IMAGES.size).reshape(IMAGES.shape), jnp.float64)
        check_grads(
            jax.jit(lambda x: pool(x, (3, 2), (2, 2), "SAME")), (x,), 1, ["rev"], 1e-5, 1e-5
        )


def test_maximum_and_minimum_of_integers() -> None:
    x = np.array([-7, 5, -128, 127], np.int8)[:, None]
    assert nnx.max_pool(x, (2,), 1, 1).ravel().tolist() == [-7, 5, 5, 127, 127]
    assert nnx.min_pool(x, (2,), 1, 1).ravel().tolist() == [-7, -7, -128, -128, 127]
    assert nnx.max_pool(x, (2,)).dtype == np.int8
    assert nnx.avg_pool(x, (4,)).tolist() == [[-0.75]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_mean_in_low_precision_is_added_in_float32(dtype: Any) -> None:
    x = jnp.asarray(RNG.uniform(900, 1100, size=(500, 1)), dtype)  # the sum is beyond float16
    mean = nnx.avg_pool(x, (500,))
    assert mean.dtype == dtype
    # One rounding, that of the result.
    np.testing.assert_allclose(
        np.float64(mean[0, 0]),
        np.asarray(x, np.float64).mean(),
        rtol=float(jnp.finfo(dtype).eps) / 2,
    )


@pytest.mark.parametrize("name", [*REDUCTIONS, "pool"])
def test_pooling_agrees_with_the_peer(name: str, peer: Any) -> None:
    x = jnp.asarray(IMAGES)
    first = (0.0, jax.lax.add) if name == "pool" else ()
    options = [True, False] if name == "avg_pool" else [None]
    for padding, count in itertools.product(["SAME", ((1, 1), (0, 2))], options):
        more = () if count is None else (count,)
        args = (x, *first, (3, 2), (2, 1), padding, *more)
        assert_close(getattr(nnx, name)(*args), getattr(peer, name)(*args))


def test_gradient_of_min_pool_at_a_tie_agrees_with_the_peer(peer: Any) -> None:
    x = jnp.asarray([1.0, 1.0, 2.0, 1.0])[:, None]

    def grad(min_pool: Any) -> Any:
        return jax.grad(lambda x: min_pool(x, (3,)).sum())(x)

    np.testing.assert_array_equal(grad(nnx.min_pool), grad(peer.min_pool))


@pytest.mark.parametrize("name", ["max_pool", "min_pool", "avg_pool"])
def test_pooling_layers_are_the_functions(name):
    layer_type = getattr(nnx, "".join(map(str.title, name.split("_"))))
    layer = nnx.Sequential(layer_type([2, 2], strides=(2, 1), padding=[1, (0, 1)]))
    function = getattr(nnx, name)
    expected = function(IMAGES, (2, 2), (2, 1), ((1, 1), (0, 1)))
    np.testing.assert_array_equal(nnx.jit(layer)(IMAGES), expected)
    assert jax.tree.leaves(nnx.state(layer)) == []


def test_average_pooling_layer_can_leave_padding_out():
    layer = nnx.AvgPool((2, 2), padding="SAME", count_include_pad=False)
    np.testing.assert_allclose(layer(jnp.ones((3, 3, 1))), jnp.ones((3, 3, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["valid", "same", "Causal"])
def test_names_of_padding_in_any_case(name):
    x = jnp.arange(6.0).reshape(1, 6, 1)
    small, large = (
        nnx.Conv(1, 1, (3,), padding=padding, rngs=nnx.Rngs(0)) for padding in (name, name.upper())
    )
    assert (small(x) == large(x)).all()
