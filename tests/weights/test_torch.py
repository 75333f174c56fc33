"""`from_torch` and `to_torch` without PyTorch: mappings of NumPy arrays, forward passes by hand."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx


def random(*shape) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def rngs():
    return nnx.Rngs(0)


def arrays_of(model):
    return {name: np.asarray(array) for name, array in nnx.to_torch(model).items()}


def check(model, theirs, x, y):
    assert nnx.from_torch(model, theirs) == ([], [], {})
    np.testing.assert_allclose(model(x), y, atol=1e-5)
    out = arrays_of(model)
    assert out.keys() == theirs.keys()
    for name, array in theirs.items():
        assert np.array_equal(out[name], array), name


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# -- layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 5), (4, 4)])
def test_linear(sizes):
    x, w, b = random(2, sizes[0]), random(*sizes[::-1]), random(sizes[1])
    check(nnx.Linear(*sizes, rngs=rngs()), {"weight": w, "bias": b}, x, x @ w.T + b)
    check(nnx.Linear(*sizes, use_bias=False, rngs=rngs()), {"weight": w}, x, x @ w.T)


def test_linear_of_several_axes():
    x, w, b = random(2, 3, 4), random(30, 12), random(30)
    layer = nnx.LinearGeneral((3, 4), (5, 6), axis=(-2, -1), rngs=rngs())
    y = (x.reshape(2, 12) @ w.T + b).reshape(2, 5, 6)
    check(layer, {"weight": w, "bias": b}, x, y)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv(groups):
    x, w, b = random(1, 6, 7, 4), random(4, 4 // groups, 3, 2), random(4)
    y = np.zeros((1, 4, 6, 4), np.float32) + b
    for o in range(4):
        first = o // (4 // groups) * (4 // groups)
        for i in range(4 // groups):
            for h in range(3):
                for v in range(2):
                    y[0, ..., o] += w[o, i, h, v] * x[0, h : h + 4, v : v + 6, first + i]
    layer = nnx.Conv(4, 4, (3, 2), padding=0, feature_group_count=groups, rngs=rngs())
    check(layer, {"weight": w, "bias": b}, x, y)


@pytest.mark.parametrize("turned", [False, True])
def test_conv_transpose(turned):
    x, w, b = random(1, 4, 3), random(3, 3, 2), random(3)
    y = np.zeros((1, 5, 3), np.float32) + b
    for n in range(4):
        for j in range(2):
            y[0, n + j] += x[0, n] @ w[:, :, j]
    layer = nnx.ConvTranspose(3, 3, 2, padding="VALID", transpose_kernel=turned, rngs=rngs())
    check(layer, {"weight": w, "bias": b}, x, y)


def test_embed():
    table = random(5, 3)
    check(nnx.Embed(5, 3, rngs=rngs()), {"weight": table}, np.array([4, 0]), table[[4, 0]])


def test_prelu():
    x = random(3, 4)
    check(nnx.PReLU(), {"weight": np.float32([0.25])}, x, np.where(x > 0, x, 0.25 * x))


def test_norms():
    x, w, b = random(2, 5, 6), random(6), random(6)

    def standard(x, *axes):
        return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)

    theirs = {"weight": w, "bias": b}
    check(nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs()), theirs, x, standard(x, 2) * w + b)
    y = (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)) * w
    check(nnx.RMSNorm(6, epsilon=1e-5, rngs=rngs()), {"weight": w}, x, y)
    y = standard(x.reshape(2, 5, 3, 2), 1, 3).reshape(2, 5, 6) * w + b
    check(nnx.GroupNorm(6, 3, epsilon=1e-5, rngs=rngs()), theirs, x, y)
    check(nnx.InstanceNorm(6, epsilon=1e-5, rngs=rngs()), theirs, x, standard(x, 1) * w + b)


def test_batch_norm_without_the_count_of_batches():
    x, w, b, mean, var = random(2, 6), random(6), random(6) + 1, random(6) - 1, random(6) ** 2
    theirs = {"weight": w, "bias": b, "running_mean": mean, "running_var": var}
    norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs())
    check(norm, theirs, x, (x - mean) / np.sqrt(var + 1e-5) * w + b)
    assert nnx.from_torch(norm, theirs | {"num_batches_tracked": np.int64(7)}).unexpected == []


def attention(x, w, b, heads, kv_heads):
    """w, b: of q, k, v and the output."""
    q, k, v = (
        (x @ w[i].T + b[i]).reshape(len(x), n, -1)
        for i, n in enumerate((heads, kv_heads, kv_heads))
    )
    y = []
    for h in range(heads):
        kv = h // (heads // kv_heads)
        weights = softmax(q[:, h] @ k[:, kv].T / np.sqrt(q.shape[-1]))
        y.append(weights @ v[:, kv])
    return np.concatenate(y, -1) @ w[3].T + b[3]


def test_attention_under_each_set_of_names():
    x, w, b = random(5, 8), random(4, 8, 8), random(4, 8)
    out = {"out_proj.weight": w[3], "out_proj.bias": b[3]}
    fused = {"in_proj_weight": np.concatenate(w[:3]), "in_proj_bias": np.concatenate(b[:3])}
    model = nnx.MultiHeadAttention(2, 8, rngs=rngs())
    y = attention(x, w, b, 2, 2)
    check(model, fused | out, x, y)
    apart = {f"{p}_proj_weight": w[i] for i, p in enumerate("qkv")}
    named = {f"{p}_proj.weight": w[i] for i, p in enumerate("qkv")}
    named |= {f"{p}_proj.bias": b[i] for i, p in enumerate("qkv")}
    ours = {f"{p}.weight": w[i] for i, p in enumerate(("query", "key", "value", "out"))}
    ours |= {f"{p}.bias": b[i] for i, p in enumerate(("query", "key", "value", "out"))}
    for theirs in (apart | {"in_proj_bias": fused["in_proj_bias"]} | out, named | out, ours):
        model = nnx.MultiHeadAttention(2, 8, rngs=rngs())
        nnx.from_torch(model, theirs)
        np.testing.assert_allclose(model(x), y, atol=1e-5)


def test_attention_with_grouped_heads():
    x, w, b = random(5, 8), [random(8, 8), random(4, 8), random(4, 8) + 1, random(8, 8) + 1], None
    b = [random(8), random(4), random(4) + 1, random(8) + 1]
    theirs = {f"{p}_proj.weight": w[i] for i, p in enumerate(("q", "k", "v", "out"))}
    theirs |= {f"{p}_proj.bias": b[i] for i, p in enumerate(("q", "k", "v", "out"))}
    model = nnx.MultiHeadAttention(4, 8, num_kv_heads=2, rngs=rngs())
    check(model, theirs, x, attention(x, w, b, 4, 2))


def test_attention_whose_keys_and_values_are_of_other_sizes():
    model = nnx.MultiHeadAttention(2, 4, in_kv_features=3, use_bias=False, rngs=rngs())
    model.value = nnx.LinearGeneral(5, (2, 2), use_bias=False, rngs=rngs())
    w = [random(4, 4), random(4, 3), random(4, 5), random(4, 4) + 1]
    theirs = {f"{p}_proj_weight": w[i] for i, p in enumerate("qkv")} | {"out_proj.weight": w[3]}
    assert nnx.from_torch(model, theirs) == ([], [], {})
    q, k, v = random(2, 4), random(6, 3), random(6, 5)
    halves = (slice(0, 2), slice(2, 4))
    q2, k2, v2 = q @ w[0].T, k @ w[1].T, v @ w[2].T
    y = [softmax(q2[:, h] @ k2[:, h].T / np.sqrt(2)) @ v2[:, h] for h in halves]
    np.testing.assert_allclose(model(q, k, v), np.concatenate(y, -1) @ w[3].T, atol=1e-5)
    assert arrays_of(model).keys() == theirs.keys()


def test_attention_without_a_bias_of_the_keys():
    model = nnx.MultiHeadAttention(2, 4, rngs=rngs())
    model.key.bias = None
    w, b = [random(4, 4) + i for i in range(4)], random(4, 4)
    theirs = {f"{p}_proj.weight": w[i] for i, p in enumerate(("q", "k", "v", "out"))}
    theirs |= {f"{p}_proj.bias": b[i] for i, p in enumerate(("q", "k", "v", "out")) if i != 1}
    b[1] = 0
    x = random(3, 4)
    check(model, theirs, x, attention(x, w, b, 2, 2))


def test_attention_with_a_projection_of_another_kind():
    class Own(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((4, 2, 2)))

    model = nnx.MultiHeadAttention(2, 4, rngs=rngs())
    model.query = Own()
    out = arrays_of(model)
    assert out["query.w"].shape == (4, 2, 2) and out["k_proj.weight"].shape == (4, 4)
    assert nnx.from_torch(model, out) == ([], [], {})
    with pytest.raises(ValueError, match="unexpected: `in_proj_bias`"):
        nnx.from_torch(model, out | {"in_proj_bias": random(8)})


def lstm(x, w_ih, w_hh, b):
    h = c = np.zeros(w_hh.shape[1], np.float32)
    y = []
    for step in x:
        i, f, g, o = np.split(w_ih @ step + w_hh @ h + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y.append(h)
    return np.stack(y)


def lstm_arrays(size, hidden, ending):
    shapes = {"weight_ih": (size,), "weight_hh": (hidden,), "bias_ih": (), "bias_hh": ()}
    return {f"{n}_l{ending}": random(4 * hidden, *shape) for n, shape in shapes.items()}


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell])
def test_lstm_of_two_layers_both_ways(cell):
    theirs = {}
    for k, size in enumerate((3, 8)):
        theirs |= lstm_arrays(size, 4, k) | lstm_arrays(size, 4, f"{k}_reverse")
    theirs = {name: array * (1 + 0.1 * i) for i, (name, array) in enumerate(theirs.items())}
    x = y = random(5, 3)
    for k in range(2):
        halves = []
        for ending, order in ((k, 1), (f"{k}_reverse", -1)):
            w_ih, w_hh, *b = (theirs[f"{n}_l{ending}"] for n in
                              ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))  # fmt: skip
            halves.append(lstm(y[::order], w_ih, w_hh, b[0] + b[1])[::order])
        y = np.concatenate(halves, -1)

    def layer(size):
        return nnx.Bidirectional(*(nnx.RNN(cell(size, 4, rngs=rngs())) for _ in range(2)))

    model = nnx.Sequential(layer(3), layer(8))
    assert nnx.from_torch(model, theirs) == ([], [], {})
    np.testing.assert_allclose(model(x), y, atol=1e-5)
    out = arrays_of(model)
    assert out.keys() == theirs.keys()
    for name, array in theirs.items():
        one = name.replace("bias_ih", "bias_hh")
        both = theirs[one] + theirs[one.replace("bias_hh", "bias_ih")] if "bias" in name else array
        assert np.array_equal(out[name], 0 * both if "bias_ih" in name else both)


def test_a_list_of_recurrent_layers_under_both_sets_of_names():
    layers = [nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs())), nnx.RNN(nnx.LSTMCell(4, 4, rngs=rngs()))]
    one = lstm_arrays(3, 4, 0) | lstm_arrays(4, 4, 1)
    several = {f"{name[-1]}.{name[:-1]}0": array for name, array in one.items()}
    nnx.from_torch(layers, one)
    before = arrays_of(layers)
    assert before.keys() == several.keys()
    nnx.from_torch(layers, several)
    assert all(np.array_equal(before[name], array) for name, array in arrays_of(layers).items())


def test_a_stack_of_recurrent_layers_under_both_sets_of_names():
    model = nnx.Stack(lambda rngs: nnx.RNN(nnx.LSTMCell(4, 4, rngs=rngs)), 2, rngs=rngs())
    one = {f"{name}": x + k for k in range(2) for name, x in lstm_arrays(4, 4, k).items()}
    nnx.from_torch(model, one)
    again = nnx.Sequential(*(nnx.RNN(nnx.LSTMCell(4, 4, rngs=rngs())) for _ in range(2)))
    nnx.from_torch(again, one)
    x = random(5, 4)
    np.testing.assert_allclose(model(x), again(x), atol=1e-6)
    assert {f"{name[2:-1]}{name[0]}" for name in arrays_of(model)} == one.keys()


def test_a_cell_by_itself():
    x, h, c = random(2, 3), random(2, 4), random(2, 4) + 1
    arrays = {name.removesuffix("_l0"): x for name, x in lstm_arrays(3, 4, 0).items()}
    cell = nnx.LSTMCell(3, 4, rngs=rngs())
    nnx.from_torch(cell, arrays)
    gates = x @ arrays["weight_ih"].T + h @ arrays["weight_hh"].T
    i, f, g, o = np.split(gates + arrays["bias_ih"] + arrays["bias_hh"], 4, axis=1)
    y = sigmoid(o) * np.tanh(sigmoid(f) * c + sigmoid(i) * np.tanh(g))
    np.testing.assert_allclose(cell((c, h), x)[1], y, atol=1e-5)
    assert arrays_of(cell).keys() == arrays.keys()


def test_without_biases_those_of_a_cell_are_zero():
    theirs = {name: x for name, x in lstm_arrays(3, 4, 0).items() if "bias" not in name}
    model = nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs()))
    nnx.from_torch(model, lstm_arrays(3, 4, 0))
    assert nnx.from_torch(model, theirs) == ([], [], {})
    assert not model.cell.hf.bias.any()


def gru(x, w_ih, w_hh, b_ih, b_hh):
    h = np.zeros(w_hh.shape[1], np.float32)
    y = []
    for step in x:
        (r, z, n), (hr, hz, hn) = np.split(w_ih @ step + b_ih, 3), np.split(w_hh @ h + b_hh, 3)
        r, z = sigmoid(r + hr), sigmoid(z + hz)
        n = np.tanh(n + r * hn)
        h = (1 - z) * n + z * h
        y.append(h)
    return np.stack(y)


def gru_arrays():
    return {"weight_ih_l0": random(12, 3), "weight_hh_l0": random(12, 4),
            "bias_ih_l0": random(12), "bias_hh_l0": random(12) + 1}  # fmt: skip


def test_gru_gets_the_bias_that_it_has_no_place_for():
    theirs, x = gru_arrays(), random(5, 3)
    model = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs()))
    check(model, theirs, x, gru(x, *theirs.values()))
    assert model.cell.dense_h.bias.shape == (12,)


def test_gru_stays_as_it_is_where_the_bias_is_zero_or_does_not_come():
    theirs, x = gru_arrays() | {"bias_hh_l0": np.zeros(12, np.float32)}, random(5, 3)
    model = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs()))
    check(model, theirs, x, gru(x, *theirs.values()))
    assert model.cell.dense_h.bias is None
    with pytest.raises(ValueError, match="`bias_ih_l0`"):
        nnx.from_torch(model, gru_arrays() | {"bias_ih_l0": random(4)})
    assert model.cell.dense_h.bias is None


def test_weight_norm_under_both_sets_of_names():
    x, v, g, b = random(2, 3), random(4, 3), random(4, 1), random(4)
    y = x @ (g * v / np.linalg.norm(v, axis=1, keepdims=True)).T + b
    model = nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs()), rngs=rngs())
    new = "parametrizations.weight.original"
    check(model, {f"{new}0": g, f"{new}1": v, "bias": b}, x, y)
    model = nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs()), rngs=rngs())
    nnx.from_torch(model, {"weight_g": g, "weight_v": v, "bias": b})
    np.testing.assert_allclose(model(x), y, atol=1e-5)


def test_spectral_norm_takes_the_singular_vector():
    x, w = random(2, 3), random(4, 3)
    (u, s, v), b = np.linalg.svd(w), random(4)
    model = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs()), rngs=rngs())
    old = {"weight_orig": w, "weight_u": u[:, 0], "weight_v": v[0], "bias": b}
    assert nnx.from_torch(model, old) == ([], [], {})
    np.testing.assert_allclose(model(x, update_stats=False), x @ (w / s[0]).T + b, atol=1e-5)
    out = arrays_of(model)
    np.testing.assert_allclose(out["parametrizations.weight.0._v"], v[0], atol=1e-5)


# -- models ----------------------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return self.linear(x) * self.scale


class Model(nnx.Module):
    def __init__(self, stacked=False):
        r = rngs()
        self.layers = nnx.Stack(Block, 3, rngs=r) if stacked else [Block(r) for _ in range(3)]
        self.embed = self.head = nnx.Embed(5, 4, rngs=r)


def model_arrays():
    theirs = {"embed.weight": random(5, 4)}
    for i in range(3):
        theirs[f"layers.{i}.scale"] = random(4) + i
        theirs[f"layers.{i}.linear.bias"] = random(4) - i
        theirs[f"layers.{i}.linear.weight"] = random(4, 4) * (1 + i)
    return theirs | {"head.weight": theirs["embed.weight"]}


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_lists_and_stacks_take_the_same_names(stacked, abstract):
    model = nnx.eval_shape(lambda: Model(stacked)) if abstract else Model(stacked)
    if abstract:
        with pytest.raises(ValueError, match=r"nnx.to_torch: .* has no value"):
            nnx.to_torch(model)
    theirs = model_arrays()
    assert nnx.from_torch(model, theirs) == ([], [], {})
    for i in range(3):
        kernel = model.layers.blocks.linear.kernel[i] if stacked else model.layers[i].linear.kernel
        assert np.array_equal(kernel, theirs[f"layers.{i}.linear.weight"].T)
    out = arrays_of(model)
    assert out.keys() == theirs.keys()
    assert all(np.array_equal(out[name], array) for name, array in theirs.items())


def test_stacks_in_a_stack():
    def outer(rngs):
        return nnx.Sequential(nnx.Stack(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 2, rngs=rngs))

    model = nnx.Stack(outer, 3, rngs=rngs())
    theirs = {f"{i}.0.{j}.weight": random(4, 4) * (1 + i) + j for i in range(3) for j in range(2)}
    theirs |= {f"{i}.0.{j}.bias": random(4) * (1 + i) + j for i in range(3) for j in range(2)}
    nnx.from_torch(model, theirs)
    out = arrays_of(model)
    assert out.keys() == theirs.keys()
    assert all(np.array_equal(out[name], array) for name, array in theirs.items())


def test_a_stack_of_no_blocks():
    model = nnx.Stack(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 0, rngs=rngs())
    assert arrays_of(model) == {} and nnx.from_torch(model, {}) == ([], [], {})


def test_what_only_looks_like_a_singular_vector_is_unexpected():
    with pytest.raises(ValueError, match="unexpected: `a_v`"):
        nnx.from_torch({"a_u": nnx.Param(jnp.ones(2))}, {"a_u": random(2), "a_v": random(2)})


def test_sharding_and_dtype_of_the_model_are_kept():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    model = nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=rngs())
    model.kernel.value = jax.device_put(model.kernel.value, sharding)
    loaded = nnx.from_torch(model, {"weight": random(3, 4), "bias": random(3)})
    assert model.kernel.sharding == sharding and model.kernel.dtype == jnp.bfloat16
    assert set(loaded.cast) == {"kernel", "bias"}
    nnx.from_torch(model, {"weight": random(3, 4), "bias": random(3)}, dtype="file")
    assert model.kernel.dtype == jnp.float32


def test_rename_drops_and_transform_turns():
    w = random(4, 4)
    theirs = {"transformer.c_fc.weight": w, "transformer.c_fc.bias": random(4), "mask": random(3)}
    model = nnx.Linear(4, 4, rngs=rngs())
    nnx.from_torch(
        model,
        theirs,
        {r"^transformer\.c_fc\.": "", "^mask$": None},
        transform=lambda name, array: array.T if name == "weight" else array,
    )
    assert np.array_equal(model.kernel, w)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["5GB", "100B"])
def test_a_file_a_folder_and_an_index_go_in(tmp_path, size):
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs()), nnx.Linear(4, 2, rngs=rngs()))
    file = tmp_path / "model.safetensors"
    nnx.save(file, nnx.to_torch(model), max_file_size=size)
    assert nnx.inspect_file(file).tensors["1.weight"].shape == (2, 4)
    paths = [file, str(file), tmp_path, *tmp_path.glob("*.json")]
    assert len(paths) == (3 if size == "5GB" else 4)
    for path in paths:
        other = nnx.eval_shape(
            lambda: nnx.Sequential(nnx.Linear(3, 4, rngs=rngs()), nnx.Linear(4, 2, rngs=rngs()))
        )
        assert nnx.from_torch(other, path) == ([], [], {})
        for name, array in nnx.state_dict(model).items():
            np.testing.assert_array_equal(nnx.state_dict(other)[name], array)
    file.write_bytes(b"PK torch.save")
    with pytest.raises(nnx.WeightsFileError, match="model.safetensors is no safetensors file"):
        nnx.from_torch(model, file)
    with pytest.raises(IsADirectoryError, match="nnx.from_torch: .* is a folder"):
        nnx.from_torch(model, tmp_path.parent)


def test_names_and_layouts_go_back_as_they_came():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs()))
    theirs = {"up.w": random(3, 4), "up.b": random(4)}
    names = {r"^up\.w$": "0.weight", r"^up\.b$": "0.bias"}
    back = {r"^0\.(\w).*": r"up.\1"}

    def turn(name, array):
        return array.T if name == "0.weight" else array

    nnx.from_torch(model, theirs, names, transform=turn)
    given = nnx.to_torch(model, back, transform=turn)
    assert {n: np.asarray(x).tolist() for n, x in given.items()} == {
        name: array.tolist() for name, array in theirs.items()
    }
    assert [*nnx.to_torch(model, {"bias": None})] == ["0.weight"]
    with pytest.raises(ValueError, match="`0.bias` and `0.weight` are both renamed to `0`"):
        nnx.to_torch(model, {r"\..*": ""})


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}, {"in_kv_features": 5}], ids=str)
def test_attention_each_projection_by_itself(options):
    layer = nnx.MultiHeadAttention(2, 8, rngs=rngs(), **options)
    layer.query.bias.value += 1.0
    apart = nnx.to_torch(layer, fused=False)
    ends = ("weight", "bias")
    assert apart.keys() == {f"{part}_proj.{end}" for part in ("q", "k", "v", "out") for end in ends}
    other = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(1), **options)
    assert nnx.from_torch(other, apart) == ([], [], {})
    for name, array in nnx.state_dict(layer).items():
        np.testing.assert_array_equal(nnx.state_dict(other)[name], array)
    lstm = nnx.RNN(nnx.LSTMCell(2, 3, rngs=rngs()))
    assert nnx.to_torch(lstm, fused=False).keys() == nnx.to_torch(lstm).keys()


def test_one_report_tells_all_and_nothing_is_changed():
    model, theirs = Model(), model_arrays()
    del theirs["layers.0.scale"], theirs["embed.weight"], theirs["head.weight"]
    theirs["layers.1.linear.wieght"] = theirs.pop("layers.1.linear.weight")
    theirs["layers.2.linear.weight"] = random(4, 5)
    before = nnx.state_dict(model)
    with pytest.raises(ValueError) as error:
        nnx.from_torch(model, theirs)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("nnx.from_torch: 5 values of the mapping do not fit the object")
    assert sorted(line.strip() for line in lines[1:-1]) == [
        "`layers.2.linear.weight` (here `layers.2.linear.kernel`) is float32[4,4] in the object "
        "but float32[4,5] in the mapping.",
        "missing: `embed.weight`.",
        "missing: `layers.0.scale`.",
        "missing: `layers.1.linear.weight`. Did you mean 'layers.1.linear.wieght'?",
        "unexpected: `layers.1.linear.wieght`. Did you mean 'layers.1.linear.weight'?",
    ]
    assert lines[-1].startswith("Cure: ")
    assert all(x is before[name] for name, x in nnx.state_dict(model).items())


def test_not_strict_loads_what_is_there():
    model, theirs = Model(), model_arrays()
    del theirs["layers.0.scale"]
    loaded = nnx.from_torch(model, theirs | {"more": random(1)}, strict=False)
    assert loaded == (["layers.0.scale"], ["more"], {})
    assert np.array_equal(model.layers[1].scale, theirs["layers.1.scale"])
    assert (model.layers[0].scale == 1).all()


@pytest.mark.parametrize("strict", [False, True])
def test_a_block_of_a_stack_cannot_be_missing_alone(strict):
    theirs = model_arrays()
    del theirs["layers.1.scale"]
    with pytest.raises(ValueError, match=r"`layers.1.scale` is missing, one of the blocks of "):
        nnx.from_torch(Model(stacked=True), theirs, strict=strict)


@pytest.mark.parametrize(
    ("model", "theirs"),
    [
        (lambda: nnx.Linear(3, 5, rngs=rngs()), {"weight": random(3, 5), "bias": random(5)}),
        (lambda: nnx.Linear(3, 5, rngs=rngs()), {"weight": random(5, 3, 1), "bias": random(5)}),
        (lambda: nnx.Conv(3, 5, (2, 2), rngs=rngs()), {"weight": random(5, 3), "bias": random(5)}),
        (lambda: nnx.ConvTranspose(4, 4, 2, rngs=rngs()),
         {"weight": random(4, 2, 2), "bias": random(4)}),  # in groups
        (lambda: nnx.PReLU(), {"weight": random(3)}),
        (lambda: nnx.MultiHeadAttention(2, 4, use_bias=False, rngs=rngs()),
         {"in_proj_weight": random(8, 4), "out_proj.weight": random(4, 4)}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [False, True])
def test_another_shape_is_never_taken(model, theirs, strict):
    model = model()
    before = nnx.state_dict(model)
    with pytest.raises(ValueError, match="weight` .* in the object but float32"):
        nnx.from_torch(model, theirs, strict=strict)
    assert all(x is before[name] for name, x in nnx.state_dict(model).items())


def test_what_is_no_mapping():
    with pytest.raises(TypeError, match="state_dict is list, but must be"):
        nnx.from_torch(nnx.PReLU(), [random(3)])


def test_names_in_pytorch_of_what_it_has_no_layer_for():
    class Own(nnx.Module):
        def __init__(self):
            self.tables = {"a": nnx.Param(jnp.ones((2, 3))), "b": nnx.BatchStat(jnp.ones(()))}
            self.cache = nnx.Cache(jnp.ones(3))
            self.rngs = nnx.Rngs(0)
            self.note = jnp.ones(3)

    assert arrays_of(Own()).keys() == {"tables.a", "tables.b"}
    assert arrays_of(nnx.Param(jnp.ones(2))).keys() == {"value"}
    assert arrays_of({"a": nnx.Param({"b": jnp.ones(3)})}).keys() == {"a.b"}


def test_without_pytorch_arrays_come_out():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from refax import nnx\n"
        "out = nnx.to_torch(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))\n"
        "assert type(out['weight']) is np.ndarray and out['weight'].flags.writeable\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
