"""WeightNorm and SpectralNorm: the layer stays whole; derivatives, statistics, transforms."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.layers.case import by_key

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
CLOSE: Any = {"rtol": 1e-5, "atol": 1e-5}  # some ten roundings of numbers of size one
WRAPPERS = [nnx.WeightNorm, nnx.SpectralNorm]
each_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda w: w.__name__)


def linear(**options: Any) -> Any:
    return nnx.Linear(6, 5, kernel_init=by_key, rngs=nnx.Rngs(0), **options)


class Fails(nnx.Linear):
    def __call__(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
        super().__call__(inputs)
        raise RuntimeError("from the layer")


class Network(nnx.Module):
    """Two matrices, of which one is in a list, a table, and things that are not weights."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(6, 3, rngs=rngs)
        self.layers = [nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)]
        self.table = nnx.Embed(7, 2, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros((2, 2)))

    def __call__(self, x: Any, offset: float = 0.0) -> jax.Array:
        self.calls += 1
        self.seen = "set in the call"
        return self.layers[1](self.layers[0](self.first(x))) + offset


# -- both ----------------------------------------------------------------------------------------


@each_wrapper
def test_the_layer_is_as_it_was_after_a_call(wrapper: Any) -> None:
    layer = linear()
    norm = wrapper(layer, rngs=nnx.Rngs(1))
    variable, value = layer.kernel, layer.kernel.value
    plain = layer(X)
    assert not np.allclose(norm(X), plain)
    assert norm.layer_instance is layer and layer.kernel is variable
    assert layer.kernel.value is value
    np.testing.assert_array_equal(layer(X), plain)


@each_wrapper
def test_the_layer_is_as_it_was_after_an_error(wrapper: Any) -> None:
    layer = Fails(6, 5, rngs=nnx.Rngs(0))
    norm = wrapper(layer, rngs=nnx.Rngs(1))
    before = jax.tree.leaves(nnx.state(norm))
    for call in (norm, nnx.jit(norm), jax.jit(lambda x: norm(x)), jax.vmap(norm)):
        with pytest.raises(RuntimeError, match="from the layer"):
            call(jnp.asarray(X))
        assert all(a is b for a, b in zip(jax.tree.leaves(nnx.state(norm)), before, strict=True))


@each_wrapper
def test_what_the_layer_changes_in_itself_stays(wrapper: Any) -> None:
    network = Network(nnx.Rngs(0))
    norm = wrapper(network, rngs=nnx.Rngs(1))
    shifted = norm(X, offset=1.0) - norm(X)
    np.testing.assert_allclose(shifted, np.ones((4, 4)), rtol=1e-3)  # the batch statistics are new
    assert network.calls.value[0, 0] == 2 and network.seen == "set in the call"
    assert network.layers[1].mean.value.any()


@each_wrapper
def test_a_function_may_close_over_it(wrapper: Any) -> None:
    """A trace from outside of which the layer comes: reading is all that happens to it."""
    norm = wrapper(linear(), rngs=nnx.Rngs(1))
    norm.eval()
    kernel, expected = norm.layer_instance.kernel.value, norm(X)
    x = jnp.asarray(X)
    np.testing.assert_allclose(jax.jit(lambda x: norm(x))(x), expected, **CLOSE)
    np.testing.assert_allclose(jax.vmap(norm)(x), expected, **CLOSE)
    np.testing.assert_allclose(jax.lax.map(norm, x), expected, **CLOSE)
    assert norm.layer_instance.kernel.value is kernel


