"""The second half of the quick reference: state, common patterns, migration.

As in `test_quick_reference.py`, comments say which lines the document leaves out.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import refax.nnx as nnx
from tests.seeds.test_quick_reference import Block, MyCustomVar, Regressor, X, Y

# -- State Management ----------------------------------------------------------------------------


class Several(nnx.Module):
    """Left out: a model with Variables of several types."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.block = Block(4, rngs=rngs)
        self.custom = MyCustomVar(jnp.ones((10,)))

    def __call__(self, x):
        return self.block(x)


def test_filter_by_variable_type():
    model = Several(rngs=nnx.Rngs(0))  # left out

    # Extract specific variable types
    params = nnx.state(model, nnx.Param)  # Trainable only
    batch_stats = nnx.state(model, nnx.BatchStat)  # Running stats
    all_state = nnx.state(model)  # Everything

    # Multiple filters
    trainable = nnx.state(model, nnx.Param, MyCustomVar)

    assert sorted(params.block) == ["bn", "linear"] and sorted(batch_stats.block) == ["bn"]
    assert {"block", "custom"} == set(all_state)
    params_again, custom = trainable
    assert jax.tree.structure(params_again) == jax.tree.structure(params)  # type: ignore[operator]
    assert list(custom) == ["custom"]


def test_update_module_state():
    model = Several(rngs=nnx.Rngs(0))  # left out
    before = model.block.linear.kernel.value

    # Modify state dict
    params = nnx.state(model, nnx.Param)
    params = jax.tree.map(lambda p: p * 0.9, params)  # Decay

    # Write back to model
    nnx.update(model, params)

    np.testing.assert_array_equal(model.block.linear.kernel.value, before * 0.9)


def test_model_surgery(capsys):
    rngs = nnx.Rngs(0)  # left out
    LoRALinear = nnx.LoRALinear  # left out

    class TransformerModel(nnx.Module):  # left out
        def __init__(self, config):
            self.query = nnx.Linear(4, 4, rngs=rngs)
            self.out = nnx.Linear(4, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.out(self.norm(self.query(x), use_running_average=True))

    # Replace sub-modules (Pythonic!)
    model = TransformerModel(...)
    before = model(X)
    for name, module in vars(model).items():
        if isinstance(module, nnx.Linear):
            # Replace with LoRA layer
            setattr(model, name, LoRALinear(module, rank=8, rngs=rngs))

    # Iterate over graph
    for path, module in nnx.iter_graph(model):
        if isinstance(module, nnx.BatchNorm):
            print(f"Found BatchNorm at {path}")

    assert capsys.readouterr().out == "Found BatchNorm at ('norm',)\n"
    assert isinstance(model.query, nnx.LoRALinear) and isinstance(model.out, nnx.LoRALinear)
    np.testing.assert_allclose(model(X), before, rtol=1e-6)  # the identity change at first
    assert nnx.state(model, nnx.LoRAParam)


def test_train_eval_modes():
    model, x = Block(4, rngs=nnx.Rngs(0)), X  # left out

    # Switch dropout/batchnorm behavior
    model.train()  # Training mode
    output = model(x)
    assert (output != model(x)).any()

    model.eval()  # Evaluation mode
    output = model(x)
    np.testing.assert_array_equal(output, model(x))


# -- Common Patterns -----------------------------------------------------------------------------


class Model(nnx.Module):
    """Left out: the document's `Model(input_dim=…, output_dim=…)`."""

    def __init__(self, input_dim: int = 10, output_dim: int = 5, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(input_dim, output_dim, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_training_loop_with_optimizer():
    num_epochs = 3  # left out
    x = jax.random.normal(jax.random.key(0), (8, 10))  # left out
    dataloader = [(x, x[:, :5]), (-x, -x[:, :5])]  # left out

    # Create model and optimizer
    model = Model(input_dim=10, output_dim=5, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, x, y):
        def loss_fn(model):
            return jnp.mean((model(x) - y) ** 2)

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)  # Updates model in-place
        return loss

    before = model.linear.kernel.value
    losses = []

    # Training loop
    for _epoch in range(num_epochs):
        for x_batch, y_batch in dataloader:
            loss = train_step(model, optimizer, x_batch, y_batch)
            losses.append(float(loss))

    assert len(losses) == 6 and all(map(np.isfinite, losses))
    assert (model.linear.kernel.value != before).any()
    assert train_step.traces.count == 1


@contextlib.contextmanager
def a_checkpointer():
    """Left out: what orbax wants around the snippet, and the end of its background work."""
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        yield checkpointer


@pytest.mark.filterwarnings("ignore")  # of orbax
def test_checkpointing(tmp_path):
    path = tmp_path / "checkpoint"  # left out
    model = Model(rngs=nnx.Rngs(0))  # left out
    saved = nnx.clone(model)

    # Save
    with a_checkpointer() as checkpointer:
        state = nnx.state(model)
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()  # left out: it saves in the background

        # Load
        model = Model(rngs=nnx.Rngs(1))  # left out: some other values to be replaced
        state = checkpointer.restore(path)
        nnx.update(model, state)

    np.testing.assert_array_equal(model.linear.kernel.value, saved.linear.kernel.value)
    x = jnp.ones((2, 10))
    np.testing.assert_array_equal(model(x), saved(x))  # the random streams came along


def test_gradient_accumulation():
    model = Regressor(rngs=nnx.Rngs(0))  # left out
    x_batches, y_batches = jnp.split(X, 4), jnp.split(Y, 4)  # left out

    @nnx.jit
    def accumulate_gradients(model, x_batches, y_batches):
        def loss_fn(model, x, y):
            return jnp.mean((model(x) - y) ** 2)

        # Accumulate over micro-batches
        grads_accum = None
        for x, y in zip(x_batches, y_batches):
            grads = nnx.grad(loss_fn)(model, x, y)
            if grads_accum is None:
                grads_accum = grads
            else:
                grads_accum = jax.tree.map(lambda a, g: a + g, grads_accum, grads)

        # Average
        n = len(x_batches)
        grads_accum = jax.tree.map(lambda g: g / n, grads_accum)
        return grads_accum

    grads = accumulate_gradients(model, x_batches, y_batches)
    whole = nnx.grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, whole)


def device_put_replicated(tree, devices):
    """What `jax.device_put_replicated` did, which JAX has dropped: one copy for each device."""
    return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)


