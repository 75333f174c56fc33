"""An optimizer's state, edited as optax's states are: what is put into it is taken, as optax would.

Transformations × edits × {eager, jitted, edited inside of the jitted step}, each beside plain optax
on plain dicts that is edited in the same way.
"""

from collections.abc import Callable
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx

from .common import Net, loss_of, plain_loss, plain_params
from .test_optimizer import assert_same

trees = optax.tree_utils


def matrices(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def kinds(tree: Any) -> Any:
    return jax.tree.map(lambda x: "adam" if x.ndim > 1 else "sgd", tree)


TRANSFORMATIONS: dict[str, Any] = {
    "adam": optax.adam(0.05),
    "adamw of a schedule": optax.adamw(optax.cosine_decay_schedule(0.1, 20)),
    "momentum": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop(0.02, centered=True),
    "lion": optax.lion(0.01),
    "lamb": optax.lamb(0.05),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    "inject of a schedule": optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 9)),
    "chain": optax.chain(
        optax.clip_by_global_norm(0.5), optax.inject_hyperparams(optax.adam)(0.05), optax.ema(0.9)
    ),
    "masked": optax.chain(optax.masked(optax.trace(0.9), matrices), optax.scale(-0.05)),
    "partition": optax.partition({"adam": optax.adam(0.05), "sgd": optax.sgd(0.1, 0.9)}, kinds),
    "adafactor": optax.adafactor(0.05, min_dim_size_to_factor=2),
    "apply_every": optax.chain(optax.adam(0.05), optax.apply_every(2)),
    "finite": optax.apply_if_finite(optax.adam(0.05), 3),
}


def has(state: Any, name: str) -> bool:
    return bool(trees.tree_get_all_with_path(state, name))


def with_rate(rate: Any) -> Callable:
    """Writes into the dict of hyperparameters itself."""

    def edit(tx: Any, state: Any, params: Any) -> Any:
        parts = state if type(state) is tuple else (state,)
        for part in parts:
            if hasattr(part, "hyperparams"):
                part.hyperparams["learning_rate"] = rate
        return state

    return edit


def with_count(count: Any) -> Callable:
    def edit(tx: Any, state: Any, params: Any) -> Any:
        return trees.tree_set(state, count=count) if has(state, "count") else state

    return edit


def replaced(tx: Any, state: Any, params: Any) -> Any:
    """`_replace` of the first part that has a count."""
    if "count" in getattr(state, "_fields", ()):
        return state._replace(count=jnp.array(2, jnp.int32))
    if "count" in getattr(state[0], "_fields", ()):
        return (state[0]._replace(count=2), *state[1:])
    return state


def with_moments(tx: Any, state: Any, params: Any) -> Any:
    if not has(state, "mu") or has(state, "inner_states"):
        return state
    moments = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    return trees.tree_set(state, mu=moments)


EDITS: dict[str, Callable] = {
    "nothing": lambda tx, state, params: state,
    "reset": lambda tx, state, params: tx.init(params),
    "count as a number": with_count(3),
    "count as an array of NumPy": with_count(np.array(3)),
    "count as an array": lambda *of: with_count(jnp.array(3, jnp.int32))(*of),
    "a field replaced": replaced,
    "moments set": with_moments,
    "halved": lambda tx, state, params: trees.tree_map_params(tx, lambda x: x / 2, state),
    "all from NumPy": lambda tx, state, params: jax.device_get(state),
    "all doubled": lambda tx, state, params: jax.tree.map(lambda x: x * 2, state),
    "rate as a number": with_rate(0.2),
    "rate as an array": lambda *of: with_rate(jnp.array(0.2))(*of),
    "rate as an array of NumPy": with_rate(np.float64(0.2)),
}


def plain(tx: Any, edit: Callable) -> Any:
    params = plain_params()
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(plain_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(4):
        if i == 2:
            state = jax.tree.map(jnp.asarray, edit(tx, state, params))
        params, state = step(params, state)
    return params


def ours(tx: Any, edit: Callable, how: str) -> tuple[Net, nnx.Optimizer]:
    model = Net()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def change(model: Net, optimizer: nnx.Optimizer) -> None:
        params = nnx.state(model, nnx.Param)
        optimizer.opt_state = edit(optimizer.tx, optimizer.opt_state, params)

    def step(model: Net, optimizer: nnx.Optimizer, edited: bool = False) -> None:
        if edited:
            change(model, optimizer)
        optimizer.update(model, nnx.grad(loss_of)(model))

    run = step if how == "eager" else nnx.jit(step, static_argnames="edited", donate_argnums=(0, 1))
    for i in range(4):
        if i == 2 and how != "edited inside":
            change(model, optimizer)
        run(model, optimizer, edited=i == 2 and how == "edited inside")
    return model, optimizer


def assert_close(model: Net, params: Any) -> None:
    """Adam and its like divide by √ν: an ulp of a small gradient is amplified."""
    ours = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, params)


