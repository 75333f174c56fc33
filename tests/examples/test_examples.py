"""The smaller examples: their answers to mistakes, and that they reach what they claim."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

# Many models go through the one function that samples, which is not a mistake here.
pytestmark = pytest.mark.filterwarnings("ignore::refax.nnx.RetraceWarning")
NAMES = (
    "classify_digits", "vae_digits", "rnn_highlight_code", "finetune_lora", "stack_blocks",
    "train_sharded", "pipeline_stages", "mixture_of_experts", "gpt2", "vit", "resnet",
)  # fmt: skip


def run(name: str, out: Path, *arguments: str) -> None:
    """Run an example in this process; each file that it says it wrote is a picture."""
    assert example(name).main([*arguments, "--out", str(out)]) == 0


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


def pictures(folder: Path) -> list[str]:
    files = sorted(folder.iterdir())
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    return [file.name for file in files]


def numbers(output: str, row: str) -> list[float]:
    """The numbers in the last line that begins with `row`; percentages as shares."""
    lines = [line for line in output.splitlines() if line.startswith(row)]
    found = re.findall(r"(-?[\d,]*\d(?:\.\d+)?(?:e-?\d+)?)(%?)", lines[-1][len(row) :])
    return [float(n.replace(",", "")) / (100 if percent else 1) for n, percent in found]


# -- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_options_and_defaults(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        example(name).main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert (example(name).__doc__ or "").splitlines()[0] in shown.out
    assert f"(default: out/{name})" in " ".join(shown.out.split())
    assert "--seed N" in shown.out
    assert re.search(r"--(steps|epochs) N", shown.out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number, zero or more"),
        (["--depth", "3"], "unrecognized arguments: --depth 3"),
        (["--out", "{file}"], "--out: cannot make the folder"),
        (["{count}", "0"], "argument {count}: '0' is not"),
    ],
)
def test_mistakes_get_one_line(
    name: str, given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "file"
    file.touch()
    count = "--epochs" if "digits" in name else "--steps"
    with pytest.raises(SystemExit) as stop:
        example(name).main([part.format(file=file, count=count) for part in given])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}.py: error: {message.format(count=count)}")


def test_lora_needs_a_run_to_begin_with_and_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        example("finetune_lora").main(["--base", str(tmp_path), "--out", str(tmp_path)])
    assert f"{tmp_path} holds no run of this program" in capsys.readouterr().err


# -- what they claim -----------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_are_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("classify_digits", tmp_path, "--epochs", "25")
    output = capsys.readouterr().out
    accuracy, errors, of = numbers(output, "this network")
    assert accuracy >= 0.98
    assert (errors, of) == (round((1 - accuracy) * 360), 360)
    # scikit-learn's are deterministic.
    assert numbers(output, "logistic regression")[1:] == [12, 360]
    assert numbers(output, "nearest neighbour")[1:] == [3, 360]
    table = re.findall(r"^ +(\d)  {13}((?: +[\d·]+){10})", output, re.MULTILINE)
    assert [int(digit) for digit, _ in table] == list(range(10))
    counts = [[int(n.replace("·", "0")) for n in row.split()] for _, row in table]
    assert sum(map(sum, counts)) == 360
    assert sum(row[digit] for digit, row in enumerate(counts)) == 360 - errors
    assert pictures(tmp_path) == ["curves.png", "digits.png"]


@pytest.mark.slow
def test_the_autoencoder_needs_fewer_nats_than_independent_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run("vae_digits", tmp_path, "--epochs", "60")
    output = capsys.readouterr().out
    nats, _ = numbers(output, "this model (at most)")
    histogram, _ = numbers(output, "each pixel's histogram")
    mean, _ = numbers(output, "each pixel's mean (binomial)")
    assert nats < histogram - 15
    assert histogram < mean
    code, given = map(float, re.findall(r"([\d.]+) nats are for z, ([\d.]+) given z", output)[0])
    assert code + given == pytest.approx(nats, abs=0.11)  # each is rounded to 0.1
    assert code > 5  # z is used
    assert pictures(tmp_path) == ["digits.png"]


@pytest.mark.slow
def test_the_recurrent_network_colours_unseen_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run("rnn_highlight_code", tmp_path, "--steps", "200", "--max-bytes", "800_000")
    output = capsys.readouterr().out
    _, network, three, one = numbers(output, "all")
    assert network > 0.9
    assert one < three < 0.7
    classes = example("rnn_highlight_code").CLASSES
    shares = [numbers(output, f"{name:<22}")[0] for name in classes]
    assert sum(shares) == pytest.approx(1, abs=0.005)  # eight shares, each rounded to 0.1 %
    assert numbers(output, f"{'definition':<22}")[1] > 0.7  # tables of neighbours cannot
    assert pictures(tmp_path) == ["accuracy.png", "code.png"]


@pytest.mark.slow
def test_lora_learns_the_new_text_and_leaves_the_base_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run("finetune_lora", tmp_path, "--base-steps", "300", "--steps", "150")
    output = capsys.readouterr().out
    trained, share, new, _ = numbers(output, "LoRA, rank 8")
    none, _, before, _ = numbers(output, "base model  ")
    everything, whole, full, _ = numbers(output, "full fine-tuning  ")
    assert none == 0
    assert whole == 1
    assert trained / everything == pytest.approx(share, abs=0.0006)  # rounded to 0.1 %
    assert share < 0.2
    assert new < before - 0.1
    assert full < before
    assert "unchanged, bit for bit: yes" in output
    assert pictures(tmp_path) == ["loss.png"]


@pytest.mark.slow
def test_lora_begins_with_a_run_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = tmp_path / "base"
    sizes = "--n-layers 1 --n-heads 2 --d-model 16 --context 16 --batch-size 4 --steps 3"
    small = f"{sizes} --max-bytes 200_000 --eval-batches 2 --sample-bytes 0 --out {base}"
    assert example("train_language_model").main(small.split()) == 0
    run("finetune_lora", tmp_path / "lora", "--base", str(base), "--steps", "5", "--rank", "2")
    output = capsys.readouterr().out
    assert f"Base model: step 3 of {base}" in output
    assert "unchanged, bit for bit: yes" in output


@pytest.mark.slow
def test_a_stack_learns_what_the_list_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("stack_blocks", tmp_path, "--blocks", "1", "3", "--d-model", "16", "--steps", "10")
    rows = re.findall(
        r"^ +(\d+) +([\d,]+)  (\w+) +([\d.]+) s +([\d.]+) ms +([\d.]+)(?: +at most (\S+))?$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert [(int(n), name) for n, _, name, *_ in rows] == [
        (1, "list"), (1, "Stack"), (3, "list"), (3, "Stack")
    ]  # fmt: skip
    for listed, stacked in zip(rows[::2], rows[1::2]):
        assert listed[1] == stacked[1]  # parameters
        # float32, losses near 5, and ten steps of rounding in another order
        assert float(stacked[6]) < 1e-4
    assert pictures(tmp_path) == ["stack.png"]


@pytest.mark.slow
def test_gpt2_sorts_as_well_with_the_cache_as_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run("gpt2", tmp_path, "--steps", "300", "--digits", "8")
    output = capsys.readouterr().out
    digits, whole = numbers(output, "GPT-2")
    assert digits > 0.95
    assert whole > 0.8
    assert numbers(output, "the most frequent")[0] < 0.5
    assert "The same without the cache: 100.0% of the digits." in output
    assert len(numbers(output, "   512")) == 2
    assert f"Written to {tmp_path}, and read: the same." in output
    assert {file.name for file in tmp_path.iterdir()} == {
        "cache.png", "config.json", "model.safetensors"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "with_it", "without"),
    [
        ("vit", 800, "ViT", "ViT without places"),
        ("resnet", 200, "with shortcuts", "without shortcuts"),
    ],
)
def test_image_models_gain_by_what_they_add(
    name: str, steps: int, with_it: str, without: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    run(name, tmp_path, "--steps", str(steps))
    output = capsys.readouterr().out
    loss, accuracy = numbers(output, f"{with_it:<23}")
    loss_without, _ = numbers(output, f"{without:<23}")
    assert loss < loss_without / 2
    assert accuracy > 0.9
    assert f"and read: {accuracy:.2%}." in output
    assert (tmp_path / "loss.png").exists()
