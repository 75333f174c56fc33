"""Every snippet of the quick reference, as it stands there: only the import is another.

From "State Management" on: `test_quick_reference_patterns.py`.

Comments say which lines the document leaves out; they are the only ones added.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import refax.nnx as nnx

# -- Core Concepts -------------------------------------------------------------------------------


class MyLayer(nnx.Module):
    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        # Parameters created here (eager)
        self.linear = nnx.Linear(in_features, out_features, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((out_features,)))

    def __call__(self, x):
        return self.linear(x) + self.bias.value


def test_module():
    # Instantiate with explicit shapes
    rngs = nnx.Rngs(0)
    layer = MyLayer(in_features=10, out_features=5, rngs=rngs)

    assert layer(jnp.ones((3, 10))).shape == (3, 5)
    assert layer.linear.kernel.shape == (10, 5)


def test_graphdef_and_state():
    model = MyLayer(in_features=10, out_features=5, rngs=nnx.Rngs(0))  # left out
    original = model

    # Split module into static + dynamic parts
    graphdef, state = nnx.split(model)

    # state: nnx.State (pytree of arrays)
    # graphdef: nnx.GraphDef (static structure)

    # Merge back to get module
    model = nnx.merge(graphdef, state)

    assert isinstance(state, nnx.State) and isinstance(graphdef, nnx.GraphDef)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert model is not original and type(model) is MyLayer
    np.testing.assert_array_equal(model(jnp.ones((3, 10))), original(jnp.ones((3, 10))))


# -- Module Definition ---------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, features: int, *, rngs: nnx.Rngs):
        # Always pass rngs as keyword-only argument
        self.linear = nnx.Linear(features, features, rngs=rngs)
        self.bn = nnx.BatchNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        x = self.bn(x)
        x = self.dropout(x)
        return nnx.relu(x)


def test_basic_pattern():
    block = Block(4, rngs=nnx.Rngs(0))
    before = block.bn.mean.value
    y = block(jnp.arange(12.0).reshape(3, 4))
    assert y.shape == (3, 4)
    assert (block.bn.mean.value != before).all()


class Encoder(nnx.Module):
    def __init__(self, embed_dim: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(embed_dim, embed_dim, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class AutoEncoder(nnx.Module):
    def __init__(self, input_dim: int, embed_dim: int, *, rngs: nnx.Rngs):
        self.encoder = Encoder(embed_dim, rngs=rngs)
        self.decoder = nnx.Linear(embed_dim, input_dim, rngs=rngs)

    def __call__(self, x):
        z = self.encoder(x)
        return self.decoder(z)

    # Call methods directly (no .apply() needed)
    def encode(self, x):
        return self.encoder(x)


def test_nested_modules():
    model = AutoEncoder(input_dim=3, embed_dim=4, rngs=nnx.Rngs(0))
    assert model(jnp.ones((2, 4))).shape == (2, 3)
    assert model.encode(jnp.ones((2, 4))).shape == (2, 4)


# -- Variable Types ------------------------------------------------------------------------------


class MyBatchNorm(nnx.Module):
    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones((features,)))
        self.bias = nnx.Param(jnp.zeros((features,)))
        # Non-trainable running stats
        self.mean = nnx.BatchStat(jnp.zeros((features,)))
        self.var = nnx.BatchStat(jnp.ones((features,)))

    def __call__(self, x):
        # Update running stats (mutable!)
        batch_mean = jnp.mean(x, axis=0)
        self.mean.value = 0.9 * self.mean.value + 0.1 * batch_mean
        # ... normalize using stats


class MyCustomVar(nnx.Variable):
    pass


def test_variable_types():
    batch_size, seq_len = 2, 7  # left out

    class Model(nnx.Module):  # left out: the lines stand in some __init__
        def __init__(self):
            self.weight = nnx.Param(jnp.ones((10, 5)))
            self.bias = nnx.Param(jnp.zeros((5,)))

            # Access value
            w = self.weight.value
            assert isinstance(w, jax.Array)

            # Any stateful data
            self.counter = nnx.Variable(jnp.array(0))
            self.cache = nnx.Variable(jnp.zeros((batch_size, seq_len)))

            # Use in filters
            self.custom = MyCustomVar(jnp.ones((10,)))

    model = Model()
    assert sorted(nnx.state(model, MyCustomVar)) == ["custom"]
    assert sorted(nnx.state(model, nnx.Param)) == ["bias", "weight"]

    norm = MyBatchNorm(3)
    norm(jnp.ones((4, 3)))
    np.testing.assert_allclose(norm.mean.value, 0.1, rtol=1e-6)


# -- Random Number Generation --------------------------------------------------------------------


def test_rngs_object():
    # Create with single seed
    rngs = nnx.Rngs(0)

    # Create with multiple streams
    rngs = nnx.Rngs(params=0, dropout=1)

    # Fork creates independent copy
    rngs_copy = rngs.fork()

    # Split for vmap/scan
    rngs_split = rngs.fork(splits=5)  # Creates 5 independent copies

    assert rngs_copy.params.key.shape == ()
    assert rngs_split.params.key.shape == rngs_split.dropout.key.shape == (5,)


def test_module_construction():
    class Model(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs):
            # Each layer gets forked copy (v0.11+)
            self.layer1 = nnx.Linear(10, 20, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    rngs = nnx.Rngs(0)
    model = Model(rngs=rngs)
    streams = [x for _, x in nnx.iter_graph(rngs) if isinstance(x, nnx.Variable)]
    cells = [x for _, x in nnx.iter_graph(model) if isinstance(x, nnx.RngState)]
    assert cells and not set(map(id, streams)) & set(map(id, cells))


def test_manual_key_usage():
    class MyLayer(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs):
            self.rngs = rngs

        def __call__(self, x):
            # Get next key from stream
            key = self.rngs()
            noise = jax.random.normal(key, x.shape)
            return x + noise

    layer = MyLayer(rngs=nnx.Rngs(0))
    a, b = layer(jnp.zeros(3)), layer(jnp.zeros(3))
    assert (a != b).all()
    expected = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (3,))
    np.testing.assert_array_equal(a, expected)


# -- Transforms ----------------------------------------------------------------------------------


class Regressor(nnx.Module):
    """Left out: the document's `model`."""

    def __init__(self, input_dim: int = 4, output_dim: int = 1, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(input_dim, output_dim, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


X = jax.random.normal(jax.random.key(0), (16, 4))
Y = X.sum(1, keepdims=True)


def test_nnx_jit():
    model = Regressor(rngs=nnx.Rngs(0))  # left out
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)  # left out
    x_batch, y_batch = X, Y  # left out

    @nnx.jit
    def train_step(model, optimizer, x, y):
        def loss_fn(model):
            pred = model(x)
            return jnp.mean((pred - y) ** 2)

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)  # In-place update
        return loss

    # No need to return/reassign model
    loss = train_step(model, optimizer, x_batch, y_batch)

    first = loss
    for _ in range(20):
        loss = train_step(model, optimizer, x_batch, y_batch)
    assert loss < 0.1 * first
    assert optimizer.step == 21