def check_state(optimizer: nnx.Optimizer) -> None:
    """Nothing but Variables of arrays, one for each place."""
    cells = jax.tree.leaves(optimizer.opt_state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert all(isinstance(cell, nnx.OptState) for cell in cells)
    assert not any(isinstance(x, (np.ndarray, float)) for x in jax.tree.leaves(optimizer.opt_state))
    assert len({id(cell) for cell in cells}) == len(cells)


FEW = ["inject", "momentum", "masked", "partition"]
RATED = ["inject", "inject of a schedule", "chain"]
CASES = [
    *[(name, edit, "jitted") for name in TRANSFORMATIONS for edit in ("reset", "all from NumPy")],
    *[
        (name, edit, how)
        for edit in EDITS
        for name in (RATED if edit.startswith("rate") else FEW)
        for how in ("jitted", "edited inside")
        if edit not in ("reset", "all from NumPy") or how == "edited inside"
    ],
    *[(RATED[0] if edit.startswith("rate") else FEW[1], edit, "eager") for edit in EDITS],
]
# Tracers have no host; counts that are doubled twice are no states of these transformations.
CASES = [
    case
    for case in CASES
    if case[1:] != ("all from NumPy", "edited inside") and case[:2] != ("partition", "all doubled")
]


@pytest.mark.parametrize(("name", "edit", "how"), CASES)
def test_as_optax(name: str, edit: str, how: str) -> None:
    tx = TRANSFORMATIONS[name]
    model, optimizer = ours(tx, EDITS[edit], how)
    assert_close(model, plain(tx, EDITS[edit]))
    check_state(optimizer)


def test_a_dict_that_is_held_stays_the_one_that_counts() -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, TRANSFORMATIONS["chain"], wrt=nnx.Param)
    held = optimizer.opt_state[1].hyperparams
    for step in (lambda m, o, g: o.update(m, g), nnx.jit(lambda m, o, g: o.update(m, g))):
        for rate in (0.5, 0.25):
            held["learning_rate"] = rate
            step(model, optimizer, nnx.grad(loss_of)(model))
            assert optimizer.opt_state[1].hyperparams is held
            assert isinstance(held["learning_rate"], nnx.OptArray)
            assert held["learning_rate"].value == rate


def test_an_edit_of_the_same_form_compiles_nothing_again() -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, TRANSFORMATIONS["inject"], wrt=nnx.Param)
    step = nnx.jit(lambda m, o: o.update(m, nnx.grad(loss_of)(m)))
    step(model, optimizer)
    saved = optimizer.opt_state
    with nnx.assert_max_traces(0):
        optimizer.opt_state = optimizer.tx.init(nnx.state(model, nnx.Param))
        step(model, optimizer)
        optimizer.opt_state = trees.tree_set(optimizer.opt_state, learning_rate=0.01)
        step(model, optimizer)
        optimizer.opt_state.hyperparams["learning_rate"].value = 0.02
        step(model, optimizer)
        optimizer.opt_state = saved
        step(model, optimizer)
    assert optimizer.opt_state.count.value == 2  # assigned, not copied


def test_what_is_put_in_goes_where_the_parameters_are() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh, P("x"))))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    before = jax.tree.map(lambda x: x.sharding, optimizer.opt_state)
    optimizer.opt_state = jax.device_get(optimizer.opt_state)
    assert jax.tree.map(lambda x: x.sharding, optimizer.opt_state) == before
    optimizer.opt_state = trees.tree_set(optimizer.opt_state, count=4)
    assert optimizer.opt_state[0].count.value.sharding == NamedSharding(mesh, P())


def test_a_state_of_a_module_and_one_of_another_form() -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    optimizer.opt_state = optimizer.tx.init(model)
    optimizer.update(model, nnx.grad(loss_of)(model))
    assert isinstance(optimizer.opt_state[0].mu.head.bias, nnx.OptVariable)
    optimizer.tx = optax.sgd(0.1, momentum=0.9)
    optimizer.opt_state = optimizer.tx.init(nnx.state(model, nnx.Param))
    optimizer.update(model, nnx.grad(loss_of)(model))
    assert optimizer.opt_state[0].trace.head.bias.shape == (2,)


def test_what_was_edited_is_pickled_and_saved() -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, TRANSFORMATIONS["inject"], wrt=nnx.Param)
    optimizer.opt_state.hyperparams["learning_rate"] = 0.25
    optimizer.opt_state = optimizer.opt_state._replace(count=np.array(3))
    again = cloudpickle.loads(cloudpickle.dumps(optimizer))
    assert again.opt_state.hyperparams["learning_rate"].value == 0.25
    saved = nnx.to_pure_dict(nnx.state(optimizer))
    other = nnx.Optimizer(Net(), TRANSFORMATIONS["inject"], wrt=nnx.Param)
    nnx.update(other, saved)
    assert other.opt_state.hyperparams["learning_rate"].value == 0.25
    assert other.opt_state.count.value == 3