@each_wrapper
def test_training_moves_the_parameters_of_the_layer(wrapper: Any) -> None:
    norm = wrapper(linear(), rngs=nnx.Rngs(1))
    target = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)), jnp.float32)

    def loss_of(norm: Any, x: jax.Array) -> jax.Array:
        return jnp.mean((norm(x) - target) ** 2)

    @nnx.jit
    def step(norm: Any, x: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(loss_of)(norm, x)
        params = nnx.state(norm, nnx.Param)
        nnx.update(norm, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return loss

    before = jax.tree.map(np.asarray, nnx.state(norm, nnx.Param))
    losses = [float(step(norm, jnp.asarray(X))) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    after = nnx.state(norm, nnx.Param)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(changed)) and len(jax.tree.leaves(changed)) >= 2


@each_wrapper
def test_only_what_was_written_leaves_a_transform(wrapper: Any) -> None:
    norm = wrapper(linear(), rngs=nnx.Rngs(1))
    jaxpr = nnx.make_jaxpr(lambda norm, x: norm(x))(norm, jnp.asarray(X))
    statistics = [] if wrapper is nnx.WeightNorm else [(1, 5), ()]
    assert [out.shape for out in jaxpr.out_avals] == [(4, 5), *statistics]


@each_wrapper
def test_stacked_and_scanned(wrapper: Any) -> None:
    """Layers made in vmap and run by scan are the layers one after the other."""

    def make(rngs: nnx.Rngs) -> Any:
        return wrapper(nnx.Linear(6, 6, rngs=rngs), rngs=rngs)

    stack = nnx.vmap(make)(nnx.Rngs(0).fork(splits=3))
    singles = [
        nnx.merge(nnx.graphdef(stack), jax.tree.map(lambda a, i=i: a[i], nnx.state(stack)))
        for i in range(3)
    ]

    @partial(nnx.scan, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(norm: Any, x: jax.Array) -> jax.Array:
        return norm(x)

    expected = jnp.asarray(X)
    for norm in singles:
        expected = norm(expected)
    np.testing.assert_allclose(run(stack, jnp.asarray(X)), expected, **CLOSE)
    for i, norm in enumerate(singles):
        state = jax.tree.map(lambda a, i=i: a[i], nnx.state(stack))
        for mine, its in zip(jax.tree.leaves(state), jax.tree.leaves(nnx.state(norm)), strict=True):
            np.testing.assert_allclose(mine, its, **CLOSE)


@each_wrapper
def test_nothing_to_normalize(wrapper: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no weight .* BatchNorm, whose .*mean, scale, var\.\nCure"
    ):
        wrapper(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))


@each_wrapper
def test_paths_of_a_network_are_those_of_the_peer(wrapper: Any) -> None:
    peer = pytest.importorskip("flax.nnx")
    rngs = [lib.Rngs(1) for lib in (nnx, peer)]
    ours = wrapper(Network(nnx.Rngs(0)), rngs=rngs[0])

    class Its(peer.Module):
        def __init__(self, rngs: Any):
            self.first = peer.Linear(6, 3, rngs=rngs)
            self.layers = peer.List([peer.Linear(3, 4, rngs=rngs), peer.BatchNorm(4, rngs=rngs)])
            self.table = peer.Embed(7, 2, rngs=rngs)
            self.calls = peer.BatchStat(jnp.zeros((2, 2)))

    its = getattr(peer, wrapper.__name__)(Its(peer.Rngs(0)), rngs=rngs[1])
    # The peer's scales are arrays, not Variables; here they are Params, so that they are learned.
    name = "scales" if wrapper is nnx.WeightNorm else "batch_stats"
    mine, wanted = getattr(ours, name), getattr(its, name)
    assert mine.keys() == wanted.keys()
    for path in mine:
        theirs = wanted[path] if wrapper is nnx.WeightNorm else wanted[path].get_value()
        np.testing.assert_array_equal(mine[path].value, theirs)
    # And the layers made after it get the same keys.
    assert int(rngs[0].default.count.value) == int(rngs[1].default.count.get_value())


def length_of_columns(kernel: jax.Array) -> jax.Array:
    return jnp.linalg.norm(kernel, axis=0, keepdims=True)


def sigma_by_fixed_vectors(kernel: jax.Array) -> jax.Array:
    u, _, v = jnp.linalg.svd(jax.lax.stop_gradient(kernel))
    return u[:, 0] @ kernel @ v[0]


@pytest.mark.parametrize(
    ("wrapper", "length"),
    [
        (nnx.WeightNorm, length_of_columns),
        # The singular vectors are right to some 1e-12 after as many steps.
        (partial(nnx.SpectralNorm, n_steps=200), sigma_by_fixed_vectors),
    ],
    ids=["WeightNorm", "SpectralNorm"],
)
def test_derivatives_forward_and_second(wrapper: Any, length: Any) -> None:
    with jax.enable_x64(True):
        x, options = jnp.asarray(X, jnp.float64), {"param_dtype": jnp.float64}
        norm = wrapper(linear(**options), rngs=nnx.Rngs(1), **options)
        graphdef, kernel, rest = nnx.split(norm, nnx.PathContains("layer_instance"), ...)
        direction = jax.tree.map(jnp.cos, kernel)

        def ours(weights: Any) -> jax.Array:
            return jnp.sum(jnp.sin(nnx.merge(graphdef, weights, rest)(x)))

        def plain(weights: Any) -> jax.Array:
            layer = weights.layer_instance
            kernel = layer.kernel.value / length(layer.kernel.value)
            return jnp.sum(jnp.sin(x @ kernel + layer.bias.value[None]))

        def derivatives(f: Any) -> Any:
            def along(f: Any) -> Any:
                return lambda weights: jax.jvp(f, (weights,), (direction,))[1]

            return jax.jit(
                lambda w: (
                    jax.grad(f)(w),
                    along(f)(w),
                    along(jax.grad(f))(w),
                    jax.grad(along(f))(w),
                )
            )

        mine, its = (jax.tree.leaves(derivatives(f)(kernel)) for f in (ours, plain))
        for a, b in zip(mine, its, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


# -- WeightNorm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [-1, 0, (0, 1), (1, 0), (), None], ids=str)
def test_feature_axes(axes: Any) -> None:
    layer = linear()
    norm = nnx.WeightNorm(layer, feature_axes=axes, scale_init=by_key, rngs=nnx.Rngs(1))
    kept = () if axes is None else (axes,) if isinstance(axes, int) else axes
    over = tuple(i for i in range(2) if i not in {axis % 2 for axis in kept})
    kernel = np.asarray(layer.kernel.value, np.float64)
    lengths = np.sqrt((kernel**2).sum(over, keepdims=True))
    assert norm.scales["kernel",].shape == tuple(n for i, n in enumerate((6, 5)) if i not in over)
    scale = np.asarray(norm.scales["kernel",].value).reshape(lengths.shape)
    expected = X @ (kernel / lengths * scale) + np.asarray(layer.bias.value)
    np.testing.assert_allclose(norm(X), expected, **CLOSE)


def test_variable_filter() -> None:
    norm = nnx.WeightNorm(Network(nnx.Rngs(0)), variable_filter=nnx.Param, rngs=nnx.Rngs(1))
    assert {path: v.shape for path, v in norm.scales.items()} == {
        ("first", "bias"): (3,),
        ("first", "kernel"): (3,),
        ("layers", 0, "bias"): (4,),
        ("layers", 0, "kernel"): (4,),
        ("layers", 1, "bias"): (4,),
        ("layers", 1, "scale"): (4,),
        ("table", "embedding"): (2,),
    }
    assert norm(X).shape == (4, 4)
    kernels = nnx.WeightNorm(Network(nnx.Rngs(0)), rngs=nnx.Rngs(1))
    assert list(kernels.scales) == [("first", "kernel"), ("layers", 0, "kernel")]


def test_scales_are_learned_and_the_gradient_is_that_of_the_paper() -> None:
    """∇g = ∇w·v/‖v‖ and ∇v = g/‖v‖·∇w - g·∇g/‖v‖²·v, equations 3 of the paper."""
    norm = nnx.WeightNorm(linear(), scale_init=by_key, rngs=nnx.Rngs(1))
    weights = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)
    grads = nnx.grad(lambda norm: jnp.sum(norm(jnp.asarray(X)) * weights))(norm)
    v = np.asarray(norm.layer_instance.kernel.value, np.float64)
    g = np.asarray(norm.scales["kernel",].value, np.float64)
    length, dw = np.linalg.norm(v, axis=0), X.astype(np.float64).T @ weights
    dg = (dw * v).sum(0) / length
    np.testing.assert_allclose(grads.scales["kernel",].value, dg, **CLOSE)
    dv = g / length * dw - g * dg / length**2 * v
    np.testing.assert_allclose(grads.layer_instance.kernel.value, dv, **CLOSE)


def test_zero_weights_have_finite_derivatives() -> None:
    norm = nnx.WeightNorm(
        nnx.Linear(6, 5, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)
    )
    loss, grads = nnx.value_and_grad(lambda norm: norm(jnp.asarray(X)).sum())(norm)
    assert loss == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


# -- SpectralNorm --------------------------------------------------------------------------------


def test_sigma_comes_to_the_largest_singular_value() -> None:
    network = Network(nnx.Rngs(0))
    norm = nnx.SpectralNorm(network, rngs=nnx.Rngs(1))
    wanted = {
        ("first", "kernel"): network.first.kernel,
        ("layers", 0, "kernel"): network.layers[0].kernel,
        ("table", "embedding"): network.table.embedding,
    }
    wanted = {path: np.linalg.svd(np.asarray(v.value))[1][0] for path, v in wanted.items()}
    assert {path[:-1] for path in norm.batch_stats} == set(wanted)
    errors, step = [], nnx.jit(lambda norm, x: norm(x))
    for _ in range(40):
        step(norm, X)
        sigmas = {path: float(norm.batch_stats[*path, "sigma"].value) for path in wanted}
        errors.append(max(abs(sigmas[path] - wanted[path]) for path in wanted))
    assert errors[0] > 1e-2 > errors[10]
    assert errors[-1] < 1e-5


def test_one_step_of_power_iteration() -> None:
    layer = linear()
    norm = nnx.SpectralNorm(layer, rngs=nnx.Rngs(1))
    u = np.asarray(norm.batch_stats["kernel", "u"].value, np.float64)
    kernel = np.asarray(layer.kernel.value, np.float64)
    v = u @ kernel.T / np.linalg.norm(u @ kernel.T)
    new_u = v @ kernel / np.linalg.norm(v @ kernel)
    sigma = (v @ kernel @ new_u.T).item()
    y = norm(X)
    np.testing.assert_allclose(y, X @ (kernel / sigma) + np.asarray(layer.bias.value), **CLOSE)
    np.testing.assert_allclose(norm.batch_stats["kernel", "u"].value, new_u, **CLOSE)
    np.testing.assert_allclose(norm.batch_stats["kernel", "sigma"].value, sigma, rtol=1e-6)


def test_n_steps_are_steps_of_one_call_each() -> None:
    many, one = (nnx.SpectralNorm(linear(), n_steps=n, rngs=nnx.Rngs(1)) for n in (3, 1))
    many(X)
    for _ in range(3):
        one(X)
    for path, stat in many.batch_stats.items():
        np.testing.assert_allclose(stat.value, one.batch_stats[path].value, rtol=1e-6)


def test_who_says_whether_the_statistics_move() -> None:
    norm = nnx.SpectralNorm(linear(), rngs=nnx.Rngs(1))

    def moves(*args: Any, **kwargs: Any) -> bool:
        before = [stat.value for stat in norm.batch_stats.values()]
        norm(X, *args, **kwargs)
        kept = [s.value is b for s, b in zip(norm.batch_stats.values(), before, strict=True)]
        assert len(set(kept)) == 1
        return not kept[0]

    assert moves() and not moves(False) and not moves(update_stats=False)
    norm.eval()
    assert not moves() and moves(True)
    norm.train()
    assert moves()
    norm = nnx.SpectralNorm(linear(), update_stats=False, rngs=nnx.Rngs(1))
    assert not moves()


def test_a_call_that_does_not_keep_the_statistics_iterates_all_the_same() -> None:
    norms = [nnx.SpectralNorm(linear(), rngs=nnx.Rngs(1)) for _ in range(2)]
    np.testing.assert_array_equal(norms[0](X), norms[1](X, update_stats=False))


def test_statistics_move_in_jit_and_scan_as_without() -> None:
    norms = [nnx.SpectralNorm(linear(), rngs=nnx.Rngs(1)) for _ in range(3)]
    call = nnx.jit(lambda norm, x: norm(x))
    xs = jnp.stack([jnp.asarray(X)] * 3)
    axes = nnx.StateAxes({nnx.BatchStat: nnx.Carry, ...: None})

    @partial(nnx.scan, in_axes=(axes, 0), out_axes=0)
    def scanned(norm: Any, x: jax.Array) -> jax.Array:
        return norm(x)

    for x in xs:
        norms[0](x)
        call(norms[1], x)
    scanned(norms[2], xs)
    for other in norms[1:]:
        for path, stat in norms[0].batch_stats.items():
            np.testing.assert_allclose(stat.value, other.batch_stats[path].value, **CLOSE)


def test_gradient_takes_the_singular_vectors_as_constants() -> None:
    """∇W = (∇Ŵ - <∇Ŵ, Ŵ>·vᵀu) / σ, equation 12 of the paper, also far from convergence."""
    norm = nnx.SpectralNorm(linear(), rngs=nnx.Rngs(1))
    weights = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)
    u = np.asarray(norm.batch_stats["kernel", "u"].value, np.float64)
    kernel = np.asarray(norm.layer_instance.kernel.value, np.float64)
    grads = nnx.grad(lambda norm: jnp.sum(norm(jnp.asarray(X)) * weights))(norm)
    v = u @ kernel.T / np.linalg.norm(u @ kernel.T)
    u = v @ kernel / np.linalg.norm(v @ kernel)
    sigma, dw = (v @ kernel @ u.T).item(), X.astype(np.float64).T @ weights
    expected = (dw - (dw * kernel / sigma).sum() * (v.T @ u)) / sigma
    np.testing.assert_allclose(grads.layer_instance.kernel.value, expected, **CLOSE)
    assert not jax.tree.leaves(nnx.state(grads, nnx.BatchStat))


def test_zeros_stay_zeros() -> None:
    layer = nnx.Linear(6, 5, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    norm = nnx.SpectralNorm(layer, rngs=nnx.Rngs(1))
    assert not norm(X).any() and not norm(X).any()


def test_error_on_non_matrix() -> None:
    layer = nnx.LinearGeneral(6, (2, 3), rngs=nnx.Rngs(0))
    message = r"Param \('kernel',\) of the LinearGeneral has 3 axes \(shape \(6, 2, 3\)\)"
    with pytest.raises(ValueError, match=message):
        nnx.SpectralNorm(layer, error_on_non_matrix=True, rngs=nnx.Rngs(1))
    assert nnx.SpectralNorm(linear(), error_on_non_matrix=True, rngs=nnx.Rngs(1))(X).shape == (4, 5)