def test_nnx_grad():
    model, x, y = Regressor(rngs=nnx.Rngs(0)), X, Y  # left out

    def loss_fn(model, x, y):
        pred = model(x)
        return jnp.mean((pred - y) ** 2)

    before = loss_fn(model, x, y)

    # Get gradients as nnx.State
    grads = nnx.grad(loss_fn)(model, x, y)

    # Update parameters
    params = nnx.state(model, nnx.Param)
    params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
    nnx.update(model, params)

    assert isinstance(grads, nnx.State)
    assert jax.tree.structure(grads) == jax.tree.structure(params)  # type: ignore[operator]
    assert loss_fn(model, x, y) < before


def test_nnx_vmap():
    # Vectorize module creation
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create_layers(seed):
        return nnx.Linear(10, 10, rngs=nnx.Rngs(seed))

    # Creates 5 independent layers with stacked weights
    seeds = jnp.arange(5)
    layers = create_layers(seeds)

    assert layers.kernel.shape == (5, 10, 10)
    for i in range(5):
        single = nnx.Linear(10, 10, rngs=nnx.Rngs(i))
        np.testing.assert_allclose(layers.kernel.value[i], single.kernel.value, rtol=1e-6)


def test_nnx_scan():
    # Left out. The cell takes hidden_size inputs, so nothing is left for the input.
    batch, seq_len, input_dim = 3, 7, 0

    class RNN(nnx.Module):
        def __init__(self, hidden_size: int, *, rngs: nnx.Rngs):
            self.cell = nnx.Linear(hidden_size, hidden_size, rngs=rngs)

        @nnx.scan(in_axes=(nnx.Carry, 1), out_axes=nnx.Carry)
        def __call__(self, carry, x_t):
            # carry: hidden state, x_t: input at time t
            h = self.cell(jnp.concatenate([carry, x_t], axis=-1))
            return h  # New carry (no need for dummy output)

    rnn = RNN(hidden_size=64, rngs=nnx.Rngs(0))
    h0 = jnp.zeros((batch, 64))
    x_seq = jnp.ones((batch, seq_len, input_dim))
    h_final = rnn(h0, x_seq)

    assert h_final.shape == (3, 64)


