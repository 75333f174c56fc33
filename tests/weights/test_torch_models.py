"""Whole models from PyTorch, with the names that published checkpoints have: the examples' ones.

GPT-2 and ViT are compared with transformers' own classes, through the files of both.
"""

import re

import gpt2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resnet
import vit

from refax import nnx

torch = pytest.importorskip("torch", reason="PyTorch is not installed: `make test-torch`")
pytestmark = [
    pytest.mark.slow,
    # transformers of its own dependencies, and JAX of arrays that come without a copy
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
# Sums in float32 of up to some hundred terms, in another order: of outputs of about 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip(
        "transformers", reason="transformers is not installed: `make test-torch`"
    )


def randomized(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_scale = re.search(r"(ln_\w|layernorm\w*|bn\d|downsample\.1)\.weight", name)
            value.normal_(1.0 if is_scale else 0.0, 0.2)
        for name, value in model.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
    return model.eval()


def same_names(folder):
    """Of what they and we have written."""
    names = [nnx.inspect_file(folder / name).tensors.keys() for name in ("theirs", "ours")]
    return names[0] == names[1]


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# -- GPT-2 -----------------------------------------------------------------------------------------

TOKENS = np.random.default_rng(0).integers(0, 23, (2, 11))


@pytest.fixture(scope="module")
def their_gpt2(transformers):
    config = transformers.GPT2Config(
        n_embd=12, n_head=3, n_positions=32, vocab_size=23, n_layer=3, bos_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    return randomized(transformers.GPT2LMHeadModel(config))


@pytest.mark.parametrize("files", ["one", "several", "without the head"])
def test_gpt2_of_their_files(their_gpt2, files, tmp_path):
    saved = their_gpt2.transformer if files == "without the head" else their_gpt2
    saved.save_pretrained(tmp_path, max_shard_size="10KB" if files == "several" else "5GB")
    assert len([*tmp_path.glob("*.safetensors")]) > (files == "several")
    model = gpt2.read(tmp_path)
    with torch.no_grad():
        y = their_gpt2(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(model(TOKENS), y, **TOLERANCE)


def test_gpt2_writes_as_theirs(their_gpt2, tmp_path):
    """Greedily: drawn tokens come from another stream of random numbers."""
    their_gpt2.save_pretrained(tmp_path)
    model = gpt2.read(tmp_path)
    with torch.no_grad():
        prompt = torch.tensor(TOKENS)
        options = {"do_sample": False, "attention_mask": torch.ones_like(prompt)}
        whole = their_gpt2.generate(prompt, max_new_tokens=20, pad_token_id=0, **options)
    ours = gpt2.generate(model, TOKENS, 20)
    np.testing.assert_array_equal(ours, whole[:, TOKENS.shape[1] :].numpy())


def test_gpt2_in_our_files(transformers, their_gpt2, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    their_gpt2.save_pretrained(tmp_path / "theirs")
    gpt2.write(tmp_path / "ours", gpt2.read(tmp_path / "theirs"))
    assert same_names(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert same_tensors(again.state_dict(), their_gpt2.state_dict())


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_of_a_state_dict_with_the_masks_of_older_versions(their_gpt2, prefix):
    given = {n.replace("transformer.", prefix): x for n, x in their_gpt2.state_dict().items()}
    for i in range(3):
        given[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        given[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    config = gpt2.Config(23, 32, 12, 3, 3)
    model = gpt2.GPT2(config, rngs=nnx.Rngs(0))
    assert nnx.from_torch(model, given, gpt2.OURS, transform=gpt2.turned) == ([], [], {})
    listed = gpt2.GPT2(config, rngs=nnx.Rngs(1))
    listed.blocks = nnx.Sequential(*listed.blocks.to_list())
    nnx.from_torch(listed, nnx.to_torch(model))
    np.testing.assert_allclose(listed(TOKENS), model(TOKENS), **TOLERANCE)


def test_gpt2_without_the_transform_is_told(their_gpt2):
    model = gpt2.GPT2(gpt2.Config(23, 32, 12, 3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="(?s)in_proj_weight.*up.weight.*transform="):
        nnx.from_torch(model, their_gpt2.state_dict(), gpt2.OURS)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 5, 1.0), (1.3, 23, 0.6), (1.0, 6, 0.8)]
)
def test_what_may_be_drawn_is_what_they_draw_from(transformers, temperature, top_k, top_p):
    logits = np.random.default_rng(1).normal(size=(1, 23)).astype(np.float32)
    warpers = transformers.generation.logits_process
    scores = torch.tensor(logits)
    for warp in (
        warpers.TemperatureLogitsWarper(temperature),
        warpers.TopKLogitsWarper(top_k),
        warpers.TopPLogitsWarper(top_p),
    ):
        scores = warp(None, scores)
    p = torch.softmax(scores, -1).numpy()[0]
    n = 20_000
    wide = jnp.broadcast_to(logits, (n, 23))
    drawn = gpt2.draw(jax.random.key(0), wide, temperature, top_k, top_p)
    shares = np.bincount(np.asarray(drawn), minlength=23) / n
    assert not shares[p == 0].any()
    # Four standard deviations of a share of n draws, one in 16,000.
    assert (np.abs(shares - p) < 4 * np.sqrt(p * (1 - p) / n) + 1e-9).all()


# -- ViT -------------------------------------------------------------------------------------------


def test_vit_both_ways(transformers, tmp_path):
    config = transformers.ViTConfig(
        hidden_size=12, num_attention_heads=3, num_hidden_layers=2, intermediate_size=20,
        image_size=12, patch_size=4, num_channels=2, num_labels=5,
    )  # fmt: skip
    theirs = randomized(transformers.ViTForImageClassification(config))
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    theirs.save_pretrained(tmp_path / "theirs")
    model = vit.read(tmp_path / "theirs")
    images = np.random.default_rng(0).normal(size=(3, 12, 12, 2)).astype(np.float32)
    with torch.no_grad():
        y = theirs(torch.tensor(np.moveaxis(images, -1, 1))).logits.numpy()
    np.testing.assert_allclose(model(images), y, **TOLERANCE)
    vit.write(tmp_path / "ours", model)
    assert same_names(tmp_path)
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours")
    assert same_tensors(again.state_dict(), theirs.state_dict())
    assert again.config.num_labels == 5


# -- ResNet: torchvision's, whose own files need a build of PyTorch with CUDA ----------------------


def convolution(inputs, outputs, size, stride=1):
    return torch.nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs, features, stride, expansion):
        super().__init__()
        outputs = features * expansion
        sizes = [
            (inputs, features, 1, 1),
            (features, features, 3, stride),
            (features, outputs, 1, 1),
        ]
        if expansion == 1:
            sizes = [(inputs, features, 3, stride), (features, features, 3, 1)]
        self.n = len(sizes)
        for i, size in enumerate(sizes, 1):
            self.add_module(f"conv{i}", convolution(*size))
            self.add_module(f"bn{i}", torch.nn.BatchNorm2d(size[1]))
        if inputs != outputs or stride != 1:
            self.downsample = torch.nn.Sequential(
                convolution(inputs, outputs, 1, stride), torch.nn.BatchNorm2d(outputs)
            )
        else:
            self.downsample = torch.nn.Identity()

    def forward(self, x):
        y = x
        for i in range(1, self.n + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y if i < self.n else y + self.downsample(x))
        return y


class TorchResNet(torch.nn.Module):
    def __init__(self, expansion, sizes, classes, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.maxpool = torch.nn.MaxPool2d(3, 2, padding=1)
        features = width
        for i, n in enumerate(sizes):
            blocks = []
            for j in range(n):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(TorchBlock(features, width * 2**i, stride, expansion))
                features = width * 2**i * expansion
            self.add_module(f"layer{i + 1}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(features, classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("block", [resnet.BasicBlock, resnet.Bottleneck])
def test_resnet_both_ways(block, tmp_path):
    sizes = (2, 1, 2, 1)
    theirs = randomized(TorchResNet(block.expansion, sizes, 5, 4))
    model = resnet.ResNet(block, sizes, 5, width=4, rngs=nnx.Rngs(0))
    assert nnx.from_torch(model, theirs.state_dict()) == ([], [], {})
    model.eval()
    images = np.random.default_rng(0).normal(size=(2, 65, 65, 3)).astype(np.float32)
    given = torch.tensor(np.moveaxis(images, -1, 1))
    with torch.no_grad():
        y = theirs(given).numpy()
    np.testing.assert_allclose(model(images), y, **TOLERANCE)
    # A step of the running means; of the variances, PyTorch takes the unbiased ones.
    model.train()
    theirs.train()
    model(images)
    with torch.no_grad():
        theirs(given)
    mean = theirs.layer4[0].downsample[1].running_mean.numpy()
    np.testing.assert_allclose(model.layer4[0].downsample[1].mean, mean, **TOLERANCE)
    again = TorchResNet(block.expansion, sizes, 5, 4)
    again.load_state_dict(nnx.to_torch(model))
    for name, value in nnx.to_torch(model).items():
        assert torch.equal(again.state_dict()[name], value)


def test_resnet_with_a_wrong_name():
    model = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), 5, width=4, rngs=nnx.Rngs(0))
    theirs = TorchResNet(1, (1, 1, 1, 1), 5, 4).state_dict()
    with pytest.raises(ValueError) as error:
        nnx.from_torch(model, theirs, {r"^bn1\.": "bn_1."})
    text = str(error.value)
    assert text.startswith("nnx.from_torch: 8 values of the mapping do not fit the object")
    assert "missing: `bn1.weight`. Did you mean 'bn_1.weight'?" in text
    assert "unexpected: `bn_1.bias`. Did you mean 'bn1.bias'?" in text