@pytest.mark.filterwarnings("ignore:.*pmap.*")
def test_multi_device_training():
    model = Regressor(rngs=nnx.Rngs(0))  # left out

    # Replicate model across devices
    devices = jax.devices()
    replicated_model = device_put_replicated(model, devices)  # jax.… in the document

    # Left out: the name of the axis that pmean asks for
    @lambda f: jax.pmap(f, axis_name="devices")
    def train_step_pmap(model, x, y):
        def loss_fn(model):
            return jnp.mean((model(x) - y) ** 2)

        loss, grads = nnx.value_and_grad(loss_fn)(model)

        # All-reduce gradients
        grads = jax.lax.pmean(grads, axis_name="devices")

        params = nnx.state(model, nnx.Param)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
        nnx.update(model, params)
        return loss

    n = len(devices)
    x, y = X.reshape(n, -1, 4), Y.reshape(n, -1, 1)  # left out
    losses = train_step_pmap(replicated_model, x, y)
    assert losses.shape == (n,)
    np.testing.assert_allclose(losses.mean(), jnp.mean((model(X) - Y) ** 2), rtol=1e-5)


# -- Migration Notes -----------------------------------------------------------------------------


def test_rng_changes():
    # v0.11 (current)
    class Model(nnx.Module):
        @nnx.split_rngs(splits=5)
        @nnx.vmap(in_axes=(0,))
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def __call__(self, x):
            return self.dropout(self.linear(x))

    split = Model(rngs=nnx.Rngs(0))  # left out: the first of the two ways

    # Alternative: explicit fork
    rngs = nnx.Rngs(0)
    model = Model(rngs=rngs.fork(splits=5))

    for each in (split, model):
        assert each.linear.kernel.shape == (5, 3, 3)
        assert len({float(k.sum()) for k in each.linear.kernel.value}) == 5
        y = each(jnp.ones((2, 3)))
        assert y.shape == (2, 3) and (y != each(jnp.ones((2, 3)))).any()


def test_rng_changes_without_the_decorator():
    class Model(nnx.Module):
        @nnx.vmap(in_axes=(0,))
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)

    model = Model(rngs=nnx.Rngs(0).fork(splits=5))
    assert model.linear.kernel.shape == (5, 3, 3)


def test_optimizer_changes():
    model = Model(rngs=nnx.Rngs(0))  # left out
    x = jnp.ones((2, 10))  # left out
    y = jnp.ones((2, 5))

    def loss_fn(model):  # left out
        return jnp.mean((model(x) - y) ** 2)

    # v0.11 (current)
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)  # wrt required

    @nnx.jit
    def train_step(model, optimizer, x, y):
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)  # Pass model explicitly
        return loss

    before = model.linear.kernel.value
    train_step(model, optimizer, x, y)
    assert (model.linear.kernel.value != before).any()


@pytest.mark.filterwarnings("ignore")  # of orbax
def test_loading_old_checkpoints(tmp_path):
    old_path, new_path = tmp_path / "old", tmp_path / "new"  # left out

    class OldModel(nnx.Module):  # left out: a model that kept its Rngs
        def __init__(self, *, rngs: nnx.Rngs):
            self.linear = nnx.Linear(10, 5, rngs=rngs)
            self.rngs = rngs

    old = OldModel(rngs=nnx.Rngs(7))
    with a_checkpointer() as checkpointer:
        checkpointer.save(old_path, nnx.state(old))  # left out
        checkpointer.wait_until_finished()

        # Load v0.10 checkpoint and convert
        checkpoint = checkpointer.restore(old_path)

        @jax.jit
        def fix_checkpoint(checkpoint, rngs: nnx.Rngs):
            # 1. Remove old RNG keys from checkpoint
            flat_paths = nnx.traversals.flatten_mapping(checkpoint)
            flat_paths = {
                path: value
                for path, value in flat_paths.items()
                if "rngs" not in path  # Drop old RNG state
            }
            checkpoint = nnx.traversals.unflatten_mapping(flat_paths)

            # 2. Initialize model with new RNGs
            model = Model(rngs=rngs)

            # 3. Overwrite params with checkpoint
            nnx.update(model, checkpoint)

            return nnx.state(model)

        new_checkpoint = fix_checkpoint(checkpoint, rngs=nnx.Rngs(0))
        checkpointer.save(new_path, new_checkpoint)

        checkpointer.wait_until_finished()
        restored = checkpointer.restore(new_path)

    model = Model(rngs=nnx.Rngs(3))
    nnx.update(model, restored)
    np.testing.assert_array_equal(model.linear.kernel.value, old.linear.kernel.value)


def test_pytree_handling():
    rngs = nnx.Rngs(0)  # left out

    # When using jax.tree.* on structures containing modules
    modules = [nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)]

    # Specify that NNx objects are leaves
    type_names = jax.tree.map(
        lambda x: type(x).__name__,
        modules,
        is_leaf=lambda x: isinstance(x, nnx.Pytree),  # Treat as leaves
    )

    assert type_names == ["Linear", "BatchNorm"]