def test_nnx_scan_over_inputs():
    """The same with a cell that has room for the input."""

    class RNN(nnx.Module):
        def __init__(self, inputs: int, hidden_size: int, *, rngs: nnx.Rngs):
            self.cell = nnx.Linear(inputs + hidden_size, hidden_size, rngs=rngs)

        @nnx.scan(in_axes=(nnx.Carry, 1), out_axes=nnx.Carry)
        def __call__(self, carry, x_t):
            h = self.cell(jnp.concatenate([carry, x_t], axis=-1))
            return h

    rnn = RNN(2, 4, rngs=nnx.Rngs(0))
    x_seq = jax.random.normal(jax.random.key(1), (3, 7, 2))
    h = h0 = jnp.zeros((3, 4))
    for t in range(7):
        h = rnn.cell(jnp.concatenate([h, x_seq[:, t]], axis=-1))
    np.testing.assert_allclose(rnn(h0, x_seq), h, rtol=1e-5, atol=1e-6)


def test_scan_over_layers():
    class MLP(nnx.Module):
        def __init__(self, num_layers: int, *, rngs: nnx.Rngs):
            # Use vmap to create stacked weights
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def create_block(rngs):
                return Block(features=64, rngs=rngs)

            self.blocks = create_block(rngs.fork(splits=num_layers))

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def __call__(self, x):
            # Scan over stacked blocks
            return self.blocks(x)

    model = MLP(3, rngs=nnx.Rngs(0))
    assert model.blocks.linear.kernel.shape == (3, 64, 64)
    kernels = model.blocks.linear.kernel.value
    assert not np.array_equal(kernels[0], kernels[1])
    x = jax.random.normal(jax.random.key(0), (5, 64))
    means = model.blocks.bn.mean.value
    assert model(x).shape == (5, 64)
    assert (model.blocks.bn.mean.value != means).all()  # each block's statistics moved on
    model.eval()
    y = x
    for i in range(3):
        y = jax.tree.map(lambda a, i=i: a[i], model.blocks)(y)
    np.testing.assert_allclose(model(x), y, rtol=1e-5, atol=1e-6)


def test_mixing_nnx_and_jax_transforms():
    model, x, y = Regressor(rngs=nnx.Rngs(0)), X, Y  # left out

    # Use nnx.jit with jax.grad
    @nnx.jit
    def train_step(model, x, y):
        def loss_fn(graphdef, state):
            model = nnx.merge(graphdef, state)
            return jnp.mean((model(x) - y) ** 2)

        # JAX grad requires pytrees
        grads = jax.grad(loss_fn, argnums=1)(*nnx.split(model))

        # Update using NNx API
        params = nnx.state(model, nnx.Param)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
        nnx.update(model, params)

    expected = nnx.clone(model)
    grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(expected)
    train_step(model, x, y)
    new = jax.tree.map(lambda p, g: p - 0.01 * g, nnx.state(expected, nnx.Param), grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        nnx.state(model, nnx.Param),
        new,
    )
