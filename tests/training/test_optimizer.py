"""Optimizer: what it optimizes, with which transformations, inside which transforms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx

from .common import Net, X, Y, loss_of, plain_loss, plain_params

# A few ulp of float32: the same formula, fused differently by XLA.
CLOSE: dict[str, Any] = {"rtol": 2e-6, "atol": 2e-7}


def train(tx: Any, steps: int = 3, jit: bool = True, wrt: Any = nnx.Param, **extras: Any) -> Any:
    """The model and optimizer after some steps; `extras` are functions of (model, loss, grads)."""
    model = Net()
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)

    def step(model: Net, optimizer: nnx.Optimizer) -> None:
        loss, grads = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, wrt))(model)
        more = {name: extra(model, loss, grads) for name, extra in extras.items()}
        optimizer.update(model, grads, **more)

    step = nnx.jit(step) if jit else step
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def train_plain(tx: Any, steps: int = 3, jit: bool = True, **extras: Any) -> Any:
    """The same in optax on plain dicts."""
    params = plain_params()
    state = tx.init(params)

    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(plain_loss)(params)
        more = {name: extra(params, loss, grads) for name, extra in extras.items()}
        updates, state = tx.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    for _ in range(steps):
        params, state = step(params, state)
    return params


def assert_same(model: Net, params: Any) -> None:
    ours = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, params)


def value_fn(model: Net, *_: Any) -> Any:
    graphdef = nnx.graphdef(model)
    return lambda params: loss_of(nnx.merge(graphdef, params))


# -- what is optimized -----------------------------------------------------------------------------

FILTERS = {
    "type": (nnx.Param, {"encoder.kernel", "encoder.bias", "head.kernel", "head.bias"}),
    "path": (nnx.PathContains("head"), {"head.kernel", "head.bias"}),
    "not path": (
        nnx.All(nnx.Param, nnx.Not(nnx.PathContains("encoder"))),
        {"head.kernel", "head.bias"},
    ),
    "callable": (lambda path, value: path[-1] == "bias", {"encoder.bias", "head.bias"}),
    "tuple": (
        (nnx.PathContains("encoder"), lambda path, value: path == ("head", "bias")),
        {"encoder.kernel", "encoder.bias", "head.bias"},
    ),
    "list": (
        [nnx.LoRAParam, nnx.Param],
        {"encoder.kernel", "encoder.bias", "head.kernel", "head.bias"},
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_only_what_the_filter_matches_changes_and_has_a_state(name: str) -> None:
    wrt, expected = FILTERS[name]
    model, optimizer = train(optax.adam(0.1), wrt=tuple(wrt) if isinstance(wrt, list) else wrt)
    before, after = dict(nnx.state(Net()).flat_state()), dict(nnx.state(model).flat_state())
    changed = {".".join(p) for p in before if not np.array_equal(before[p].value, after[p].value)}
    assert changed == expected
    mu = optimizer.opt_state[0].mu
    assert {".".join(path) for path, _ in nnx.to_flat_state(mu)} == expected
    assert int(optimizer.step.value) == 3


def test_low_rank_adapters_only() -> None:
    model = Net()
    model.encoder = nnx.LoRALinear(model.encoder, rank=2, rngs=nnx.Rngs(1))
    before = nnx.to_pure_dict(nnx.state(model))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.LoRAParam)
    for _ in range(2):
        grads = nnx.grad(loss_of, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, grads)
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), before, nnx.to_pure_dict(nnx.state(model))
    )
    moved = {path for path, equal in nnx.to_flat_state(same) if not equal}
    adapters = {path for path, _ in nnx.state(model, nnx.LoRAParam).flat_state()}
    assert moved == adapters and len(adapters) == 2
    states = nnx.state(optimizer, nnx.OptState)
    assert len(states.flat_state()) == 1 + len(adapters)  # the step, and a momentum for each


# -- transformations -------------------------------------------------------------------------------

TRANSFORMATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "schedule_free": (optax.contrib.schedule_free_adamw(1e-2), {}),
    "clip": (optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)), {}),
    "schedule": (optax.adamw(optax.warmup_cosine_decay_schedule(0, 0.1, 2, 10)), {}),
    "inject": (optax.inject_hyperparams(optax.adam)(learning_rate=1e-2), {}),
    "adafactor": (optax.adafactor(1e-2), {}),
    "plateau": (
        optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=1, rtol=0.5)),
        {"value": lambda model, loss, grads: loss},
    ),
    "apply_every": (optax.chain(optax.sgd(0.1), optax.apply_every(2)), {}),
}


@pytest.mark.parametrize(
    ("name", "jit"), [*((name, True) for name in TRANSFORMATIONS), ("plateau", False)]
)
def test_as_optax_on_plain_dicts(name: str, jit: bool) -> None:
    tx, extras = TRANSFORMATIONS[name]
    steps = 4 if jit else 1
    assert_same(train(tx, steps, jit, **extras)[0], train_plain(tx, steps, jit, **extras))


BACKTRACKING = optax.chain(
    optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True)
)
LBFGS = optax.lbfgs(memory_size=1)


@pytest.mark.parametrize(
    ("tx", "jit"),
    [
        pytest.param(LBFGS, True, marks=pytest.mark.slow),
        (BACKTRACKING, True),
        pytest.param(BACKTRACKING, False, marks=pytest.mark.slow),
    ],
    ids=["lbfgs", "backtracking", "eager"],
)
def test_line_search(tx: Any, jit: bool) -> None:
    first = {"value": lambda model, loss, grads: loss, "grad": lambda model, loss, grads: grads}
    model, _ = train(tx, 2, jit, **first, value_fn=value_fn)
    params = train_plain(tx, 2, jit, **first, value_fn=lambda *_: plain_loss)
    assert_same(model, params)
    assert loss_of(model) < loss_of(Net()) / 2


def test_extra_arguments_are_left_out_where_the_transformation_takes_none() -> None:
    model, _ = train(optax.sgd(0.1), 1, value=lambda model, loss, grads: loss)
    assert_same(model, train_plain(optax.sgd(0.1), 1))


@pytest.mark.parametrize("wrapped", [True, False])
def test_accumulated_gradients_make_the_step_of_the_large_batch(wrapped: bool) -> None:
    multi = optax.MultiSteps(optax.adam(1e-2), every_k_schedule=4)
    model = Net()
    optimizer = nnx.Optimizer(
        model, multi if not wrapped else multi.gradient_transformation(), wrt=nnx.Param
    )

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        optimizer.update(model, nnx.grad(loss_of)(model, x, y))

    for i in range(8):
        part = slice(i % 4 * 2, i % 4 * 2 + 2)
        step(model, optimizer, X[part], Y[part])
        if i == 2:
            assert_same(model, plain_params())  # nothing has moved yet
    large = train_plain(optax.adam(1e-2), 2)
    # Adam divides by √ν, so a difference of one ulp in a small gradient is amplified.
    ours = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, large)


# -- masks and labels ------------------------------------------------------------------------------


def by_path(choose: Any) -> dict[str, Any]:
    """The same choice in all the ways in which a tree of the State can be given."""
    state = nnx.state(Net(), nnx.Param)

    def of_state(state: nnx.State) -> nnx.State:
        return nnx.map_state(lambda path, value: choose(path), state)

    def of_keys(state: nnx.State) -> nnx.State:
        return jax.tree.map_with_path(lambda keys, x: choose((keys[0].key, keys[1].key)), state)

    return {
        "map_state": of_state(state),
        "tree.map": of_keys(state),
        "callable, map_state": of_state,
        "callable, tree.map": of_keys,
    }


def plain_choice(choose: Any) -> Any:
    return lambda tree: {a: {b: choose((a, b)) for b in tree[a]} for a in tree}


WAYS = list(by_path(lambda path: True))


@pytest.mark.parametrize("way", WAYS)
def test_mask_of_adamw(way: str) -> None:
    def kernels(path: Any) -> bool:
        return path[-1] == "kernel"

    model, _ = train(optax.adamw(1e-2, weight_decay=0.5, mask=by_path(kernels)[way]))
    assert_same(model, train_plain(optax.adamw(1e-2, weight_decay=0.5, mask=plain_choice(kernels))))


@pytest.mark.parametrize("way", WAYS)
def test_labels_of_partition(way: str) -> None:
    def label(path: Any) -> str:
        return "frozen" if path[0] == "encoder" else path[1]

    def partition(labels: Any) -> Any:
        named: dict[Any, Any] = {"kernel": optax.adam(1e-2), "bias": optax.sgd(0.1)}
        named["frozen"] = optax.set_to_zero()
        return optax.partition(named, labels)

    model, optimizer = train(partition(by_path(label)[way]))
    assert_same(model, train_plain(partition(plain_choice(label))))
    np.testing.assert_array_equal(model.encoder.kernel.value, Net().encoder.kernel.value)
    adam = optimizer.opt_state.inner_states["kernel"].inner_state[0]
    assert len(jax.tree.leaves(adam.mu)) == 1 and isinstance(adam.mu.head.kernel, nnx.OptVariable)


def test_masked_and_labels_of_whole_parts() -> None:
    masked = optax.masked(optax.sgd(0.1), nnx.State({"encoder": False, "head": True}))
    plain = optax.masked(optax.sgd(0.1), {"encoder": False, "head": True})
    assert_same(train(masked)[0], train_plain(plain))
    labels = {"encoder": "off", "head": "on"}
    named: dict[Any, Any] = {"on": optax.adam(0.1), "off": optax.set_to_zero()}
    model, _ = train(optax.partition(named, nnx.State(labels)))
    assert_same(model, train_plain(optax.partition(named, labels)))


# -- hooks, ModelAndOptimizer ----------------------------------------------------------------------


def test_hooks_do_not_run_in_an_update() -> None:
    class Doubled(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.array(1.0), on_get_value=lambda variable, value: 2 * value)

    model = Doubled()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.grad(lambda m: m.w.value**2)(model))
    # f(w) = (2w)²: df/dw = 8w. By hand: w = 1 - 0.8 = 0.2; trace = 0.9·8 + 8·0.2 = 8.8.
    np.testing.assert_allclose(model.w.raw_value, 0.2 - 0.88, rtol=1e-6)  # float32
    np.testing.assert_allclose(
        model.w.value, 2 * (0.2 - 0.88), rtol=1e-6
    )  # the hook is still there


def test_model_and_optimizer() -> None:
    both = nnx.ModelAndOptimizer(Net(), optax.adam(1e-2))
    step = nnx.jit(lambda both: both.update(nnx.grad(loss_of)(both.model)))
    step(both)
    both.update(grads=nnx.grad(loss_of)(both.model))
    step(both)
    assert_same(both.model, train_plain(optax.adam(1e-2)))


def test_against_the_peer() -> None:
    peer = pytest.importorskip("flax.nnx")
    linear, theirs = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), peer.Linear(3, 2, rngs=peer.Rngs(0))
    ours, other = (
        nnx.Optimizer(linear, optax.adamw(0.1), wrt=nnx.Param),
        peer.Optimizer(theirs, optax.adamw(0.1), wrt=peer.Param),
    )
    for _ in range(3):
        ours.update(linear, nnx.grad(loss_of)(linear))
        other.update(theirs, peer.grad(loss_of)(theirs))
    np.testing.assert_array_equal(linear.kernel.value, theirs.kernel[...])
