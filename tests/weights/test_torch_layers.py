"""Each layer that PyTorch has too: its weights in, the same input, the same output; and out again.

Channels are last here and second there; `turned` and `back` go between the two.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

torch = pytest.importorskip("torch", reason="PyTorch is not installed: `make test-torch`")
pytestmark = pytest.mark.slow

RNGS = nnx.Rngs(0)


def randomized(layer):
    """The layer with random values everywhere, also where PyTorch begins with zeros or ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5) if "var" in name else value.uniform_(-0.5, 0.5)
    return layer.eval()


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def turned(x):
    return np.moveaxis(x, -1, 1)


def back(x):
    return np.moveaxis(x, 1, -1)


def run(layer, *inputs):
    with torch.no_grad():
        y = layer(*map(torch.tensor, inputs))
    return (y[0] if isinstance(y, tuple) else y).numpy()


def check(ours, theirs, x, *, channels_second=False, exact=True, atol=1e-5):
    before = {name: x.clone() for name, x in theirs.state_dict().items()}
    loaded = nnx.from_torch(ours, theirs.state_dict())
    assert (loaded.unexpected, loaded.cast) == ([], {})
    y = run(theirs, turned(x) if channels_second else x)
    np.testing.assert_allclose(ours(x), back(y) if channels_second else y, atol=atol)
    out = nnx.to_torch(ours)
    theirs.load_state_dict(out)  # strict: nothing is missing, nothing is too much
    if exact:
        for name, value in before.items():
            if "num_batches" not in name:
                assert torch.equal(out[name], value), name
    y2 = run(theirs, turned(x) if channels_second else x)
    np.testing.assert_allclose(y2, y, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 5), (4, 4), (1, 1)])
def test_linear(sizes, bias):
    theirs = randomized(torch.nn.Linear(*sizes, bias=bias))
    check(nnx.Linear(*sizes, use_bias=bias, rngs=RNGS), theirs, random(2, sizes[0]))


CONVOLUTIONS = [
    {},
    {"bias": False},
    {"groups": 2},
    {"groups": 4},
    {"dilation": 2},
    {"stride": 2, "padding": 1},
    {"padding": "same"},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 2, "dilation": 2, "padding_mode": "circular", "groups": 2},
]


def conv_options(options):
    padding = options.get("padding", 0)
    mode = options.get("padding_mode", "zeros")
    padding = {"zeros": padding, "circular": "CIRCULAR", "reflect": "REFLECT"}[mode]
    return {
        "padding": padding.upper() if isinstance(padding, str) else padding,
        "strides": options.get("stride", 1),
        "kernel_dilation": options.get("dilation", 1),
        "feature_group_count": options.get("groups", 1),
        "use_bias": options.get("bias", True),
    }


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_conv(axes, options):
    kernel = (3, 3, 3)[:axes]
    theirs = randomized(getattr(torch.nn, f"Conv{axes}d")(4, 8, kernel, **options))
    ours = nnx.Conv(4, 8, kernel, **conv_options(options), rngs=RNGS)
    check(ours, theirs, random(2, *(7, 6, 5)[:axes], 4), channels_second=True)


def test_conv_of_equal_sizes():
    theirs = randomized(torch.nn.Conv2d(3, 3, 3))
    check(nnx.Conv(3, 3, (3, 3), padding=0, rngs=RNGS), theirs, random(2, 6, 6, 3),
          channels_second=True)  # fmt: skip


@pytest.mark.parametrize("turned_kernel", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2}, {"stride": 2, "padding": 1}, {"dilation": 2},
     {"stride": 3, "padding": 1, "output_padding": 2}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_conv_transpose(axes, options, turned_kernel):
    size, stride, dilation = 3, options.get("stride", 1), options.get("dilation", 1)
    theirs = randomized(
        getattr(torch.nn, f"ConvTranspose{axes}d")(3, 3, (3, 2, 4)[:axes], **options)
    )
    pads = []
    for size in (3, 2, 4)[:axes]:
        low = dilation * (size - 1) - options.get("padding", 0)
        pads.append((low, low + options.get("output_padding", 0)))
    ours = nnx.ConvTranspose(
        3, 3, (3, 2, 4)[:axes], stride, padding=pads, kernel_dilation=dilation,
        use_bias=options.get("bias", True), transpose_kernel=turned_kernel, rngs=RNGS,
    )  # fmt: skip
    check(ours, theirs, random(2, *(5, 4, 3)[:axes], 3), channels_second=True)


