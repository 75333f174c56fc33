"""GPT-2, ViT and ResNet by the names of published checkpoints, beside forward passes in NumPy.

tests/weights/test_torch_models.py compares them with PyTorch's.
"""

import json
from pathlib import Path

import gpt2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resnet
import safetensors.numpy
import scipy.special
import vit

from refax import nnx

# The networks compute in float32, NumPy in double precision; outputs are about 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def random(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: random.normal(len(shape) == 1 and name.endswith("weight"), 0.3, shape).astype("f")
        for name, shape in shapes.items()
    }


def put(folder: Path, config: dict, arrays: dict[str, np.ndarray]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})


def norm(x, w, name, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q, k, v, heads, causal):
    """(batch, length, features) each."""
    n, length, size = q.shape
    q, k, v = (a.reshape(n, length, heads, -1).swapaxes(1, 2) for a in (q, k, v))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(size // heads)
    if causal:
        logits = np.where(np.tri(length, dtype=bool), logits, -np.inf)
    return (scipy.special.softmax(logits, -1) @ v).swapaxes(1, 2).reshape(n, length, size)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: gpt2.GPT2(gpt2.Config(), rngs=nnx.Rngs(0)), 124_439_808),
        (lambda: vit.ViT(vit.Config(), 1000, rngs=nnx.Rngs(0)), 86_567_656),
        (resnet.resnet18, 11_689_512),
        (resnet.resnet50, 25_557_032),
    ],
    ids=["gpt2", "vit-base-patch16-224", "resnet18", "resnet50"],
)
def test_by_default_they_have_the_sizes_of_the_published_ones(make, parameters):
    """As their authors count them."""
    arrays = nnx.state_dict(nnx.eval_shape(make), filter=nnx.Param)
    assert sum(array.size for array in arrays.values()) == parameters


# -- GPT-2 -----------------------------------------------------------------------------------------

WORDS, PLACES, SIZE, LAYERS, HEADS = 13, 16, 8, 2, 2
TOKENS = np.random.default_rng(0).integers(0, WORDS, (2, 5))