def test_updates_are_returned() -> None:
    model, before = Net(), plain_params()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    grads = nnx.grad(loss_of)(model)
    updates = nnx.jit(lambda m, o, g: o.update(m, g))(model, optimizer, grads)
    assert isinstance(updates, nnx.State)
    after = jax.tree.map(jnp.add, before, nnx.to_pure_dict(updates))
    assert_same(model, after)
    both = nnx.ModelAndOptimizer(Net(), optax.sgd(0.1))
    np.testing.assert_array_equal(both.update(grads).head.bias, -0.1 * grads.head.bias)


# -- gradients of more, and line searches ----------------------------------------------------------


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
    "form", [lambda g: g, nnx.to_pure_dict, nnx.pure], ids=["State", "dict", "arrays"]
)
def test_gradients_of_what_is_not_optimized_are_left_out(jit: bool, form: Any) -> None:
    def make() -> Net:
        model = Net()
        model.head = nnx.LoRALinear(model.head, rank=1, rngs=nnx.Rngs(1))
        return model

    def step(model: Net, optimizer: nnx.Optimizer, argnums: Any) -> None:
        optimizer.update(model, form(nnx.grad(loss_of, argnums=argnums)(model)))

    wrt = nnx.LoRAParam
    for transform in (optax.adam(0.1), optax.lbfgs(0.1, linesearch=None)):
        model, exact = make(), make()
        for net, argnums in ((model, 0), (exact, nnx.DiffState(0, wrt))):
            optimizer = nnx.Optimizer(net, transform, wrt=wrt)
            run = nnx.jit(step, static_argnums=2) if jit else step
            for _ in range(2):
                run(net, optimizer, argnums)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(exact))
        assert float(abs(model.head.lora.lora_b.value).sum()) > 0


LINE_SEARCHES = {
    "lbfgs": optax.lbfgs(memory_size=1),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
}


@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_a_line_search_takes_a_function_of_the_model(name: str) -> None:
    def step(model: Net, optimizer: nnx.Optimizer) -> None:
        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads, value=loss, grad=grads, value_fn=loss_of)

    model = Net()
    optimizer = nnx.Optimizer(model, LINE_SEARCHES[name], wrt=nnx.Param)
    params = plain_params()
    tx = LINE_SEARCHES[name]
    state = tx.init(params)
    run = nnx.jit(step)
    for _ in range(2):
        run(model, optimizer)
        loss, grads = jax.value_and_grad(plain_loss)(params)
        updates, state = tx.update(
            grads, state, params, value=loss, grad=grads, value_fn=plain_loss
        )
        params = optax.apply_updates(params, updates)
    assert_same(model, params)


@pytest.mark.parametrize("name", LINE_SEARCHES)
@pytest.mark.parametrize("given", [(), ("value",), ("value", "grad")])
def test_arguments_that_a_line_search_lacks_are_told(name: str, given: tuple) -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, LINE_SEARCHES[name], wrt=nnx.Param)
    loss, grads = nnx.value_and_grad(loss_of)(model)
    extra = {k: {"value": loss, "grad": grads}[k] for k in given}
    with pytest.raises(TypeError, match=r"needs .*value_fn.*\n.*update\(model, grads, .*value_fn="):
        optimizer.update(model, grads, **extra)
    assert optimizer.step.value == 0


def test_errors_of_the_loss_are_its_own() -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, LINE_SEARCHES["backtracking"], wrt=nnx.Param)
    loss, grads = nnx.value_and_grad(loss_of)(model)

    def wrong(model: Net) -> Any:
        return model.heads(jnp.ones(3))

    with pytest.raises(AttributeError, match="heads"):
        optimizer.update(model, grads, value=loss, grad=grads, value_fn=wrong)


def test_helpers_of_optax_read_the_state() -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, LINE_SEARCHES["lbfgs"], wrt=nnx.Param)
    graphdef = nnx.graphdef(model)

    def of_params(params: Any) -> Any:
        return loss_of(nnx.merge(graphdef, params))

    assert trees.tree_get(optimizer.opt_state, "count").value == 0
    for jit in (False, True):

        def step(model: Net, optimizer: nnx.Optimizer) -> None:
            params, state = nnx.pure(nnx.state(model, nnx.Param)), nnx.pure(optimizer.opt_state)
            loss, grads = optax.value_and_grad_from_state(of_params)(params, state=state)
            optimizer.update(model, grads, value=loss, grad=grads, value_fn=of_params)

        (nnx.jit(step) if jit else step)(model, optimizer)
    value = trees.tree_get(nnx.pure(optimizer.opt_state), "value")
    np.testing.assert_allclose(value, loss_of(model), rtol=1e-6)