def test_embed():
    theirs = randomized(torch.nn.Embedding(7, 4))
    check(nnx.Embed(7, 4, rngs=RNGS), theirs, np.array([[1, 6], [0, 3]]))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_norms_of_features(eps, affine):
    options = {"epsilon": eps, "use_scale": affine, "rngs": RNGS}
    x = random(2, 5, 6)
    theirs = torch.nn.LayerNorm(6, eps=eps, elementwise_affine=affine)
    check(nnx.LayerNorm(6, use_bias=affine, **options), randomized(theirs), x)
    theirs = torch.nn.RMSNorm(6, eps=eps, elementwise_affine=affine)
    check(nnx.RMSNorm(6, **options), randomized(theirs), x)
    options["use_bias"] = affine
    theirs = torch.nn.GroupNorm(3, 6, eps=eps, affine=affine)
    check(nnx.GroupNorm(6, 3, **options), randomized(theirs), x, channels_second=True)
    theirs = torch.nn.InstanceNorm1d(6, eps=eps, affine=affine)
    check(nnx.InstanceNorm(6, **options), randomized(theirs), x, channels_second=True)


def test_layer_norm_without_bias():
    theirs = randomized(torch.nn.LayerNorm(6, bias=False))
    check(nnx.LayerNorm(6, epsilon=1e-5, use_bias=False, rngs=RNGS), theirs, random(2, 6))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_batch_norm_in_evaluation_and_in_training(axes, affine):
    theirs = randomized(getattr(torch.nn, f"BatchNorm{axes}d")(4, eps=1e-3, affine=affine))
    ours = nnx.BatchNorm(
        4, epsilon=1e-3, momentum=0.9, use_scale=affine, use_bias=affine, rngs=RNGS
    )
    ours.eval()
    x = random(3, *(7, 6, 5)[:axes], 4)
    check(ours, theirs, x, channels_second=True)
    ours.train()
    theirs.train()
    np.testing.assert_allclose(ours(x), back(run(theirs, turned(x))), atol=1e-5)
    np.testing.assert_allclose(ours.mean.value, theirs.running_mean.numpy(), atol=1e-5)


def test_prelu():
    check(nnx.PReLU(), randomized(torch.nn.PReLU()), random(3, 4))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [8, 6])
def test_attention(width, bias):
    theirs = randomized(
        torch.nn.MultiheadAttention(8, 2, bias=bias, kdim=width, vdim=width, batch_first=True)
    )
    assert ("in_proj_weight" in theirs.state_dict()) == (width == 8)
    ours = nnx.MultiHeadAttention(2, 8, in_kv_features=width, use_bias=bias, rngs=RNGS)
    nnx.from_torch(ours, theirs.state_dict())
    q, k, v = random(2, 5, 8), random(2, 7, width), random(2, 7, width) + 1
    np.testing.assert_allclose(ours(q, k, v), run(theirs, q, k, v), atol=1e-5)
    out = nnx.to_torch(ours)
    assert out.keys() == theirs.state_dict().keys()
    assert all(torch.equal(out[name], x) for name, x in theirs.state_dict().items())