def gpt2_weights() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (WORDS, SIZE), "wpe.weight": (PLACES, SIZE)}
    for i in range(LAYERS):
        for name, m, n in [("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4),
                           ("mlp.c_proj", 4, 1)]:  # fmt: skip
            shapes |= {
                f"h.{i}.{name}.weight": (m * SIZE, n * SIZE),
                f"h.{i}.{name}.bias": (n * SIZE,),
            }
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.{end}": (SIZE,) for end in ("weight", "bias")}
    shapes |= {f"ln_f.{end}": (SIZE,) for end in ("weight", "bias")}
    return {f"transformer.{name}": array for name, array in random(0, shapes).items()}


def gpt2_logits(weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    w = {name.removeprefix("transformer."): a.astype(float) for name, a in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]
    for i in range(LAYERS):
        qkv = np.split(linear(norm(x, w, f"h.{i}.ln_1", 1e-5), f"h.{i}.attn.c_attn"), 3, -1)
        x = x + linear(attend(*qkv, HEADS, causal=True), f"h.{i}.attn.c_proj")
        h = linear(norm(x, w, f"h.{i}.ln_2", 1e-5), f"h.{i}.mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"h.{i}.mlp.c_proj")
    return norm(x, w, "ln_f", 1e-5) @ w["wte.weight"].T


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    config = {"model_type": "gpt2", "vocab_size": WORDS, "n_positions": PLACES, "n_embd": SIZE,
              "n_layer": LAYERS, "n_head": HEADS, "activation_function": "gelu_new"}  # fmt: skip
    put(folder, config, gpt2_weights())
    return folder


@pytest.fixture(scope="module")
def model(published) -> gpt2.GPT2:
    return gpt2.read(published)


logits_of = nnx.jit(lambda model, tokens: model(tokens))


def test_gpt2_is_what_its_formulas_say(model):
    logits = gpt2_logits(gpt2_weights(), TOKENS)
    np.testing.assert_allclose(logits_of(model, TOKENS), logits, **TOLERANCE)


def test_gpt2_comes_back_as_it_came(model, published, tmp_path):
    gpt2.write(tmp_path, model)
    given, written = (safetensors.numpy.load_file(p / "model.safetensors")
                      for p in (published, tmp_path))  # fmt: skip
    assert written.keys() == given.keys()
    assert all(np.array_equal(written[name], given[name]) for name in given)
    assert gpt2.read(tmp_path).config == model.config


@pytest.mark.parametrize("variant", ["bare", "with masks and a tied head"])
def test_gpt2_of_other_files(model, variant, tmp_path):
    arrays = gpt2_weights()
    if variant == "bare":
        arrays = {name.removeprefix("transformer."): a for name, a in arrays.items()}
    else:
        arrays["lm_head.weight"] = arrays["transformer.wte.weight"]
        arrays["transformer.h.0.attn.bias"] = np.tri(PLACES, dtype="f")[None, None]
        arrays["transformer.h.1.attn.masked_bias"] = np.array(-1e4, "f")
    put(tmp_path, {"vocab_size": WORDS, "n_positions": PLACES, "n_embd": SIZE, "n_layer": LAYERS,
                   "n_head": HEADS}, arrays)  # fmt: skip
    for name, array in nnx.state_dict(gpt2.read(tmp_path)).items():
        np.testing.assert_array_equal(array, nnx.state_dict(model)[name])
    arrays["lm_head.weight"] = np.zeros((WORDS, SIZE), "f")  # no longer tied
    put(tmp_path, {"vocab_size": WORDS, "n_embd": SIZE, "n_layer": LAYERS, "n_head": HEADS,
                   "n_positions": PLACES}, arrays)  # fmt: skip
    with pytest.raises(ValueError, match="both renamed to `words.weight`"):
        gpt2.read(tmp_path)


def test_a_decoder_gives_the_logits_of_the_whole(model):
    whole = logits_of(model, TOKENS)
    decoder = model.decoder(2, PLACES)
    parts = [logits_of(decoder, TOKENS[:, :3])]
    parts += [logits_of(decoder, TOKENS[:, i : i + 1]) for i in (3, 4)]
    # The same sums, but over the whole cache.
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-6)
    assert int(decoder.seen[...]) == 5 and model.seen is None
    assert decoder.words.embedding is model.words.embedding
    assert not [*nnx.state_dict(model, filter=nnx.Cache)]
    with pytest.raises(ValueError, match="17 tokens, but the model has 16"):
        model.decoder(2, 17)


def test_generating_is_choosing_the_likeliest_again_and_again(model):
    weights, text = gpt2_weights(), TOKENS
    for _ in range(8):
        text = np.append(text, gpt2_logits(weights, text)[:, -1:].argmax(-1), axis=1)
    assert gpt2.generate(model, TOKENS, 8).tolist() == text[:, 5:].tolist()
    assert gpt2.generate_without_cache(model, TOKENS, 8).tolist() == text[:, 5:].tolist()

    def drawn(rngs, temperature, top_k=WORDS, top_p=1.0):
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        return gpt2.generate(model, TOKENS, 8, rngs, **options).tolist()

    rngs = nnx.Rngs(3)
    # Of one token there is nothing to draw; and of the likeliest ones that make up next to nothing.
    for likeliest in (drawn(rngs, 0.0), drawn(rngs, 1.0, top_k=1), drawn(rngs, 1.0, top_p=1e-6)):
        assert likeliest == text[:, 5:].tolist()
    assert drawn(rngs, 3.0) != drawn(rngs, 3.0)  # the stream goes on
    assert drawn(nnx.Rngs(3), 3.0) == drawn(nnx.Rngs(3), 3.0)


@pytest.mark.parametrize(("top_k", "top_p"), [(7, 1.0), (3, 1.0), (7, 0.6), (5, 0.8)])
def test_what_is_drawn_has_its_probability(top_k, top_p):
    p = np.array([0.05, 0.3, 0.02, 0.25, 0.15, 0.13, 0.1])
    order = np.argsort(-p)[:top_k]
    shares = p[order] / p[order].sum()
    order = order[np.cumsum(shares) - shares < top_p]
    expected = np.zeros(7)
    expected[order] = p[order] / p[order].sum()
    n, temperature = 20_000, 0.5
    logits = np.broadcast_to(np.log(p) * temperature, (n, 7)).astype("f")
    drawn = gpt2.draw(jax.random.key(0), jnp.asarray(logits), temperature, top_k, top_p)
    found = np.bincount(np.asarray(drawn), minlength=7) / n
    assert not found[expected == 0].any()
    # Four standard deviations of a share of n draws, one in 16,000.
    assert (np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)).all()


# -- ViT -------------------------------------------------------------------------------------------

WIDE, PATCH, LABELS = 12, 2, 3


def vit_weights() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {
        "vit.embeddings.cls_token": (1, 1, SIZE),
        "vit.embeddings.position_embeddings": (1, 5, SIZE),
        "vit.embeddings.patch_embeddings.projection.weight": (SIZE, 3, PATCH, PATCH),
        "vit.embeddings.patch_embeddings.projection.bias": (SIZE,),
        "classifier.weight": (LABELS, SIZE),
        "classifier.bias": (LABELS,),
    }
    for i in range(LAYERS):
        start = f"vit.encoder.layer.{i}"
        for name, m, n in [*((f"attention.attention.{x}", SIZE, SIZE) for x in
                             ("query", "key", "value")), ("attention.output.dense", SIZE, SIZE),
                           ("intermediate.dense", WIDE, SIZE),
                           ("output.dense", SIZE, WIDE)]:  # fmt: skip
            shapes |= {f"{start}.{name}.weight": (m, n), f"{start}.{name}.bias": (m,)}
        for name in ("before", "after"):
            shapes |= {f"{start}.layernorm_{name}.{end}": (SIZE,) for end in ("weight", "bias")}
    shapes |= {f"vit.layernorm.{end}": (SIZE,) for end in ("weight", "bias")}
    return random(1, shapes)


def vit_logits(weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    w = {name.removeprefix("vit."): a.astype(float) for name, a in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    n = len(images)
    patches = images.reshape(n, 2, PATCH, 2, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)  # as the kernel
    kernel = w["embeddings.patch_embeddings.projection.weight"].reshape(SIZE, -1)
    x = patches.reshape(n, 4, -1) @ kernel.T + w["embeddings.patch_embeddings.projection.bias"]
    first = np.broadcast_to(w["embeddings.cls_token"], (n, 1, SIZE))
    x = np.concatenate([first, x], 1) + w["embeddings.position_embeddings"]
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        h = norm(x, w, f"{layer}.layernorm_before", 1e-12)
        q, k, v = (linear(h, f"{layer}.attention.attention.{p}") for p in ("query", "key", "value"))
        x = x + linear(attend(q, k, v, HEADS, causal=False), f"{layer}.attention.output.dense")
        h = linear(norm(x, w, f"{layer}.layernorm_after", 1e-12), f"{layer}.intermediate.dense")
        x = x + linear(h * scipy.special.ndtr(h), f"{layer}.output.dense")
    return linear(norm(x, w, "layernorm", 1e-12)[:, 0], "classifier")


def test_vit_is_what_its_formulas_say_and_comes_back_as_it_came(tmp_path):
    config = {"image_size": 4, "patch_size": PATCH, "num_channels": 3, "hidden_size": SIZE,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": WIDE,
              "id2label": {str(i): "a label" for i in range(LABELS)}}  # fmt: skip
    weights = vit_weights()
    put(tmp_path, config, weights)
    model = vit.read(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("f")
    np.testing.assert_allclose(logits_of(model, images), vit_logits(weights, images), **TOLERANCE)
    (tmp_path / "ours").mkdir()
    vit.write(tmp_path / "ours", model)
    written = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(np.array_equal(written[name], weights[name]) for name in weights)
    again = vit.read(tmp_path / "ours")
    assert again.config == model.config and again.head.out_features == LABELS


# -- ResNet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [resnet.BasicBlock, resnet.Bottleneck])
def test_resnet_has_the_names_of_torchvision(block, tmp_path):
    n = 2 if block is resnet.BasicBlock else 3
    model = nnx.eval_shape(lambda: resnet.ResNet(block, (1, 2, 1, 1), 5, width=2, rngs=nnx.Rngs(0)))
    wide = block.expansion
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (2, 3, 7, 7)}
    norms = {"bn1": 2}
    for layer, blocks in enumerate((1, 2, 1, 1), 1):
        features = 2**layer
        for i in range(blocks):
            start, inputs = f"layer{layer}.{i}", features * wide if i else features * wide // 2
            inputs = 2 if (layer, i) == (1, 0) else inputs
            chain = [(inputs, features, 3), (features, features, 3)]
            if n == 3:
                chain = [(inputs, features, 1), chain[1], (features, features * wide, 1)]
            for j, (m, out, size) in enumerate(chain, 1):
                shapes[f"{start}.conv{j}.weight"] = (out, m, size, size)
                norms[f"{start}.bn{j}"] = out
            if inputs != features * wide or (layer > 1 and i == 0):
                shapes[f"{start}.downsample.0.weight"] = (features * wide, inputs, 1, 1)
                norms[f"{start}.downsample.1"] = features * wide
    ends = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{name}.{end}": (size,) for name, size in norms.items() for end in ends}
    shapes |= {"fc.weight": (5, 16 * wide), "fc.bias": (5,)}

    given = {n: np.abs(x) if "var" in n else x for n, x in random(2, shapes).items()}
    counts = {f"{name}.num_batches_tracked": np.array(7) for name in norms}
    safetensors.numpy.save_file(given | counts, tmp_path / "model.safetensors")
    assert nnx.from_torch(model, tmp_path / "model.safetensors") == ([], [], {})
    back = {name: np.asarray(x) for name, x in nnx.to_torch(model).items()}
    assert back.keys() == shapes.keys()
    assert all(np.array_equal(back[name], given[name]) for name in shapes)
    images = np.ones((1, 17, 17, 3), "f")
    by_statistics = nnx.view(model, use_running_average=True)
    assert logits_of(by_statistics, images).shape == (1, 5)
