"""Whole models from PyTorch, with the names that published checkpoints at Hugging Face have."""

import re

import numpy as np
import pytest

from refax import nnx

torch = pytest.importorskip("torch", reason="PyTorch is not installed: `make test-torch`")
pytestmark = pytest.mark.slow

functional = torch.nn.functional


def randomized(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0 if re.search(r"(ln_\w|normalization)\.weight", name) else 0.0, 0.2)
        for name, value in model.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
    return model.eval()


# -- GPT-2 -----------------------------------------------------------------------------------------

FEATURES, HEADS, LENGTH, WORDS, LAYERS = 12, 3, 16, 23, 3


class Conv1D(torch.nn.Module):
    """Hugging Face's linear layer of GPT-2: its weight is (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(inputs, outputs))
        self.bias = torch.nn.Parameter(torch.empty(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class TorchAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        mask = torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool))
        self.register_buffer("bias", mask[None, None])
        self.c_attn, self.c_proj = Conv1D(FEATURES, 3 * FEATURES), Conv1D(FEATURES, FEATURES)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = (
            part.reshape(n, length, HEADS, -1).transpose(1, 2)
            for part in self.c_attn(x).split(FEATURES, dim=2)
        )
        logits = q @ k.transpose(-1, -2) / np.sqrt(FEATURES // HEADS)
        logits = logits.masked_fill(~self.bias[:, :, :length, :length], -torch.inf)
        y = torch.softmax(logits, -1) @ v
        return self.c_proj(y.transpose(1, 2).reshape(x.shape))


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(FEATURES), torch.nn.LayerNorm(FEATURES)
        self.attn = TorchAttention()
        self.mlp = torch.nn.Module()
        self.mlp.c_fc = Conv1D(FEATURES, 4 * FEATURES)
        self.mlp.c_proj = Conv1D(4 * FEATURES, FEATURES)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        hidden = functional.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.mlp.c_proj(hidden)


class TorchGPT2(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = torch.nn.ModuleDict({
            "wte": torch.nn.Embedding(WORDS, FEATURES),
            "wpe": torch.nn.Embedding(LENGTH, FEATURES),
            "h": torch.nn.ModuleList(TorchBlock() for _ in range(LAYERS)),
            "ln_f": torch.nn.LayerNorm(FEATURES),
        })  # fmt: skip
        self.lm_head = torch.nn.Linear(FEATURES, WORDS, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens):
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm_1, self.norm_2 = (
            nnx.LayerNorm(FEATURES, epsilon=1e-5, rngs=rngs) for _ in range(2)
        )
        self.attention = nnx.MultiHeadAttention(HEADS, FEATURES, rngs=rngs)
        self.up = nnx.Linear(FEATURES, 4 * FEATURES, rngs=rngs)
        self.down = nnx.Linear(4 * FEATURES, FEATURES, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm_1(x), is_causal=True)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class GPT2(nnx.Module):
    def __init__(self, stacked):
        rngs = nnx.Rngs(0)
        self.words = nnx.Embed(WORDS, FEATURES, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, FEATURES, rngs=rngs)
        stack = nnx.Stack(Block, LAYERS, rngs=rngs)
        self.blocks = stack if stacked else nnx.Sequential(*stack.to_list())
        self.norm = nnx.LayerNorm(FEATURES, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens):
        x = self.words(tokens) + self.positions(np.arange(tokens.shape[1]))
        return self.words.attend(self.norm(self.blocks(x)))


NAMES_OF_GPT2 = {
    r"^transformer\.": "",
    r"^lm_head\.": "wte.",  # tied
    r"\.attn\.(masked_)?bias$": None,  # the causal mask
    r"^wte\.": "words.",
    r"^wpe\.": "positions.",
    r"^h\.": "blocks.",
    r"\.ln_(\d)\.": r".norm_\1.",
    r"^ln_f\.": "norm.",
    r"\.attn\.c_attn\.": ".attention.in_proj_",
    r"\.attn\.c_proj\.": ".attention.out_proj.",
    r"\.mlp\.c_fc\.": ".up.",
    r"\.mlp\.c_proj\.": ".down.",
}


def turn_conv1d(name, array):
    return array.T if re.search(r"(in_proj_|out_proj\.|up\.|down\.)weight$", name) else array


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2(prefix, stacked):
    theirs, ours = randomized(TorchGPT2()), GPT2(stacked)
    given = {n.replace("transformer.", prefix): x for n, x in theirs.state_dict().items()}
    loaded = nnx.from_torch(ours, given, NAMES_OF_GPT2, transform=turn_conv1d)
    assert loaded == ([], [], {})
    tokens = np.random.default_rng(0).integers(0, WORDS, (2, 11))
    with torch.no_grad():
        y = theirs(torch.tensor(tokens)).numpy()
    np.testing.assert_allclose(ours(tokens), y, atol=1e-4)
    again = GPT2(not stacked)
    nnx.from_torch(again, nnx.to_torch(ours))
    np.testing.assert_allclose(again(tokens), y, atol=1e-4)


def test_gpt2_without_the_transform_is_told():
    with pytest.raises(ValueError, match="(?s)in_proj_weight.*up.weight.*transform="):
        nnx.from_torch(GPT2(False), TorchGPT2().state_dict(), NAMES_OF_GPT2)


# -- ResNet ----------------------------------------------------------------------------------------


class TorchUnit(torch.nn.Module):
    def __init__(self, inputs, outputs, size=3, stride=1, active=True):
        super().__init__()
        self.convolution = torch.nn.Conv2d(
            inputs, outputs, size, stride, padding=size // 2, bias=False
        )
        self.normalization = torch.nn.BatchNorm2d(outputs)
        self.active = active

    def forward(self, x):
        x = self.normalization(self.convolution(x))
        return torch.relu(x) if self.active else x


class TorchResidual(torch.nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.shortcut = torch.nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = TorchUnit(inputs, outputs, 1, stride, active=False)
        self.layer = torch.nn.Sequential(
            TorchUnit(inputs, outputs, 3, stride), TorchUnit(outputs, outputs, active=False)
        )

    def forward(self, x):
        return torch.relu(self.layer(x) + self.shortcut(x))


class TorchStage(torch.nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.layers = torch.nn.Sequential(
            TorchResidual(inputs, outputs, stride), TorchResidual(outputs, outputs, 1)
        )


class TorchResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.resnet = torch.nn.Module()
        self.resnet.embedder = torch.nn.Module()
        self.resnet.embedder.embedder = TorchUnit(3, 8, 7, 2)
        self.resnet.encoder = torch.nn.Module()
        self.resnet.encoder.stages = torch.nn.ModuleList(
            [TorchStage(8, 8, 1), TorchStage(8, 16, 2)]
        )
        self.classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10))

    def forward(self, x):
        x = functional.max_pool2d(self.resnet.embedder.embedder(x), 3, 2, 1)
        for stage in self.resnet.encoder.stages:
            x = stage.layers(x)
        return self.classifier(x.mean((2, 3)))


class Unit(nnx.Module):
    def __init__(self, inputs, outputs, rngs, size=3, stride=1, active=True):
        self.conv = nnx.Conv(
            inputs, outputs, (size, size), stride, padding=size // 2, use_bias=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.active = active

    def __call__(self, x):
        x = self.norm(self.conv(x))
        return nnx.relu(x) if self.active else x


class Residual(nnx.Module):
    def __init__(self, inputs, outputs, stride, rngs):
        self.shortcut = nnx.identity
        if inputs != outputs or stride != 1:
            self.shortcut = Unit(inputs, outputs, rngs, 1, stride, active=False)
        self.units = [
            Unit(inputs, outputs, rngs, 3, stride),
            Unit(outputs, outputs, rngs, active=False),
        ]

    def __call__(self, x):
        return nnx.relu(self.units[1](self.units[0](x)) + self.shortcut(x))


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = Unit(3, 8, rngs, 7, 2)
        sizes = [(8, 8, 1), (8, 16, 2)]
        self.stages = [
            nnx.Sequential(Residual(i, o, stride, rngs), Residual(o, o, 1, rngs))
            for i, o, stride in sizes
        ]
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(self.stem(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((1, 2)))


NAMES_OF_RESNET = {
    r"^resnet\.embedder\.embedder\.": "stem.",
    r"^resnet\.encoder\.stages\.(\d+)\.layers\.": r"stages.\1.",
    r"\.layer\.": ".units.",
    r"\bconvolution\b": "conv",
    r"\bnormalization\b": "norm",
    r"^classifier\.1\.": "head.",
}


def test_resnet():
    theirs, ours = randomized(TorchResNet()), ResNet(nnx.Rngs(0))
    assert nnx.from_torch(ours, theirs.state_dict(), NAMES_OF_RESNET) == ([], [], {})
    ours.eval()
    x = np.random.default_rng(0).normal(size=(2, 33, 33, 3)).astype(np.float32)
    with torch.no_grad():
        y = theirs(torch.tensor(np.moveaxis(x, -1, 1))).numpy()
    np.testing.assert_allclose(ours(x), y, atol=1e-4)


def test_resnet_with_a_wrong_name():
    with pytest.raises(ValueError) as error:
        nnx.from_torch(
            ResNet(nnx.Rngs(0)),
            TorchResNet().state_dict(),
            {**NAMES_OF_RESNET, r"^stem\.norm": "stem.nrom"},
        )
    text = str(error.value)
    assert text.startswith("nnx.from_torch: 8 values of the mapping do not fit the object")
    assert "missing: `stem.norm.weight`. Did you mean 'stem.nrom.weight'?" in text
    assert "unexpected: `stem.nrom.bias`. Did you mean 'stem.norm.bias'?" in text