class Grouped(torch.nn.Module):
    """Grouped heads, as language models have them: `q_proj`, `k_proj`, `v_proj`, `o_proj`."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)
        self.k_proj, self.v_proj = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)

    def forward(self, x):
        q, k, v = (
            layer(x).reshape(*x.shape[:2], -1, 2).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(x.shape))


def test_grouped_heads():
    theirs = randomized(Grouped())
    ours = nnx.MultiHeadAttention(4, 8, num_kv_heads=2, rngs=RNGS)
    ours.out.bias = None
    nnx.from_torch(ours, theirs.state_dict())
    x = random(2, 5, 8)
    np.testing.assert_allclose(ours(x), run(theirs, x), atol=1e-5)
    out = nnx.to_torch(ours)
    out["o_proj.weight"] = out.pop("out_proj.weight")
    theirs.load_state_dict(out)


CELLS = {
    "LSTM": [nnx.LSTMCell, nnx.OptimizedLSTMCell],
    "GRU": [nnx.GRUCell],
    "RNN": [nnx.SimpleCell],
}
KINDS = [(kind, cell) for kind, cells in CELLS.items() for cell in cells]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "cell"), KINDS)
def test_cells(kind, cell, bias):
    theirs = randomized(getattr(torch.nn, f"{kind}Cell")(3, 4, bias=bias))
    ours = cell(3, 4, rngs=RNGS)
    nnx.from_torch(ours, theirs.state_dict())
    x, h, c = random(2, 3), random(2, 4), random(2, 4) + 1
    with torch.no_grad():
        if kind == "LSTM":
            y, _ = theirs(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))
        else:
            y = theirs(torch.tensor(x), torch.tensor(h))
    carry = (c, h) if kind == "LSTM" else h
    np.testing.assert_allclose(ours(carry, x)[1], y.numpy(), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("kind", "cell"), KINDS)
def test_recurrent_layers(kind, cell, layers, both_ways, bias):
    theirs = getattr(torch.nn, kind)(
        3, 4, num_layers=layers, bias=bias, batch_first=True, bidirectional=both_ways
    )
    theirs = randomized(theirs)

    def layer(size):
        if both_ways:
            return nnx.Bidirectional(*(nnx.RNN(cell(size, 4, rngs=RNGS)) for _ in range(2)))
        return nnx.RNN(cell(size, 4, rngs=RNGS))

    sizes = [3] + [8 if both_ways else 4] * (layers - 1)
    ours = layer(3) if layers == 1 else nnx.Sequential(*map(layer, sizes))
    nnx.from_torch(ours, theirs.state_dict())
    x = random(2, 5, 3)
    y = run(theirs, x)
    np.testing.assert_allclose(ours(x), y, atol=1e-5)
    again = {name: x.clone() for name, x in nnx.to_torch(ours).items()}
    if not bias:  # ours have one, which is zero
        assert all(not x.any() for name, x in again.items() if "bias" in name)
        again = {name: x for name, x in again.items() if "bias" not in name}
    if kind == "GRU":
        assert all(torch.equal(again[name], x) for name, x in theirs.state_dict().items())
    theirs.load_state_dict(again)
    np.testing.assert_allclose(run(theirs, x), y, atol=1e-5)
    before = nnx.state_dict(ours, filter=nnx.Param)
    nnx.from_torch(ours, nnx.to_torch(ours))
    after = nnx.state_dict(ours, filter=nnx.Param)
    assert all(np.array_equal(before[name], after[name]) for name in before)


WRAPPED = [
    (lambda: torch.nn.Linear(3, 5), lambda: nnx.Linear(3, 5, rngs=RNGS), -1, (2, 3)),
    (lambda: torch.nn.Conv2d(3, 5, 3), lambda: nnx.Conv(3, 5, (3, 3), padding=0, rngs=RNGS), -1,
     (2, 6, 6, 3)),
    (lambda: torch.nn.ConvTranspose2d(3, 5, 3),
     lambda: nnx.ConvTranspose(3, 5, (3, 3), padding="VALID", rngs=RNGS), -2, (2, 6, 6, 3)),
]  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("theirs", "ours", "axis", "shape"), WRAPPED)
def test_weight_norm(theirs, ours, axis, shape, old):
    theirs = torch.nn.utils.parametrizations.weight_norm(theirs())
    theirs = randomized(theirs)
    given = theirs.state_dict()
    if old:
        renamed = {"parametrizations.weight.original0": "weight_g"}
        renamed["parametrizations.weight.original1"] = "weight_v"
        given = {renamed.get(name, name): x for name, x in given.items()}
    layer = nnx.WeightNorm(ours(), feature_axes=axis, rngs=RNGS)
    nnx.from_torch(layer, given)
    check(layer, theirs, random(*shape), channels_second=len(shape) > 2)


def test_weight_norm_by_one_number():
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 5), dim=None)
    ours = nnx.WeightNorm(nnx.Linear(3, 5, rngs=RNGS), feature_axes=None, rngs=RNGS)
    check(ours, randomized(theirs), random(2, 3))


@pytest.mark.parametrize(("theirs", "ours", "axis", "shape"), WRAPPED)
def test_spectral_norm(theirs, ours, axis, shape):
    torch.manual_seed(0)
    theirs = torch.nn.utils.parametrizations.spectral_norm(theirs(), n_power_iterations=100)
    for _ in range(3):  # until the singular vectors stand still
        run(theirs, turned(random(*shape)))
    theirs.eval()
    layer = nnx.SpectralNorm(ours(), update_stats=False, rngs=RNGS)
    check(layer, theirs, random(*shape), channels_second=len(shape) > 2, exact=False)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.relu(self.linear(self.norm(x)))


class OurBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs)
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.linear(self.norm(x)))


@pytest.mark.parametrize(
    "ours",
    [lambda: nnx.Stack(OurBlock, 3, rngs=RNGS),
     lambda: nnx.Sequential(*(OurBlock(RNGS) for _ in range(3)))],
)  # fmt: skip
def test_blocks_in_a_list_or_a_stack(ours):
    check(ours(), randomized(torch.nn.Sequential(*(Block() for _ in range(3)))), random(2, 4))


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2"]
)
def test_dtypes_go_both_ways(dtype):
    theirs = torch.nn.Linear(3, 5).to(getattr(torch, dtype)).state_dict()
    ours = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    loaded = nnx.from_torch(ours, theirs)
    assert ours.kernel.dtype == jnp.float32 and set(loaded.cast) == {"kernel", "bias"}
    assert torch.equal(nnx.to_torch(ours)["weight"], theirs["weight"].float())
    if dtype != "float64":
        nnx.from_torch(ours, theirs, dtype="file")
        out = nnx.to_torch(ours)["weight"]
        assert out.dtype == theirs["weight"].dtype and torch.equal(
            out.float(), theirs["weight"].float()
        )


def test_what_came_from_a_tensor_does_not_follow_it():
    for dtype in (torch.float32, torch.bfloat16):
        theirs = torch.nn.Embedding(3, 2).to(dtype)
        ours = nnx.Embed(3, 2, rngs=nnx.Rngs(0))
        nnx.from_torch(ours, theirs.state_dict(), dtype="file")
        before = np.array(ours.embedding.value)
        with torch.no_grad():
            theirs.weight.zero_()
        assert before.any() and np.array_equal(ours.embedding.value, before)
        nnx.to_torch(ours)["weight"].zero_()
        assert np.array_equal(ours.embedding.value, before)


def test_tied_weights_are_there_under_each_name():
    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 4)
            self.again = self.embed

    class Ours(nnx.Module):
        def __init__(self):
            self.embed = self.again = nnx.Embed(5, 4, rngs=RNGS)

    theirs, ours = Theirs(), Ours()
    assert list(theirs.state_dict()) == ["embed.weight", "again.weight"]
    nnx.from_torch(ours, theirs.state_dict())
    assert np.array_equal(ours.embed.embedding, theirs.embed.weight.detach())
    assert nnx.to_torch(ours).keys() == theirs.state_dict().keys()
    one = {"again.weight": torch.ones(5, 4)}
    nnx.from_torch(ours, one)
    assert (ours.embed.embedding == 1).all()
    with pytest.raises(ValueError, match="one tied array, but have two values"):
        nnx.from_torch(ours, {**one, "embed.weight": torch.zeros(5, 4)})
